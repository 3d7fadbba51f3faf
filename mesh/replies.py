"""Writes the frames that answer a call, and reads whether a call has been answered.

The reply subject is the ledger: the final and the error frame share one `Nats-Msg-Id`, so that
the second is a duplicate and nobody sees it. Does not run handlers; see `mesh.execution`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Final

from mesh import headers as h
from mesh import subjects
from mesh.attachments import FileSource, put_body, put_file
from mesh.claims import Claim
from mesh.connection import Connection
from mesh.errors import (
    AckLostError,
    BrokerUnreachableError,
    InvalidInputError,
    MeshError,
    NotPermittedError,
    PayloadTooLargeError,
    StorageFullError,
    StreamMissingError,
)
from mesh.frames import Frame, error_body
from mesh.history import read_history, read_last
from mesh.objects import try_remove
from mesh.publisher import PubAck
from mesh.streams import ACK_BACKOFF_S, REPLY, REPLY_DEDUPE_S
from schemas.frame import FrameKind

logger = logging.getLogger(__name__)

MAX_UNACKNOWLEDGED: Final = 256
"""Chunks in flight of one answer; a faster handler waits."""
UNIQUE_CHARS: Final = 32
"""128 random bits in hexadecimal."""
LEDGER_TRIES: Final = 4
LEDGER_PAUSE_S: Final = 0.5
HELD_S: Final = 600.0
"""An answer that cannot be stored is held, with its slot, as long as somebody may wait for it, and
at most for so long: the work is done, and may have cost money."""
HELD_PAUSE_S: Final = 1.0
REREAD_AFTER_S: Final = REPLY_DEDUPE_S - 20.0
"""A handler that ran longer looks into the ledger again: dedupe may have forgotten the call."""


@dataclass(slots=True)
class ReplyAddress:
    """Where the answer of one call goes, and what stands on every frame of it."""

    subjects: tuple[str, ...]
    """The first one is the ledger. A bare message may be answered on two."""
    call_id: str
    attempt: int
    node: str
    instance: str
    lifetime_s: float
    """How long a frame is worth keeping: what is left of the deadline."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """Headers that name the request; not on chunks, which are many."""
    is_core: bool = False
    """A `_INBOX` subject: nothing is stored, and only the terminal frame is sent."""
    is_bare: bool = False
    """No reply subject was named: only the terminal frame is sent, as text."""


class ReplyWriter:
    """The answering side of one call."""

    def __init__(self, connection: Connection, address: ReplyAddress) -> None:
        self._connection = connection
        self._publisher = connection.publisher
        self._address = address
        self._chunks = 0
        self._unacknowledged: dict[int, tuple[bytes, asyncio.Future[PubAck]]] = {}
        self._started = time.monotonic()
        self._file: Claim | None = None

    @property
    def address(self) -> ReplyAddress:
        """Where the answer goes."""
        return self._address

    @property
    def chunks(self) -> int:
        """How many chunks have been written."""
        return self._chunks

    @property
    def takes_chunks(self) -> bool:
        """Whether the caller can be shown anything before the end."""
        return not (self._address.is_core or self._address.is_bare)

    async def working(self, body: bytes) -> None:
        """Tell that a handler is at it. Not worth waiting for."""
        if self.takes_chunks:
            headers = self._headers(FrameKind.WORKING, h.JSON)
            await self._publisher.submit(self._address.subjects[0], body, headers)

    async def chunk(self, body: bytes) -> None:
        """Write a part of the answer, without waiting for its acknowledgement."""
        seq = self._chunks
        self._chunks += 1
        headers = self._headers(FrameKind.CHUNK, h.JSON, seq)
        future = await self._publisher.submit(self._address.subjects[0], body, headers)
        self._unacknowledged[seq] = (body, future)
        future.add_done_callback(lambda done: self._settle_chunk(seq, done))
        if len(self._unacknowledged) >= MAX_UNACKNOWLEDGED:
            await self._confirm(next(iter(self._unacknowledged)))

    async def attach(self, source: FileSource, name: str = "") -> None:
        """Let a file come with the answer: it is stored now, and told of on the final frame.

        Raises what `mesh.attachments.put_file` raises, and:
            InvalidInputError: there is one already, or who asked can be given none: a bare
                message, or a core NATS request.
        """
        if self._file is not None:
            raise InvalidInputError("an answer has one file, and has it already", field="file")
        if not self.takes_chunks:
            raise InvalidInputError(
                "who asked named no reply subject of the mesh, and can be given no file",
                field="file",
            )
        lifetime_s = self._kept_s(self._left_s)
        self._file = await put_file(
            self._connection,
            self._address.call_id,
            source,
            name,
            reader=self._reader,
            lifetime_s=lifetime_s,
        )

    async def final(self, body: bytes, content_type: str, *, is_held: bool = False) -> None:
        """Write the whole answer, and return when JetStream has it, or another attempt's.

        What does not fit into a message goes to the object store first. With `is_held` it is tried
        for as long as somebody may wait; else for 20 s.

        Raises:
            PublishRefusedError: JetStream does not take it; the request must come again.
            BrokerUnreachableError: JetStream does not say; the request must come again.
            StorageFullError: it is the object store that is full, if it has the field `bucket`.
            PayloadTooLargeError: the answer is over the mesh's limit; or over the broker's, and who
                asked cannot be told where it lies.
        """
        held_s = min(self._left_s, HELD_S) if is_held else 0.0
        claims = {h.FILE: str(self._file)} if self._file is not None else None
        try:
            await self._terminate(FrameKind.FINAL, body, content_type, claims=claims, held_s=held_s)
        except PayloadTooLargeError:
            if not self.takes_chunks:
                raise
            claim = await self._put(body, held_s)
            claims = {h.BODY: str(claim), **(claims or {})}
            await self._terminate(FrameKind.FINAL, b"", content_type, claims=claims, held_s=held_s)

    @property
    def _left_s(self) -> float:
        """How long somebody may still wait."""
        return max(0.0, self._address.lifetime_s - (time.monotonic() - self._started))

    async def _put(self, body: bytes, held_s: float) -> Claim:
        """Put a body that fits into no message beside it."""
        found: list[Claim] = []

        async def attempt() -> None:
            claim = await put_body(
                self._connection,
                self._address.call_id,
                body,
                reader=self._reader,
                lifetime_s=self._kept_s(held_s),
            )
            found.append(claim)

        # Half of the time is left to tell the caller that there is no room.
        await self._hold(attempt, time.monotonic() + held_s / 2)
        return found[0]

    @property
    def _reader(self) -> str:
        """Who will read what lies beside the answer; of one that takes chunks."""
        return subjects.caller_of(self._address.subjects[0])

    def _kept_s(self, ahead_s: float) -> float:
        """How long an object is kept whose frame is stored within `ahead_s`."""
        return frame_lifetime_s(self._address.lifetime_s) + min(ahead_s, h.MAX_TIMEOUT_S)

    async def error(self, error: MeshError) -> None:
        """Write that the call failed, and return when JetStream has it."""
        if self._file is not None:
            self._connection.tasks.start(try_remove(self._connection, [self._file]))
        if self._address.is_bare:
            text = f"error: {error.code}: {error.message}".encode()
            await self._terminate(FrameKind.ERROR, text, h.TEXT, error.code)
        else:
            await self._terminate(FrameKind.ERROR, error_body(error), h.JSON, error.code)

    async def _terminate(
        self,
        kind: FrameKind,
        body: bytes,
        content_type: str,
        code: str = "",
        *,
        claims: Mapping[str, str] | None = None,
        held_s: float = 0.0,
    ) -> None:
        held_until = time.monotonic() + held_s
        for seq in list(self._unacknowledged):
            await self._hold(partial(self._confirm, seq), held_until)
        headers = self._headers(kind, content_type, self._chunks)
        if code:
            headers[h.CODE] = code
        if claims:
            headers |= claims
        if self._address.is_core:
            self._publisher.require_size(body, headers)
            await self._connection.client.publish(self._address.subjects[0], body, headers=headers)
            return
        for place, subject in enumerate(self._address.subjects):
            message_id = _final_id(self._address, subject)
            # Dedupe is one table for the whole stream: each copy needs an id of its own.
            headers[h.MSG_ID] = f"{message_id}.{place}" if place else message_id
            await self._hold(partial(self._store, subject, body, headers, place), held_until)

    async def _store(self, subject: str, body: bytes, headers: dict[str, str], place: int) -> None:
        """Publish a terminal frame, unless the ledger has one that dedupe may have forgotten."""
        is_late = time.monotonic() - self._started > REREAD_AFTER_S
        if (
            is_late
            and not place
            and await is_answered(self._connection, subject, self._address.call_id)
        ):
            return
        await self._publisher.publish(subject, body, headers)

    async def _hold(self, attempt: Callable[[], Awaitable[None]], until: float) -> None:
        """Do what cannot be done at the moment again and again, until it is too late for it.

        Each attempt is far shorter than dedupe remembers.
        """
        while True:
            try:
                return await attempt()
            except (BrokerUnreachableError, StorageFullError) as error:
                if self._connection.closed.is_set() or time.monotonic() > until:
                    raise
                logger.warning("the answer of %s is held: %s", self._address.call_id, error)
            await asyncio.sleep(HELD_PAUSE_S)

    async def _confirm(self, seq: int) -> None:
        if (waiting := self._unacknowledged.get(seq)) is None:
            return
        body, future = waiting
        try:
            await asyncio.shield(future)
        except (AckLostError, StorageFullError):
            headers = self._headers(FrameKind.CHUNK, h.JSON, seq)
            headers[h.MSG_ID] = f"{self._address.call_id}.{self._address.attempt}.{seq}"
            await self._publisher.publish(self._address.subjects[0], body, headers)
        self._unacknowledged.pop(seq, None)

    def _settle_chunk(self, seq: int, done: "asyncio.Future[PubAck]") -> None:
        if not done.cancelled() and done.exception() is None:
            self._unacknowledged.pop(seq, None)

    def _headers(self, kind: FrameKind, content_type: str, seq: int = 0) -> dict[str, str]:
        address = self._address
        headers = {
            h.KIND: str(kind),
            h.CORRELATION_ID: address.call_id,
            h.CONTENT_TYPE: content_type,
            h.NODE: address.node,
            h.INSTANCE: address.instance,
        }
        if address.attempt > 1:
            headers[h.ATTEMPT] = str(address.attempt)
        if seq:
            headers[h.SEQ] = str(seq)
        if kind is not FrameKind.CHUNK:
            headers.update(address.origin)
            headers[h.RAN_MS] = f"{(time.monotonic() - self._started) * 1_000:.1f}"
        if not address.is_core:
            headers[h.TTL] = h.ttl(frame_lifetime_s(address.lifetime_s))
        return headers


def _final_id(address: ReplyAddress, subject: str) -> str:
    """Name the terminal frame. Dedupe is one table for the whole stream, so a short call id, which
    two callers may both have chosen, is joined by what tells their reply subjects apart.
    """
    if address.is_bare or len(address.call_id) >= UNIQUE_CHARS:
        return f"{address.call_id}.final"
    return f"{address.call_id}.{sha256(subject.encode()).hexdigest()[:16]}.final"


def frame_lifetime_s(remaining_s: float) -> float:
    """Return how long a frame is kept: past any moment at which the call could come again."""
    lifetime_s = remaining_s + ACK_BACKOFF_S[0]
    if lifetime_s < REPLY_DEDUPE_S:
        return REPLY_DEDUPE_S
    return min(lifetime_s, h.MAX_TIMEOUT_S)


async def is_answered(connection: Connection, subject: str, call_id: str) -> bool:
    """Tell whether the call has its terminal frame already.

    Asks again after a failure: a redelivery mostly follows a fault, which may not be over.

    Raises:
        BrokerUnreachableError: no answer, several times.
    """
    for _ in range(LEDGER_TRIES - 1):
        try:
            return await _has_terminal_frame(connection, subject, call_id)
        except BrokerUnreachableError:
            await asyncio.sleep(LEDGER_PAUSE_S)
    return await _has_terminal_frame(connection, subject, call_id)


async def _has_terminal_frame(connection: Connection, subject: str, call_id: str) -> bool:
    """The last frame says so at once, mostly. If it is not terminal all are read: a slow first
    attempt may have written a chunk behind the answer of the second.
    """
    frames = await read_last_frame(connection, subject, call_id)
    if frames and not frames[0].kind.is_terminal:
        try:
            frames = await read_frames(connection, subject, call_id)
        except (NotPermittedError, StreamMissingError):
            # Behind an account boundary only the newest frame can be read of others' calls. The
            # dedupe of the final frame still lets one answer through.
            return False
    return any(frame.kind.is_terminal for frame in frames)


async def read_last_frame(connection: Connection, subject: str, call_id: str) -> list[Frame]:
    """Read the newest frame of a call, if there is any.

    Raises:
        BrokerUnreachableError: no answer in time.
    """
    last = await read_last(connection, REPLY, subject)
    frame = last and Frame.read(call_id, last.headers, last.body, last.sequence)
    return [frame] if frame else []


async def read_frames(
    connection: Connection, subject: str, call_id: str, *, from_sequence: int = 1
) -> list[Frame]:
    """Read the stored frames of a call, oldest first.

    Raises:
        BrokerUnreachableError: no answer in time.
    """
    stored = await read_history(connection, REPLY, subject, from_sequence=from_sequence)
    frames = (Frame.read(call_id, one.headers, one.body, one.sequence) for one in stored)
    return [frame for frame in frames if frame is not None]
