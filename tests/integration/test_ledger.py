"""A call's record, read back by a process that has no part in it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from mesh import Agent, ChatRequest
from mesh import headers as h
from mesh.call_trace import Hop, read_trace
from mesh.calls import CallState
from mesh.client import MeshClient
from mesh.connection import Connection, open_connection
from mesh.errors import (
    AgentFailedError,
    CallCancelledError,
    CallNotFoundError,
    CallTimeoutError,
    InvalidInputError,
)
from mesh.frames import Frame
from mesh.ledger import CallRecord, read_record
from mesh.outbox import fingerprint
from mesh.settings import Settings
from mesh.streams import REPLY
from schemas.frame import StoredBody
from tests.calls import Held, offline, question, terminals
from tests.conftest import Running, mesh_environ, until


@pytest.fixture
async def reader(settings: Settings, connection: Connection) -> AsyncIterator[Connection]:
    """Somebody else's connection; at the end no call may have two terminal frames."""
    async with open_connection(settings.nats_url, name="test reader") as opened:
        yield opened
        assert set((await terminals(opened)).values()) <= {1}


async def read_when(reader: Connection, call_id: str, *states: CallState) -> CallRecord:
    """Return the record of a call once it is in one of these states."""

    async def is_there() -> bool:
        try:
            return (await read_record(reader, call_id)).state in states
        except CallNotFoundError:
            return False

    await until(is_there)
    return await read_record(reader, call_id)


async def test_a_call_that_waits_is_stored(
    agent_id: str, running: Running, client: MeshClient, reader: Connection
) -> None:
    """Nobody is at it: the sender's frame says what was asked of whom, until when."""
    await offline(running, client, agent_id)
    body = question(agent_id)
    stored = await client.submit(agent_id, body, timeout_s=30)
    record = await read_record(reader, stored.id)
    assert (record.state, record.outcome) == (CallState.STORED, None)
    assert (record.attempt, record.node, record.chunks) == (0, "", 0)
    assert record.call == stored
    assert record.created_at.startswith("20")
    assert record.stored == StoredBody(
        agent=agent_id,
        sequence=stored.sequence,
        timeout_ms=30_000,
        body_sha256=fingerprint(body),
    )
    await client.cancel(stored)


async def test_a_call_is_followed_from_work_to_answer(
    agent_id: str, running: Running, client: MeshClient, reader: Connection
) -> None:
    """`working` names the node and the attempt; `answered` has the final frame."""
    held = Held(agent_id)
    async with running(held.agent, node="node2"):
        stored = await client.submit(agent_id, question(agent_id), timeout_s=30)
        record = await read_when(reader, stored.id, CallState.WORKING)
        assert (record.attempt, record.node, record.outcome) == (1, "node2", None)
        held.go.set()
        record = await read_when(reader, stored.id, CallState.ANSWERED)
    assert isinstance(record.outcome, Frame)
    assert b"hello, attempt 1" in record.outcome.body
    assert (record.attempt, record.node) == (1, "node2")


async def test_the_chunks_of_a_stream_are_counted(
    agent_id: str, running: Running, client: MeshClient, reader: Connection
) -> None:
    """Role, three parts and the finish: five chunks, also while the last is not there."""
    agent, go = Agent(agent_id), asyncio.Event()

    @agent.chat
    async def count(request: ChatRequest) -> AsyncIterator[str]:
        for part in "abc":
            yield part
        await go.wait()

    async with running(agent):
        stored = await client.submit(agent_id, question(agent_id, stream=True), timeout_s=30)
        await until(lambda: _has_chunks(reader, stored.id, 4))
        go.set()
        record = await read_when(reader, stored.id, CallState.ANSWERED)
    assert record.chunks == 5


async def _has_chunks(reader: Connection, call_id: str, count: int) -> bool:
    return (await read_record(reader, call_id)).chunks == count


async def test_a_call_that_failed_keeps_its_error(
    agent_id: str, running: Running, client: MeshClient, reader: Connection
) -> None:
    """As the class that was raised."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> str:
        raise ValueError("cloudy")

    async with running(agent):
        stored = await client.submit(agent_id, question(agent_id), timeout_s=30)
        record = await read_when(reader, stored.id, CallState.FAILED)
    assert isinstance(record.outcome, AgentFailedError)
    assert "cloudy" in str(record.outcome)


async def test_a_call_expires_without_any_clock(
    agent_id: str, running: Running, client: MeshClient, reader: Connection
) -> None:
    """The broker takes the request out of the mailbox; nobody writes a frame about it."""
    await offline(running, client, agent_id)
    stored = await client.submit(agent_id, question(agent_id), timeout_s=1)
    record = await read_when(reader, stored.id, CallState.EXPIRED)
    assert isinstance(record.outcome, CallTimeoutError)
    assert (record.attempt, record.call.state) == (0, CallState.EXPIRED)


async def test_a_call_whose_handler_was_stopped_at_the_deadline_has_expired(
    agent_id: str, running: Running, client: MeshClient, reader: Connection
) -> None:
    """It makes no difference to the reader who noticed."""
    held = Held(agent_id)
    async with running(held.agent):
        stored = await client.submit(agent_id, question(agent_id), timeout_s=0.5)
        record = await read_when(reader, stored.id, CallState.EXPIRED)
        await until(lambda: held.stopped == 1)
    assert isinstance(record.outcome, CallTimeoutError)


async def test_a_cancelled_call(
    agent_id: str, running: Running, client: MeshClient, reader: Connection
) -> None:
    """Also by another process than the sender's."""
    held = Held(agent_id)
    async with running(held.agent):
        stored = await client.submit(agent_id, question(agent_id), timeout_s=30)
        await until(lambda: held.started == 1)
        await client.cancel((await read_record(reader, stored.id)).call)
        record = await read_when(reader, stored.id, CallState.CANCELLED)
    assert isinstance(record.outcome, CallCancelledError)


async def test_a_fast_call_has_no_stored_frame(
    agent_id: str, running: Running, client: MeshClient, reader: Connection
) -> None:
    """It paid nothing, and can be looked up all the same."""
    held = Held(agent_id)
    held.go.set()
    async with running(held.agent):
        call = await client.start(agent_id, question(agent_id))
        await call.result()
        record = await read_record(reader, call.id)
    assert (record.state, record.stored) == (CallState.ANSWERED, None)
    assert (record.call.agent, record.call.sequence) == (agent_id, 0)


async def test_a_slow_call_is_put_on_record(
    agent_id: str, running: Running, client: MeshClient, reader: Connection
) -> None:
    """A caller that waits writes the frame too, once the call takes longer than a moment."""
    held = Held(agent_id)
    async with running(held.agent):
        call = await client.start(agent_id, question(agent_id), timeout_s=30)

        async def is_on_record() -> bool:
            try:
                return (await read_record(reader, call.id)).stored is not None
            except CallNotFoundError:
                return False

        await until(is_on_record)
        record = await read_record(reader, call.id)
        assert (record.state, record.call.sequence) == (CallState.WORKING, call.sequence)
        held.go.set()
        await call.result()


async def test_a_late_stored_frame_changes_nothing(
    agent_id: str, running: Running, client: MeshClient, reader: Connection
) -> None:
    """It may be stored behind the answer: the call is answered, and not open again."""
    held = Held(agent_id)
    held.go.set()
    async with running(held.agent):
        call = await client.start(agent_id, question(agent_id))
        await call.result()
        headers = {h.KIND: "stored", h.CORRELATION_ID: call.id, h.CONTENT_TYPE: h.JSON}
        body = b'{"agent":"%b","sequence":1,"timeout_ms":1000}' % agent_id.encode()
        await reader.publisher.publish(call.reply_subject, body, headers)
        record = await read_record(reader, call.id)
    assert record.state is CallState.ANSWERED
    assert record.stored is not None


@pytest.mark.parametrize("bad", ["", "a.b", "*", ">", "a b", "a" * 65, "\n", "ä"])
async def test_ids_that_cannot_be(reader: Connection, bad: str) -> None:
    """No id becomes a wildcard or two tokens."""
    with pytest.raises(InvalidInputError, match="is not a call id"):
        await read_record(reader, bad)


async def test_an_unknown_call(reader: Connection) -> None:
    """Nothing is stored, or no longer: the error says how long things are kept."""
    with pytest.raises(CallNotFoundError, match="two minutes"):
        await read_record(reader, "f" * 32)


async def test_what_is_no_call(agent_id: str, running: Running, reader: Connection) -> None:
    """A registrar answers on reply subjects, and hosts ask for the time on them: no calls."""
    async with running(Held(agent_id).agent):
        pattern = f"agent.{agent_id}.reply.*.*.{agent_id}"
        info = await reader.client.jsm().stream_info(REPLY, subjects_filter=pattern)
    assert info.state.subjects
    for subject in info.state.subjects:
        with pytest.raises(CallNotFoundError):
            await read_record(reader, subject.split(".")[4])


async def test_a_call_of_somebody_without_our_library(
    agent_id: str, running: Running, reader: Connection, bare: Client
) -> None:
    """Its reply subject does not say who answers; the agent does, as soon as it is at it."""
    held = Held(agent_id)
    async with running(held.agent):
        headers = {"reply_to": "agent.me.reply.x.foreign-1", "correlation_id": "foreign-1"}
        await bare.jetstream().publish(f"agent.{agent_id}.inbox", b"hi", headers=headers)
        record = await read_when(reader, "foreign-1", CallState.WORKING)
        assert (record.call.agent, record.call.sequence) == (agent_id, 0)
        held.go.set()
        await read_when(reader, "foreign-1", CallState.ANSWERED)


DYING = """
import asyncio, os, signal
from mesh import Agent, CallContext, ChatRequest

agent = Agent(os.environ["AGENT"])

@agent.chat
async def die(request: ChatRequest, call: CallContext) -> str:
    for _ in range(20):  # A loop that was late says first that it is at work.
        await asyncio.sleep(0.025)
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"
"""


async def test_the_second_attempt_is_on_record(
    *,
    agent_id: str,
    running: Running,
    client: MeshClient,
    reader: Connection,
    settings: Settings,
    tmp_path: Path,
) -> None:
    """A host is killed in the middle of a call: the request comes again, at the same place."""
    await offline(running, client, agent_id)
    (tmp_path / "dying.py").write_text(DYING)
    environ = {**mesh_environ(settings), "AGENT": agent_id}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mesh", "run", "dying:agent"), env=environ, cwd=tmp_path
    )
    stored = await client.submit(agent_id, question(agent_id), timeout_s=60)
    record = await read_when(reader, stored.id, CallState.WORKING)
    assert record.attempt == 1
    await process.wait()
    held = Held(agent_id)
    async with running(held.agent, node="node2"):
        await until(lambda: held.started == 1, within_s=20)
        await until(lambda: _is_attempt(reader, stored.id, 2))
        record = await read_record(reader, stored.id)
        assert (record.state, record.node) == (CallState.WORKING, "node2")
        assert record.call.sequence == stored.sequence
        held.go.set()
        record = await read_when(reader, stored.id, CallState.ANSWERED)
    assert record.attempt == 2
    trace = await read_trace(reader, stored.id)
    hops = [(one.hop, one.attempt) for one in trace.steps if one.attempt]
    assert [one for one in hops if one[0] is not Hop.LOST] == [
        (Hop.BEGAN, 1),
        (Hop.WORKING, 1),
        (Hop.BEGAN, 2),
        (Hop.WORKING, 2),
        (Hop.ANSWERED, 2),
    ]
    (lost,) = [one for one in trace.steps if one.hop is Hop.LOST]
    assert (lost.attempt, lost.node) == (1, "node1")
    assert "attempt 1 did not end" in lost.note
    assert isinstance(record.outcome, Frame)
    assert b"hello, attempt 2" in record.outcome.body


async def _is_attempt(reader: Connection, call_id: str, attempt: int) -> bool:
    return (await read_record(reader, call_id)).attempt == attempt
