"""Calls under an id of the caller's own: sent by several processes, run once."""

import asyncio
import os

import pytest
from nats.aio.client import Client

from mesh import headers as h
from mesh import subjects
from mesh.calls import CallState
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.errors import KeyReusedError
from mesh.followers import follow_call
from mesh.ledger import read_record
from mesh.outbox import Outbox, Request
from mesh.replies import read_frames
from mesh.settings import Settings
from schemas.frame import FrameKind
from tests.calls import Held, client_at, offline, question, terminals
from tests.conftest import Running, until


@pytest.fixture
def call_id() -> str:
    """128 bits that nobody else has."""
    return os.urandom(16).hex()


def by_hand(call_id: str, agent_id: str) -> dict[str, str]:
    """Return the headers of an idempotent request of caller `far`."""
    return {
        h.REPLY_TO: subjects.reply("far", subjects.ANY_INSTANCE, call_id, agent_id),
        h.CORRELATION_ID: call_id,
        h.CONTENT_TYPE: h.JSON,
        h.MSG_ID: call_id,
        h.TTL: "60",
        h.TIMEOUT_MS: "60000",
        h.KEEP_S: "86400",
        h.IDEMPOTENCY: "1",
    }


async def test_two_processes_at_the_same_moment(
    *,
    agent_id: str,
    call_id: str,
    running: Running,
    settings: Settings,
    client: MeshClient,
    connection: Connection,
) -> None:
    """Ten times from each: one request, one place, one record, one run."""
    await offline(running, client, agent_id)
    body = question(agent_id)
    async with client_at(settings.nats_url) as one, client_at(settings.nats_url) as two:
        calls = await asyncio.gather(
            *(each.submit(agent_id, body, call_id=call_id) for each in (one, two) * 10)
        )
    assert len(set(calls)) == 1
    frames = await read_frames(connection, calls[0].reply_subject, call_id)
    assert [frame.kind for frame in frames] == [FrameKind.STORED]
    held = Held(agent_id)
    held.go.set()
    async with running(held.agent), follow_call(connection, calls[0]) as call:
        await call.result()
    assert held.finished == 1
    assert (await terminals(connection))[calls[0].reply_subject] == 1


async def test_a_sender_that_died_before_it_wrote_the_record(
    *,
    agent_id: str,
    call_id: str,
    running: Running,
    settings: Settings,
    client: MeshClient,
    connection: Connection,
    bare: Client,
) -> None:
    """The request is in the mailbox and nowhere else: the next one to come writes it down."""
    await offline(running, client, agent_id)
    body = question(agent_id)
    sent = await bare.jetstream().publish(
        subjects.inbox(agent_id), body, headers=by_hand(call_id, agent_id)
    )
    async with client_at(settings.nats_url) as far:
        stored = await far.submit(agent_id, body, call_id=call_id)
        with pytest.raises(KeyReusedError):
            await far.submit(agent_id, question(agent_id, "other"), call_id=call_id)
    assert stored.sequence == sent.seq
    record = await read_record(connection, call_id)
    assert (record.state, record.call) == (CallState.STORED, stored)
    await client.cancel(stored)


async def test_a_sender_that_died_and_an_agent_that_has_answered(
    *,
    agent_id: str,
    call_id: str,
    running: Running,
    settings: Settings,
    connection: Connection,
    bare: Client,
) -> None:
    """The retry finds the answer; nothing runs again."""
    held = Held(agent_id)
    held.go.set()
    body = question(agent_id)
    async with running(held.agent), client_at(settings.nats_url) as far:
        await bare.jetstream().publish(
            subjects.inbox(agent_id), body, headers=by_hand(call_id, agent_id)
        )
        await until(lambda: held.finished == 1)
        stored = await far.submit(agent_id, body, call_id=call_id)
        async with follow_call(connection, stored) as call:
            assert (await call.reply()).text == "hello, attempt 1"
        await far.ask(agent_id, "flush")
    assert held.finished == 2, "the call ran again"


async def test_another_request_under_the_same_id(
    agent_id: str, call_id: str, running: Running, settings: Settings, client: MeshClient
) -> None:
    """Another body, another agent with the same body, another node: none of them is this call."""
    other = f"{agent_id}-b"
    await offline(running, client, other)
    await offline(running, client, agent_id)
    body = question(agent_id)
    async with client_at(settings.nats_url) as far:
        stored = await far.submit(agent_id, body, call_id=call_id)
        for target, node, asked in (
            (agent_id, None, question(agent_id, "other")),
            (other, None, body),
            (agent_id, "node1", body),
        ):
            with pytest.raises(KeyReusedError) as refused:
                await far.submit(target, asked, node=node, call_id=call_id)
            assert call_id not in str(refused.value), "an id is a capability"
        await far.cancel(stored)


@pytest.mark.parametrize("is_other_agent", [False, True])
async def test_another_request_after_a_fast_answer(
    agent_id: str,
    call_id: str,
    running: Running,
    settings: Settings,
    connection: Connection,
    *,
    is_other_agent: bool,
) -> None:
    """The mailbox has forgotten what was asked; the record tells, and it may come a moment late."""
    held, other = Held(agent_id), Held(f"{agent_id}-b")
    held.go.set()
    body = question(agent_id)
    headers = by_hand(call_id, agent_id)
    async with running(held.agent, other.agent), client_at(settings.nats_url) as far:
        sent = await connection.publisher.publish(subjects.inbox(agent_id), body, headers)
        await until(lambda: held.finished == 1)

        async def write_late() -> None:
            await asyncio.sleep(0.3)
            request = Request(subjects.inbox(agent_id), body, headers)
            await Outbox(connection).record(request, sent.sequence)

        writing = asyncio.create_task(write_late())
        target = other.agent.id if is_other_agent else agent_id
        asked = body if is_other_agent else question(agent_id, "other")
        with pytest.raises(KeyReusedError):
            await far.submit(target, asked, call_id=call_id)
        await writing
        record = await read_record(connection, call_id)
    assert record.state is CallState.ANSWERED
    assert (held.finished, other.started) == (1, 0)
