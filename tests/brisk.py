"""A mesh of its own: nobody else has left anything in it, and who is silent is soon given up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mesh import Agent
from mesh.broker import EmbeddedBroker, embedded_broker
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory
from mesh.runtime import AgentHost
from mesh.settings import Settings
from schemas.registry import State
from tests.conftest import control_plane, until

BEAT_S: Final = 2.0
"""Three of them make an agent offline: longer than a busy machine usually stops everybody."""


@dataclass(frozen=True, slots=True)
class BriskMesh:
    """A broker, a control plane, and a view of the registry."""

    settings: Settings
    connection: Connection
    directory: Directory

    @asynccontextmanager
    async def hosting(self, *agents: Agent, node: str = "node1") -> AsyncIterator[AgentHost]:
        """Run agents, and begin when they are online."""
        host = AgentHost(self.connection, agents, node=node, settings=self.settings)
        stop = asyncio.Event()
        task = asyncio.create_task(host.run(stop))
        await until(lambda: all(self.directory.agent_record(one.id) for one in agents))
        await until(
            lambda: all(self.directory.agent(one.id).state is State.ONLINE for one in agents)
        )
        try:
            yield host
        finally:
            stop.set()
            await task


@asynccontextmanager
async def brisk_broker(folder: Path) -> AsyncIterator[tuple[EmbeddedBroker, Settings]]:
    """A broker that can be killed, with its data in a folder."""
    wanted = Settings(nats_port=0, nats_monitor_port=0, data_dir=folder, heartbeat_s=BEAT_S)
    async with embedded_broker(wanted) as broker:
        yield (
            broker,
            replace(
                wanted,
                nats_url=broker.url,
                is_broker_external=True,
                nats_monitor_url=broker.monitor_url,
            ),
        )


@asynccontextmanager
async def brisk_mesh(folder: Path) -> AsyncIterator[BriskMesh]:
    """Run the mesh, with its data in a folder."""
    async with (
        brisk_broker(folder) as (_, settings),
        control_plane(settings),
        open_connection(settings.nats_url, name="test brisk") as connection,
        follow_directory(connection) as directory,
    ):
        yield BriskMesh(settings, connection, directory)
