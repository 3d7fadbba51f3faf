"""The object store of the mesh: bodies and files that fit into no message, in chunks.

Reads and removes objects; `mesh.uploads` writes them. The layout is that of NATS ADR-20, so that
what `nats object` and nats-py have written is read here. nats-py's own store holds what it reads in
memory, and has no say in how fast it comes.
"""

import asyncio
import logging
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Final, TypeVar

import nats.errors
from nats.js.errors import APIError

from mesh import codec, subjects
from mesh.claims import Claim
from mesh.connection import Connection
from mesh.errors import (
    BodyLostError,
    BrokerUnreachableError,
    InvalidInputError,
    MeshError,
    PayloadTooLargeError,
    ProtocolError,
    TransportError,
)
from mesh.history import StoredMessage, read_newest, read_some
from mesh.nats_client import is_clustered, is_guarded
from mesh.streams import BODIES
from schemas.object import ObjectMeta

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

CHUNK_BYTES: Final = 128 * 1024
"""As the object store has them."""
WINDOW: Final = 8
"""Chunks on their way: a megabyte, which is what an upload holds, and a download twice."""
BUCKET: Final = "bucket"
"""Field of a `StorageFullError`: it is the object store that is full, and not a stream."""
LAG_S: Final = 5.0
LAG_PAUSE_S: Final = 0.02
PATIENCE_S: Final = 20.0
"""As long as a publisher goes on."""
RETRY_PAUSE_S: Final = 0.5


def takes_large_bodies(connection: Connection) -> bool:
    """Tell whether anything may lie beside a message.

    Not in a secure mesh: the broker could not tell there whose object is whose.
    """
    return connection.credentials is None and not is_guarded(connection.client)


def require_storable(connection: Connection, size_bytes: int) -> None:
    """Check that so much may lie beside a message.

    Raises:
        PayloadTooLargeError: it is over MESH_BODY_MAX; or nothing may, as this is a secure mesh.
    """
    limit = connection.body_max_bytes
    if not takes_large_bodies(connection):
        limit = connection.publisher.limit_bytes
        what = (
            f"in a secure mesh a body must fit into a message, which has {limit} bytes with its "
            "headers, and no files travel: send less, or a link to it"
        )
    elif size_bytes > limit:
        what = (
            f"it has {size_bytes} bytes or more, and {limit} are taken: send less, or a link to "
            "it, or raise MESH_BODY_MAX here and where it is read"
        )
    else:
        return
    raise PayloadTooLargeError(what, actual_bytes=size_bytes, limit_bytes=limit)


async def read(connection: Connection, claim: Claim) -> bytes:
    """Read all of an object into memory. Raises what `read_chunks` raises."""
    return b"".join([chunk async for chunk in read_chunks(connection, claim)])


async def read_chunks(connection: Connection, claim: Claim) -> AsyncGenerator[bytes, None]:
    """Yield an object in pieces, and read one or two megabytes ahead.

    That it is whole, and what was meant, is known at the end: until then believe nothing of it.

    Raises:
        BodyLostError: it is gone, or is not what the claim says.
        PayloadTooLargeError: see `require_storable`.
        BrokerUnreachableError: no answer in time.
    """
    require_storable(connection, claim.size_bytes)
    upload = await _find(connection, claim)
    digest, seen, place = sha256(), 0, 1
    ahead = asyncio.ensure_future(_read_batch(connection, upload, place))
    try:
        while seen < claim.size_bytes:
            batch = await ahead
            if not batch:
                raise _lost(claim, f"has {seen} bytes of {claim.size_bytes}")
            place = batch[-1].sequence + 1
            if seen + sum(len(one.body) for one in batch) < claim.size_bytes:
                ahead = asyncio.ensure_future(_read_batch(connection, upload, place))
            for one in batch:
                seen += len(one.body)
                digest.update(one.body)
                yield one.body
    finally:
        ahead.cancel()
        await asyncio.wait({ahead})
        if not ahead.cancelled():
            ahead.exception()  # Nobody awaits it any more: not an unretrieved exception.
    if seen != claim.size_bytes or digest.hexdigest() != claim.sha256:
        raise _lost(claim, "is damaged: its SHA-256 is another")


async def remove(connection: Connection, claim: Claim) -> None:
    """Remove an object. One that is gone already is no error.

    Raises:
        TransportError: it may still be there.
    """
    meta = await _read_meta(connection, claim)
    if meta is not None:
        await purge(connection, subjects.body_chunks(meta.nuid))
        await purge(connection, subjects.body_meta(claim.name))


async def try_remove(connection: Connection, claims: Sequence[Claim]) -> None:
    """Remove objects as far as that is possible; what stays is gone after a day."""
    for claim in claims:
        try:
            await remove(connection, claim)
        except MeshError as error:
            logger.info("object %s stays for a day: %s", claim.name, error)


def written_digest(sha256_hex: str) -> str:
    """Return a digest as the object store writes it."""
    return f"SHA-256={urlsafe_b64encode(bytes.fromhex(sha256_hex)).decode()}"


async def _find(connection: Connection, claim: Claim) -> str:
    """Return under what the chunks of a claimed object lie."""
    meta = await _read_meta(connection, claim)
    if meta is None:
        raise _lost(claim, "is not there: it was removed, or has expired")
    written = written_digest(claim.sha256)
    if (meta.size, meta.digest.rstrip("=")) != (claim.size_bytes, written.rstrip("=")):
        raise _lost(claim, "is another than was meant")
    return subjects.body_chunks(meta.nuid)


async def _read_meta(connection: Connection, claim: Claim) -> ObjectMeta | None:
    subject = subjects.body_meta(claim.name)
    stored = await _patiently(connection, lambda: read_newest(connection, BODIES, subject))
    if stored is None:
        return None
    try:
        meta = codec.decode(ObjectMeta, stored.body)
        subjects.body_chunks(meta.nuid)
    except (ProtocolError, InvalidInputError) as error:
        raise _lost(claim, f"has a record that cannot be read ({error})") from error
    return None if meta.deleted else meta


async def _read_batch(connection: Connection, subject: str, place: int) -> list[StoredMessage]:
    """Read the next chunks. The replica of a cluster that answers may lag."""
    deadline = asyncio.get_running_loop().time() + LAG_S
    size = WINDOW * CHUNK_BYTES

    def ask() -> Awaitable[list[StoredMessage]]:
        return read_some(connection, BODIES, subject, place, limit=WINDOW, size=size)

    while True:
        found = await _patiently(connection, ask)
        is_late = asyncio.get_running_loop().time() > deadline
        if found or is_late or not is_clustered(connection.client):
            return found
        await asyncio.sleep(LAG_PAUSE_S)


async def _patiently(connection: Connection, ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask again while the broker is away for a moment: a reader may be far into a large file."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            return await ask()
        except BrokerUnreachableError:
            if connection.closed.is_set() or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(RETRY_PAUSE_S)


async def purge(connection: Connection, subject: str) -> None:
    """Remove what the object store has under a subject.

    Raises:
        TransportError: it may still be there.
    """
    try:
        await connection.client.jsm(timeout=10.0).purge_stream(BODIES, subject=subject)
    except APIError as error:
        raise TransportError(f"cannot remove {subject}: {error.description}") from error
    except nats.errors.Error as error:
        raise BrokerUnreachableError(f"cannot remove {subject}: {error}") from error


def _lost(claim: Claim, why: str) -> BodyLostError:
    return BodyLostError(
        f"the body of this message lies in the object store, and object {claim.name} {why}",
        name=claim.name,
        size_bytes=claim.size_bytes,
    )
