"""Hearing the traffic of a real mesh: as long as somebody watches, and from the beginning again."""

import asyncio

from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.traffic import Traffic
from tests.conftest import Running, until
from tests.shim import online, replier


def answered(traffic: Traffic, agent: str) -> int:
    """Return how many answered calls of an agent are known."""
    return sum(one.ended_at > 0 for one in traffic.log.calls_of(agent, 100))


async def test_nothing_is_heard_when_nobody_watches(
    connection: Connection,
    running: Running,
    directory: Directory,
    client: MeshClient,
    agent_id: str,
) -> None:
    """What was missed is not guessed; who comes again finds what is stored, and what is new."""
    traffic = Traffic(connection, linger_s=0.1)
    async with online(running, directory, replier(agent_id)):
        async with traffic.watching() as log:
            await client.ask(agent_id, "seen")
            await until(lambda: answered(traffic, agent_id) == 1)
        await until(lambda: traffic.log is not log)
        assert answered(traffic, agent_id) == 0
        await client.ask(agent_id, "missed")
        async with traffic.watching():
            assert answered(traffic, agent_id) == 2, "both answers are stored"
            await client.ask(agent_id, "seen again")
            await until(lambda: answered(traffic, agent_id) == 3)


async def test_who_comes_while_it_ends_hears(
    connection: Connection,
    running: Running,
    directory: Directory,
    client: MeshClient,
    agent_id: str,
) -> None:
    """Whatever the moment."""
    traffic = Traffic(connection, linger_s=0.0)
    async with online(running, directory, replier(agent_id)):
        for turn in range(30):
            async with traffic.watching():
                await asyncio.sleep(0)
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            async with traffic.watching():
                known = answered(traffic, agent_id)
                await client.ask(agent_id, "hello")
                await until(lambda before=known: answered(traffic, agent_id) > before)
