"""When an agent was last seen: written once when it goes, known after a restart of everything."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from nats.aio.client import Client
from nats.aio.msg import Msg

from handlers.registrar import Registrar
from mesh import registry
from mesh.broker import EmbeddedBroker, embedded_broker
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory, load_directory
from mesh.runtime import describe_process
from mesh.settings import Settings
from schemas.card import AgentCard
from schemas.registry import AgentRecord, Role, State
from tests.conftest import HEARTBEAT_S, Running, control_plane, until
from tests.integration.test_registry import echo, host_process
from tests.shim import online


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


@asynccontextmanager
async def own_broker(folder: Path) -> AsyncIterator[tuple[EmbeddedBroker, Settings]]:
    """A broker that can be killed, with its data in a folder."""
    settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=folder, heartbeat_s=HEARTBEAT_S)
    async with embedded_broker(settings) as broker:
        yield broker, replace(settings, nats_url=broker.url, is_broker_external=True)


async def test_it_survives_the_death_of_everything(tmp_path: Path) -> None:
    """Host, registrar and broker are killed at once; nobody had the time to write anything down."""
    async with (
        own_broker(tmp_path) as (broker, settings),
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
    limits = (killed_at - 2 * HEARTBEAT_S - 1, killed_at)
    async with (
        own_broker(tmp_path) as (_, settings),
        open_connection(settings.nats_url, name="test") as connection,
    ):
        # Without a registrar to ask.
        directory = await load_directory(connection)
        assert all(limits[0] <= epoch_s(one) <= limits[1] for one in last_seen(directory))
        async with control_plane(settings), follow_directory(connection) as followed:
            await until(lambda: bool(on_record(followed)), within_s=15)
            await until(lambda: followed.agent("echo").state is State.OFFLINE)
            assert all(limits[0] <= epoch_s(one) <= limits[1] for one in last_seen(followed))
            written = last_seen(followed)
            # What is written stays, however long the registrar looks on.
            await passed(2 * HEARTBEAT_S)
            assert last_seen(await load_directory(connection)) == written


async def test_two_registrars_write_it_once(
    settings: Settings, agent_id: str, running: Running, directory: Directory, bare: Client
) -> None:
    """The second finds the record changed, and leaves it."""
    seen: list[dict[str, str]] = []

    async def keep(message: Msg) -> None:
        seen.append(json.loads(message.data))

    async with control_plane(replace(settings, node="node-second")):
        await until(lambda: [one.role for one in directory.instances()].count(Role.REGISTRAR) == 2)
        await bare.subscribe(f"registry.event.agent.{agent_id}", cb=keep)
        async with online(running, directory, echo(agent_id)):
            pass
        await until(lambda: bool(on_record(directory, agent_id)))
        await passed(4 * HEARTBEAT_S)
    assert [bool(one["last_seen"]) for one in seen] == [False, True]


async def test_who_was_thought_dead_is_alive_again(
    settings: Settings, directory: Directory
) -> None:
    """A process that stood still is written off, and empties its record when it goes on."""
    async with host_process(settings, "handlers.echo:agent", "node-s") as process:
        await until(lambda: directory.agent_record("echo") is not None)
        await until(lambda: directory.agent("echo").state is State.ONLINE)
        process.send_signal(signal.SIGSTOP)
        stopped_at = datetime.now(UTC).timestamp()
        await until(lambda: bool(on_record(directory)))
        assert stopped_at - HEARTBEAT_S - 1.5 < epoch_s(on_record(directory)) <= stopped_at
        process.send_signal(signal.SIGCONT)
        await until(lambda: directory.agent("echo").state is State.ONLINE)
        await until(lambda: on_record(directory) == "")
        await until(lambda: not getattr(directory.node_record("node-s"), "last_seen", ""))


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
