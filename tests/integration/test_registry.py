"""The registry: who registers, who leaves, who dies, and who may ask."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from nats.aio.client import Client

from mesh import Agent, ChatRequest
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory, load_directory
from mesh.errors import AgentNotFoundError, InvalidIdError, TransportError
from mesh.provision import check_streams, ensure_streams
from mesh.runtime import describe_process
from mesh.settings import Settings
from mesh.streams import REGISTRY
from schemas.card import AgentCard
from schemas.registry import Announcement, Role, State
from tests.brisk import brisk_broker, brisk_mesh
from tests.brokers import varz
from tests.conftest import Running, control_plane, mesh_environ, until


def echo(agent_id: str) -> Agent:
    """An agent that repeats what it is told."""
    agent = Agent(agent_id, description="Repeats.")

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return request.last_text

    return agent


@asynccontextmanager
async def host_process(
    settings: Settings, target: str, node: str, folder: Path | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run agents by `mesh run` in a folder, in a process that can be killed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mesh", "run", target),
        env=mesh_environ(replace(settings, node=node)),
        cwd=folder,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_an_agent_that_starts_before_the_registry(tmp_path: Path) -> None:
    """As in a fresh folder, with `mesh up` and `mesh run` side by side."""
    async with (
        brisk_broker(tmp_path) as (broker, settings),
        host_process(settings, "handlers.echo:agent", "node1") as host,
    ):

        async def is_connected() -> bool:
            return bool((await varz(broker.monitor_url))["connections"])

        await until(is_connected)
        async with (
            control_plane(settings),
            open_connection(settings.nats_url, name="test") as connection,
            follow_directory(connection) as directory,
        ):
            await until(lambda: directory.agent_record("echo") is not None)
        assert host.returncode is None


async def test_an_agent_registers_and_leaves(
    agent_id: str, running: Running, directory: Directory
) -> None:
    """Agent, node, placement and instance appear at start; at stop the agent is offline at once."""
    async with running(echo(agent_id), node="node-r") as host:
        view = directory.agent(agent_id)
        assert (view.state, view.nodes) == ("online", ("node-r",))
        assert view.instances == (host.instance.instance,)
        assert view.card.description == "Repeats."
        assert agent_id in next(one for one in directory.nodes() if one.node == "node-r").agents
    await until(lambda: directory.agent(agent_id).state == "offline", within_s=8)
    assert directory.agent(agent_id).nodes == ("node-r",)


async def test_any_client_can_ask_the_registrar(
    agent_id: str, running: Running, bare: Client
) -> None:
    """`registry.get.<id>` and `registry.list` answer in JSON; an unknown agent is a typed error."""
    async with running(echo(agent_id)):
        answer = json.loads((await bare.request(f"registry.get.{agent_id}", timeout=30)).data)
        assert answer["card"]["id"] == agent_id
        assert answer["state"] == "online"
        listed = json.loads((await bare.request("registry.list", timeout=30)).data)
        assert agent_id in [one["card"]["id"] for one in listed["agents"]]
        assert "node1" in [one["node"] for one in listed["nodes"]]
    answer = json.loads((await bare.request("registry.get.no-such-agent", timeout=30)).data)
    assert answer["error"]["code"] == "agent_not_found"
    answer = json.loads((await bare.request("registry.get.BAD", timeout=30)).data)
    assert answer["error"]["code"] == "invalid_id"


async def test_changes_of_the_bucket_are_events(
    agent_id: str, running: Running, bare: Client
) -> None:
    """Every change of the registry appears on `registry.event.<key>`."""
    events = await bare.subscribe(f"registry.event.placement.{agent_id}.*")
    async with running(echo(agent_id)) as host:
        appeared = await events.next_msg(timeout=30)
        assert appeared.subject.endswith(host.instance.instance)
        assert json.loads(appeared.data)["node"] == "node1"
    left = await events.next_msg(timeout=30)
    assert (left.headers or {})["KV-Operation"] == "DEL"


async def test_a_card_on_the_wrong_subject_is_refused(
    agent_id: str, bare: Client, directory: Directory
) -> None:
    """Nobody registers an agent under another's id, and a broken card is told what is wrong."""
    instance = describe_process("node1", Role.HOST, [agent_id])
    card = AgentCard(id=f"{agent_id}-x")
    forged = Announcement(card=card, instance=instance).model_dump(mode="json")
    broken = {"card": {"id": "no.id"}, "instance": instance.model_dump(mode="json")}
    for body, complaint in ((forged, "on the subject of"), (broken, "card.id")):
        inbox = bare.new_inbox()
        answers = await bare.subscribe(inbox)
        await bare.publish(
            f"registry.announce.{agent_id}.node1",
            json.dumps(body).encode(),
            headers={"reply_to": inbox, "content-type": "application/json"},
        )
        receipt = json.loads((await answers.next_msg(timeout=30)).data)
        assert not receipt["ok"]
        assert complaint in receipt["message"]
    assert directory.agent_record(agent_id) is None
    assert directory.agent_record(f"{agent_id}-x") is None


async def test_ids_are_checked_before_anything_is_made(agent_id: str) -> None:
    """An agent cannot be made with an id that is none."""
    for bad in ("a.b", "*", "", "a" * 33, "A", "a\n"):
        with pytest.raises(InvalidIdError):
            Agent(bad)


async def test_a_host_announces_again_what_was_forgotten(
    agent_id: str, running: Running, directory: Directory, bare: Client
) -> None:
    """When the registry loses a placement, the next heartbeat brings it back."""
    async with running(echo(agent_id)) as host:
        key = f"placement.{agent_id}.{host.instance.instance}"
        await bare.jetstream().publish(f"$KV.registry.{key}", b"", headers={"KV-Operation": "DEL"})
        await until(lambda: directory.agent(agent_id).state == "offline")
        await until(lambda: directory.agent(agent_id).state == "online")


async def test_streams_are_declared_once_and_differences_told(
    connection: Connection, settings: Settings, bare: Client
) -> None:
    """Declaring again changes nothing; an operator's change is reported and kept."""
    assert await ensure_streams(connection, settings) == []
    info = await bare.jsm().stream_info("DEAD")
    info.config.max_age = 3600.0
    await bare.jsm().update_stream(info.config)
    try:
        found = await ensure_streams(connection, settings)
        assert [(one.stream, one.setting, one.found) for one in found] == [
            ("DEAD", "max_age", 3600.0)
        ]
        assert await check_streams(connection, settings) == found
        assert (await bare.jsm().stream_info("DEAD")).config.max_age == 3600.0
    finally:
        info.config.max_age = 14 * 86_400.0
        await bare.jsm().update_stream(info.config)


async def test_the_directory_of_a_command_is_the_same(
    agent_id: str, running: Running, connection: Connection, directory: Directory
) -> None:
    """Reading the registry once gives what following it gives."""
    async with running(echo(agent_id)):
        loaded = await load_directory(connection)
        assert loaded.agent(agent_id) == directory.agent(agent_id)
        with pytest.raises(AgentNotFoundError):
            loaded.agent(f"{agent_id}-x")


@pytest.mark.parametrize("fault", ["wiped", "deleted", "garbage"])
async def test_a_registry_that_is_lost_comes_back(fault: str, tmp_path: Path) -> None:
    """F25: by the next heartbeats, and to those who had seen it before as well as to newcomers."""
    async with brisk_mesh(tmp_path) as mesh, mesh.hosting(echo("left")):
        manager = mesh.connection.client.jsm()
        if fault == "wiped":
            await manager.purge_stream(REGISTRY)
        elif fault == "deleted":
            await manager.delete_stream(REGISTRY)
        else:
            await mesh.connection.publisher.publish("$KV.registry.agent.left", b"{garbage", {})

        async def is_back() -> bool:
            try:
                read = await load_directory(mesh.connection)
            except TransportError:  # Missing, or made again at this moment.
                return False
            known = read.agent_record("left")
            return known is not None and read.agent("left").state is State.ONLINE

        await until(is_back, within_s=60)
        async with mesh.hosting(echo("right")):
            # What comes after is seen too, by one that had followed the lost one.
            assert mesh.directory.agent("right").state is State.ONLINE
        await until(lambda: mesh.directory.agent("right").state is State.OFFLINE)
