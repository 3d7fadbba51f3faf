"""What holds on a cluster of three brokers as well: a replica that lags misleads nobody."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh import Agent, ChatRequest, subjects
from mesh import headers as h
from mesh.attachments import put_body
from mesh.callers import Caller, new_instance_id
from mesh.calls import CallState, StoredCall
from mesh.client import MeshClient, open_client
from mesh.connection import Connection, open_connection
from mesh.directory import follow_directory
from mesh.followers import follow_call
from mesh.ledger import read_record
from mesh.objects import read
from mesh.provision import ensure_streams
from mesh.runtime import AgentHost
from mesh.settings import Settings
from mesh.streams import BODIES, INBOX, REPLY
from tests.cluster import LoopbackCluster
from tests.conftest import control_plane, until

DEADLINE_S = 90.0


async def write(connection: Connection, call_id: str, kind: str, body: bytes = b"{}") -> str:
    """Store one frame of a call, and return its subject."""
    subject = subjects.reply("far", "x", call_id, "nobody")
    headers = {h.KIND: kind, h.CORRELATION_ID: call_id, h.CONTENT_TYPE: h.JSON, h.TTL: "60"}
    await connection.publisher.publish(subject, body, headers)
    return subject


@pytest.mark.timeout(120)
async def test_what_was_acknowledged_is_found_at_every_replica(tmp_path: Path) -> None:
    """A record is there at once, and a request that is gone has not expired if it was answered."""
    async with LoopbackCluster(tmp_path) as servers, AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(open_connection(url, name="test", patience_s=20))
            for url in servers.urls
        ]
        await ensure_streams(connections[0], Settings(replicas=3))
        for number in range(150):
            writer, *readers = connections[number % 3 :] + connections[: number % 3]
            call_id = os.urandom(16).hex()
            # Its request is gone from the mailbox, as after an answer.
            body = b'{"agent":"nobody","sequence":1000000,"timeout_ms":1000}'
            subject = await write(writer, call_id, "stored", body)
            for reader in readers:
                assert (await read_record(reader, call_id)).state is CallState.EXPIRED
            await write(writer, call_id, "final")
            for reader in readers:
                assert (await read_record(reader, call_id)).state is CallState.ANSWERED
            call_id = os.urandom(16).hex()
            subject = await write(writer, call_id, "final")
            for reader in readers:
                stored = StoredCall(call_id, "nobody", subject, 1_000_000)
                async with follow_call(reader, stored) as call:
                    await call.result()


@pytest.mark.timeout(120)
async def test_a_large_body_is_read_at_every_replica(tmp_path: Path) -> None:
    """At once, also where chunks are still to come; and through the loss of a server."""
    body = os.urandom(3_000_000)
    async with LoopbackCluster(tmp_path) as servers, AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(open_connection(url, name="test", patience_s=20))
            for url in servers.urls
        ]
        await ensure_streams(connections[0], Settings(replicas=3))
        for number in range(12):
            writer, *readers = connections[number % 3 :] + connections[: number % 3]
            claim = await put_body(writer, f"call-{number}", body, reader="own")
            found = await asyncio.gather(*(read(one, claim) for one in readers))
            assert found == [body, body]
        info = await connections[0].client.jsm().stream_info(BODIES)
        assert info.cluster is not None
        lost = next(
            number
            for number, one in enumerate(connections)
            if one.client._server_info["server_name"] == info.cluster.leader
        )
        claim = await put_body(connections[lost - 1], "before", body, reader="own")
        ending = asyncio.create_task(servers.end(lost))
        again = await asyncio.wait_for(
            put_body(connections[lost - 1], "after", body, reader="own"), 60
        )
        await ending
        for one in (claim, again):
            assert await read(connections[lost - 1], one) == body


@dataclass(frozen=True, slots=True)
class Steady:
    """An agent on three brokers, its caller on the first of them, its host on all."""

    servers: LoopbackCluster
    connection: Connection
    client: MeshClient


@pytest.fixture
async def steady(tmp_path: Path) -> AsyncIterator[Steady]:
    """A mesh on a cluster of its own."""
    agent = Agent("steady", concurrency=64)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        await asyncio.sleep(0.05)
        return request.last_text

    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(LoopbackCluster(tmp_path))
        own = Settings(nats_url=servers.url, is_broker_external=True, replicas=3, node="node1")
        await stack.enter_async_context(control_plane(own))
        opened = open_connection(servers.urls[0], name="test", patience_s=20)
        connection = await stack.enter_async_context(opened)
        directory = await stack.enter_async_context(follow_directory(connection))
        caller = Caller("tester", "node1", new_instance_id())
        client = await stack.enter_async_context(open_client(connection, directory, caller))
        await stack.enter_async_context(hosted(agent, servers.url, own))
        await until(lambda: directory.agent_record(agent.id) is not None)
        assert (await client.ask(agent.id, "before", timeout_s=60)).text == "before"
        yield Steady(servers, connection, client)


@pytest.mark.timeout(300)
async def test_pulls_that_waited_at_a_lost_server(
    steady: Steady, caplog: pytest.LogCaptureFixture
) -> None:
    """P6: the next leader tells of them; nobody has to miss them for 40 s."""
    lost = await leader(steady.connection, "steady")
    await steady.servers.end(lost)
    assert (await steady.client.ask("steady", "after", timeout_s=90)).text == "after"
    assert "no answer to a pull" not in caplog.text


@pytest.mark.timeout(300)
async def test_answers_that_a_lost_server_did_not_pass_on(steady: Steady) -> None:
    """P6: callers at other servers read them when there is a new leader, not at their deadline."""
    is_over, took = False, list[float]()

    async def ask() -> None:
        while not is_over:
            began_s = time.monotonic()
            await steady.client.ask("steady", "hello", timeout_s=DEADLINE_S)
            took.append(time.monotonic() - began_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(32):
            group.create_task(ask())
        for _ in range(2):
            known = len(took)
            await until(lambda known=known: len(took) > known + 100, within_s=60)
            lost = await reply_leader(steady)
            await steady.servers.end(lost)
            await asyncio.sleep(12.0)  # Longer than an election: what is lost is lost by then.
            await steady.servers.start(lost)
            await steady.servers.healthy()
        is_over = True
    assert max(took) < DEADLINE_S / 2


async def reply_leader(steady: Steady) -> int:
    """Have the replies led by a server that the caller is not connected to, and return which."""
    manager = steady.connection.client.jsm(timeout=20)
    url = steady.connection.client.connected_url
    assert url is not None
    own = steady.servers.urls.index(f"nats://{url.netloc}")
    while True:
        info = await manager.stream_info(REPLY)
        assert info.cluster is not None
        found = int((info.cluster.leader or f"n{own + 1}").removeprefix("n")) - 1
        if found != own:
            return found
        await steady.connection.client.request(
            f"$JS.API.STREAM.LEADER.STEPDOWN.{REPLY}", timeout=20
        )
        await asyncio.sleep(1.0)  # An election is under way.


@asynccontextmanager
async def hosted(agent: Agent, url: str, settings: Settings) -> AsyncIterator[None]:
    """Run an agent on a connection to one server."""
    async with open_connection(url, name="test host") as connection:
        host = AgentHost(connection, [agent], node="node1", settings=settings)
        stop = asyncio.Event()
        serving = asyncio.create_task(host.run(stop, grace_s=1))
        await asyncio.wait_for(host.ready.wait(), 60)
        try:
            yield
        finally:
            stop.set()
            await serving


async def leader(connection: Connection, agent_id: str) -> int:
    """Return the number of the server that leads the mailbox of an agent."""
    info = await connection.client.jsm(timeout=20).consumer_info(INBOX, agent_id)
    assert info.cluster is not None
    assert info.cluster.leader is not None
    return int(info.cluster.leader.removeprefix("n")) - 1
