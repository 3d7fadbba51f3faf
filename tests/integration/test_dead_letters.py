"""A request that cannot be answered is kept with the reason, its caller is told, and nobody else
notices.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import nats
import orjson
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh import Agent
from mesh import headers as h
from mesh.calls import Call, CallState, StoredCall
from mesh.client import MeshClient
from mesh.connection import Connection, open_connection
from mesh.dead_letters import (
    DeadLetter,
    Reason,
    discard,
    read_letter,
    read_letters,
    replay_id,
)
from mesh.errors import (
    CallCancelledError,
    DeadLetterError,
    DeadLetterNotFoundError,
    InvalidInputError,
)
from mesh.history import read_at
from mesh.ledger import read_record
from mesh.runtime import AgentHost
from mesh.settings import Settings
from mesh.streams import INBOX, MAX_DELIVER
from mesh.subjects import MAX_DELIVERIES_ADVISORIES
from tests.calls import Held, offline, own_mesh, question, terminals
from tests.conftest import Running, control_plane, until


@pytest.fixture(autouse=True)
async def one_answer_each(connection: Connection) -> AsyncIterator[None]:
    """At the end no call has two terminal frames."""
    yield
    assert set((await terminals(connection)).values()) <= {1}


async def letters(connection: Connection, agent_id: str) -> list[DeadLetter]:
    """Return the dead letters to an agent."""
    return [one async for one in read_letters(connection, agent_id)]


async def one_letter(connection: Connection, agent_id: str) -> DeadLetter:
    """Wait for the only letter to an agent, and for the mailbox to be rid of it."""
    await until(lambda: has_letters(connection, agent_id))
    (found,) = await letters(connection, agent_id)

    async def is_moved() -> bool:
        info = await connection.client.jsm().stream_info(
            INBOX, subjects_filter=f"agent.{agent_id}.inbox"
        )
        return not info.state.subjects

    await until(is_moved)
    return found


async def has_letters(connection: Connection, agent_id: str) -> bool:
    """Tell whether there is any."""
    return bool(await letters(connection, agent_id))


@asynccontextmanager
async def foreign_worker(url: str, agent_id: str) -> AsyncIterator["ForeignWorker"]:
    """Somebody who works for an agent with plain nats-py."""
    client = await nats.connect(url)
    try:
        yield ForeignWorker(client, agent_id)
    finally:
        await client.close()


class ForeignWorker:
    """Takes an agent's requests, and answers none."""

    def __init__(self, client: Client, agent_id: str) -> None:
        self._client = client
        self._agent_id = agent_id

    async def take(self) -> Msg:
        """Take one request."""
        jetstream = self._client.jetstream()
        pull = await jetstream.pull_subscribe_bind(self._agent_id, stream=INBOX)
        (message,) = await pull.fetch(1, timeout=30)
        await pull.unsubscribe()
        return message

    async def refuse(self, times: int) -> None:
        """Give the next request back so many times."""
        for _ in range(times):
            await (await self.take()).nak()

    async def pull_in_vain(self) -> None:
        """Ask for more: only then JetStream notices that a message has been delivered too often."""
        jetstream = self._client.jetstream()
        pull = await jetstream.pull_subscribe_bind(self._agent_id, stream=INBOX)
        with pytest.raises(nats.errors.TimeoutError):
            await pull.fetch(1, timeout=1)
        await pull.unsubscribe()


async def ask(client: MeshClient, agent_id: str, text: str = "poison") -> Call:
    """Ask, and return when the request is stored."""
    call = await client.start(agent_id, question(agent_id, text), timeout_s=120)
    await until(lambda: call.sequence > 0)
    return call


async def dead(call: Call) -> DeadLetterError:
    """Wait for the call to end as a dead one."""
    with pytest.raises(DeadLetterError) as caught:
        await asyncio.wait_for(call.result(), 30)
    assert call.state is CallState.DEAD
    return caught.value


async def test_a_request_that_every_worker_dies_of(
    agent_id: str, running: Running, client: MeshClient, connection: Connection, nats_url: str
) -> None:
    """The last delivery does not reach the handler; what lies behind it does."""
    await offline(running, client, agent_id)
    call = await ask(client, agent_id)
    async with foreign_worker(nats_url, agent_id) as worker:
        await worker.refuse(MAX_DELIVER - 1)
    behind = await ask(client, agent_id, "hello")
    held = Held(agent_id)
    held.go.set()
    async with running(held.agent):
        error = await dead(call)
        assert (await behind.reply()).text == "hello, attempt 1"
    assert held.started == 1
    letter = await one_letter(connection, agent_id)
    assert (letter.reason, letter.call_id) == (Reason.MAX_DELIVERIES, call.id)
    assert letter.body == question(agent_id, "poison")
    assert (letter.source_agent, letter.content_type) == ("tester", "application/json")
    assert error.fields["dead_letter"] == letter.sequence
    assert f"mesh dead show {letter.sequence}" in error.message


async def test_a_request_that_a_foreign_worker_never_settles(
    agent_id: str, running: Running, client: MeshClient, connection: Connection, nats_url: str
) -> None:
    """JetStream tells the control plane of it, as soon as somebody asks for more."""
    await offline(running, client, agent_id)
    call = await ask(client, agent_id)
    async with foreign_worker(nats_url, agent_id) as worker:
        await worker.refuse(MAX_DELIVER)
        await worker.pull_in_vain()
        await dead(call)
    assert (await one_letter(connection, agent_id)).reason == Reason.MAX_DELIVERIES


async def test_a_durable_that_the_agent_has_left_gives_a_request_up(
    agent_id: str, running: Running, client: MeshClient, connection: Connection, bare: Client
) -> None:
    """It is not dead: the agent's own durable delivers it. One that this gives up is."""
    await offline(running, client, agent_id)
    kept, dropped = await ask(client, agent_id, "kept"), await ask(client, agent_id, "dropped")
    for durable, call in (("@0123456789abcdef", kept), (agent_id, dropped)):
        told = {"stream_seq": call.sequence, "consumer": durable, "deliveries": MAX_DELIVER}
        subject = MAX_DELIVERIES_ADVISORIES.replace("*", durable)
        await bare.publish(subject, orjson.dumps(told))
    await dead(dropped)
    assert [one.call_id for one in await letters(connection, agent_id)] == [dropped.id]
    assert await read_at(connection, INBOX, kept.sequence) is not None
    await client.cancel(kept)


async def test_a_record_of_a_dead_call(
    agent_id: str, running: Running, client: MeshClient, connection: Connection, nats_url: str
) -> None:
    """Who looks at it later, by its id alone, is told that it is dead."""
    await offline(running, client, agent_id)
    call = await client.submit(agent_id, question(agent_id))
    async with foreign_worker(nats_url, agent_id) as worker:
        await worker.refuse(MAX_DELIVER)
        await worker.pull_in_vain()
    await one_letter(connection, agent_id)
    record = await read_record(connection, call.id)
    assert record.state is CallState.DEAD
    assert isinstance(record.outcome, DeadLetterError)


async def test_a_worker_that_died_between_answer_and_acknowledgement(
    agent_id: str, running: Running, client: MeshClient, connection: Connection, nats_url: str
) -> None:
    """Its last request is answered, so it is no dead letter, and only taken out."""
    await offline(running, client, agent_id)
    call = await ask(client, agent_id)
    async with foreign_worker(nats_url, agent_id) as worker:
        await worker.refuse(MAX_DELIVER - 1)
        message = await worker.take()
        reply_to = (message.headers or {})[h.REPLY_TO]
        await connection.publisher.publish(
            reply_to,
            b"done",
            {h.KIND: "final", h.CORRELATION_ID: call.id, h.MSG_ID: f"{call.id}.final"},
        )
        await message.nak()
        await worker.pull_in_vain()
    assert (await call.reply()).text == "done"

    async def is_gone() -> bool:
        return await read_at(connection, INBOX, call.sequence) is None

    await until(is_gone)
    assert await letters(connection, agent_id) == []


async def test_a_request_that_a_foreign_worker_refuses(
    agent_id: str, running: Running, client: MeshClient, connection: Connection, nats_url: str
) -> None:
    """JetStream deletes it at once, and all that can be kept is that it was there, and why."""
    await offline(running, client, agent_id)
    call = await ask(client, agent_id)
    async with foreign_worker(nats_url, agent_id) as worker:
        message = await worker.take()
        await connection.client.publish(message.reply, b"+TERM of no use")
    letter = await one_letter(connection, agent_id)
    assert (letter.reason, letter.body) == (Reason.TERMINATED, b"of no use")
    with pytest.raises(InvalidInputError, match="is lost"):
        letter.require_whole()
    client.abandon(call)


async def test_a_cancelled_call_is_no_dead_letter(
    agent_id: str, running: Running, client: MeshClient, connection: Connection, nats_url: str
) -> None:
    """JetStream says of it, too, that it was terminated."""
    await offline(running, client, agent_id)
    call = await ask(client, agent_id)
    async with foreign_worker(nats_url, agent_id) as worker:
        await worker.take()
        await client.cancel(call)
        with pytest.raises(CallCancelledError):
            await call.result()
        # The advisories come in order, and the one of this call is behind that of the other.
        other = await ask(client, agent_id, "other")
        await (await worker.take()).term()
    assert (await one_letter(connection, agent_id)).reason == Reason.TERMINATED
    client.abandon(other)


async def test_a_request_whose_answer_may_go_nowhere(
    agent_id: str, running: Running, connection: Connection, bare: Client
) -> None:
    """It is not answered, and not forgotten either."""
    async with running(Agent(agent_id)):
        await bare.publish(
            f"agent.{agent_id}.inbox", b"x", headers={h.REPLY_TO: "$KV.registry.agent.victim"}
        )
        letter = await one_letter(connection, agent_id)
    assert (letter.reason, letter.body) == (Reason.REFUSED, b"x")


async def test_what_happened_while_the_control_plane_was_dead(
    settings: Settings, tmp_path: Path, agent_id: str
) -> None:
    """And even JetStream's advice was lost: the mailboxes are looked through at the next start."""
    async with own_mesh(settings, tmp_path, Agent("other")) as mesh:
        own = replace(settings, nats_url=mesh.broker.url)
        await visit(own, Agent(agent_id))
        await until(lambda: mesh.directory.agent_record(agent_id) is not None)
        call = await mesh.client.start(agent_id, question(agent_id), timeout_s=120)
        await mesh.kill_control()
        async with foreign_worker(own.nats_url, agent_id) as worker:
            await worker.refuse(MAX_DELIVER)
            await worker.pull_in_vain()
        await mesh.connection.client.jsm().purge_stream("ADVISORY")
        async with foreign_worker(own.nats_url, agent_id) as worker:
            # With nothing else at work JetStream's floor passes what is exhausted.
            await ask(mesh.client, agent_id, "settled")
            await (await worker.take()).ack_sync()
            others = [await ask(mesh.client, agent_id, text) for text in ("at work", "waiting")]
            await worker.take()
            async with control_plane(own):
                await dead(call)
                # Two more scans: who is at work and who waits is left alone.
                await asyncio.sleep(3 * own.unknown_agent_grace_s / 2)
        for other in others:
            assert await read_at(mesh.connection, INBOX, other.sequence) is not None


async def visit(settings: Settings, agent: Agent) -> None:
    """Run an agent for a moment: it is known from then on."""
    async with open_connection(settings.nats_url, name="test visitor") as connection:
        host = AgentHost(connection, [agent], node="node1", settings=settings)
        stop = asyncio.Event()
        running = asyncio.create_task(host.run(stop))
        await asyncio.wait_for(host.ready.wait(), 60)
        stop.set()
        await running


async def test_a_letter_is_sent_again(
    agent_id: str, running: Running, client: MeshClient, connection: Connection, bare: Client
) -> None:
    """Twice is once: it is the same call, whose request says what it repeats."""
    letter = await orphan(agent_id, connection, bare)
    held = Held(agent_id)
    held.go.set()
    seen = await bare.subscribe(f"agent.{agent_id}.inbox")
    async with running(held.agent):
        calls = [
            await client.submit(
                agent_id,
                letter.body,
                content_type=letter.content_type,
                call_id=replay_id(letter),
                replay_of=letter.call_id,
            )
            for _ in range(2)
        ]
        assert calls[0].id == calls[1].id != letter.call_id
        await until(lambda: has_answer(connection, calls[0]))
    assert held.started == 1
    assert ((await seen.next_msg(timeout=30)).headers or {})[h.REPLAY_OF] == letter.call_id
    record = await read_record(connection, calls[0].id)
    assert record.state is CallState.ANSWERED


async def test_a_letter_is_discarded(agent_id: str, connection: Connection, bare: Client) -> None:
    """A second time is no error, and a look at it says that it is not there."""
    letter = await orphan(agent_id, connection, bare)
    assert await read_letter(connection, letter.sequence) == letter
    for _ in range(2):
        await discard(connection, letter.sequence)
    with pytest.raises(DeadLetterNotFoundError):
        await read_letter(connection, letter.sequence)
    with pytest.raises(DeadLetterNotFoundError):
        await read_letter(connection, 0)


async def test_a_request_that_fills_its_message(
    agent_id: str, connection: Connection, bare: Client
) -> None:
    """There is no room for the reason beside it: it is cut, says so, and is not sent again."""
    body = b"x" * bare.max_payload
    await bare.jetstream().publish(f"agent.{agent_id}.inbox", body)
    letter = await one_letter(connection, agent_id)
    assert letter.cut_from == len(body)
    assert len(body) - 10_000 < len(letter.body) < len(body)
    with pytest.raises(InvalidInputError, match="is not whole"):
        letter.require_whole()


async def test_garbage_among_the_dead_letters(
    agent_id: str, connection: Connection, bare: Client
) -> None:
    """Anybody may put something there in open mode: it is shown as far as it can be read."""
    await bare.jetstream().publish(f"dead.{agent_id}", b"\xff", headers={"mesh-subject": "a b"})
    (letter,) = await letters(connection, agent_id)
    assert (letter.agent, letter.node, letter.reason) == (agent_id, None, "")


async def orphan(agent_id: str, connection: Connection, bare: Client) -> DeadLetter:
    """Make a dead letter of a request to an agent that nobody knows."""
    headers = {h.CORRELATION_ID: f"call-{agent_id}", h.CONTENT_TYPE: h.TEXT}
    await bare.jetstream().publish(f"agent.{agent_id}.inbox", b"anybody?", headers=headers)
    return await one_letter(connection, agent_id)


async def has_answer(connection: Connection, call: StoredCall) -> bool:
    """Tell whether a call has ended."""
    return (await read_record(connection, call.id)).outcome is not None
