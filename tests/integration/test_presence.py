"""Who is dead, who only stood still, and what nobody can know: as heartbeats stop and go on."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from nats.aio.msg import Msg

from mesh.directory import Directory
from schemas.registry import Role, State
from tests.brisk import BEAT_S, BriskMesh, brisk_mesh
from tests.conftest import control_plane, until
from tests.integration.test_last_seen import epoch_s, on_record, passed
from tests.integration.test_registry import echo, host_process


@pytest.fixture(scope="module")
async def brisk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BriskMesh]:
    """A mesh in which who is silent is soon given up."""
    async with brisk_mesh(tmp_path_factory.mktemp("brisk")) as mesh:
        yield mesh


async def test_a_killed_process_is_seen_offline(brisk: BriskMesh) -> None:
    """Within three heartbeats of a kill -9 its agents and its node are offline."""
    directory = brisk.directory
    async with host_process(brisk.settings, "handlers.echo:agent", "node-k") as process:
        await until(lambda: directory.agent_record("echo") is not None)
        await until(lambda: directory.agent("echo").state is State.ONLINE)
        process.send_signal(signal.SIGKILL)
        start = asyncio.get_running_loop().time()
        await until(lambda: directory.agent("echo").state is State.OFFLINE)
        # And what the registrar, and a busy machine, need.
        assert asyncio.get_running_loop().time() - start < 3 * BEAT_S + 4
    await until(lambda: not any(one.agent == "echo" for one in directory.placements()))


async def test_who_was_thought_dead_is_alive_again(brisk: BriskMesh) -> None:
    """A process that stood still is written off, and empties its record when it goes on."""
    directory = brisk.directory
    async with host_process(brisk.settings, "handlers.echo:agent", "node-s") as process:
        await until(lambda: directory.agent_record("echo") is not None)
        await until(lambda: directory.agent("echo").state is State.ONLINE)
        await until(lambda: on_record(directory) == "")
        process.send_signal(signal.SIGSTOP)
        stopped_at = datetime.now(UTC).timestamp()
        await until(lambda: bool(on_record(directory)))
        # Less one heartbeat, and its time is cut to seconds; and a busy machine.
        assert stopped_at - 2 * BEAT_S - 1 < epoch_s(on_record(directory)) <= stopped_at
        process.send_signal(signal.SIGCONT)
        await until(lambda: directory.agent("echo").state is State.ONLINE)
        await until(lambda: on_record(directory) == "")
        await until(lambda: not getattr(directory.node_record("node-s"), "last_seen", ""))


async def test_two_registrars_write_it_once(brisk: BriskMesh, agent_id: str) -> None:
    """The second finds the record changed, and leaves it."""
    directory, seen = brisk.directory, list[dict[str, str]]()

    async def keep(message: Msg) -> None:
        seen.append(json.loads(message.data))

    async with control_plane(replace(brisk.settings, node="node-second")):
        await until(lambda: [one.role for one in directory.instances()].count(Role.REGISTRAR) == 2)
        events = f"registry.event.agent.{agent_id}"
        subscription = await brisk.connection.client.subscribe(events, cb=keep)
        async with brisk.hosting(echo(agent_id)):
            pass
        await until(lambda: bool(on_record(directory, agent_id)))
        await passed(3 * BEAT_S)
        await subscription.unsubscribe()
    assert [bool(one["last_seen"]) for one in seen] == [False, True]


async def test_a_dead_registrar_makes_nobody_offline(brisk: BriskMesh, agent_id: str) -> None:
    """From its kill on, what it can no longer know is unknown: never, for a moment, offline."""
    directory, states = brisk.directory, list[str]()

    async def watch() -> None:
        while True:
            states.append(directory.agent(agent_id).state)
            await asyncio.sleep(0.005)

    async with brisk.hosting(echo(agent_id)) as host:
        lifetimes = await lifetimes_s(brisk, host.instance.instance)
        assert lifetimes[Role.REGISTRAR] <= lifetimes[Role.HOST] - BEAT_S
        for share in (0.0, 0.8):
            # The moment of death, between two heartbeats, must not matter.
            await until(lambda: directory.is_authoritative)
            await asyncio.sleep(share * BEAT_S)
            watching = asyncio.create_task(watch())
            async with paused_registrars(directory):
                await until(lambda: directory.agent(agent_id).state is State.UNKNOWN)
                watching.cancel()
        assert set(states) <= {"online", "unknown"}
        await until(lambda: directory.agent(agent_id).state is State.ONLINE)


async def lifetimes_s(brisk: BriskMesh, host: str) -> dict[Role, int]:
    """How long the key of a registrar, and of one host, lives without being written again."""
    found = {}
    for one in brisk.directory.instances():
        if one.role is Role.REGISTRAR or one.instance == host:
            key = f"$KV.registry.instance.{one.instance}"
            message = await brisk.connection.client.jsm().get_last_msg("KV_registry", key)
            found[one.role] = int((message.headers or {})["Nats-TTL"])
    return found


@asynccontextmanager
async def paused_registrars(directory: Directory) -> AsyncIterator[None]:
    """Stop every registrar as a dead one is stopped: at once, without a word."""
    pids = [one.pid for one in directory.instances() if one.role is Role.REGISTRAR]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
