"""A call's frames come in order, once, and end once; attempts are never glued together."""

import asyncio
import gc
import weakref

import pytest

from mesh.calls import Call, CallState
from mesh.completions import ChunkWriter, completion
from mesh.errors import MailboxFullError, StreamRestartedError
from mesh.frames import Frame
from schemas.chat import ChatDelta, ChatReply
from schemas.frame import FrameKind


def chunk(seq: int, *, attempt: int = 1, at: int = 0) -> Frame:
    """A chunk whose text is its number."""
    body = ChunkWriter("c", "a").delta(ChatDelta(content=str(seq)))
    return Frame(FrameKind.CHUNK, "c", body, seq=seq, attempt=attempt, stream_sequence=at)


def final(chunks: int, *, attempt: int = 1, at: int = 0) -> Frame:
    """The final frame of a stream of so many chunks."""
    body = completion("c", "a", "n", ChatReply(content="whole"))
    return Frame(FrameKind.FINAL, "c", body, seq=chunks, attempt=attempt, stream_sequence=at)


def new_call() -> Call:
    """A call that was just sent."""
    return Call("c", "a", "agent.x.reply.i.c", 5)


async def texts(call: Call) -> list[str]:
    """What a reader of the stream sees."""
    return [part async for part in call.text()]


async def test_chunks_out_of_order_are_put_in_order() -> None:
    """A chunk that was published again comes late, and is read in its place."""
    call = new_call()
    for frame in (chunk(0), chunk(2), chunk(1), final(3)):
        call.receive(frame)
    assert await texts(call) == ["0", "1", "2"]
    assert call.state is CallState.ANSWERED


async def test_frames_seen_twice_count_once() -> None:
    """What a resumed reading brings again is dropped by its place in the stream."""
    call = new_call()
    for frame in (chunk(0, at=5), chunk(1, at=6), chunk(0, at=5), chunk(1, at=6), final(2, at=7)):
        call.receive(frame)
    assert await texts(call) == ["0", "1"]


async def test_a_second_attempt_is_not_glued_to_the_first() -> None:
    """Who has seen tokens of attempt 1 gets a typed error when attempt 2 speaks."""
    call = new_call()
    call.receive(chunk(0))
    call.receive(chunk(0, attempt=2))
    with pytest.raises(StreamRestartedError):
        await call.result()


async def test_a_final_of_another_attempt_is_not_glued_either() -> None:
    """Also when the second attempt does not stream."""
    call = new_call()
    call.receive(chunk(0))
    call.receive(final(0, attempt=2))
    with pytest.raises(StreamRestartedError):
        await call.result()


async def test_a_second_attempt_is_fine_before_anything_was_shown() -> None:
    """A first attempt that died silent costs nothing; its late chunks are ignored."""
    call = new_call()
    call.receive(chunk(0, attempt=2))
    call.receive(chunk(0, attempt=1))
    call.receive(final(1, attempt=2))
    assert await texts(call) == ["0"]


async def test_a_final_frame_waits_for_the_chunks_before_it() -> None:
    """It says how many there are; the inbox reads what is missing, and then the call ends."""
    call = new_call()
    for frame in (chunk(0), chunk(2), final(3)):
        call.receive(frame)
    assert call.misses_chunks
    assert not call.is_done
    call.receive(chunk(1))
    assert await texts(call) == ["0", "1", "2"]
    assert not call.misses_chunks


async def test_a_call_ends_once() -> None:
    """The first end stays, and whoever waits hears of it."""
    call = new_call()
    ended: list[None] = []
    call.on_end(lambda: ended.append(None))
    waiting = asyncio.create_task(call.result())
    await asyncio.sleep(0)
    call.receive(final(0))
    call.fail(MailboxFullError("full"))
    call.receive(final(0))
    assert (await waiting).kind is FrameKind.FINAL
    assert ended == [None]


async def test_a_failure_names_the_call() -> None:
    """Whoever catches the error can tell which call it was, and of which agent."""
    call = new_call()
    call.fail(MailboxFullError("full"))
    with pytest.raises(MailboxFullError) as failed:
        await call.result()
    assert (failed.value.agent, failed.value.call_id) == ("a", "c")


async def test_waiting_can_be_cancelled_without_ending_the_call() -> None:
    """A reader that goes away does not take the call with it."""
    call = new_call()
    waiting = asyncio.create_task(call.result())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    call.receive(final(0))
    assert (await call.reply()).text == "whole"


def test_a_call_that_has_ended_needs_no_garbage_collector() -> None:
    """Whoever waits for its end knows it: a busy door would stand still to collect its calls."""
    call, ended = new_call(), list[str]()

    def end(one: Call = call) -> None:
        ended.append(one.id)

    call.on_end(end)
    call.receive(final(0))
    gone = weakref.ref(call)
    gc.disable()
    try:
        del call, end
        assert gone() is None
    finally:
        gc.enable()
    assert ended == ["c"]
