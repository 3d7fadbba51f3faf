"""What the tests of calls as resources share: agents that can be held, looks into the streams."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mesh import Agent, CallContext, ChatRequest
from mesh.callers import Caller, new_instance_id
from mesh.client import MeshClient, open_client
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory
from mesh.history import read_history
from mesh.questions import encode_question
from mesh.runtime import AgentHost
from mesh.settings import Settings
from mesh.streams import REPLY
from schemas.registry import State
from tests.brokers import KillableBroker
from tests.conftest import Running, control_plane, until

TERMINAL = ("final", "error")


class Held:
    """An agent whose handler waits until it is let go, and tells what became of it."""

    def __init__(self, agent_id: str, *, concurrency: int = 16) -> None:
        self.agent = Agent(agent_id, concurrency=concurrency)
        self.started = 0
        self.stopped = 0
        self.finished = 0
        self.go = asyncio.Event()
        self.agent.chat(self._handle)

    async def _handle(self, request: ChatRequest, call: CallContext) -> str:
        self.started += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        self.finished += 1
        return f"{request.last_text}, attempt {call.attempt}"


async def offline(running: Running, client: MeshClient, agent_id: str) -> None:
    """Make an agent known, and leave it offline."""
    async with running(Agent(agent_id)):
        pass
    await until(lambda: client.directory.agent(agent_id).state is State.OFFLINE)


def question(agent_id: str, text: str = "hello", *, stream: bool = False) -> bytes:
    """Return the body of a request."""
    return encode_question(agent_id, text, stream=stream)


async def terminals(connection: Connection) -> Counter[str]:
    """Count the terminal frames that are stored, by reply subject: one call has one of each."""
    stored = await read_history(connection, REPLY, "agent.*.reply.>")
    return Counter(one.subject for one in stored if one.headers.get("mesh-kind") in TERMINAL)


@asynccontextmanager
async def client_at(url: str, name: str = "far") -> AsyncIterator[MeshClient]:
    """A client on a connection of its own."""
    async with (
        open_connection(url, name=f"test {name}") as connection,
        follow_directory(connection) as directory,
        open_client(connection, directory, Caller(name, "node1", new_instance_id())) as client,
    ):
        yield client


@dataclass(frozen=True, slots=True)
class OwnMesh:
    """A mesh that a test may take apart."""

    broker: KillableBroker
    control: asyncio.subprocess.Process
    directory: Directory
    connection: Connection
    client: MeshClient

    async def kill_control(self) -> None:
        """Kill the control plane."""
        self.control.kill()
        await self.control.wait()


@asynccontextmanager
async def own_mesh(settings: Settings, data_dir: Path, agent: Agent) -> AsyncIterator[OwnMesh]:
    """Run a broker, a control plane and one agent of its own, on node1."""
    async with KillableBroker(data_dir) as broker:
        own = replace(settings, nats_url=broker.url)
        async with (
            control_plane(own) as control,
            open_connection(broker.url, name="test own host") as host_connection,
            open_connection(broker.url, name="test own") as connection,
            follow_directory(connection) as directory,
            open_client(connection, directory, Caller("own", "node1", new_instance_id())) as client,
        ):
            host = AgentHost(host_connection, [agent], node="node1", settings=own)
            stop = asyncio.Event()
            serving = asyncio.create_task(host.run(stop, grace_s=1))
            await until(lambda: directory.agent_record(agent.id) is not None)
            await asyncio.wait_for(host.ready.wait(), 30)
            yield OwnMesh(broker, control, directory, connection, client)
            stop.set()
            await serving
