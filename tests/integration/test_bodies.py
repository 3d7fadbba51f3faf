"""Bodies that fit into no message: both ways, what becomes of them, and what can go wrong."""

import asyncio
import hashlib
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client

from mesh import Agent, CallContext, ChatRequest
from mesh import headers as h
from mesh.attachments import put_body
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.errors import (
    AgentFailedError,
    BodyLostError,
    CallTimeoutError,
    InvalidInputError,
    KeyReusedError,
    MailboxFullError,
)
from mesh.followers import follow_call
from mesh.ledger import read_record
from mesh.questions import encode_question
from mesh.streams import BODIES, INBOX, REPLY
from mesh.subjects import inbox
from tests.calls import Held, client_at, offline
from tests.conftest import Running, until

LARGE = "x" * 3_000_000


def parrot(agent_id: str) -> Agent:
    """An agent that says it again, and so answers as largely as it was asked."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return request.last_text

    return agent


def measure(agent_id: str) -> Agent:
    """An agent that counts what it is told."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return str(len(request.last_text))

    return agent


async def objects_of(bare: Client, call_id: str) -> list[str]:
    """Return the objects that are kept for a call.

    Not by nats-py's `list`, which waits for ever where one is removed while it begins.
    """
    info = await bare.jsm().stream_info(BODIES, subjects_filter="$O.bodies.M.>")
    names = [
        urlsafe_b64decode(one.rpartition(".")[2]).decode() for one in info.state.subjects or {}
    ]
    return [one for one in names if one.startswith(f"{call_id}.")]


async def chunks_kept(bare: Client) -> int:
    """Return how many chunks are kept, of whatever."""
    info = await bare.jsm().stream_info(BODIES, subjects_filter="$O.bodies.C.>")
    return sum((info.state.subjects or {}).values())


async def test_a_large_question_and_its_large_answer_come_whole(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """Handler and caller see the whole text, as if it had fitted."""
    async with running(parrot(agent_id)):
        assert (await client.ask(agent_id, LARGE)).text == LARGE
        parts = [part async for part in client.stream(agent_id, LARGE)]
    assert "".join(parts) == LARGE


async def test_a_streamed_answer_may_be_larger_than_a_message(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """Its chunks are small; only the last frame, which has all of it, is too large for one."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> AsyncIterator[str]:
        for number in range(30):
            yield f"{number:02}" * 50_000

    whole = "".join(f"{number:02}" * 50_000 for number in range(30))
    async with running(agent):
        parts = [part async for part in client.stream(agent_id, "count")]
        reply = await client.ask(agent_id, "count")
    assert len(parts) == 30
    assert "".join(parts) == reply.text == whole


async def test_a_part_of_an_answer_may_be_larger_than_a_message(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """It comes as several, whatever is in it."""
    agent, text = Agent(agent_id), "\x01\N{SNOWMAN}" * 400_000

    @agent.chat
    async def answer(request: ChatRequest) -> AsyncIterator[str]:
        yield text

    async with running(agent):
        parts = [part async for part in client.stream(agent_id, "all of it")]
    assert len(parts) == 8
    assert "".join(parts) == text


async def test_what_travels_is_a_claim(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """The message has no body, and says name, size and digest; nats-py reads what is claimed."""
    await offline(running, client, agent_id)
    body = encode_question(agent_id, LARGE, stream=False)
    call = await client.start(agent_id, body)
    await until(lambda: call.sequence > 0)
    stored = await bare.jsm().get_msg(INBOX, seq=call.sequence)
    name, size, digest = (stored.headers or {})[h.BODY].split(" ")
    assert not stored.data
    assert (int(size), digest) == (len(body), hashlib.sha256(body).hexdigest())
    store = await bare.jetstream().object_store("bodies")
    found = await store.get(name)
    assert (found.data, found.info.size, found.info.bucket) == (body, len(body), "bodies")
    await client.cancel(call)
    await until(lambda: call.is_done)


async def test_what_nats_py_has_stored_can_be_claimed(
    agent_id: str, running: Running, bare: Client
) -> None:
    """A caller without our library puts an object, and names it in the header."""
    text = LARGE.encode()
    store = await bare.jetstream().object_store("bodies")
    await store.put(f"by-hand/{agent_id}", text)
    reply_to = bare.new_inbox()
    answers = await bare.subscribe(reply_to)
    headers = {
        h.REPLY_TO: reply_to,
        h.CONTENT_TYPE: h.TEXT,
        h.BODY: f"by-hand/{agent_id} {len(text)} {hashlib.sha256(text).hexdigest()}",
    }
    async with running(measure(agent_id)):
        await bare.jetstream().publish(inbox(agent_id), headers=headers)
        answer = await answers.next_msg(timeout=10)
    assert answer.data == str(len(text)).encode()


async def test_a_question_is_removed_when_it_is_answered(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """An answer stays as long as its frame: whoever knows the call can read it again."""
    async with running(parrot(agent_id)):
        call = await client.start(agent_id, encode_question(agent_id, LARGE, stream=False))
        assert (await call.reply()).text == LARGE

        async def is_answer_left_alone() -> bool:
            return len(await objects_of(bare, call.id)) == 1

        await until(is_answer_left_alone)
        async with follow_call(client._connection, (await record_of(client, call.id))) as again:
            assert (await again.reply()).text == LARGE
    frame = await bare.jsm().get_last_msg(REPLY, call.reply_subject)
    assert not frame.data
    [name] = await objects_of(bare, call.id)
    assert (frame.headers or {})[h.BODY].startswith(f"{name} ")
    stored = await bare.jsm().get_last_msg(BODIES, await chunk_subject(bare, name))
    assert int((stored.headers or {})[h.TTL]) >= int((frame.headers or {})[h.TTL])


async def record_of(client: MeshClient, call_id: str):  # type: ignore[no-untyped-def]
    return (await read_record(client._connection, call_id)).call


async def chunk_subject(bare: Client, name: str) -> str:
    """Return under what the chunks of an object lie."""
    store = await bare.jetstream().object_store("bodies")
    return f"$O.bodies.C.{(await store.get_info(name)).nuid}"


async def test_a_question_that_nobody_began_is_removed(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """Expired, cancelled, or refused by a full mailbox: no attempt can need it any more."""
    await offline(running, client, agent_id)
    body = encode_question(agent_id, LARGE, stream=False)
    expired = await client.start(agent_id, body, timeout_s=1)
    cancelled = await client.start(agent_id, body)
    assert len(await objects_of(bare, cancelled.id)) == 1
    with pytest.raises(CallTimeoutError):
        await expired.result()
    await client.cancel(cancelled)
    await until(lambda: cancelled.is_done)
    jetstream = bare.jetstream(publish_async_max_pending=2_000)
    for _ in range(1_000):
        await jetstream.publish_async(inbox(agent_id), b"filler")
    await jetstream.publish_async_completed()
    refused = await client.start(agent_id, body)
    with pytest.raises(MailboxFullError):
        await refused.result()
    with pytest.raises(MailboxFullError):
        await client.submit(agent_id, body, call_id=f"{agent_id}-refused")
    await bare.jsm().purge_stream(INBOX, subject=inbox(agent_id))
    for call_id in (expired.id, cancelled.id, refused.id, f"{agent_id}-refused"):

        async def is_gone(call_id: str = call_id) -> bool:
            return not await objects_of(bare, call_id)

        await until(is_gone)


async def test_a_question_whose_sender_is_gone_is_removed_when_it_is_cancelled(
    agent_id: str, running: Running, client: MeshClient, nats_url: str, bare: Client
) -> None:
    """As after Ctrl-C: the control plane takes both out."""
    await offline(running, client, agent_id)
    async with client_at(nats_url) as leaving:
        call = await leaving.start(agent_id, encode_question(agent_id, LARGE, stream=False))
        await until(lambda: call.sequence > 0)
        assert len(await objects_of(bare, call.id)) == 1
        leaving.abandon(call)

    async def is_gone() -> bool:
        return not await objects_of(bare, call.id)

    await until(is_gone)


async def test_a_detached_question_is_removed_by_its_agent(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """Nobody waits for the answer, which is kept for a day."""
    async with running(measure(agent_id)):
        stored = await client.submit(agent_id, encode_question(agent_id, LARGE, stream=False))

        async def is_gone() -> bool:
            return not await objects_of(bare, stored.id)

        await until(is_gone)
        async with follow_call(client._connection, stored) as call:
            assert (await call.reply()).text == str(len(LARGE))


async def test_a_retry_is_the_same_call_and_leaves_nothing(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """The same question under the same id, once in the mailbox and once answered; not another."""
    held, call_id = Held(agent_id), f"{agent_id}-retried-0123456789abcdef"
    body = encode_question(agent_id, LARGE, stream=False)
    other = encode_question(agent_id, LARGE + "!", stream=False)
    async with running(held.agent):
        first = await client.submit(agent_id, body, call_id=call_id)
        second = await client.submit(agent_id, body, call_id=call_id)
        with pytest.raises(KeyReusedError):
            await client.submit(agent_id, other, call_id=call_id)
        assert first.sequence == second.sequence

        async def is_first_left_alone() -> bool:
            return len(await objects_of(bare, call_id)) == 1

        await until(is_first_left_alone)
        held.go.set()
        async with follow_call(client._connection, first) as call:
            assert (await call.reply()).text == LARGE + ", attempt 1"
        await client.submit(agent_id, body, call_id=call_id)
        await until(is_first_left_alone)
    assert held.started == 1
    # What is left is the answer.
    [name] = await objects_of(bare, call_id)
    frame = await bare.jsm().get_last_msg(REPLY, first.reply_subject)
    assert (frame.headers or {})[h.BODY].startswith(f"{name} ")


async def test_a_second_attempt_finds_the_question(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """A host that dies at work leaves the object for whoever gets the request next."""
    held = Held(agent_id)
    async with running(held.agent, grace_s=0):
        asking = asyncio.create_task(client.ask(agent_id, LARGE, timeout_s=60))
        await until(lambda: held.started == 1)
    held.go.set()
    async with running(held.agent):
        assert (await asking).text == LARGE + ", attempt 2"


async def test_a_question_that_is_gone_is_a_typed_error(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """Removed, cut, changed, or never there: the caller is told, and the agent is not run."""
    held = Held(agent_id)
    held.go.set()
    await offline(running, client, agent_id)
    body = encode_question(agent_id, LARGE, stream=False)
    calls = [await client.start(agent_id, body) for _ in range(3)]
    await until(lambda: all(one.sequence for one in calls))
    store = await bare.jetstream().object_store("bodies")
    [gone], [cut], [changed] = [await objects_of(bare, one.id) for one in calls]
    await store.delete(gone)
    last = await bare.jsm().get_last_msg(BODIES, await chunk_subject(bare, cut))
    await bare.jsm().delete_msg(BODIES, last.seq or 0)
    await store.put(changed, body[:-2] + b" }")
    async with running(held.agent):
        for call in calls:
            with pytest.raises(BodyLostError) as lost:
                await call.result()
            assert lost.value.code == "body_lost"
    assert held.started == 0


@pytest.mark.parametrize(
    "claim",
    ["", "x", "a b c", "a 1", "x -1 " + "0" * 64, "x 1 " + "g" * 64, "\u00e4 1 " + "0" * 64],
)
async def test_a_claim_that_is_none_is_refused(
    agent_id: str, running: Running, bare: Client, claim: str
) -> None:
    """Whatever stands in the header, its sender is told, and the agent goes on."""
    reply_to = bare.new_inbox()
    answers = await bare.subscribe(reply_to)
    async with running(measure(agent_id)):
        headers = {h.REPLY_TO: reply_to, h.BODY: claim}
        await bare.jetstream().publish(inbox(agent_id), b"", headers=headers)
        answer = await answers.next_msg(timeout=10)
    assert (answer.headers or {})[h.CODE] == InvalidInputError.code


async def test_an_answer_that_is_gone_is_a_typed_error(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """The caller that comes too late is told so."""
    async with running(parrot(agent_id)):
        call = await client.start(agent_id, encode_question(agent_id, LARGE, stream=False))
        await until(lambda: call.is_done)
        store = await bare.jetstream().object_store("bodies")
        for name in await objects_of(bare, call.id):
            await store.delete(name)
        with pytest.raises(BodyLostError):
            await call.result()


async def test_who_cannot_follow_a_claim_gets_none(
    agent_id: str, running: Running, bare: Client
) -> None:
    """A bare message and a core request are answered with an error, and not with nothing."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return LARGE

    reply_to = bare.new_inbox()
    answers = await bare.subscribe(reply_to)
    async with running(agent):
        await bare.jetstream().publish(inbox(agent_id), b"hello", headers={h.REPLY_TO: reply_to})
        told = await answers.next_msg(timeout=10)
    assert (told.headers or {})[h.CODE] == "payload_too_large"


async def test_what_is_not_stored_whole_does_not_stay(connection: Connection, bare: Client) -> None:
    """An upload that is stopped half-way takes back what it has sent."""
    before = await chunks_kept(bare)
    putting = asyncio.create_task(put_body(connection, "stopped", b"x" * 30_000_000, reader="own"))

    async def has_begun() -> bool:
        return await chunks_kept(bare) > before

    await until(has_begun)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting

    async def is_gone() -> bool:
        return await chunks_kept(bare) == before

    await until(is_gone)


async def test_agents_ask_each_other_with_large_bodies(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """A nested call is a call like others."""
    outer = Agent(f"{agent_id}-o")

    @outer.chat
    async def pass_on(request: ChatRequest, call: CallContext) -> str:
        return (await call.ask(agent_id, request.last_text)).text

    async with running(parrot(agent_id)), running(outer):
        assert (await client.ask(outer.id, LARGE)).text == LARGE


async def test_a_handler_that_fails_on_a_large_question_says_so(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """Its error is small, and the question is removed."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        raise ValueError("cloudy")

    async with running(agent):
        call = await client.start(agent_id, encode_question(agent_id, LARGE, stream=False))
        with pytest.raises(AgentFailedError):
            await call.result()

        async def is_gone() -> bool:
            return not await objects_of(bare, call.id)

        await until(is_gone)
