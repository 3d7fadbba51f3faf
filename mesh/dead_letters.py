"""Dead letters: requests that could not be answered, kept in `DEAD` under `dead.<id>`, with why.

Whoever gives a request up buries it: a worker that may not answer it or gets its last delivery,
and for all others the control plane (`handlers.dead_letters`). A letter is looked at, sent again
as a new call, or discarded; `mesh dead` does that.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Final

import nats.errors
from nats.js.errors import APIError, NotFoundError

from mesh import headers as h
from mesh import metrics, stand_in, subjects
from mesh.connection import Connection
from mesh.errors import (
    AgentNotFoundError,
    BrokerUnreachableError,
    DeadLetterError,
    DeadLetterNotFoundError,
    InvalidInputError,
    MeshError,
    PayloadTooLargeError,
    TransportError,
)
from mesh.history import StoredMessage, read_at, read_next
from mesh.replies import UNIQUE_CHARS
from mesh.streams import DEAD, INBOX

ROOM_BYTES: Final = 1_024
"""For our headers, beside what is kept of a body that fills its message to the last byte."""

_KEPT: Final = (
    h.REPLY_TO,
    h.CORRELATION_ID,
    h.CONTENT_TYPE,
    h.SOURCE_AGENT,
    h.SOURCE_NODE,
    h.BODY,
    h.FILE,
)


class Reason(StrEnum):
    """Why a request is dead."""

    UNKNOWN_AGENT = "unknown_agent"
    """No agent of that id was ever announced."""
    MAX_DELIVERIES = "max_deliveries"
    """It was delivered as often as may be, and each time its worker died, or let it lie."""
    REFUSED = "refused"
    """Its answer is asked for on a subject that no answer may go to."""
    TERMINATED = "terminated"
    """A foreign worker refused it (`+TERM`). JetStream deletes such a message: its body is lost."""


for _reason in Reason:
    # A series that begins with its first letter never grows, as Prometheus sees it.
    metrics.DEAD_LETTERS.inc(_reason.value, by=0)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter, as it lies there."""

    sequence: int
    """Its number, by which it is asked for."""
    agent: str
    reason: str
    subject: str
    """Where the request was sent."""
    node: str | None
    """The node that it insisted on."""
    buried_at: str
    """By the broker's clock, ISO 8601."""
    call_id: str
    source_agent: str
    source_node: str
    content_type: str
    body: bytes
    cut_from: int
    """How many bytes the body had, where it is not whole here; else 0."""
    body_claim: str = ""
    """Where its body lies, for a day, if it fitted into no message; see `mesh.claims`."""
    file_claim: str = ""
    """Where the file lies that came with it, likewise."""

    def require_whole(self) -> None:
        """Check that the request can be sent again as it was.

        Raises:
            InvalidInputError: it is lost, wholly or in part, or never had a body.
        """
        if self.reason == Reason.TERMINATED:
            what = "is lost: a foreign worker refused it, and the body here is its reason"
        elif self.cut_from:
            what = f"is not whole: {len(self.body)} of {self.cut_from} bytes are kept"
        elif not self.body.strip() and not self.body_claim:
            what = "has no body"
        else:
            return
        message = f"the request of letter {self.sequence} {what}; `mesh dead edit` sends another"
        raise InvalidInputError(message, field="number")


async def bury(connection: Connection, request: StoredMessage, reason: Reason) -> bool:
    """Copy a request to the dead letters, and tell its caller; not if that has its answer.

    The request itself is still there: who calls this takes it out of the mailbox afterwards, so
    that a crash between loses nothing. Returns whether it is dead.

    Raises:
        TransportError: the copy is not stored.
    """
    if await stand_in.is_settled(connection, request):
        return False
    agent = subjects.parse_inbox(request.subject).agent
    kept = {name: request.headers[name] for name in _KEPT if name in request.headers}
    headers = {
        h.REASON: reason.value,
        h.SUBJECT: request.subject,
        # Whoever buries the same message a second time stores nothing.
        h.MSG_ID: f"dead.{INBOX}.{request.sequence}",
    }
    publish = connection.publisher.publish
    subject = subjects.dead(agent)
    try:
        letter = await publish(subject, request.body, {**kept, **headers})
    except PayloadTooLargeError:
        # Raw publishers may fill a message to the last byte: there is no room for our headers.
        kept_bytes = connection.publisher.limit_bytes - ROOM_BYTES
        headers[h.CUT_FROM] = str(len(request.body))
        letter = await publish(subject, request.body[:kept_bytes], headers)
    metrics.DEAD_LETTERS.inc(reason.value)
    if reason is not Reason.TERMINATED:  # Of those nobody knows any more who asked.
        await stand_in.fail(connection, request, _death(agent, reason, letter.sequence))
    return True


async def read_letter(connection: Connection, sequence: int) -> DeadLetter:
    """Read one letter.

    Raises:
        DeadLetterNotFoundError: there is none of this number, or no longer.
        BrokerUnreachableError: no answer in time.
    """
    found = await read_at(connection, DEAD, sequence) if sequence > 0 else None
    if found is None:
        raise DeadLetterNotFoundError(
            f"there is no dead letter {sequence}: `mesh dead list` shows those there are",
            sequence=sequence,
        )
    return _read(found)


async def read_letters(connection: Connection, agent: str = "") -> AsyncIterator[DeadLetter]:
    """Yield the letters of an agent, or of all, oldest first.

    Raises:
        InvalidIdError: this is no agent's id.
        BrokerUnreachableError: no answer in time.
    """
    subject = subjects.dead(subjects.require_id(agent)) if agent else subjects.ALL_DEAD
    sequence = 1
    while (found := await read_next(connection, DEAD, subject, sequence)) is not None:
        yield _read(found)
        sequence = found.sequence + 1


async def discard(connection: Connection, sequence: int) -> None:
    """Delete a letter for good. One that is gone already is no error.

    Raises:
        BrokerUnreachableError: no answer in time.
    """
    try:
        await connection.client.jsm(timeout=10.0).delete_msg(DEAD, sequence)
    except NotFoundError:
        return
    except APIError as error:
        if error.err_code not in _GONE:
            raise TransportError(f"letter {sequence} stays: {error.description}") from error
    except nats.errors.Error as error:
        raise BrokerUnreachableError(f"letter {sequence} may stay: {error}") from error


_GONE: Final = (10043, 10057)
"""JetStream error codes: no message at this place; the message cannot be deleted."""


def replay_id(letter: DeadLetter) -> str:
    """Return the id of the call that sends a letter again: the same each time.

    So a replay that was broken off half-way is the same call when it is repeated. Nobody can
    guess it who did not know the id of the dead call.
    """
    seed = f"{letter.call_id} {letter.sequence} {letter.buried_at}"
    return sha256(seed.encode()).hexdigest()[:UNIQUE_CHARS]


def _read(message: StoredMessage) -> DeadLetter:
    headers = h.RequestHeaders.read(message.headers)
    subject = message.headers.get(h.SUBJECT, "")
    try:
        target = subjects.parse_inbox(subject)
    except InvalidInputError:  # Somebody else put it there.
        target = subjects.InboxSubject(message.subject.removeprefix("dead."), None)
    return DeadLetter(
        sequence=message.sequence,
        agent=target.agent,
        node=target.node,
        reason=message.headers.get(h.REASON, ""),
        subject=subject,
        buried_at=message.headers.get(h.STORED_AT, ""),
        call_id=headers.call_id,
        source_agent=headers.source_agent,
        source_node=headers.source_node,
        content_type=headers.content_type or h.TEXT,
        body=message.body,
        cut_from=h.number(message.headers.get(h.CUT_FROM)) or 0,
        body_claim=message.headers.get(h.BODY, ""),
        file_claim=message.headers.get(h.FILE, ""),
    )


def _death(agent: str, reason: Reason, letter: int) -> MeshError:
    if reason is Reason.UNKNOWN_AGENT:
        message = f"no agent {agent!r} has ever been announced"
        return AgentNotFoundError(message, agent=agent, dead_letter=letter)
    message = f"the request to agent {agent!r} is dead ({reason}): see `mesh dead show {letter}`"
    return DeadLetterError(message, agent=agent, reason=reason.value, dead_letter=letter)
