"""What a stream has stored under a subject, read in batches without a consumer.

NATS ADR-31, batched direct get. There is no consumer object that a restart could leave blind,
and ten messages come in 1.5 ms.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import APIError, NotFoundError

from mesh import headers as h
from mesh import subjects
from mesh.connection import Connection
from mesh.errors import (
    BrokerUnreachableError,
    NotPermittedError,
    StreamMissingError,
    TransportError,
)
from mesh.nats_client import is_clustered, is_guarded
from mesh.silence import explain
from mesh.streams import BODIES, REGISTRY, REPLY

Answer = TypeVar("Answer")

DIRECT_GET: Final = "$JS.API.DIRECT.GET"
BATCH: Final = 1_000
BATCH_BYTES: Final = 4 * 1024 * 1024
"""As soon as this much has come a batch ends: what is asked for comes as fast as the server sends,
which cuts off whoever has not read 64 MB of it (`max_pending`)."""
LEADER_PAUSE_S: Final = 0.25
TIMEOUT_S: Final = 5.0
LAG_PAUSE_S: Final = 0.01

NO_MESSAGE: Final = 10037
"""JetStream error code: no message found."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as it stands in a stream."""

    subject: str
    sequence: int
    headers: Mapping[str, str]
    body: bytes


async def read_history(
    connection: Connection, stream: str, subject: str, *, from_sequence: int = 1
) -> list[StoredMessage]:
    """Read all that is stored under `subject` (wildcards allowed) from a sequence on, in order.

    Raises:
        StreamMissingError: the stream does not exist.
        BrokerUnreachableError: no answer within 5 s a batch.
        TransportError: the server refuses the read.
    """
    found: list[StoredMessage] = []
    while True:
        batch, pending = await _read_batch(connection, stream, subject, from_sequence)
        found += batch
        if not batch or not pending:
            return found
        from_sequence = batch[-1].sequence + 1


async def read_since(
    connection: Connection, stream: str, subject: str, since_ns: int, *, limit: int
) -> list[StoredMessage]:
    """Read what was stored under `subject` at a time or later, in order, and about `limit` of it.

    Raises what `read_history` raises.
    """
    from_sequence = 1
    if not is_guarded(connection.client):  # Its requests are by place only.
        first = await read_first_since(connection, stream, subject, since_ns)
        if first is None:
            return []
        from_sequence = first.sequence
    found: list[StoredMessage] = []
    while len(found) < limit:
        batch, pending = await _read_batch(connection, stream, subject, from_sequence)
        found += [one for one in batch if stored_ns(one.headers) >= since_ns]
        if not batch or not pending:
            break
        from_sequence = batch[-1].sequence + 1
    return found


async def read_first_since(
    connection: Connection, stream: str, subject: str, since_ns: int
) -> StoredMessage | None:
    """Read the first that was stored under `subject` at a time or later; None if nothing was.

    Raises what `read_history` raises.
    """
    at = datetime.fromtimestamp(since_ns / 1e9, UTC).isoformat()
    which = {"batch": 1, "start_time": at, "next_by_subj": subject}
    found, _ = await _ask_batch(connection, stream, subject, which)
    return found[0] if found else None


async def read_some(
    connection: Connection, stream: str, subject: str, from_sequence: int, *, limit: int, size: int
) -> list[StoredMessage]:
    """Read the first messages under `subject` from a sequence on: `limit`, of about `size` bytes.

    Raises what `read_history` raises.
    """
    which = {"batch": limit, "max_bytes": size, "seq": from_sequence, "next_by_subj": subject}
    found, _ = await _ask_batch(connection, stream, subject, which)
    return found


async def read_settled_history(
    connection: Connection, stream: str, subject: str
) -> list[StoredMessage]:
    """Read all that the stream's leader has under `subject`, in order.

    On a cluster the replica that answers `read_history` may lag: of three, it missed 2 % of what
    had been acknowledged a moment before, for up to 6 ms. Whoever concludes something from what
    is not there must read this.

    Raises what `read_history` raises.
    """
    deadline = asyncio.get_running_loop().time() + TIMEOUT_S
    while True:
        newest = await read_newest(connection, stream, subject)
        found = await read_history(connection, stream, subject)
        if newest is None or (found and found[-1].sequence >= newest.sequence):
            return found
        if asyncio.get_running_loop().time() > deadline:
            raise BrokerUnreachableError(f"reading {stream}: its replicas do not catch up")
        await asyncio.sleep(LAG_PAUSE_S)


async def read_last(connection: Connection, stream: str, subject: str) -> StoredMessage | None:
    """Read the newest message under `subject`, wildcards allowed.

    The subject stands in the request's subject, not in its body, so that a permission can limit
    who reads what. On a cluster a replica that lags may answer.

    Raises:
        StreamMissingError: the stream does not exist.
        NotPermittedError: it is not for these credentials.
        BrokerUnreachableError: no answer in time.
        TransportError: the server refuses the read.
    """
    _require_readable(connection, stream, by_subject=True)
    request = f"{DIRECT_GET}.{stream}.{subject}"

    async def ask() -> Msg:
        try:
            return await connection.client.request(request, timeout=TIMEOUT_S)
        except nats.errors.NoRespondersError as error:
            raise _missing(stream) from error
        except nats.errors.Error as error:
            raise BrokerUnreachableError(f"cannot read {stream}: {error}") from error

    answer = await _answered(connection, subject, ask)
    headers = answer.headers or {}
    status = _status(headers)
    if status == "404":
        return None
    if status is not None:
        raise TransportError(f"reading {stream}: {headers.get('Description', status)}")
    stored_under = headers.get(h.STORED_SUBJECT, subject)
    return StoredMessage(stored_under, int(headers[h.SEQUENCE]), headers, answer.data)


async def read_at(connection: Connection, stream: str, sequence: int) -> StoredMessage | None:
    """Read the message at one place of a stream, from the stream's leader; None if it is gone.

    Raises:
        StreamMissingError: the stream does not exist.
        BrokerUnreachableError: no answer in time.
        TransportError: the server refuses the read.
    """
    return await _get(connection, stream, seq=sequence)


async def read_newest(connection: Connection, stream: str, subject: str) -> StoredMessage | None:
    """Read the newest message under `subject`, wildcards allowed, from the stream's leader.

    Behind an account boundary from any replica. A hundred times quicker than `read_history` where
    there are wildcards: that one looks at every block of the stream.

    Raises:
        StreamMissingError: the stream does not exist.
        BrokerUnreachableError: no answer in time.
        TransportError: the server refuses the read.
    """
    if is_guarded(connection.client):
        return await read_last(connection, stream, subject)
    return await _get(connection, stream, subject=subject)


async def read_next(
    connection: Connection, stream: str, subject: str, from_sequence: int
) -> StoredMessage | None:
    """Read the first message under `subject`, wildcards allowed, at a place or behind it.

    From the stream's leader. Raises what `read_newest` raises.
    """
    return await _get(connection, stream, seq=from_sequence, subject=subject, next=True)


async def _get(connection: Connection, stream: str, **which: Any) -> StoredMessage | None:
    """Read one message from the stream's leader."""
    if is_guarded(connection.client):
        raise _not_ours(stream)
    try:
        found = await connection.client.jsm(timeout=TIMEOUT_S).get_msg(stream, **which)
    except NotFoundError as error:
        if error.err_code == NO_MESSAGE:
            return None
        raise _missing(stream) from error
    except APIError as error:
        raise TransportError(f"reading {stream}: {error.description}") from error
    except nats.errors.Error as error:
        raise BrokerUnreachableError(f"cannot read {stream}: {error}") from error
    return StoredMessage(
        subject=str(found.subject),
        sequence=int(found.seq or 0),
        # nats-py gives a non-ASCII value as an `email.header.Header`.
        headers={
            **{name: str(value) for name, value in (found.headers or {}).items()},
            h.STORED_AT: found.time.isoformat() if found.time else "",
        },
        body=found.data or b"",
    )


def is_stored_under(headers: Mapping[str, str] | None, stream: str, subject: str) -> bool:
    """Tell whether JetStream says of a message that `stream` holds it under `subject`."""
    found = headers or {}
    return found.get(h.STREAM) == stream and found.get(h.STORED_SUBJECT) == subject


def stored_ns(headers: Mapping[str, str]) -> int:
    """Return when JetStream stored a message, by the broker's clock; 0 where it does not say."""
    try:
        stored_at = datetime.fromisoformat(headers.get(h.STORED_AT, ""))
        return max(0, int(stored_at.timestamp() * 1e9))
    except (ValueError, OverflowError):
        return 0


def iso_time(stored: int) -> str:
    """Write when something was stored for people, in ISO 8601; empty where that is not known."""
    if stored <= 0:
        return ""
    return datetime.fromtimestamp(stored // 1_000_000_000, UTC).isoformat(timespec="seconds")


async def read_batch(client: Client, target: str, request: bytes) -> list[Msg]:
    """Return what comes back of one batched direct get; the last one says how it ended.

    Raises:
        TimeoutError: the end did not come in time.
        nats.errors.Error: it could not be asked for.
    """
    queue: asyncio.Queue[Msg] = asyncio.Queue()
    subscription = None
    try:
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=queue.put)
        await client.publish(target, request, reply=inbox)
        async with asyncio.timeout(TIMEOUT_S):
            found = [await queue.get()]
            while _status(found[-1].headers or {}) is None:
                found.append(await queue.get())
            return found
    finally:
        if subscription is not None and not client.is_closed:
            await subscription.unsubscribe()


async def _read_batch(
    connection: Connection, stream: str, subject: str, from_sequence: int
) -> tuple[list[StoredMessage], int]:
    which = {"batch": BATCH, "seq": from_sequence, "next_by_subj": subject}
    return await _ask_batch(connection, stream, subject, which)


async def _ask_batch(
    connection: Connection, stream: str, subject: str, which: Mapping[str, Any]
) -> tuple[list[StoredMessage], int]:
    client = connection.client
    _require_readable(connection, stream)
    request = orjson.dumps({"max_bytes": BATCH_BYTES, **which})
    target = f"{DIRECT_GET}.{stream}"
    if stream == REPLY and is_guarded(client):
        # By subject alone only the newest frame can be read: the control plane looks whose it is.
        caller = subjects.caller_of(subject)
        if connection.credentials and caller not in connection.credentials.grant.speakers:
            raise _not_ours(stream)
        target, request = subjects.history(caller), orjson.dumps(which)  # Which bounds it itself.

    async def ask() -> tuple[list[StoredMessage], int]:
        try:
            return _collect(await read_batch(client, target, request), stream)
        except TimeoutError:
            late = f"reading {stream}: no answer in {TIMEOUT_S:g} s"
            raise BrokerUnreachableError(late) from None
        except nats.errors.Error as error:
            raise BrokerUnreachableError(f"reading {stream}: {error}") from error

    return await _answered(connection, subject, ask)


async def _answered(
    connection: Connection, subject: str, ask: Callable[[], Awaitable[Answer]]
) -> Answer:
    """Ask until somebody answers: of a cluster nobody may, for a moment, between two leaders.

    Raises what `ask` raises; where nobody answers, what `explain` makes of it.
    """
    deadline = asyncio.get_running_loop().time() + TIMEOUT_S
    while True:
        try:
            return await ask()
        except StreamMissingError as error:
            is_late = asyncio.get_running_loop().time() > deadline
            if is_late or not is_clustered(connection.client):
                raise await explain(connection.client, error, subject) from error
        await asyncio.sleep(LEADER_PAUSE_S)


def _require_readable(connection: Connection, stream: str, *, by_subject: bool = False) -> None:
    """A broker says nothing to what it does not allow: better not to wait for that."""
    readable = (REPLY, REGISTRY, BODIES) if by_subject else (REPLY, REGISTRY)
    if is_guarded(connection.client) and stream not in readable:
        raise _not_ours(stream)


def _not_ours(stream: str) -> NotPermittedError:
    return NotPermittedError(
        f"these credentials do not allow to read {stream}: that is for the hub's operator",
        subject=stream,
    )


def _missing(stream: str) -> StreamMissingError:
    return StreamMissingError(
        f"the broker has no stream {stream}: the mesh is not set up; run `mesh up`"
    )


def _collect(messages: Sequence[Msg], stream: str) -> tuple[list[StoredMessage], int]:
    *stored, end = messages
    headers = end.headers or {}
    status = _status(headers)
    if status == "503":
        raise _missing(stream)
    if status not in ("204", "404"):
        raise TransportError(f"reading {stream}: {headers.get('Description', status)}")
    found = [
        StoredMessage(
            subject=one.headers[h.STORED_SUBJECT],
            sequence=int(one.headers[h.SEQUENCE]),
            headers=one.headers,
            body=one.data,
        )
        for one in stored
        if one.headers
    ]
    return found, int(headers.get("Nats-Num-Pending", 0)) if status == "204" else 0


def _status(headers: Mapping[str, str]) -> str | None:
    """A stored message may have a header of this name; the server's own answers have no place."""
    return None if h.SEQUENCE in headers else headers.get("Status")
