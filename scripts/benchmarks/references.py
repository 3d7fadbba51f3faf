"""What the mesh's door is measured beside: each started here, and named as a target for wrk."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scripts.benchmarks import hand
from scripts.benchmarks.peers import bare_agent
from scripts.benchmarks.processes import Mesh, python, running
from scripts.benchmarks.wrk import Target

LISTENING = r"listening on (http://\S+)"


@asynccontextmanager
async def bare(mesh: Mesh) -> AsyncIterator[Target]:
    """Run the bare door and the agent behind it, on the mesh's own broker and streams."""
    await hand.declare_mailbox(mesh.nats_url, bare_agent.NAME)
    agent = python("scripts.benchmarks.peers.bare_agent", mesh.nats_url)
    door = python("scripts.benchmarks.peers.bare_door", mesh.nats_url)
    async with running("bare agent", agent) as answering, running("bare door", door) as serving:
        await answering.says("ready")
        yield Target(await serving.says(LISTENING), bare_agent.NAME)
