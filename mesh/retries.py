"""Tells a retry of an idempotent call from another request under the same id.

What was sent first is the call. It lies in the mailbox or is on record. Sends nothing; see
`mesh.client`.
"""

import asyncio
from typing import Final

from mesh import headers as h
from mesh import subjects
from mesh.claims import claims_in
from mesh.connection import Connection
from mesh.errors import CallNotFoundError, KeyReusedError
from mesh.history import read_at
from mesh.ledger import CallRecord, read_record
from mesh.nats_client import is_guarded
from mesh.outbox import Request, fingerprint
from mesh.streams import INBOX

PATIENCE_S: Final = 1.0
"""A sender puts its request on record as soon as that is acknowledged; agents may be faster."""
PAUSE_S: Final = 0.05


async def require_retry(
    connection: Connection, caller: str, request: Request, sequence: int
) -> None:
    """Check that a duplicate is the request that came first, which got the place `sequence`.

    One that is done is compared with its record. If its sender died before it wrote that, it
    counts as the same.

    Raises:
        KeyReusedError: it was another request.
        BrokerUnreachableError: no answer in time.
    """
    # Across an account boundary only the record can be read.
    first = None if is_guarded(connection.client) else await read_at(connection, INBOX, sequence)
    if first is not None:
        sent = (first.subject, fingerprint(first.body, first.headers))
        require_same(sent == (request.subject, fingerprint(request.body, request.headers)))
        return
    record = await _wait_for_record(connection, caller, request.headers[h.CORRELATION_ID])
    if record is not None:
        body_sha256 = fingerprint(request.body, request.headers)
        require_same(is_record_of(record, request.subject, body_sha256))


async def is_first(connection: Connection, request: Request, sequence: int) -> bool:
    """Tell whether a request counts as a duplicate of itself: it lies in the mailbox.

    What lies beside a later one, under the same id, nobody else has a claim on. Across an account
    boundary nobody can tell: it counts as the first, and what is beside it expires.

    Raises:
        BrokerUnreachableError: no answer in time.
    """
    if is_guarded(connection.client):
        return True
    first = await read_at(connection, INBOX, sequence)
    return first is not None and claims_in(first.headers) == request.claims


def is_record_of(record: CallRecord, subject: str, body_sha256: str) -> bool:
    """Tell whether a record is that of a request, as far as the record says.

    `body_sha256` is the request's `mesh.outbox.fingerprint`.
    """
    stored = record.stored
    if stored is None:
        return record.call.agent == subjects.parse_inbox(subject).agent
    sent_to = subjects.inbox(stored.agent, stored.node)
    return (sent_to, stored.body_sha256) == (subject, body_sha256)


def require_same(is_same: bool) -> None:
    """Refuse another request under a key that was used.

    Raises:
        KeyReusedError: it is another. The error does not tell the call's id: a key can be guessed.
    """
    if not is_same:
        raise KeyReusedError(
            "this idempotency key was used for another request: take a new one, or send the same"
        )


async def _wait_for_record(connection: Connection, caller: str, call_id: str) -> CallRecord | None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    record = None
    while record is None or record.stored is None:
        try:
            record = await read_record(connection, call_id, caller=caller)
        except CallNotFoundError:
            record = None
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(PAUSE_S)
    return record
