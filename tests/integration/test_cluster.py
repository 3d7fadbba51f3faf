"""What holds on a cluster of three brokers as well: a replica that lags misleads nobody."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from mesh import Agent, ChatRequest, subjects
from mesh import headers as h
from mesh.callers import Caller, new_instance_id
from mesh.calls import CallState, StoredCall
from mesh.client import open_client
from mesh.connection import Connection, open_connection
from mesh.directory import follow_directory
from mesh.followers import follow_call
from mesh.ledger import read_record
from mesh.provision import ensure_streams
from mesh.runtime import AgentHost
from mesh.settings import Settings
from mesh.streams import INBOX
from tests.cluster import LoopbackCluster
from tests.conftest import control_plane, until
from tests.pace import stopwatch


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


@pytest.mark.timeout(240)
async def test_a_lost_leader_costs_seconds(tmp_path: Path) -> None:
    """P6: the pulls that waited at it are asked again, by hosts that notice nothing else of it."""
    agent = Agent("steady")

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return request.last_text

    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(LoopbackCluster(tmp_path))
        own = Settings(nats_url=servers.url, is_broker_external=True, replicas=3, node="node1")
        await stack.enter_async_context(control_plane(own))
        first = await stack.enter_async_context(open_connection(servers.urls[0], name="test"))
        directory = await stack.enter_async_context(follow_directory(first))
        caller = Caller("tester", "node1", new_instance_id())
        client = await stack.enter_async_context(open_client(first, directory, caller))
        await stack.enter_async_context(hosted(agent, servers.urls[0], own))
        await until(lambda: directory.agent_record(agent.id) is not None)
        assert (await client.ask(agent.id, "before", timeout_s=30)).text == "before"

        await lead_elsewhere(first, agent.id)
        lost = await leader(first, agent.id)
        with stopwatch() as taken:
            await servers.end(lost)
            assert (await client.ask(agent.id, "after", timeout_s=60)).text == "after"
        assert taken.took_s < 20, (
            "an election takes ten, a lost pull is missed after 40"
        )


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


async def lead_elsewhere(connection: Connection, agent_id: str) -> None:
    """Let another server than the first lead the mailbox."""

    async def leads_elsewhere() -> bool:
        if await leader(connection, agent_id) != 0:
            return True
        step_down = f"$JS.API.CONSUMER.LEADER.STEPDOWN.{INBOX}.{agent_id}"
        await connection.client.request(step_down, timeout=20)
        await asyncio.sleep(1.0)  # An election is under way.
        return False

    await until(leads_elsewhere, within_s=60)
