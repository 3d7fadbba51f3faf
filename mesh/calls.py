"""A call in progress, on the caller's side: its state, its frames, its one end.

Does not publish; `mesh.client` starts calls and `mesh.inbox` brings their frames.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum

from mesh.attachments import Attachment, whole_frame
from mesh.claims import Claim
from mesh.completions import read_delta, read_reply
from mesh.connection import Connection
from mesh.errors import (
    CallCancelledError,
    CallTimeoutError,
    DeadLetterError,
    MeshError,
    ProtocolError,
    StreamRestartedError,
)
from mesh.frames import Frame
from mesh.tracing import CallSpan
from schemas.chat import ChatReply
from schemas.frame import FrameKind


class CallState(StrEnum):
    """Where a call stands, as far as this process was told. Each word means exactly that."""

    SENT = "sent"
    STORED = "stored"
    WORKING = "working"
    ANSWERED = "answered"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DEAD = "dead"

    @classmethod
    def of_error(cls, error: MeshError) -> "CallState":
        """Return how a call has ended that ended with `error`."""
        if isinstance(error, CallTimeoutError):
            return cls.EXPIRED
        if isinstance(error, DeadLetterError) or "dead_letter" in error.fields:
            return cls.DEAD
        return cls.CANCELLED if isinstance(error, CallCancelledError) else cls.FAILED


@dataclass(frozen=True, slots=True)
class StoredCall:
    """A call that lies in JetStream, and whom this process may not be waiting for."""

    id: str
    agent: str
    reply_subject: str
    sequence: int
    """Place of the request among the mailboxes; 0 where nobody knows it."""
    state: CallState = CallState.STORED
    """Where it stood when it was looked up."""


class Call:
    """One question, and what comes back until its final or error frame."""

    def __init__(
        self,
        call_id: str,
        agent: str,
        reply_subject: str,
        timeout_s: float,
        connection: Connection | None = None,
    ) -> None:
        self._connection = connection
        """Over which an answer is read that fits into no message."""
        self.id = call_id
        self.agent = agent
        self.reply_subject = reply_subject
        self.timeout_s = timeout_s
        self.state = CallState.SENT
        self.traceparent = ""
        """Of which trace it is, once its request is written."""
        self.span: CallSpan | None = None
        """What OpenTelemetry is told of it, if anything."""
        self.sequence = 0
        """Place of the request among the mailboxes, once it is stored."""
        self.last_sequence = 0
        """Place in the reply stream up to which nothing is missing."""
        self._final: Frame | None = None
        """The final frame, while chunks before it are missing."""
        self._outcome: Frame | MeshError | None = None
        self._on_end: list[Callable[[], object]] = []
        self._news: list[asyncio.Future[None]] = []
        """Those who wait for the next frame that matters to them."""
        self._ready: deque[Frame] = deque()
        self._early: dict[int, Frame] = {}
        self._next_chunk = 0
        self._attempt = 1

    @property
    def is_done(self) -> bool:
        """Whether the call has ended."""
        return self._outcome is not None

    @property
    def failure(self) -> MeshError | None:
        """Why the call has ended without an answer, if it has."""
        return self._outcome if isinstance(self._outcome, MeshError) else None

    @property
    def misses_chunks(self) -> bool:
        """Whether the final frame is here, and chunks before it are not."""
        return self._final is not None and not self.is_done

    def on_end(self, callback: Callable[[], object]) -> None:
        """Run `callback` when the call ends, however it does."""
        self._on_end.append(callback)

    def stored(self, sequence: int) -> None:
        """Take note that the request is in the mailbox."""
        self.sequence = sequence
        if self.span is not None:
            self.span.stored()
        if self.state is CallState.SENT:
            self.state = CallState.STORED

    def receive(self, frame: Frame) -> None:
        """Take in a frame. One that was seen before changes nothing."""
        if self.is_done:
            return
        match frame.kind:
            case FrameKind.WORKING:
                self.state = CallState.WORKING
            case FrameKind.CHUNK:
                self.state = CallState.WORKING
                self._receive_chunk(frame)
            case FrameKind.FINAL:
                self._finish(frame)
            case FrameKind.ERROR:
                self.fail(frame.error)

    def fail(self, error: MeshError) -> None:
        """End the call with an error, unless it has ended."""
        if self.is_done:
            return
        self.state = CallState.of_error(error)
        error.fields.setdefault("agent", self.agent)
        error.fields.setdefault("call_id", self.id)
        self._end(error)

    async def result(self) -> Frame:
        """Wait for the final frame.

        Raises:
            CallTimeoutError: the deadline passed.
            BodyLostError: it fits into no message, and what lies beside it is gone or damaged.
            MeshError: what the agent, or the broker, said instead.
        """
        while self._outcome is None:
            await self._next_news()
        if isinstance(self._outcome, MeshError):
            raise self._outcome
        if self._outcome.body_claim and self._connection is not None:
            self._outcome = await whole_frame(self._connection, self._outcome)
        return self._outcome

    async def file(self) -> Attachment | None:
        """Wait for the answer, and return the file that came with it, if one did.

        Raises what `result` raises.
        """
        frame = await self.result()
        if not frame.file_claim or self._connection is None:
            return None
        return Attachment(self._connection, Claim.read(frame.file_claim))

    async def chunks(self) -> AsyncIterator[Frame]:
        """Yield the chunks of a streamed answer in order, until the final frame is in.

        An agent that does not stream yields none; `result` has the answer either way.

        Raises:
            StreamRestartedError: the agent died after the first chunks, and another attempt began.
            MeshError: what the agent, or the broker, said instead.
        """
        while True:
            while self._ready:
                yield self._ready.popleft()
            if self.is_done:
                break
            await self._next_news()
        final = await self.result()
        if self._next_chunk and final.seq != self._next_chunk:
            raise ProtocolError(
                f"chunks are missing: {self._next_chunk} of {final.seq} came", call_id=self.id
            )

    async def _next_news(self) -> None:
        news = asyncio.get_running_loop().create_future()
        self._news.append(news)
        await news

    def _tell(self) -> None:
        waiting, self._news = self._news, []
        for news in waiting:
            if not news.done():
                news.set_result(None)

    async def reply(self) -> ChatReply:
        """Wait for the whole answer. Raises what `result` raises."""
        reply = read_reply(frame := await self.result())
        if not frame.file_claim:
            return reply
        return reply.model_copy(update={"file": await self.file()})

    async def text(self) -> AsyncIterator[str]:
        """Yield the text of the answer as it comes, or at once when the agent does not stream.

        Raises what `chunks` raises.
        """
        streamed = False
        async for frame in self.chunks():
            streamed = True
            if part := read_delta(frame.body).content:
                yield part
        if not streamed:
            yield (await self.reply()).text

    def _receive_chunk(self, frame: Frame) -> None:
        if frame.attempt < self._attempt:
            return
        if frame.attempt == self._attempt and frame.seq < self._next_chunk:
            return
        if frame.attempt > self._attempt:
            if self._next_chunk:
                self.fail(_restarted(self, frame.attempt))
                return
            self._attempt = frame.attempt
            self._early.clear()
        self._early[frame.seq] = frame
        while (ready := self._early.pop(self._next_chunk, None)) is not None:
            self._next_chunk += 1
            self._ready.append(ready)
            self.last_sequence = max(self.last_sequence, ready.stream_sequence)
        if self._final is not None:
            self._finish(self._final)
        self._tell()

    def _finish(self, frame: Frame) -> None:
        if self._next_chunk and frame.attempt != self._attempt:
            self.fail(_restarted(self, frame.attempt))
            return
        if self._next_chunk + len(self._early) and self._next_chunk < frame.seq:
            self._final = frame
            return
        self.state = CallState.ANSWERED
        self._end(frame)

    def _end(self, outcome: Frame | MeshError) -> None:
        self._outcome = outcome
        if self.span is not None:
            self.span.end(self.state.value, getattr(outcome, "code", ""))
        self._tell()
        # They know the call. If it went on knowing them, only the garbage collector would find
        # both, and a busy door stand still for a third of a second meanwhile.
        callbacks, self._on_end = self._on_end, []
        for callback in callbacks:
            callback()


def _restarted(call: Call, attempt: int) -> StreamRestartedError:
    return StreamRestartedError(
        f"agent {call.agent!r} died while it answered, and attempt {attempt} began: ask again, "
        "its answer must not be glued to what was shown",
        attempt=attempt,
    )
