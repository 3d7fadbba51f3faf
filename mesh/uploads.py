"""Writes what `mesh.objects` reads, chunk after chunk in bounded memory.

In an open mesh the layout is that of NATS ADR-20, so that `nats object` and nats-py read what is
written here; in a secure one it is a parcel, see `mesh.parcels`. nats-py's own store awaits each
chunk's acknowledgement alone, which is slow far from the broker.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final
from uuid import uuid4

import nats.errors
from nats.js.errors import APIError, NotFoundError

from mesh import codec, parcels, subjects
from mesh import headers as h
from mesh.chunks import CHUNK_BYTES, WINDOW
from mesh.claims import Claim
from mesh.connection import Connection
from mesh.errors import (
    AckLostError,
    BrokerUnreachableError,
    NotPermittedError,
    PayloadTooLargeError,
    StorageFullError,
    TransportError,
)
from mesh.objects import BUCKET, require_storable, written_digest
from mesh.publisher import PubAck
from mesh.streams import BODIES, UPLOAD_S
from schemas.object import ObjectMeta, ObjectOptions

logger = logging.getLogger(__name__)

CHUNK_ROOM_BYTES: Final = 1024
"""For the headers of a chunk, where the broker takes no larger messages."""
SLOWEST_BYTES_PER_S: Final = 125_000
"""1 Mbit/s. The first chunks of an upload that expire must outlive it."""
SPARE_S: Final = 30.0
DISCARD_S: Final = 2.0
"""How long the failure of an upload may take, to take back what was sent."""


async def put(
    connection: Connection,
    name: str,
    source: AsyncIterable[bytes],
    *,
    size_bytes: int | None,
    lifetime_s: float | None = None,
    file_name: str = "",
) -> Claim:
    """Store what `source` yields, and return the claim on it once JetStream has all of it.

    The pieces may have any size; few megabytes of it are held at once. It is kept for a day, or
    for `lifetime_s`. When it cannot be stored, or this is cancelled, what was sent is taken back,
    if that is possible within two seconds; in a secure mesh, by the control plane. What a dead
    process leaves, or one whose control plane is away, is gone after a day.

    Raises:
        PayloadTooLargeError: see `require_storable`; `size_bytes` None is not known before. Or the
            hub of a secure mesh is an older one, where all has to fit into messages.
        StorageFullError: the object store is full.
        BrokerUnreachableError: the broker does not acknowledge it.
    """
    require_storable(connection, size_bytes or 0)
    layout = _Parcel if connection.is_secure else _Object
    upload = layout(connection, name, size_bytes, lifetime_s)
    limit = asyncio.timeout(UPLOAD_S)
    try:
        async with limit, aclosing(_cut(source, upload.chunk_bytes)) as chunks:
            async for chunk in chunks:
                await upload.add(chunk)
            return await upload.finish(file_name)
    except BaseException as error:
        # Whoever was cancelled may be about to close the connection.
        await asyncio.wait({connection.tasks.start(upload.discard())}, timeout=DISCARD_S)
        if isinstance(error, StorageFullError):
            message = f"no room for large bodies: {error.message}"
            fields = {**error.fields, BUCKET: subjects.BODIES_BUCKET}
            raise StorageFullError(message, **fields) from error
        if isinstance(error, NotPermittedError) and upload.was_sent_to(error.fields.get("subject")):
            raise PayloadTooLargeError(
                "it fits into no message, and the hub takes nothing beside those: run `mesh up` of "
                "this version there, or send less",
                actual_bytes=upload.size_bytes,
                limit_bytes=connection.publisher.limit_bytes,
            ) from error
        if limit.expired():
            late = f"the upload of {name} took longer than {UPLOAD_S:g} s"
            raise BrokerUnreachableError(late) from error
        raise


class _Upload(ABC):
    """Something that is being written."""

    def __init__(
        self, connection: Connection, name: str, size_bytes: int | None, lifetime_s: float | None
    ) -> None:
        self._connection = connection
        self._publisher = connection.publisher
        self._name = name
        self._nuid = self._choose_nuid()
        self._expected_bytes = connection.body_max_bytes if size_bytes is None else size_bytes
        self._lifetime_s = lifetime_s
        self._digest = sha256()
        self.size_bytes = 0
        """How many there have been so far."""
        self._chunks = 0
        self._pending: deque[_Sent] = deque()
        self.chunk_bytes = min(CHUNK_BYTES, self._publisher.limit_bytes - CHUNK_ROOM_BYTES)

    @abstractmethod
    def _choose_nuid(self) -> str:
        """Return what names this upload, among all."""

    @abstractmethod
    def _subject(self, place: int) -> str:
        """Return where a chunk goes."""

    @abstractmethod
    async def _seal(self, sha256_hex: str) -> None:
        """Write what makes it whole, once all chunks are stored."""

    @abstractmethod
    async def _take_back(self) -> None:
        """Remove what was stored. Raises `TransportError` where that cannot be."""

    async def add(self, chunk: bytes) -> None:
        """Send a chunk; wait while too many are on their way."""
        self.size_bytes += len(chunk)
        require_storable(self._connection, self.size_bytes)
        self._digest.update(chunk)
        if len(self._pending) >= WINDOW:
            await self._confirm()
        subject = self._subject(self._chunks)
        # A repeat of one whose acknowledgement was lost is stored once.
        headers = {h.MSG_ID: f"{self._nuid}.{self._chunks}", **self._ttl()}
        self._chunks += 1
        try:
            future = await self._publisher.submit(subject, chunk, headers)
        except BrokerUnreachableError as error:
            # The buffer of a lost connection is full: it is sent when that is back.
            future = asyncio.get_running_loop().create_future()
            future.set_exception(AckLostError(f"not sent: {error}"))
            future.exception()  # It may never be awaited: not an unretrieved exception.
        self._pending.append(_Sent(subject, chunk, headers, future))

    def was_sent_to(self, subject: object) -> bool:
        """Tell whether a chunk went to a subject."""
        return any(subject == self._subject(place) for place in range(self._chunks))

    async def finish(self, file_name: str) -> Claim:
        """Wait for every acknowledgement, and return the claim on what was written."""
        while self._pending:
            await self._confirm()
        sha256_hex = self._digest.hexdigest()
        await self._seal(sha256_hex)
        return Claim(self._name, self.size_bytes, sha256_hex, file_name)

    async def discard(self) -> None:
        """Take back what was sent: after it has arrived, or it would arrive behind that."""
        if waiting := [one.future for one in self._pending]:
            await asyncio.wait(waiting)
        try:
            await self._take_back()
        except TransportError as error:
            logger.info("half of object %s stays for a day: %s", self._name, error)

    def _ttl(self) -> dict[str, str]:
        """An object that expires goes at about the same time as a whole, its first chunks later."""
        if self._lifetime_s is None:
            return {}
        left_s = max(0, self._expected_bytes - self.size_bytes) / SLOWEST_BYTES_PER_S
        return {h.TTL: h.ttl(self._lifetime_s + left_s + SPARE_S)}

    async def _confirm(self) -> None:
        """Wait for the oldest acknowledgement."""
        await self._acknowledged(self._pending[0])
        self._pending.popleft()

    async def _acknowledged(self, sent: "_Sent") -> PubAck:
        try:
            return await asyncio.shield(sent.future)
        except AckLostError as lost:
            return await self._send_again(sent, lost)

    async def _send_again(self, sent: "_Sent", lost: AckLostError | None) -> PubAck:
        return await self._publisher.publish(sent.subject, sent.chunk, sent.headers, lost=lost)


class _Parcel(_Upload):
    """Each chunk has a subject of its own: their order on the way does not matter."""

    def _choose_nuid(self) -> str:
        return self._name.rpartition(".")[2]

    def _subject(self, place: int) -> str:
        return subjects.parcel_chunk(self._name, place)

    async def _seal(self, sha256_hex: str) -> None:
        """The claim says all."""

    async def _take_back(self) -> None:
        await parcels.discard(self._connection, self._name)


class _Object(_Upload):
    """As ADR-20 has it: the order of the chunks is that of their places in the stream."""

    _place = 0

    def _choose_nuid(self) -> str:
        return uuid4().hex

    def _subject(self, place: int) -> str:
        return subjects.body_chunks(self._nuid)

    async def _acknowledged(self, sent: "_Sent") -> PubAck:
        stored = await super()._acknowledged(sent)
        if stored.sequence < self._place:
            # It was stored before one that had to be sent again, and must stand behind that.
            await _delete(self._connection, stored.sequence)
            sent.headers[h.MSG_ID] += ".again"
            stored = await self._send_again(sent, None)
        self._place = stored.sequence
        return stored

    async def _seal(self, sha256_hex: str) -> None:
        meta = ObjectMeta(
            name=self._name,
            bucket=subjects.BODIES_BUCKET,
            nuid=self._nuid,
            size=self.size_bytes,
            chunks=self._chunks,
            digest=written_digest(sha256_hex),
            mtime=datetime.now(UTC).isoformat(timespec="seconds"),
            options=ObjectOptions(max_chunk_size=self.chunk_bytes),
        )
        headers = {h.MSG_ID: f"{self._nuid}.meta", **self._ttl()}
        subject = subjects.body_meta(self._name)
        await self._publisher.publish(subject, codec.encode(meta), headers)

    async def _take_back(self) -> None:
        await parcels.purge(self._connection, subjects.body_chunks(self._nuid))
        await parcels.purge(self._connection, subjects.body_meta(self._name))


class _Sent:
    """A chunk on its way."""

    __slots__ = ("chunk", "future", "headers", "subject")

    def __init__(
        self,
        subject: str,
        chunk: bytes,
        headers: dict[str, str],
        future: "asyncio.Future[PubAck]",
    ) -> None:
        self.subject = subject
        self.chunk = chunk
        self.headers = headers
        self.future = future


async def _cut(source: AsyncIterable[bytes], size: int) -> AsyncGenerator[bytes, None]:
    """Yield the same bytes in pieces of `size`, but for the last."""
    kept = bytearray()
    async for piece in source:
        if len(piece) == size and not kept:
            yield piece
            continue
        kept += piece
        while len(kept) >= size:
            yield bytes(kept[:size])
            del kept[:size]
    if kept:
        yield bytes(kept)


async def _delete(connection: Connection, sequence: int) -> None:
    try:
        await connection.client.jsm(timeout=10.0).delete_msg(BODIES, sequence)
    except NotFoundError:
        return
    except APIError as error:
        raise TransportError(f"cannot move chunk {sequence}: {error.description}") from error
    except nats.errors.Error as error:
        raise BrokerUnreachableError(f"cannot move chunk {sequence}: {error}") from error
