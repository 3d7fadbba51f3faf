"""The object store of the mesh: bodies and files that fit into no message, in chunks.

Reads and removes them; `mesh.uploads` writes them. In an open mesh the layout is that of NATS
ADR-20, so that what `nats object` and nats-py have written is read here; in a secure one they are
`mesh.parcels`. nats-py's own store holds what it reads in memory, and has no say in how fast it
comes.
"""

import asyncio
import logging
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from hashlib import sha256
from typing import Final

from mesh import codec, parcels, subjects
from mesh.chunks import CHUNK_BYTES, WINDOW, lost, patiently, settled
from mesh.claims import Claim
from mesh.connection import Connection
from mesh.errors import InvalidInputError, MeshError, PayloadTooLargeError, ProtocolError
from mesh.history import StoredMessage, read_newest, read_some
from mesh.streams import BODIES
from schemas.object import ObjectMeta

logger = logging.getLogger(__name__)

BUCKET: Final = "bucket"
"""Field of a `StorageFullError`: it is the object store that is full, and not a stream."""


def require_storable(connection: Connection, size_bytes: int) -> None:
    """Check that so much may lie beside a message.

    Raises:
        PayloadTooLargeError: it is over MESH_BODY_MAX.
    """
    limit = connection.body_max_bytes
    if size_bytes > limit:
        raise PayloadTooLargeError(
            f"it has {size_bytes} bytes or more, and {limit} are taken: send less, or a link to "
            "it, or raise MESH_BODY_MAX here and where it is read",
            actual_bytes=size_bytes,
            limit_bytes=limit,
        )


async def read(connection: Connection, claim: Claim) -> bytes:
    """Read all of an object into memory. Raises what `read_chunks` raises."""
    return b"".join([chunk async for chunk in read_chunks(connection, claim)])


async def read_chunks(connection: Connection, claim: Claim) -> AsyncGenerator[bytes, None]:
    """Yield an object in pieces, and read one or two megabytes ahead.

    That it is whole, and what was meant, is known at the end: until then believe nothing of it.

    Raises:
        BodyLostError: it is gone, or is not what the claim says.
        PayloadTooLargeError: see `require_storable`.
        NotPermittedError: in a secure mesh, it is for somebody else.
        BrokerUnreachableError: no answer in time.
    """
    require_storable(connection, claim.size_bytes)
    reading = parcels.read_parcel if parcels.is_parcel(connection, claim) else _read_object
    digest, seen = sha256(), 0
    async with aclosing(reading(connection, claim)) as pieces:
        async for piece in pieces:
            seen += len(piece)
            if seen > claim.size_bytes:
                raise lost(claim, "is longer than was meant")
            digest.update(piece)
            yield piece
    if claim.size_bytes and not seen:
        raise lost(claim, "is not there: it was removed, or has expired")
    if seen < claim.size_bytes:
        raise lost(claim, f"has {seen} bytes of {claim.size_bytes}")
    if digest.hexdigest() != claim.sha256:
        raise lost(claim, "is damaged: its SHA-256 is another")


async def _read_object(connection: Connection, claim: Claim) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of an object of ADR-20, and end where they end."""
    upload = await _find(connection, claim)
    seen, place = 0, 1
    ahead = asyncio.ensure_future(_read_batch(connection, upload, place))
    try:
        while seen < claim.size_bytes and (batch := await ahead):
            place = batch[-1].sequence + 1
            seen += sum(len(one.body) for one in batch)
            if seen < claim.size_bytes:
                ahead = asyncio.ensure_future(_read_batch(connection, upload, place))
            for one in batch:
                yield one.body
    finally:
        ahead.cancel()
        await asyncio.wait({ahead})
        if not ahead.cancelled():
            ahead.exception()  # Nobody awaits it any more: not an unretrieved exception.


async def remove(connection: Connection, claim: Claim) -> None:
    """Remove an object. One that is gone already is no error.

    Raises:
        BodyLostError: in a secure mesh, it is none of its own.
        TransportError: it may still be there.
    """
    if parcels.is_parcel(connection, claim):
        await parcels.discard(connection, claim.name)
        return
    meta = await _read_meta(connection, claim)
    if meta is not None:
        await parcels.purge(connection, subjects.body_chunks(meta.nuid))
        await parcels.purge(connection, subjects.body_meta(claim.name))


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
        raise lost(claim, "is not there: it was removed, or has expired")
    written = written_digest(claim.sha256)
    if (meta.size, meta.digest.rstrip("=")) != (claim.size_bytes, written.rstrip("=")):
        raise lost(claim, "is another than was meant")
    return subjects.body_chunks(meta.nuid)


async def _read_meta(connection: Connection, claim: Claim) -> ObjectMeta | None:
    subject = subjects.body_meta(claim.name)
    stored = await patiently(connection, lambda: read_newest(connection, BODIES, subject))
    if stored is None:
        return None
    try:
        meta = codec.decode(ObjectMeta, stored.body)
        subjects.body_chunks(meta.nuid)
    except (ProtocolError, InvalidInputError) as error:
        raise lost(claim, f"has a record that cannot be read ({error})") from error
    return None if meta.deleted else meta


async def _read_batch(connection: Connection, subject: str, place: int) -> list[StoredMessage]:
    """Read the next chunks."""
    size = WINDOW * CHUNK_BYTES

    def ask() -> Awaitable[list[StoredMessage]]:
        return read_some(connection, BODIES, subject, place, limit=WINDOW, size=size)

    return await settled(connection, ask) or []
