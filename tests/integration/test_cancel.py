"""Calls are stopped: those that wait, those that run, and those that run because of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.client import JetStreamContext

from mesh import Agent, CallContext, ChatRequest, subjects
from mesh import headers as h
from mesh.calls import Call, StoredCall
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.errors import AgentFailedError, CallCancelledError
from mesh.history import read_at
from mesh.replies import read_frames
from mesh.settings import Settings
from mesh.streams import CONTROL, INBOX
from tests.calls import Held, offline, own_mesh, question, terminals
from tests.conftest import Running, until


@pytest.fixture(autouse=True)
async def one_answer_each(connection: Connection) -> AsyncIterator[None]:
    """At the end no call has two terminal frames."""
    yield
    assert set((await terminals(connection)).values()) <= {1}


async def start(client: MeshClient, agent_id: str, node: str | None = None) -> Call:
    """Ask, and return when the request is stored."""
    call = await client.start(agent_id, question(agent_id), node=node, timeout_s=30)
    await until(lambda: call.sequence > 0)
    return call


async def cancelled(call: Call) -> float:
    """Wait for the call to end as a cancelled one, and return how long that took."""
    start = time.monotonic()
    with pytest.raises(CallCancelledError):
        await asyncio.wait_for(call.result(), 30)
    return time.monotonic() - start


async def is_gone(connection: Connection, sequence: int) -> bool:
    """Tell whether a mailbox has no request at this place any more."""
    return await read_at(connection, INBOX, sequence) is None


@pytest.mark.parametrize("node", [None, "node1"])
async def test_a_call_that_waits_for_an_agent(
    agent_id: str, running: Running, client: MeshClient, connection: Connection, node: str | None
) -> None:
    """Its caller is told at once, and the agent never sees it: in either mailbox."""
    await offline(running, client, agent_id)
    call = await start(client, agent_id, node)
    await client.cancel(call)
    assert await cancelled(call) < 1
    await until(lambda: is_gone(connection, call.sequence))
    held = Held(agent_id)
    held.go.set()
    async with running(held.agent):
        await client.ask(agent_id, "flush", node=node)
    assert held.started == 1


async def test_a_cancel_that_overtakes_the_acknowledgement_of_its_request(
    agent_id: str, running: Running, client: MeshClient, connection: Connection
) -> None:
    """A caller that leaves at once does not know yet where its request lies: it waits for that."""
    await offline(running, client, agent_id)
    call = await client.start(agent_id, question(agent_id), timeout_s=30)
    assert call.sequence == 0
    await client.cancel(call)
    await cancelled(call)
    await until(lambda: is_gone(connection, call.sequence))


async def test_a_handler_that_runs(
    agent_id: str, running: Running, client: MeshClient, connection: Connection
) -> None:
    """It gets a CancelledError, and its slot is free again."""
    held = Held(agent_id, concurrency=1)
    async with running(held.agent):
        call = await start(client, agent_id)
        await until(lambda: held.started == 1)
        await client.cancel(call)
        assert await cancelled(call) < 1
        await until(lambda: held.stopped == 1)
        await until(lambda: is_gone(connection, call.sequence))
        held.go.set()
        assert (await client.ask(agent_id, "next")).text == "next, attempt 1"


async def test_a_stream_that_runs(
    agent_id: str, running: Running, client: MeshClient, connection: Connection
) -> None:
    """Its reader has what came before, and then the error."""
    agent, was_closed = Agent(agent_id), asyncio.Event()

    @agent.chat
    async def speak(request: ChatRequest) -> AsyncIterator[str]:
        try:
            yield "half"
            await asyncio.Event().wait()
        finally:
            was_closed.set()

    async with running(agent):
        call = await client.start(agent_id, question(agent_id, stream=True), timeout_s=30)
        text = call.text()
        assert await anext(text) == "half"
        await client.cancel(call)
        with pytest.raises(CallCancelledError):
            await anext(text)
        await asyncio.wait_for(was_closed.wait(), 30)


@pytest.mark.parametrize("streams", [False, True])
async def test_a_handler_in_a_thread(
    agent_id: str, running: Running, client: MeshClient, *, streams: bool
) -> None:
    """It sees `call.cancelled`; its caller does not wait for that."""
    agent, seen = Agent(agent_id), []

    def work(call: CallContext) -> str:
        while not call.cancelled:
            time.sleep(0.01)
        seen.append(call.id)
        return "dropped"

    if streams:

        @agent.chat
        def speak(request: ChatRequest, call: CallContext) -> Iterator[str]:
            yield "half"
            yield work(call)
    else:

        @agent.chat
        def answer(request: ChatRequest, call: CallContext) -> str:
            return work(call)

    async with running(agent):
        call = await client.start(agent_id, question(agent_id, stream=streams), timeout_s=30)
        await until(lambda: call.sequence > 0)
        await client.cancel(call)
        await cancelled(call)
        await until(lambda: seen == [call.id])


async def test_a_pinned_call_that_runs(
    agent_id: str, running: Running, client: MeshClient, connection: Connection
) -> None:
    """Only its own node works on it, and stops."""
    one, two = Held(agent_id), Held(agent_id)
    async with running(one.agent, node="node1"), running(two.agent, node="node2"):
        await until(lambda: len(client.directory.agent(agent_id).nodes) == 2)
        call = await start(client, agent_id, "node2")
        await until(lambda: two.started == 1)
        await client.cancel(call)
        await cancelled(call)
        await until(lambda: two.stopped == 1)
        await until(lambda: is_gone(connection, call.sequence))
    assert one.started == 0


async def test_pinned_calls_that_are_held_for_want_of_a_slot(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """What lies in the host already is not begun when its slot comes."""
    held = Held(agent_id, concurrency=1)
    async with running(held.agent):
        first = await start(client, agent_id, "node1")
        await until(lambda: held.started == 1)
        others = [await start(client, agent_id, "node1") for _ in range(3)]
        for call in others:
            await client.cancel(call)
            await cancelled(call)
        held.go.set()
        assert (await first.reply()).text == "hello, attempt 1"
        await client.ask(agent_id, "flush", node="node1")
    assert held.started == 2, "a cancelled call was begun"


async def test_after_the_answer(
    agent_id: str, running: Running, client: MeshClient, connection: Connection
) -> None:
    """The answer stands, and nothing comes behind it."""
    held = Held(agent_id)
    held.go.set()
    async with running(held.agent):
        call = await start(client, agent_id)
        await call.result()
        await client.cancel(call)
        await _handled(connection, call)
    frames = await read_frames(connection, call.reply_subject, call.id)
    assert [frame.kind for frame in frames] == ["final"]


async def _handled(connection: Connection, call: Call | StoredCall) -> None:
    """Wait until the control plane is done with the cancel of a call."""
    manager = connection.client.jsm()
    stored = await manager.get_last_msg(CONTROL, subjects.cancel(call.agent, call.id))

    async def is_handled() -> bool:
        info = await manager.consumer_info(CONTROL, "cancel")
        assert info.ack_floor is not None
        return (info.ack_floor.stream_seq or 0) >= (stored.seq or 0)

    await until(is_handled)


async def test_after_an_answer_whose_agent_died_before_it_acknowledged(
    agent_id: str, running: Running, client: MeshClient, connection: Connection
) -> None:
    """The request is still there, and dedupe has forgotten the answer: the ledger has not."""
    await offline(running, client, agent_id)
    stored = await client.submit(agent_id, question(agent_id), timeout_s=60)
    headers = {h.KIND: "final", h.CORRELATION_ID: stored.id, h.CONTENT_TYPE: h.TEXT}
    await connection.publisher.publish(stored.reply_subject, b"long ago", headers)
    await client.cancel(stored)
    await until(lambda: is_gone(connection, stored.sequence))
    frames = await read_frames(connection, stored.reply_subject, stored.id)
    assert [frame.kind for frame in frames] == ["stored", "final"]


@pytest.mark.parametrize("made", ["other call", "other agent", "no place", "no such place"])
async def test_a_cancel_that_names_a_foreign_request(
    *, agent_id: str, running: Running, client: MeshClient, connection: Connection, made: str
) -> None:
    """The sender says which request it is, and only the request says whose: nothing is deleted."""
    await offline(running, client, agent_id)
    stored = await client.submit(agent_id, question(agent_id), timeout_s=60)
    wrong = {
        "other call": StoredCall("e" * 32, agent_id, "", stored.sequence),
        "other agent": StoredCall(stored.id, f"{agent_id}-b", "", stored.sequence),
        "no place": StoredCall(stored.id, agent_id, "", 0),
        "no such place": StoredCall(stored.id, agent_id, "", stored.sequence + 1_000_000),
    }[made]
    await client.cancel(wrong)
    await _handled(connection, wrong)
    assert not await is_gone(connection, stored.sequence)
    frames = await read_frames(connection, stored.reply_subject, stored.id)
    assert [frame.kind for frame in frames] == ["stored"]
    held = Held(agent_id)
    held.go.set()
    async with running(held.agent):
        await until(lambda: held.finished == 1)


async def test_a_second_cancel(
    agent_id: str, running: Running, client: MeshClient, connection: Connection
) -> None:
    """It counts, whatever became of the first: that one did not know where the request lies."""
    await offline(running, client, agent_id)
    stored = await client.submit(agent_id, question(agent_id), timeout_s=60)
    blind = StoredCall(stored.id, agent_id, "", 0)
    await client.cancel(blind)
    await _handled(connection, blind)
    await client.cancel(stored)
    await until(lambda: is_gone(connection, stored.sequence))


async def test_a_message_that_looks_like_a_cancel(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """Only what JetStream has stored stops a handler, and only if it is a cancel."""
    held = Held(agent_id)
    async with running(held.agent):
        call = await start(client, agent_id)
        await until(lambda: held.started == 1)
        forged = {"Nats-Stream": "CONTROL", "Nats-Subject": f"agent.{agent_id}.cancel.{'e' * 32}"}
        body = b'{"sequence":%d}' % call.sequence
        await bare.publish(f"delivered.{agent_id}.cancel.{call.id}", body)
        await bare.publish(f"delivered.{agent_id}.cancel.{call.id}", body, headers=forged)
        for text in (b"", b"no JSON", b'{"sequence":-1}'):
            await bare.jetstream().publish(f"agent.{agent_id}.cancel.{call.id}", text)
        held.go.set()
        assert (await call.reply()).text == "hello, attempt 1"


async def test_a_handler_that_fails_when_it_is_stopped(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """The call was cancelled, whatever its handler made of that."""
    agent, started = Agent(agent_id), asyncio.Event()

    @agent.chat
    async def clumsy(request: ChatRequest) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("could not tidy up") from None
        return ""

    async with running(agent):
        call = await start(client, agent_id)
        await started.wait()
        await client.cancel(call)
        await cancelled(call)


async def test_a_handler_that_does_not_stop(
    agent_id: str, running: Running, client: MeshClient, connection: Connection
) -> None:
    """Its caller is told at once all the same; what it says later is dropped."""
    agent, started, go = Agent(agent_id), asyncio.Event(), asyncio.Event()

    @agent.chat
    async def stubborn(request: ChatRequest) -> str:
        started.set()
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return "too late"

    async with running(agent):
        call = await start(client, agent_id)
        await started.wait()
        await client.cancel(call)
        assert await cancelled(call) < 1
        go.set()
        assert (await client.ask(agent_id, "next")).text == "too late"
    frames = await read_frames(connection, call.reply_subject, call.id)
    assert [frame.kind for frame in frames if frame.kind.is_terminal] == ["error"]


async def test_nothing_is_kept_of_calls_that_have_ended(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """Answered, failed, cancelled, given up: no entry, no timer and no task is left of them."""
    held = Held(agent_id)
    held.go.set()
    broken = Agent(f"{agent_id}-b")

    @broken.chat
    async def fail(request: ChatRequest) -> str:
        raise ValueError

    async with running(held.agent, broken):
        await asyncio.gather(*(client.ask(agent_id, "x") for _ in range(50)))
        for _ in range(5):
            with pytest.raises(AgentFailedError):
                await client.ask(broken.id, "x")
        held.go.clear()
        calls = [await start(client, agent_id) for _ in range(5)]
        for call in calls:
            await client.cancel(call)
            await cancelled(call)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.ask(agent_id, "x"), 0.05)
        inbox, outbox = client._inbox, client._outbox
        await until(lambda: not inbox._calls and not outbox._slow and not outbox._tasks)
        await until(lambda: held.stopped == 10)


# Nested calls


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_stopped_handler_waits_for_is_stopped(
    agent_id: str, running: Running, client: MeshClient, *, stream: bool
) -> None:
    """Three deep: the calls below end with the one above."""
    bottom, middle, top = Held(f"{agent_id}-3"), Agent(f"{agent_id}-2"), Agent(f"{agent_id}-1")

    @middle.chat
    async def ask_bottom(request: ChatRequest, call: CallContext) -> str:
        if stream:
            return "".join([part async for part in call.stream(bottom.agent.id, "x")])
        return (await call.ask(bottom.agent.id, "x")).text

    @top.chat
    async def ask_middle(request: ChatRequest, call: CallContext) -> AsyncIterator[str]:
        async for part in call.stream(middle.id, "x"):
            yield part

    async with running(bottom.agent), running(middle, top):
        call = await start(client, top.id)
        await until(lambda: bottom.started == 1)
        await client.cancel(call)
        await cancelled(call)
        await until(lambda: bottom.stopped == 1)


async def test_a_nested_call_that_waits_for_an_agent(
    agent_id: str, running: Running, client: MeshClient, connection: Connection
) -> None:
    """It is taken out of the mailbox of the agent that is offline."""
    inner = f"{agent_id}-in"
    await offline(running, client, inner)
    outer, started = Agent(agent_id), asyncio.Event()

    @outer.chat
    async def ask(request: ChatRequest, call: CallContext) -> str:
        started.set()
        return (await call.ask(inner, "x")).text

    async with running(outer):
        call = await start(client, agent_id)
        await started.wait()
        await until(lambda: _waiting(connection, inner, 1))
        await client.cancel(call)
        await cancelled(call)
        await until(lambda: _waiting(connection, inner, 0))


async def _waiting(connection: Connection, agent_id: str, count: int) -> bool:
    info = await connection.client.jsm().stream_info(INBOX, subjects.inbox(agent_id))
    return (info.state.subjects or {}).get(subjects.inbox(agent_id), 0) == count


async def test_who_stops_waiting_cancels(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """A time-out of one's own, or a stream that nobody reads on: the agent works for nobody."""
    held = Held(agent_id)
    streaming, was_closed = Agent(f"{agent_id}-b"), asyncio.Event()

    @streaming.chat
    async def speak(request: ChatRequest) -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            was_closed.set()

    async with running(held.agent, streaming):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.ask(agent_id, "x"), 0.3)
        await until(lambda: held.stopped == 1)
        parts = client.stream(streaming.id, "x")
        assert await anext(parts) == "a"
        await parts.aclose()
        await asyncio.wait_for(was_closed.wait(), 30)


async def test_a_call_that_has_ended_is_not_cancelled(
    agent_id: str, running: Running, client: MeshClient, connection: Connection
) -> None:
    """Neither after its answer nor after its failure: nothing is published."""
    held = Held(agent_id)
    held.go.set()
    broken = Agent(f"{agent_id}-b")

    @broken.chat
    async def fail(request: ChatRequest) -> str:
        raise ValueError

    async with running(held.agent, broken):
        await client.ask(agent_id, "x")
        assert [part async for part in client.stream(agent_id, "x")] == ["x, attempt 1"]
        with pytest.raises(AgentFailedError):
            await client.ask(broken.id, "x")
    info = await connection.client.jsm().stream_info(CONTROL, "agent.*.cancel.*")
    stopped = {subject.split(".")[1] for subject in info.state.subjects or {}}
    assert not stopped & {agent_id, broken.id}


# Without the control plane


async def test_without_a_control_plane(settings: Settings, tmp_path: Path) -> None:
    """What runs is stopped; what waits behind it is not begun; who asked is told of both."""
    held = Held("alone", concurrency=1)
    async with own_mesh(settings, tmp_path, held.agent) as mesh:
        running = await start(mesh.client, "alone")
        await until(lambda: held.started == 1)
        waiting = await start(mesh.client, "alone")
        await mesh.kill_control()
        await mesh.client.cancel(waiting)
        await mesh.client.cancel(running)
        await cancelled(running)
        await until(lambda: held.stopped == 1)
        await cancelled(waiting)
        assert held.started == 1
        assert set((await terminals(mesh.connection)).values()) == {1}


async def test_a_cancelled_request_that_comes_again(settings: Settings, tmp_path: Path) -> None:
    """Its first host is dead, and nobody was there to delete it: the next one refuses it."""
    held = Held("heir", concurrency=1)
    async with own_mesh(settings, tmp_path, held.agent) as mesh:
        await start(mesh.client, "heir")
        await until(lambda: held.started == 1)
        call = await start(mesh.client, "heir")
        [taken] = await (await puller(mesh.connection, "heir")).fetch(1)
        assert taken.metadata.sequence.stream == call.sequence
        await mesh.kill_control()
        await mesh.client.cancel(call)
        await taken.nak()
        held.go.set()
        await cancelled(call)
        await mesh.client.ask("heir", "flush")
        assert held.started == 2, "the cancelled call was begun"


async def puller(connection: Connection, durable: str) -> JetStreamContext.PullSubscription:
    """Pull like a host that will not live long."""
    jetstream = connection.client.jetstream()
    return await jetstream.pull_subscribe_bind(durable, stream=INBOX)
