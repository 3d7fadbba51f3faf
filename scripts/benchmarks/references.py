"""What the mesh's door is measured beside: each started here, and named as a target for wrk."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from scripts.benchmarks import hand
from scripts.benchmarks.peers import bare_agent
from scripts.benchmarks.processes import (
    ROOT,
    BenchError,
    Mesh,
    Spoken,
    free_ports,
    python,
    running,
)
from scripts.benchmarks.wrk import Target

LISTENING: Final = r"listening on (http://\S+)"
UVICORN: Final = r"Uvicorn running on (http://\S+)"
GUIDE_VENV: Final = ".venv-bench"
LITELLM_VENV: Final = ".venv-litellm"
LITELLM_CONFIG: Final = """\
model_list:
  - model_name: upstream
    litellm_params: {{model: openai/upstream, api_key: none, api_base: "{url}/v1"}}
"""


@asynccontextmanager
async def bare(mesh: Mesh) -> AsyncIterator[Target]:
    """Run the bare door and the agent behind it, on the mesh's own broker and streams."""
    async with bare_agent_of(mesh), bare_door_of(mesh) as door:
        yield door


@asynccontextmanager
async def bare_agent_of(mesh: Mesh) -> AsyncIterator[Spoken]:
    """Run the agent by hand, on the mesh's own broker and streams."""
    await hand.declare_mailbox(mesh.nats_url, bare_agent.NAME)
    command = python("scripts.benchmarks.peers.bare_agent", mesh.nats_url)
    async with running("bare agent", command) as agent:
        await agent.says("ready")
        yield agent


@asynccontextmanager
async def bare_door_of(mesh: Mesh) -> AsyncIterator[Target]:
    """Run the bare door; the agent by hand answers behind it."""
    command = python("scripts.benchmarks.peers.bare_door", mesh.nats_url)
    async with running("bare door", command) as door:
        yield Target(await door.says(LISTENING), bare_agent.NAME)


@asynccontextmanager
async def guide() -> AsyncIterator[Target]:
    """Run the guide's own design: two routers, the registry and the agent."""
    names = ("registry", "node1", "node2", "agent")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    environs = {
        "registry": {},
        "node1": {"NODE": "node1", "ROUTER_URL": urls["node1"], "REGISTRY_URL": urls["registry"]},
        "node2": {"NODE": "node2", "ROUTER_URL": urls["node2"], "REGISTRY_URL": urls["registry"]},
        "agent": {"AGENT_ID": "guide", "AGENT_URL": urls["agent"], "ROUTER_URL": urls["node2"]},
    }
    async with AsyncExitStack() as stack:
        for name, environ in environs.items():
            module = "router" if name.startswith("node") else name
            app = f"scripts.benchmarks.peers.guide.{module}:app"
            options = ("--port", str(ports[name]), "--no-access-log")
            command = python("uvicorn", app, *options, venv=GUIDE_VENV)
            said = await stack.enter_async_context(
                running(f"the guide's {name}", command, **environ)
            )
            await said.says(UVICORN)
        yield Target(urls["node1"], "guide")


@asynccontextmanager
async def litellm(folder: Path) -> AsyncIterator[Target]:
    """Run LiteLLM's proxy, before an upstream that answers at once."""
    key = f"sk-{secrets.token_hex(32)}"
    # The price list that comes with it: no look-up anywhere.
    environ = {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    async with running("upstream", python("scripts.benchmarks.peers.upstream")) as upstream:
        config = folder / "litellm.yaml"
        config.write_text(LITELLM_CONFIG.format(url=await upstream.says(LISTENING)))
        program = str(ROOT / LITELLM_VENV / "bin" / "litellm")
        options = ("--config", str(config), "--host", "127.0.0.1", "--port", "0")
        command = (program, *options, "--telemetry", "False")
        async with running("litellm", command, **environ) as proxy:
            header = f"authorization: Bearer {key}"
            yield Target(await proxy.says(UVICORN), "upstream", header)


async def environment(name: str) -> None:
    """Make one of the environments of `scripts/setup`, if it is not there.

    Raises:
        BenchError: it cannot be made.
    """
    process = await asyncio.create_subprocess_exec(str(ROOT / "scripts" / "setup"), name)
    if await process.wait():
        raise BenchError(f"scripts/setup {name} failed, see above")
