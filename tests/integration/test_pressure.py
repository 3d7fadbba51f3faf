"""A full mailbox tells its callers when to come back, by the pace of its agent."""

import asyncio

import pytest
from nats.aio.client import Client
from nats.js.api import DiscardPolicy
from nats.js.errors import APIError

from mesh import Agent, ChatRequest
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.errors import MailboxFullError, StorageFullError
from mesh.pressure import APART_S, AT_MOST_S, Pressure
from mesh.publisher import NOT_STORED, is_subject_full
from tests.calls import offline, question
from tests.conftest import Running, until
from tests.replicas import post, replica_at
from tests.shim import HELLO

LIMIT = 1_000


async def fill(bare: Client, agent_id: str) -> None:
    """Put as many requests into a mailbox as it takes."""
    jetstream = bare.jetstream(publish_async_max_pending=2 * LIMIT)
    for _ in range(LIMIT):
        await jetstream.publish_async(f"agent.{agent_id}.inbox", b"filler")
    await jetstream.publish_async_completed()


async def refused(client: MeshClient, agent_id: str) -> int | None:
    """Ask in vain, and return when to come back."""
    with pytest.raises(MailboxFullError) as caught:
        await client.submit(agent_id, question(agent_id))
    with pytest.raises(MailboxFullError):
        await client.ask(agent_id, "one more", timeout_s=30)
    found = caught.value.fields["retry_after_s"]
    assert found is None or f"in {found} s" in caught.value.message
    return None if found is None else int(found)


async def test_an_agent_that_does_nothing(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """At first nobody knows; then it is the longest wait that is ever said."""
    await offline(running, client, agent_id)
    await fill(bare, agent_id)
    assert await refused(client, agent_id) is None
    await asyncio.sleep(0.3)
    assert await refused(client, agent_id) == AT_MOST_S
    await bare.jsm().purge_stream("INBOX", subject=f"agent.{agent_id}.inbox")


async def test_a_flood_of_callers_looks_once(
    agent_id: str, connection: Connection, bare: Client
) -> None:
    """The broker is asked no more often because more are refused."""
    asked = await bare.subscribe(f"$JS.API.CONSUMER.INFO.INBOX.{agent_id}")
    pressure = Pressure(connection)
    await asyncio.gather(*[pressure.room_in_s(f"agent.{agent_id}.inbox") for _ in range(50)])
    await bare.flush()
    assert asked.pending_msgs == 1


async def test_an_agent_at_work(
    agent_id: str,
    running: Running,
    client: MeshClient,
    connection: Connection,
    directory: Directory,
    bare: Client,
    nats_url: str,
) -> None:
    """HTTP says what the mesh has measured: `Retry-After`, in seconds and in milliseconds."""
    go = asyncio.Event()
    agent = Agent(agent_id, concurrency=100)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        await go.wait()
        return "done"

    async with replica_at(nats_url) as replica:
        await offline(running, client, agent_id)
        await fill(bare, agent_id)
        first = await post(replica.http, {"model": agent_id, "messages": HELLO, "wait": True})
        assert (first.status_code, first.headers["retry-after"]) == (429, "1")
        async with running(agent):
            await asyncio.sleep(APART_S)  # Two looks that are closer say nothing of a pace.
            go.set()
            await until(lambda: is_at_work(connection, agent_id))
            go.clear()
            await fill_up(bare, agent_id)
            second = await post(replica.http, {"model": agent_id, "messages": HELLO, "wait": True})
            assert second.status_code == 429
            seconds = int(second.headers["retry-after"])
            assert 1 <= seconds < AT_MOST_S
            assert second.headers["retry-after-ms"] == str(seconds * 1000)
            assert f"in {seconds} s" in second.json()["error"]["message"]
            await bare.jsm().purge_stream("INBOX", subject=f"agent.{agent_id}.inbox")
            go.set()


async def is_at_work(connection: Connection, agent_id: str) -> bool:
    """Tell whether a tenth of the mailbox has been worked off."""
    info = await connection.client.jsm().consumer_info("INBOX", agent_id)
    return info.ack_floor is not None and info.ack_floor.consumer_seq >= LIMIT / 10


async def fill_up(bare: Client, agent_id: str) -> None:
    """Send until the mailbox refuses."""
    for _ in range(LIMIT):
        try:
            await bare.jetstream().publish(f"agent.{agent_id}.inbox", b"filler")
        except APIError as error:
            if error.err_code == NOT_STORED:
                return
            raise


async def test_an_agent_with_a_limit_of_its_own(
    agent_id: str, running: Running, client: MeshClient, nats_url: str
) -> None:
    """What waits and what is worked on count together, and there is room again when it is done."""
    go = asyncio.Event()
    agent = Agent(agent_id, concurrency=1, mailbox_max=3)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        await go.wait()
        return request.last_text

    async with running(agent), replica_at(nats_url) as replica:
        for _ in range(3):
            await client.submit(agent_id, question(agent_id))
        with pytest.raises(MailboxFullError):
            await client.submit(agent_id, question(agent_id))
        with pytest.raises(MailboxFullError):
            await client.ask(agent_id, "one more")
        refused = await post(replica.http, {"model": agent_id, "messages": HELLO})
        assert refused.status_code == 429
        go.set()

        async def has_room() -> bool:
            try:
                return (await client.ask(agent_id, "back")).text == "back"
            except MailboxFullError:
                return False

        await until(has_room)


async def test_a_stream_without_room(agent_id: str, connection: Connection) -> None:
    """P7: that is told at once, as another thing than a mailbox that is full."""
    manager = connection.client.jsm()
    await manager.add_stream(
        name=agent_id, subjects=[agent_id], max_bytes=1_000, discard=DiscardPolicy.NEW
    )
    try:
        with pytest.raises(StorageFullError, match="no room left") as told:
            await connection.publisher.publish(agent_id, b"x" * 2_000, {})
        assert not is_subject_full(told.value)
    finally:
        await manager.delete_stream(agent_id)
