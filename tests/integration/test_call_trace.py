"""What can be told of a call afterwards: each hop with its time, and the calls made for it."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client

from mesh import Agent, CallContext, ChatRequest, subjects
from mesh import headers as h
from mesh.call_trace import CallTrace, Hop, read_trace
from mesh.calls import CallState
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.errors import AgentFailedError, CallCancelledError, CallNotFoundError
from tests.calls import Held, offline, question
from tests.conftest import Running, until
from tests.shim import replier

AT_ONCE = [Hop.STORED, Hop.BEGAN, Hop.ANSWERED, Hop.ACKNOWLEDGED]


def hops(trace: CallTrace) -> list[Hop]:
    """Return what happened, in order; that a call was recorded depends on how busy we are."""
    return [step.hop for step in trace.steps if step.hop not in (Hop.RECORDED, Hop.WORKING)]


async def settled(connection: Connection, call_id: str) -> CallTrace:
    """Return the trace of a call, once its request is out of the mailbox."""

    async def is_settled() -> bool:
        try:
            return (await read_trace(connection, call_id)).steps[-1].hop is Hop.ACKNOWLEDGED
        except CallNotFoundError:
            return False

    await until(is_settled)
    return await read_trace(connection, call_id)


async def test_a_call_and_the_calls_that_were_made_for_it(
    running: Running, client: MeshClient, connection: Connection, agent_id: str
) -> None:
    """A tree, with each call in its place and its times inside those of the one above."""
    leaf, middle = replier(f"{agent_id}-leaf"), Agent(f"{agent_id}-middle")
    top = Agent(f"{agent_id}-top")

    @middle.chat
    async def ask_on(request: ChatRequest, call: CallContext) -> str:
        return (await call.ask(leaf.id, request.last_text)).text

    @top.chat
    async def ask_both(request: ChatRequest, call: CallContext) -> str:
        first, second = await asyncio.gather(call.ask(middle.id, "one"), call.ask(leaf.id, "two"))
        return f"{first.text} {second.text}"

    async with running(leaf, middle, top):
        # Another call of the same agents at the same time is in another tree.
        call, other = [await client.start(top.id, question(top.id)) for _ in range(2)]
        await asyncio.gather(call.result(), other.result())
        trace = await settled(connection, call.id)
    assert (trace.caller, trace.agent, trace.state) == ("tester", top.id, CallState.ANSWERED)
    assert hops(trace) == AT_ONCE
    assert {one.agent for one in trace.children} == {middle.id, leaf.id}
    assert len(trace.children) == 2
    for child in trace.children:
        assert child.caller == top.id
        assert child.trace_id == trace.trace_id
        assert hops(child)[:3] == AT_ONCE[:3]
        assert [one.agent for one in child.children] == [leaf.id] * (child.agent == middle.id)
        assert trace.began_ns < child.began_ns
        assert child.took_s is not None
        assert trace.took_s is not None
        assert child.began_ns + child.took_s * 1e9 <= trace.began_ns + trace.took_s * 1e9


async def test_times_are_the_brokers(
    running: Running, client: MeshClient, connection: Connection, agent_id: str
) -> None:
    """How long it waited, and how long it was worked on, to some milliseconds."""
    agent = Agent(agent_id)

    @agent.chat
    async def think(request: ChatRequest) -> str:
        await asyncio.sleep(0.5)
        return "done"

    await offline(running, client, agent_id)
    stored = await client.submit(agent_id, question(agent_id), timeout_s=30)
    waiting = await read_trace(connection, stored.id)
    assert [one.hop for one in waiting.steps] == [Hop.RECORDED, Hop.WAITING]
    await asyncio.sleep(0.7)
    async with running(agent):
        trace = await settled(connection, stored.id)
    at = {step.hop: step.at_ns / 1e9 for step in trace.steps}
    assert 0.7 <= at[Hop.BEGAN] - at[Hop.STORED] < 20
    assert 0.5 <= at[Hop.ANSWERED] - at[Hop.BEGAN] < 5
    assert at[Hop.BEGAN] + 0.2 <= at[Hop.WORKING] + 0.01


async def test_a_stream_a_failure_and_a_cancel(
    running: Running, client: MeshClient, connection: Connection, agent_id: str
) -> None:
    """Each has its own hops."""
    agent = Agent(agent_id)

    @agent.chat
    async def speak(request: ChatRequest) -> AsyncIterator[str]:
        if request.last_text == "fail":
            raise ValueError("no sun")
        yield "one "
        yield "two"

    held = Held(f"{agent_id}-held")
    async with running(agent, held.agent):
        streamed = await client.start(agent_id, question(agent_id, stream=True))
        await streamed.result()
        failed = await client.start(agent_id, question(agent_id, "fail"))
        with pytest.raises(AgentFailedError):
            await failed.result()
        stopped = await client.start(held.agent.id, question(held.agent.id))
        await until(lambda: held.started == 1)
        await client.cancel(stopped)
        with pytest.raises(CallCancelledError):
            await stopped.result()
        traces = [await settled(connection, one.id) for one in (streamed, failed, stopped)]
    assert hops(traces[0]) == [*AT_ONCE[:2], Hop.FIRST_CHUNK, Hop.LAST_CHUNK, *AT_ONCE[2:]]
    assert hops(traces[1]) == [*AT_ONCE[:2], Hop.FAILED, Hop.ACKNOWLEDGED]
    assert "no sun" in traces[1].steps[-2].note
    assert hops(traces[2]) == [*AT_ONCE[:2], Hop.CANCEL, Hop.FAILED, Hop.ACKNOWLEDGED]
    assert traces[2].state is CallState.CANCELLED


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {h.REQUEST: "x/y", h.RAN_MS: "nan", h.TRACEPARENT: "00-zz", h.PARENT: "?"},
        {h.REQUEST: f"{'9' * 40}/{'9' * 40}", h.RAN_MS: "1e400"},
        {h.REQUEST: "1/", h.RAN_MS: "-5"},
        {h.ATTEMPT: "9" * 15},
    ],
)
async def test_whatever_an_agent_writes(
    connection: Connection, bare: Client, agent_id: str, headers: dict[str, str]
) -> None:
    """An agent without our library says little, and one that is hostile says anything."""
    call_id = f"{agent_id}x{len(str(headers))}"
    subject = subjects.reply("somebody", "i", call_id, agent_id)
    said = {h.KIND: "final", h.CORRELATION_ID: call_id, h.CONTENT_TYPE: h.TEXT, **headers}
    await bare.jetstream().publish(subject, b"hello", headers=said)
    trace = await read_trace(connection, call_id)
    assert len(trace.steps) < 6
    assert trace.state is CallState.ANSWERED
    assert Hop.ANSWERED in hops(trace)
    assert trace.children == []


async def test_a_child_that_is_none(
    running: Running, client: MeshClient, connection: Connection, bare: Client, agent_id: str
) -> None:
    """Is left out: whoever writes it may not spoil the trace of a good call."""
    async with running(replier(agent_id)):
        call = await client.start(agent_id, question(agent_id))
        await call.result()
        trace = await settled(connection, call.id)
        trace_id, span_id = h.span_of(call.traceparent)
        said = {
            h.KIND: "final",
            h.CORRELATION_ID: "not a call id",
            h.PARENT: span_id,
            h.TRACEPARENT: f"00-{trace_id}-{'e' * 16}-01",
        }
        subject = subjects.reply(agent_id, "i", "x", agent_id)
        await bare.jetstream().publish(subject, b"{}", headers=said)
        again = await read_trace(connection, call.id)
    assert again.steps == trace.steps
    assert again.children == []
