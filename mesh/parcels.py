"""Parcels: bodies and files of a secure mesh, each addressed to its one reader.

The name of a parcel is a subject, `body.<reader>.<nuid>`, and its chunks lie one token below, from
0 on: so the broker can tell whose it is. Everybody may send one; only its reader reads it, chunk by
chunk, by subject alone. `mesh.uploads` writes them; the control plane removes them, see
`handlers.parcels`. Those of an open mesh, see `mesh.objects`.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

import nats.errors
from nats.js.errors import APIError

from mesh import codec, subjects
from mesh.chunks import WINDOW, lost, settled
from mesh.claims import Claim
from mesh.connection import Connection
from mesh.errors import (
    BrokerUnreachableError,
    NotPermittedError,
    ProtocolError,
    TransportError,
)
from mesh.history import StoredMessage, read_last
from mesh.nats_client import is_guarded
from mesh.streams import BODIES
from schemas.object import DiscardReceipt

DISCARD_TIMEOUT_S: Final = 5.0
PURGE_TIMEOUT_S: Final = 10.0


def new_name(reader: str) -> str:
    """Name a parcel for `reader` that nobody can guess.

    Raises:
        InvalidIdError: the reader is no id.
    """
    return subjects.parcel(reader, os.urandom(16).hex())


def is_parcel(connection: Connection, claim: Claim) -> bool:
    """Tell whether what is claimed is a parcel, as everything is in a secure mesh.

    Raises:
        BodyLostError: there it is none: an object that is not addressed to anybody.
    """
    if connection.is_secure and not subjects.is_parcel(claim.name):
        raise lost(claim, "is not addressed to anybody, as it must be in a secure mesh")
    return connection.is_secure


async def read_parcel(connection: Connection, claim: Claim) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a parcel, a megabyte of them ahead, and end where one is missing.

    Whether they are what was claimed, the caller must find out.

    Raises:
        NotPermittedError: it is for somebody else.
        BrokerUnreachableError: no answer in time.
    """
    _require_reader(connection, claim)
    if not claim.size_bytes:
        return
    first = await _read_chunk(connection, claim.name, 0)
    if not first:
        return
    yield first
    # All are of one size but the last.
    places = iter(range(1, -(-claim.size_bytes // len(first))))
    ahead = deque[asyncio.Task[bytes]]()
    try:
        while True:
            while len(ahead) < WINDOW and (place := next(places, None)) is not None:
                ahead.append(asyncio.ensure_future(_read_chunk(connection, claim.name, place)))
            if not ahead or not (chunk := await ahead.popleft()):
                return
            yield chunk
    finally:
        for one in ahead:
            one.cancel()
        # Nobody awaits them any more: not unretrieved exceptions.
        await asyncio.gather(*ahead, return_exceptions=True)


async def discard(connection: Connection, name: str) -> None:
    """Remove a parcel. One that is gone already is no error.

    Members ask the control plane for it: they may not purge.

    Raises:
        InvalidInputError: this is no parcel's name.
        TransportError: it may still be there.
    """
    if not is_guarded(connection.client):
        await purge(connection, subjects.parcel_chunks(name))
        return
    subject = subjects.discard(name)
    failure = f"the control plane does not remove {name}"
    try:
        answer = await connection.client.request(subject, timeout=DISCARD_TIMEOUT_S)
        receipt = codec.decode(DiscardReceipt, answer.data)
    except (nats.errors.Error, ProtocolError) as error:
        raise BrokerUnreachableError(f"{failure}: {error}") from error
    if not receipt.ok:
        raise TransportError(f"{failure}: {receipt.message}")


async def purge(connection: Connection, subject: str) -> None:
    """Remove what the object store has under a subject.

    Raises:
        TransportError: it may still be there.
    """
    try:
        manager = connection.client.jsm(timeout=PURGE_TIMEOUT_S)
        await manager.purge_stream(BODIES, subject=subject)
    except APIError as error:
        raise TransportError(f"cannot remove {subject}: {error.description}") from error
    except nats.errors.Error as error:
        raise BrokerUnreachableError(f"cannot remove {subject}: {error}") from error


async def _read_chunk(connection: Connection, name: str, place: int) -> bytes:
    """Read a chunk; nothing where there is none."""
    subject = subjects.parcel_chunk(name, place)

    async def ask() -> StoredMessage | None:
        return await read_last(connection, BODIES, subject)

    found = await settled(connection, ask)
    return found.body if found else b""


def _require_reader(connection: Connection, claim: Claim) -> None:
    """A broker says nothing to what it does not allow: better not to wait for that."""
    reader = subjects.reader_of(claim.name)
    credentials = connection.credentials
    if credentials is None or credentials.is_core or reader in credentials.grant.speakers:
        return
    raise NotPermittedError(
        f"what lies beside this message is for {reader}, and not for {credentials.name}",
        subject=claim.name,
    )
