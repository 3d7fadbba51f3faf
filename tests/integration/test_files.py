"""Files that come with questions and answers: whole, in flat memory, and what can go wrong."""

import asyncio
import os
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
from nats.aio.client import Client

from mesh import Agent, Attachment, CallContext, ChatReply, ChatRequest
from mesh import headers as h
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.errors import AgentFailedError, BodyLostError, InvalidInputError, PayloadTooLargeError
from mesh.followers import follow_call
from mesh.questions import encode_question
from mesh.subjects import inbox
from tests.conftest import Running, until
from tests.flat import MEGABYTE, round_trip
from tests.integration.test_bodies import objects_of

SOME = os.urandom(3 * MEGABYTE + 1)


def reader(agent_id: str) -> Agent:
    """An agent that tells of the file that it gets."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest, call: CallContext) -> str:
        if call.file is None:
            return "no file"
        digest, size = sha256(), 0
        async for chunk in call.file.chunks():
            digest.update(chunk)
            size += len(chunk)
        assert (call.file.sha256, call.file.size_bytes) == (digest.hexdigest(), size)
        return f"{call.file.name} {size} {digest.hexdigest()}"

    return agent


def giver(agent_id: str) -> Agent:
    """An agent that sends the file back that it gets."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest, call: CallContext) -> ChatReply:
        return ChatReply(content=request.last_text, file=call.file)

    return agent


async def pieces(whole: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


async def test_a_handler_reads_a_file_in_pieces(
    agent_id: str, running: Running, client: MeshClient, bare: Client, tmp_path: Path
) -> None:
    """By path, as bytes, or as it comes in pieces of any size; then it is removed."""
    path = tmp_path / "Büro plan, 1.pdf"
    path.write_bytes(SOME)
    told = f"{len(SOME)} {sha256(SOME).hexdigest()}"
    async with running(reader(agent_id)):
        assert (await client.ask(agent_id, "x")).text == "no file"
        assert (await client.ask(agent_id, "x", file=path)).text == f"{path.name} {told}"
        assert (await client.ask(agent_id, "x", file=str(path))).text == f"{path.name} {told}"
        assert (await client.ask(agent_id, "x", file=SOME)).text == f" {told}"
        for size in (999, 131_072, 2 * MEGABYTE):
            reply = await client.ask(agent_id, "x", file=pieces(SOME, size))
            assert reply.text == f" {told}"
        empty = await client.ask(agent_id, "x", file=b"")
        assert empty.text == f" 0 {sha256(b'').hexdigest()}"
        call = await client.start(agent_id, encode_question(agent_id, "x", stream=False), file=path)
        await call.result()

        async def is_gone() -> bool:
            return not await objects_of(bare, call.id)

        await until(is_gone)


async def test_a_file_and_a_large_question_go_together(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """One does not need the other to be small; and so for answers."""
    text = "x" * 2 * MEGABYTE
    async with running(giver(agent_id)):
        reply = await client.ask(agent_id, text, file=SOME)
        assert reply.text == text
        assert isinstance(reply.file, Attachment)
        assert await reply.file.read() == SOME


async def test_an_answer_comes_with_a_file(
    agent_id: str, running: Running, client: MeshClient, tmp_path: Path
) -> None:
    """Of a handler that returns and of one that streams; saved under its own name in a folder."""
    path = tmp_path / "made.bin"
    path.write_bytes(SOME)
    streaming = Agent(f"{agent_id}-s")

    @streaming.chat
    async def stream(request: ChatRequest, call: CallContext) -> AsyncIterator[str]:
        yield "he"
        await call.attach(pieces(SOME, 10_000), "../../etc/stre\x1bamed.bin")
        yield "re"

    returning = Agent(agent_id)

    @returning.chat
    async def answer(request: ChatRequest) -> ChatReply:
        return ChatReply(content="here", file=path)

    out = tmp_path / "out"
    out.mkdir()
    async with running(returning, streaming):
        for agent, name in ((agent_id, "made.bin"), (streaming.id, "streamed.bin")):
            reply = await client.ask(agent, "x")
            assert (reply.text, reply.file.name) == ("here", name)
            assert await reply.file.save(out) == out / name
            assert (out / name).read_bytes() == SOME
    assert sorted(one.name for one in out.iterdir()) == ["made.bin", "streamed.bin"]


async def test_a_file_goes_from_agent_to_agent(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """What came with a question is passed on, and what came with the answer too."""
    outer = Agent(f"{agent_id}-o")

    @outer.chat
    async def pass_on(request: ChatRequest, call: CallContext) -> ChatReply:
        return await call.ask(agent_id, "and back", file=call.file)

    async with running(giver(agent_id)), running(outer):
        reply = await client.ask(outer.id, "x", file=SOME)
        assert (reply.text, await reply.file.read()) == ("and back", SOME)


async def test_the_file_of_an_answer_can_be_read_again(
    agent_id: str, running: Running, client: MeshClient, connection: Connection
) -> None:
    """A call that nobody waits for has its file, question and answer, like any other."""
    async with running(giver(agent_id)):
        body = encode_question(agent_id, "x", stream=False)
        stored = await client.submit(agent_id, body, file=SOME)
        for _ in range(2):
            async with follow_call(connection, stored) as call:
                reply = await call.reply()
                assert await reply.file.read() == SOME


async def test_a_second_attempt_reads_the_file_from_the_beginning(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """A host that dies with the file half read has taken nothing away."""
    agent, half = Agent(agent_id), asyncio.Event()

    @agent.chat
    async def answer(request: ChatRequest, call: CallContext) -> str:
        assert call.file is not None
        if call.attempt == 1:
            async for _ in call.file.chunks():
                half.set()
                await asyncio.sleep(60)
        return sha256(await call.file.read()).hexdigest()

    async with running(agent, grace_s=0):
        asking = asyncio.create_task(client.ask(agent_id, "x", file=SOME, timeout_s=60))
        await half.wait()
    async with running(agent):
        assert (await asking).text == sha256(SOME).hexdigest()


async def test_a_damaged_file_is_never_saved(
    agent_id: str, running: Running, client: MeshClient, bare: Client, tmp_path: Path
) -> None:
    """It is known at its end; what was written by then is deleted."""
    async with running(giver(agent_id)):
        reply = await client.ask(agent_id, "x", file=SOME)
        last = await bare.jsm().get_last_msg("OBJ_bodies", "$O.bodies.C.>")
        await bare.jsm().delete_msg("OBJ_bodies", last.seq or 0)
        with pytest.raises(BodyLostError):
            await reply.file.save(tmp_path / "out.bin")
    assert os.listdir(tmp_path) == []


async def test_what_cannot_be_sent_is_told_before_the_call(
    agent_id: str,
    running: Running,
    client: MeshClient,
    connection: Connection,
    bare: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that is not there, or is too large, whether that is known before or turns out."""
    monkeypatch.setattr(connection, "body_max_bytes", MEGABYTE)
    async with running(reader(agent_id)):
        before = (await bare.jsm().stream_info("INBOX")).state.last_seq
        for missing in (tmp_path / "none", tmp_path):
            with pytest.raises(InvalidInputError):
                await client.ask(agent_id, "x", file=missing)
        for large in (SOME, pieces(SOME, 10_000)):
            with pytest.raises(PayloadTooLargeError):
                await client.ask(agent_id, "x", file=large)
        assert (await bare.jsm().stream_info("INBOX")).state.last_seq == before


async def test_what_an_agent_cannot_attach_it_is_told(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """Two files, or one to somebody who could not find it; its caller is told as well."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest, call: CallContext) -> ChatReply:
        await call.attach(b"one")
        if request.last_text == "two":
            await call.attach(b"two")
        if request.last_text == "fail":
            raise ValueError("after all")
        return ChatReply(content="here")

    reply_to = bare.new_inbox()
    answers = await bare.subscribe(reply_to)
    async with running(agent):
        with pytest.raises(InvalidInputError):
            await client.ask(agent_id, "two")
        call = await client.start(agent_id, encode_question(agent_id, "fail", stream=False))
        with pytest.raises(AgentFailedError):
            await call.result()

        async def is_gone() -> bool:
            return not await objects_of(bare, call.id)

        await until(is_gone)
        await bare.jetstream().publish(inbox(agent_id), b"hello", headers={h.REPLY_TO: reply_to})
        told = await answers.next_msg(timeout=10)
    assert (told.headers or {})[h.CODE] == "invalid_input"


async def test_a_hundred_megabytes_in_flat_memory(
    agent_id: str, nats_url: str, control: Process, tmp_path: Path
) -> None:
    """Caller and agent take no more memory for 100 MB, there and back, than for a small file."""
    grown = await round_trip(nats_url, agent_id, tmp_path)
    assert max(grown["caller"], grown["agent"]) < 8 * MEGABYTE, grown
