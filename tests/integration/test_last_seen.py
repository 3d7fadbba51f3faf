"""When an agent was last seen: written once when it goes, known after a restart of everything."""

import asyncio
import json
import os
import signal
from datetime import UTC, datetime
from pathlib import Path

from handlers.registrar import Registrar
from mesh import registry
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory, load_directory
from mesh.runtime import describe_process
from mesh.settings import Settings
from schemas.card import AgentCard
from schemas.registry import AgentRecord, Role, State
from tests.brisk import BEAT_S, brisk_broker
from tests.conftest import control_plane, until
from tests.integration.test_registry import host_process


async def passed(seconds: float) -> None:
    """Let time pass that is the subject of a test."""
    end = asyncio.get_running_loop().time() + seconds
    await until(lambda: asyncio.get_running_loop().time() > end)


def epoch_s(time: str) -> float:
    """A time of the registry: it has whole seconds, cut off."""
    return datetime.fromisoformat(time).timestamp()


def last_seen(directory: Directory, agent: str = "echo") -> tuple[str, str]:
    """When an agent, and the node it is on, were last seen."""
    view = directory.agent(agent)
    [node] = [one for one in directory.nodes() if one.node in view.nodes]
    return view.last_seen, node.last_seen


def on_record(directory: Directory, agent: str = "echo") -> str:
    """What the registrar has written down."""
    record = directory.agent_record(agent)
    assert record
    return record.last_seen


async def test_it_survives_the_death_of_everything(tmp_path: Path) -> None:
    """Host, registrar and broker are killed at once; nobody had the time to write anything down."""
    async with (
        brisk_broker(tmp_path) as (broker, settings),
        control_plane(settings) as control,
        host_process(settings, "handlers.echo:agent", "node-k") as host,
    ):
        async with (
            open_connection(settings.nats_url, name="test") as connection,
            follow_directory(connection) as directory,
        ):
            await until(lambda: directory.agent_record("echo") is not None)
            await until(lambda: directory.agent("echo").state is State.ONLINE)
            registered_at = epoch_s(directory.agent("echo").registered_at)
            # It lives for a while: when it registered is not when it was last seen.
            await until(lambda: epoch_s(last_seen(directory)[0]) > registered_at + 2)
            assert on_record(directory) == ""
        killed_at = datetime.now(UTC).timestamp()
        for pid in (broker.pid, control.pid, host.pid):
            os.kill(pid, signal.SIGKILL)
        await broker.wait()
    await passed(3.0)
    limits = (killed_at - 2 * BEAT_S - 1, killed_at)
    async with (
        brisk_broker(tmp_path) as (_, settings),
        open_connection(settings.nats_url, name="test") as connection,
    ):
        # Without a registrar to ask.
        directory = await load_directory(connection)
        assert all(limits[0] <= epoch_s(one) <= limits[1] for one in last_seen(directory))
        async with control_plane(settings), follow_directory(connection) as followed:
            await until(lambda: bool(on_record(followed)))
            await until(lambda: followed.agent("echo").state is State.OFFLINE)
            assert all(limits[0] <= epoch_s(one) <= limits[1] for one in last_seen(followed))
            written = last_seen(followed)
            # What is written stays, however long the registrar looks on.
            await passed(2 * BEAT_S)
            assert last_seen(await load_directory(connection)) == written


async def test_a_registrar_that_is_behind_overwrites_nothing(
    settings: Settings, agent_id: str, connection: Connection, directory: Directory
) -> None:
    """It writes over the revision that it has looked at, or not at all."""

    def record(description: str) -> AgentRecord:
        card = AgentCard(id=agent_id, description=description)
        return AgentRecord(card=card, registered_at="2026-11-25T12:00:00+00:00")

    key = registry.agent_key(agent_id)
    behind = Directory()
    behind.apply(await registry.put(connection, key, record("old")))
    await registry.put(connection, key, record("new"))
    assert [one.key for one in behind.endings()] == [key]
    instance = describe_process("node1", Role.REGISTRAR)
    await Registrar(connection, behind, settings, instance).settle()
    await until(lambda: bool((known := directory.agent_record(agent_id)) and known.last_seen))
    [stored] = await registry.read_registry(connection, key)
    assert json.loads(stored.value or b"")["card"]["description"] == "new"
