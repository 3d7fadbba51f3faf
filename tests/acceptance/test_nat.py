"""Two machines: a hub, and one that lets connections out and none in. Needs network namespaces.

The hub has no route to the second machine at all; what it sees of it comes from the router between.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from tests.acceptance.conftest import ROOT, Process, clean_environ, run_mesh, start_mesh

HUB, ROUTER_OUT = "198.51.100.1", "198.51.100.254"
NODE, ROUTER_IN = "192.0.2.2", "192.0.2.254"
PORT = "4222"


async def ip(*arguments: str) -> bool:
    """Run `ip`; tell whether it was allowed."""
    process = await asyncio.create_subprocess_exec(
        "ip", *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait() == 0


@dataclass(frozen=True, slots=True)
class Net:
    """Three namespaces: the hub, the second machine, and the router between them."""

    name: str

    @property
    def hub(self) -> tuple[str, ...]:
        """What runs a command on the hub."""
        return ("ip", "netns", "exec", f"{self.name}-hub")

    @property
    def node(self) -> tuple[str, ...]:
        """What runs a command on the second machine."""
        return ("ip", "netns", "exec", f"{self.name}-node")

    @property
    def router(self) -> tuple[str, ...]:
        """What runs a command on the router."""
        return ("ip", "netns", "exec", f"{self.name}-rt")

    async def make(self) -> bool:
        """Make it; false where that is not allowed."""
        for one in ("hub", "rt", "node"):
            if not await ip("netns", "add", f"{self.name}-{one}"):
                return False
            await ip("-n", f"{self.name}-{one}", "link", "set", "lo", "up")
        tag = self.name[-6:]
        for end, address, router in (("hub", HUB, ROUTER_OUT), ("node", NODE, ROUTER_IN)):
            ends = f"h{tag}{end[0]}", f"r{tag}{end[0]}"
            if not await ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1]):
                return False
            for link, space, its in (
                (ends[0], f"{self.name}-{end}", address),
                (ends[1], f"{self.name}-rt", router),
            ):
                await ip("link", "set", link, "netns", space)
                await ip("-n", space, "addr", "add", f"{its}/24", "dev", link)
                await ip("-n", space, "link", "set", link, "up")
        return True

    async def remove(self) -> None:
        """Take it away, with its links."""
        for one in ("hub", "rt", "node"):
            await ip("netns", "del", f"{self.name}-{one}")


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    """The two machines, and nothing between them but the router."""
    made = Net(f"mesh{os.getpid()}")
    try:
        if shutil.which("ip") is None or not await made.make():
            pytest.skip("NOT RUN: two machines (network namespaces cannot be made here)")
        yield made
    finally:
        if shutil.which("ip") is not None:
            await made.remove()


async def reaches(prefix: tuple[str, ...], host: str) -> bool:
    """Tell whether a connection can be made from a machine."""
    code = f"import socket; socket.create_connection(('{host}', {PORT}), 1).close()"
    process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-c", code), stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait() == 0


async def post(prefix: tuple[str, ...], url: str, body: dict[str, object]) -> str:
    """Ask the door of a machine, on that machine."""
    code = (
        "import sys, urllib.request as r; print(r.urlopen(r.Request(sys.argv[1], "
        "sys.argv[2].encode(), {'content-type': 'application/json'}), timeout=20).read().decode())"
    )
    process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-c", code, url, orjson.dumps(body).decode()),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    answer = orjson.loads(out)
    return str(answer["choices"][0]["message"]["content"])


async def relaying(net: Net) -> asyncio.subprocess.Process:
    """Run the router."""
    process = await asyncio.create_subprocess_exec(
        *(*net.router, sys.executable, "-m", "tests.relay", f"{ROUTER_IN}:{PORT}", f"{HUB}:{PORT}"),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"relaying\n"
    return process


async def start(stack: AsyncExitStack, *arguments: str, **how: object) -> Process:
    """Start a long-running command, until the end of the test."""
    return await stack.enter_async_context(start_mesh(*arguments, **how))  # type: ignore[arg-type]


@pytest.mark.timeout(240)
async def test_two_machines_one_of_them_behind_a_router(net: Net, tmp_path: Path) -> None:
    """Daarwizz on node1 asks Solarius on node2, and node2 asks Daarwizz; nothing can call node2."""
    hub = clean_environ(tmp_path / "hub", MESH_NATS_HOST=HUB, MESH_NATS_PORT=PORT)
    laptop = clean_environ(tmp_path / "laptop")
    del laptop["MESH_NODE"]  # The token says how it is called.
    made = await run_mesh("keys", "init", "--host", ROUTER_IN, environ=hub, prefix=net.hub)
    assert made.code == 0, made.err
    async with AsyncExitStack() as stack:
        up = await start(stack, "up", environ=hub, prefix=net.hub)
        await up.says("mesh is up on node1")
        door = await up.says(r"OpenAI +(\S+)")
        router = await relaying(net)
        stack.callback(router.terminate)
        assert await reaches(net.node, ROUTER_IN)
        assert not await reaches(net.hub, NODE)
        assert not await reaches(net.hub, ROUTER_OUT)

        await run_mesh("keys", "agent", "daarwizz", environ=hub, prefix=net.hub)
        one = await start(stack, "run", "handlers.daarwizz:agent", environ=hub, prefix=net.hub)
        await one.says("agent daarwizz runs on node1")
        invited = await run_mesh(
            *("keys", "invite", "node2", "--agents", "solarius"), environ=hub, prefix=net.hub
        )
        joined = await start(stack, "join", invited.out.strip(), environ=laptop, prefix=net.node)
        await joined.says("mesh is up on node2")
        own_door = await joined.says(r"OpenAI +(\S+)")
        two = await start(stack, "run", "handlers.solarius:agent", environ=laptop, prefix=net.node)
        await two.says("agent solarius runs on node2")

        question = {"role": "user", "content": "How long is the day in Kyiv on 2026-06-21?"}
        asked: dict[str, object] = {"messages": [question], "model": "solarius"}
        guide = {**asked, "agent_id": "solarius", "target_node": "node2", "source_node": "node1"}
        assert "Kyiv" in await post(net.hub, f"{door}/chat/completions", guide)
        passed_on = {**asked, "model": "daarwizz"}
        for prefix, url in ((net.hub, door), (net.node, own_door)):
            said = await post(prefix, f"{url}/chat/completions", passed_on)
            assert said.startswith("I asked solarius. On 2026-06-21: Kyiv 16 h")
        nodes = await run_mesh("nodes", environ=laptop, prefix=net.node)
        assert [line.split()[0] for line in nodes.out.splitlines()[1:]] == ["node1", "node2"]
