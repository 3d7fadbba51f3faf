"""Calls across the mesh: plain, streamed, nested, pinned, failing."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh import Agent, CallContext, ChatDelta, ChatReply, ChatRequest, Usage
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.errors import (
    AgentFailedError,
    AgentNotFoundError,
    AgentNotOnNodeError,
    AgentOfflineError,
    CallTimeoutError,
    HopLimitError,
    InvalidIdError,
    InvalidInputError,
    MailboxFullError,
    NodeNotFoundError,
    PayloadTooLargeError,
)
from mesh.questions import Question
from mesh.subjects import inbox
from tests.conftest import Running, until
from tests.pace import stopwatch


def echo(agent_id: str) -> Agent:
    """An agent that repeats what it is told."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return f"You said: {request.last_text}"

    return agent


async def test_an_agent_answers_a_question(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """A question to an agent comes back as its answer."""
    async with running(echo(agent_id)):
        reply = await client.ask(agent_id, "hello")
    assert reply.text == "You said: hello"


async def test_two_hundred_calls_at_once_get_their_own_answers(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """Answers never get mixed up, however many calls are in flight."""
    async with running(echo(agent_id)):
        replies = await asyncio.gather(*(client.ask(agent_id, f"n{n}") for n in range(200)))
    assert [one.text for one in replies] == [f"You said: n{n}" for n in range(200)]


async def test_a_streamed_answer_comes_in_parts(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """The caller sees the first part before the agent has said the last."""
    agent = Agent(agent_id)
    seen_first = asyncio.Event()

    @agent.chat
    async def count(request: ChatRequest) -> AsyncIterator[str]:
        yield "one"
        await asyncio.wait_for(seen_first.wait(), 30)
        yield " two"

    parts = []
    async with running(agent):
        async for part in client.stream(agent_id, "go"):
            parts.append(part)
            seen_first.set()
    assert parts == ["one", " two"]


async def test_a_long_stream_arrives_whole_and_in_order(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """Two thousand parts come in order, none missing."""
    agent = Agent(agent_id)

    @agent.chat
    async def count(request: ChatRequest) -> AsyncIterator[str]:
        for number in range(2_000):
            yield f"{number} "

    async with running(agent):
        text = "".join([part async for part in client.stream(agent_id, "go")])
    assert text.split() == [str(number) for number in range(2_000)]


async def test_a_streaming_agent_answers_plain_questions(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """Who does not ask for a stream gets the parts joined, with usage and finish reason."""
    agent = Agent(agent_id)

    @agent.chat
    async def speak(request: ChatRequest) -> AsyncIterator[str | ChatDelta]:
        yield "a"
        yield ChatDelta(content="b", finish_reason="length")
        yield ChatDelta(usage=Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3))

    async with running(agent):
        reply = await client.ask(agent_id, "go")
    assert (reply.text, reply.finish_reason, reply.usage.total_tokens) == ("ab", "length", 3)


async def test_an_agent_that_does_not_stream_can_be_streamed(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """Streaming a plain answer yields it at once."""
    async with running(echo(agent_id)):
        assert [part async for part in client.stream(agent_id, "x")] == ["You said: x"]


async def test_blocking_handlers_run_in_threads(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """A blocking function or generator stops neither its neighbours nor the loop."""
    plain, streaming = Agent(f"{agent_id}-a"), Agent(f"{agent_id}-b")

    @plain.chat
    def block(request: ChatRequest) -> str:
        time.sleep(0.3)
        return "done"

    @streaming.chat
    def block_in_parts(request: ChatRequest) -> Iterator[str]:
        for part in ("a", "b"):
            time.sleep(0.1)
            yield part

    async with running(plain, streaming):
        with stopwatch() as stretch:
            replies = await asyncio.gather(
                *(client.ask(plain.id, "x") for _ in range(8)), client.ask(streaming.id, "x")
            )
    assert [one.text for one in replies] == ["done"] * 8 + ["ab"]
    assert stretch.took_s < 1.5, f"eight blocking calls of 0.3 s, one after the other: {stretch}"


async def test_an_agent_asks_another(agent_id: str, running: Running, client: MeshClient) -> None:
    """A nested call carries who asks, and less time than the call above it."""
    inner, outer = Agent(f"{agent_id}-in"), Agent(f"{agent_id}-out")

    @inner.chat
    async def answer(request: ChatRequest, call: CallContext) -> str:
        return f"{call.source_agent} on {call.source_node} asked with {call.remaining_s:.0f} s left"

    @outer.chat
    async def ask(request: ChatRequest, call: CallContext) -> str:
        return (await call.ask(inner.id, "x", timeout_s=500)).text

    async with running(inner, node="node2"), running(outer, node="node1"):
        reply = await client.ask(outer.id, "go", timeout_s=9)
    assert reply.text == f"{outer.id} on node1 asked with 9 s left"


async def test_agents_that_call_each_other_in_a_loop_are_stopped(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """A loop ends as a typed error that shows the path, not as a runaway."""
    one, two = Agent(f"{agent_id}-1"), Agent(f"{agent_id}-2")

    @one.chat
    async def ask_two(request: ChatRequest, call: CallContext) -> str:
        return (await call.ask(two.id, "x")).text

    @two.chat
    async def ask_one(request: ChatRequest, call: CallContext) -> str:
        return (await call.ask(one.id, "x")).text

    async with running(one, two):
        with pytest.raises(HopLimitError, match=f"{one.id} > {two.id} > {one.id}"):
            await client.ask(one.id, "go")


async def test_a_call_goes_to_the_node_it_names(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """`node` reaches the instance there, and no other."""

    def located(node: str) -> Agent:
        agent = Agent(agent_id)

        @agent.chat
        async def answer(request: ChatRequest) -> str:
            return node

        return agent

    async with (
        running(located("node1"), node="node1"),
        running(located("node2"), node="node2"),
    ):
        await until(lambda: len(client.directory.agent(agent_id).nodes) == 2)
        for node in ("node1", "node2"):
            replies = await asyncio.gather(
                *(client.ask(agent_id, "where", node=node) for _ in range(20))
            )
            assert {one.text for one in replies} == {node}


async def test_wrong_nodes_are_refused(agent_id: str, running: Running, client: MeshClient) -> None:
    """A node that is unknown, or on which the agent never ran, is a typed error each."""
    async with running(echo(agent_id)), running(echo(f"{agent_id}-b"), node="node2"):
        with pytest.raises(NodeNotFoundError, match="nowhere"):
            await client.ask(agent_id, "x", node="nowhere")
        with pytest.raises(AgentNotOnNodeError):
            await client.ask(agent_id, "x", node="node2")
        with pytest.raises(InvalidIdError):
            await client.ask(agent_id, "x", node="no.de")


async def test_pinned_and_shared_work_share_the_slots(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """An agent with two slots never works on three calls, whichever mailbox they came from."""
    agent, at_work, peak = Agent(agent_id, concurrency=2), 0, 0

    @agent.chat
    async def work(request: ChatRequest) -> str:
        nonlocal at_work, peak
        at_work += 1
        peak = max(peak, at_work)
        await asyncio.sleep(0.01)
        at_work -= 1
        return "done"

    async with running(agent):
        nodes = [None, "node1"] * 20
        await asyncio.gather(*(client.ask(agent_id, "x", node=node) for node in nodes))
    assert peak == 2


async def test_an_idle_replica_takes_what_a_busy_one_cannot(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """Two processes with one agent id share its work; the slow one hoards nothing."""
    stuck = asyncio.Event()

    def replica(name: str, wait: bool) -> Agent:
        agent = Agent(agent_id, concurrency=1)

        @agent.chat
        async def answer(request: ChatRequest) -> str:
            if wait:
                await stuck.wait()
            return name

        return agent

    async with running(replica("slow", True)):
        first = asyncio.create_task(client.ask(agent_id, "x"))
        await asyncio.sleep(0.2)
        async with running(replica("fast", False)):
            replies = await asyncio.gather(*(client.ask(agent_id, "x") for _ in range(10)))
            assert {one.text for one in replies} == {"fast"}
            stuck.set()
            assert (await first).text == "slow"


async def test_an_error_is_raised_as_the_same_class(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """What the handler raises comes out at the caller, with its fields."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> str:
        if request.last_text == "mesh":
            raise AgentNotFoundError("no such thing", agent="x", suggestions=["y"])
        raise ValueError("the model is on fire")

    async with running(agent):
        with pytest.raises(AgentFailedError, match="ValueError: the model is on fire") as failure:
            await client.ask(agent_id, "other")
        assert failure.value.fields["error_type"] == "ValueError"
        with pytest.raises(AgentNotFoundError) as missing:
            await client.ask(agent_id, "mesh")
        assert missing.value.fields["suggestions"] == ["y"]


async def test_a_stream_that_fails_ends_with_the_error(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """What was said before the failure is shown, and then the error is raised."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> AsyncIterator[str]:
        yield "half"
        raise ValueError("broken")

    async with running(agent):
        answer = client.stream(agent_id, "x")
        assert await anext(answer) == "half"
        with pytest.raises(AgentFailedError, match="broken"):
            await anext(answer)


async def test_the_deadline_ends_the_call_and_the_handler(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """At its deadline the caller gets a typed error, and the handler is cancelled."""
    agent, cancelled = Agent(agent_id), asyncio.Event()

    @agent.chat
    async def sleep(request: ChatRequest) -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "too late"

    async with running(agent):
        with stopwatch() as stretch, pytest.raises(CallTimeoutError):
            await client.ask(agent_id, "x", timeout_s=0.5)
        assert stretch.whole_s > 0.4
        assert stretch.took_s < 1.5
        await asyncio.wait_for(cancelled.wait(), 30)


async def test_a_question_waits_for_an_agent_that_is_offline(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """A known agent gets the question when it is back; who will not wait is told at once."""
    async with running(echo(agent_id)):
        pass
    await until(lambda: client.directory.agent(agent_id).state == "offline")
    with pytest.raises(AgentOfflineError):
        await client.ask(agent_id, "now", wait=False)
    waiting = asyncio.create_task(client.ask(agent_id, "later", timeout_s=20))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    async with running(echo(agent_id)):
        assert (await waiting).text == "You said: later"


async def test_a_call_that_expires_in_the_mailbox_is_never_run(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """An agent that comes back after the deadline does not see the question: by the broker's
    own time limit, and where that is late or was not asked for, by the agent's clock.
    """
    seen: list[str] = []
    agent = Agent(agent_id)

    @agent.chat
    async def note(request: ChatRequest) -> str:
        seen.append(request.last_text)
        return "ok"

    async with running(agent):
        await client.ask(agent_id, "first")
    reply_to = f"agent.{agent_id}-b.reply.x.late.{agent_id}"
    answers = await bare.subscribe(f"delivered.{agent_id}-b.reply.>")
    unlimited = {"mesh-timeout-ms": "100", "reply_to": reply_to, "correlation_id": "late"}
    await bare.publish(inbox(agent_id), b"without a Nats-TTL", headers=unlimited)
    with pytest.raises(CallTimeoutError):
        await client.ask(agent_id, "expired", timeout_s=0.5)
    async with running(agent):
        await client.ask(agent_id, "last")
        answer = await answers.next_msg(timeout=30)
    assert seen == ["first", "last"]
    assert (answer.headers or {})["mesh-code"] == CallTimeoutError.code


async def test_time_in_the_mailbox_is_counted(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """The first call that a new process gets has no more time left than its caller gives it."""
    agent = Agent(agent_id)

    @agent.chat
    async def tell(request: ChatRequest, call: CallContext) -> str:
        return f"{call.remaining_s:.3f}"

    async with running(agent):
        await client.ask(agent_id, "now")
    started = time.monotonic()
    waiting = asyncio.create_task(client.ask(agent_id, "later", timeout_s=20))
    await asyncio.sleep(1)
    async with running(agent):
        reply = await waiting
    assert 20 - (time.monotonic() - started) - 0.2 < float(reply.text) < 19.01


async def test_a_full_mailbox_is_told_at_once(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """Over the mailbox's limit the caller gets a typed error, and other agents go on."""
    async with running(echo(agent_id)):
        pass
    jetstream = bare.jetstream(publish_async_max_pending=2_000)
    for _ in range(1_000):
        await jetstream.publish_async(inbox(agent_id), b"filler")
    await jetstream.publish_async_completed()
    with stopwatch() as stretch, pytest.raises(MailboxFullError):
        await client.ask(agent_id, "one more", timeout_s=30)
    assert stretch.took_s < 2
    await bare.jsm().purge_stream("INBOX", subject=inbox(agent_id))


async def test_bad_questions_are_refused_before_they_are_sent(
    agent_id: str,
    running: Running,
    client: MeshClient,
    connection: Connection,
    bare: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bad ids, empty messages, impossible deadlines and sizes: a typed error each, link intact."""
    async with running(echo(agent_id)):
        before = (await bare.jsm().stream_info("INBOX")).state.last_seq
        for bad in ("a.b", "*", ">", "a b", "a\n", "", "a" * 33, "A", "ä", "-a", "../x"):
            with pytest.raises(InvalidIdError):
                await client.ask(bad, "x")
        bad_questions: list[Question] = ["", "  ", {"messages": []}, {"messages": "x"}, {}]
        for question in bad_questions:
            with pytest.raises(InvalidInputError):
                await client.ask(agent_id, question)
        for timeout_s in (0, -1, 100_000, float("nan")):
            with pytest.raises(InvalidInputError):
                await client.ask(agent_id, "x", timeout_s=timeout_s)
        monkeypatch.setattr(connection, "body_max_bytes", 1_090_000)
        with pytest.raises(PayloadTooLargeError) as refused:
            await client.ask(agent_id, "x" * 1_100_000)
        assert refused.value.fields["actual_bytes"] > refused.value.fields["limit_bytes"]
        with pytest.raises(AgentNotFoundError) as unknown:
            await client.ask(f"{agent_id}x", "x")
        assert agent_id in unknown.value.fields["suggestions"]
        after = (await bare.jsm().stream_info("INBOX")).state.last_seq
        assert after == before, "something bad was stored"
        assert (await client.ask(agent_id, "still here")).text == "You said: still here"


async def test_the_largest_message_that_fits_is_answered(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """A body near the limit passes as one message; what is over it, passes beside one."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> ChatReply:
        if request.last_text.startswith("x"):
            return ChatReply(content=str(len(request.last_text)))
        return ChatReply(content="y" * 1_100_000)

    async with running(agent):
        for size in (1_040_000, *range(1_044_380, 1_044_420, 10), 1_100_000):
            assert (await client.ask(agent_id, "x" * size)).text == str(size)
        assert (await client.ask(agent_id, "too much")).text == "y" * 1_100_000
        assert (await client.ask(agent_id, "xx")).text == "2"


async def test_a_host_that_drains_keeps_its_work(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """Told to stop, it renews what it works on, and stays online until that is answered."""
    agent, started, renewals = Agent(agent_id), asyncio.Event(), 0

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        started.set()
        await asyncio.sleep(4.5)
        return "finished"

    async def on_ack(message: Msg) -> None:
        nonlocal renewals
        renewals += message.data == b"+WPI"

    await bare.subscribe(f"$JS.ACK.INBOX.{agent_id}.>", cb=on_ack)
    async with running(agent, grace_s=10):
        asking = asyncio.create_task(client.ask(agent_id, "x"))
        await started.wait()
    # Stopped by now, and not before the answer was stored.
    assert (await asking).text == "finished"
    assert renewals >= 1
