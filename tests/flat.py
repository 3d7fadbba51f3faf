"""An agent and a caller of large files, each a process of its own that tells what memory it took.

`python -m tests.flat URL AGENT` runs the agent, which sends back what it got. `python -m tests.flat
URL AGENT FILE OUT SMALL` asks it: about a small file first, so that everything is loaded. In a
secure mesh, each with MESH_CREDS of its own.
"""

import asyncio
import json
import os
import re
import sys
import time
from asyncio.subprocess import PIPE, create_subprocess_exec
from pathlib import Path
from typing import Final

import mesh
from mesh import Agent, CallContext, ChatReply, ChatRequest
from mesh.connection import open_connection
from mesh.runtime import AgentHost
from mesh.settings import Settings
from mesh.trust.login import Login

MEGABYTE: Final = 1_000_000


def peak_bytes() -> int:
    """Return the most memory that this program had so far.

    Not `ru_maxrss`: Linux counts there what the process had before it became this program.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def returning(agent_id: str) -> Agent:
    """An agent that saves a file, answers with it, and says what memory it has taken so far."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest, call: CallContext) -> ChatReply:
        assert call.file is not None
        path = await call.file.save(Path(request.last_text))
        await call.attach(path, "returned.bin")
        await asyncio.to_thread(os.unlink, path)
        return ChatReply(content=str(peak_bytes()))

    return agent


async def serve(url: str, agent_id: str) -> None:
    """Run the agent until stdin is closed."""
    settings = Settings.from_env({**os.environ, "MESH_NATS_URL": url, "MESH_NODE": "node1"})
    async with open_connection(Login.of(settings), name="flat host") as connection:
        host = AgentHost(connection, [returning(agent_id)], node="node1", settings=settings)
        stop = asyncio.Event()
        serving = asyncio.create_task(host.run(stop))
        await host.ready.wait()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        stop.set()
        await serving


async def call(url: str, agent_id: str, file: str, out: str, small: str) -> None:
    """Ask about a small file and then a large one, and print how much more that took."""
    async with mesh.connect(url) as client:
        peaks, agents_peaks = [], []
        for sent in (small, file):
            began = time.monotonic()
            reply = await client.ask(agent_id, f"{out}.agent", file=sent)
            await reply.file.save(out)
            agents_peaks.append(int(reply.text))
            peaks.append(peak_bytes())
    grown = {"caller": peaks[1] - peaks[0], "agent": agents_peaks[1] - agents_peaks[0]}
    sys.stdout.write(json.dumps({**grown, "took_s": time.monotonic() - began}))


async def round_trip(
    url: str, agent_id: str, folder: Path, *, agent_creds: str = "", caller_creds: str = ""
) -> dict[str, float]:
    """Send 100 MB there and back between two processes, and return what they say of it.

    Raises:
        AssertionError: what came back is something else.
    """
    large, small, out = folder / "large", folder / "small", folder / "out"
    with large.open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(MEGABYTE))
    small.write_bytes(os.urandom(MEGABYTE // 2))
    flat = (sys.executable, "-m", "tests.flat", url, agent_id)
    agent = await create_subprocess_exec(*flat, stdin=PIPE, stdout=PIPE, env=_shown(agent_creds))
    assert agent.stdin is not None
    assert agent.stdout is not None
    try:
        assert await agent.stdout.readline() == b"ready\n"
        caller = await create_subprocess_exec(
            *(*flat, str(large), str(out), str(small)), stdout=PIPE, env=_shown(caller_creds)
        )
        told, _ = await asyncio.wait_for(caller.communicate(), 120)
    finally:
        agent.stdin.close()
        await agent.wait()
    assert out.read_bytes() == large.read_bytes()
    return dict(json.loads(told))


def _shown(creds: str) -> dict[str, str]:
    return {**os.environ, **({"MESH_CREDS": creds} if creds else {})}


if __name__ == "__main__":
    work = serve if len(sys.argv) == 3 else call
    asyncio.run(work(*sys.argv[1:]))
