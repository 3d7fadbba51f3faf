"""What JetStream has of a call: where it stands, and what it ended with.

Read by whoever knows the call's id, on any machine, long after the caller is gone. The frames on
the reply subject say what happened; the mailbox says whether the request still waits. No clock is
asked. Does not wait for anything; see `mesh.followers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mesh import codec, subjects
from mesh.calls import CallState, StoredCall
from mesh.connection import Connection
from mesh.errors import (
    CallNotFoundError,
    CallTimeoutError,
    MeshError,
    ProtocolError,
)
from mesh.frames import Frame
from mesh.history import StoredMessage, read_at, read_history
from mesh.streams import INBOX, REPLY
from schemas.frame import FrameKind, StoredBody


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call, as its frames and its mailbox tell it."""

    call: StoredCall
    state: CallState
    created_at: str
    """When the first frame was stored, by the broker's clock."""
    stored: StoredBody | None
    """What the sender wrote; None for a call that was answered at once."""
    outcome: Frame | MeshError | None
    """The final frame, or why there is none; None as long as the call goes on."""
    attempt: int = 0
    """The delivery that spoke last; 0 as long as no agent has."""
    node: str = ""
    """Where that was."""
    chunks: int = 0
    """Parts of the answer so far, of that attempt."""


async def read_record(connection: Connection, call_id: str) -> CallRecord:
    """Read where a call stands.

    Raises:
        InvalidInputError: this cannot be a call id.
        CallNotFoundError: no frame of it is stored, or no longer.
        BrokerUnreachableError: no answer in time.
    """
    messages = await _read_messages(connection, call_id)
    record = _summarize(call_id, messages)
    if record.outcome is not None:
        return record
    if await is_waiting(connection, record.call):
        return record
    # An agent acknowledges a request only after its answer is stored: what is not here by now
    # will never come.
    record = _summarize(call_id, await _read_messages(connection, call_id))
    return record if record.outcome is not None else _expired(record)


async def is_waiting(connection: Connection, call: StoredCall) -> bool:
    """Tell whether the request of a call is still in the mailbox, worked on or not.

    Where nobody knows its place, it counts as waiting.

    Raises:
        BrokerUnreachableError: no answer in time.
    """
    if not call.sequence:
        return True
    return await read_at(connection, INBOX, call.sequence) is not None


async def _read_messages(connection: Connection, call_id: str) -> list[StoredMessage]:
    found: list[StoredMessage] = []
    for pattern in subjects.any_reply(call_id):
        found = await read_history(connection, REPLY, pattern)
        if found:
            # Ids are random: another subject has no right to this one, and comes from a forger.
            return [one for one in found if one.subject == found[0].subject]
    raise CallNotFoundError(
        f"nothing is stored of call {call_id!r}: answers are kept for two minutes, those of "
        "background and idempotent calls for a day",
        call_id=call_id,
    )


def _summarize(call_id: str, messages: Sequence[StoredMessage]) -> CallRecord:
    frames = [
        frame
        for one in messages
        if (frame := Frame.read(call_id, one.headers, one.body, one.sequence)) is not None
    ]
    stored = _stored_body(frames)
    subject = messages[0].subject
    spoken = [one for one in frames if one.kind is not FrameKind.STORED]
    terminal = next((one for one in spoken if one.kind.is_terminal), None)
    last = terminal or (max(spoken, key=lambda one: one.attempt) if spoken else None)
    attempt = last.attempt if last else 0
    return CallRecord(
        call=StoredCall(
            id=call_id,
            agent=stored.agent if stored else subjects.answering_agent(subject),
            reply_subject=subject,
            sequence=stored.sequence if stored else 0,
        ),
        state=_state(spoken, terminal),
        created_at=messages[0].headers.get("Nats-Time-Stamp", ""),
        stored=stored,
        outcome=_outcome(terminal),
        attempt=attempt,
        node=last.node if last else "",
        chunks=sum(one.kind is FrameKind.CHUNK and one.attempt == attempt for one in spoken),
    )


def _stored_body(frames: Sequence[Frame]) -> StoredBody | None:
    for frame in frames:
        if frame.kind is FrameKind.STORED:
            try:
                return codec.decode(StoredBody, frame.body)
            except ProtocolError:
                continue
    return None


def _state(spoken: Sequence[Frame], terminal: Frame | None) -> CallState:
    if terminal is None:
        return CallState.WORKING if spoken else CallState.STORED
    if terminal.kind is FrameKind.FINAL:
        return CallState.ANSWERED
    return CallState.of_error(terminal.error)


def _outcome(terminal: Frame | None) -> Frame | MeshError | None:
    if terminal is None:
        return None
    return terminal if terminal.kind is FrameKind.FINAL else terminal.error


def _expired(record: CallRecord) -> CallRecord:
    call = record.call
    error = CallTimeoutError(
        f"agent {call.agent!r} did not answer by the deadline", agent=call.agent, call_id=call.id
    )
    return CallRecord(
        call=call,
        state=CallState.EXPIRED,
        created_at=record.created_at,
        stored=record.stored,
        outcome=error,
        attempt=record.attempt,
        node=record.node,
        chunks=record.chunks,
    )
