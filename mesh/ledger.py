"""What JetStream has of a call: where it stands, and what it ended with.

Read by whoever knows the call's id, on any machine, long after the caller is gone. The frames on
the reply subject say what happened; the mailbox says whether the request still waits. No clock is
asked. Does not wait for anything; see `mesh.followers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mesh import codec, registry, subjects
from mesh.attachments import whole_frame
from mesh.calls import CallState, StoredCall
from mesh.connection import Connection
from mesh.errors import (
    BrokerUnreachableError,
    CallNotFoundError,
    CallTimeoutError,
    MeshError,
    ProtocolError,
)
from mesh.frames import Frame
from mesh.history import (
    TIMEOUT_S,
    StoredMessage,
    read_at,
    read_history,
    read_newest,
    read_settled_history,
)
from mesh.nats_client import is_guarded
from mesh.streams import INBOX, REPLY
from schemas.frame import FrameKind, StoredBody, WaitingReceipt, WaitingRequest, WorkingBody


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call, as its frames and its mailbox tell it."""

    call: StoredCall
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

    @property
    def state(self) -> CallState:
        """Where the call stands."""
        return self.call.state


async def read_record(connection: Connection, call_id: str, *, caller: str = "") -> CallRecord:
    """Read where a call stands; with `caller`, one of its idempotent calls only.

    Raises:
        InvalidInputError: this cannot be a call id.
        CallNotFoundError: no frame of it is stored, or no longer.
        BrokerUnreachableError: no answer in time.
    """
    patterns = subjects.any_reply(call_id, _callers(connection))
    if caller:
        patterns = (subjects.any_idempotent_reply(caller, call_id),)
    newest = await _find_newest(connection, call_id, patterns)
    subject = newest.subject
    messages = await read_history(connection, REPLY, subject) or [newest]
    record = _summarize(call_id, messages)
    if record.outcome is not None:
        return record
    if await is_waiting(connection, subject, record.call.sequence):
        return record
    # An agent acknowledges a request only after its answer is stored: what is not here by now
    # will never come.
    messages = await read_settled_history(connection, REPLY, subject) or messages
    record = _summarize(call_id, messages)
    return record if record.outcome is not None else _expired(record)


async def read_answered(connection: Connection, call_id: str) -> CallRecord:
    """Read where a call stands as `read_record` does, with all of its answer wherever that lies.

    Raises what `read_record` raises, and:
        BodyLostError: the answer fits into no message, and what lies beside it is gone.
    """
    return await whole_record(connection, await read_record(connection, call_id))


async def whole_record(connection: Connection, record: CallRecord) -> CallRecord:
    """Return a record with all of its answer. Raises what `mesh.attachments.read_body` raises."""
    if not isinstance(record.outcome, Frame) or not record.outcome.body_claim:
        return record
    return replace(record, outcome=await whole_frame(connection, record.outcome))


async def is_waiting(connection: Connection, reply_subject: str, sequence: int) -> bool:
    """Tell whether the request of a call is still in the mailbox, worked on or not.

    Where nobody knows its place (0), it counts as waiting for as long as its frames are kept.

    Raises:
        BrokerUnreachableError: no answer in time.
    """
    if sequence and is_guarded(connection.client):
        return await _ask_waiting(connection, subjects.caller_of(reply_subject), sequence)
    if sequence:
        return await read_at(connection, INBOX, sequence) is not None
    return await read_newest(connection, REPLY, reply_subject) is not None


async def _ask_waiting(connection: Connection, caller: str, sequence: int) -> bool:
    """Ask the control plane: mailboxes cannot be read across an account boundary."""
    request = WaitingRequest(sequence=sequence)
    receipt = await registry.ask(
        connection, subjects.waiting(caller), request, WaitingReceipt, timeout_s=TIMEOUT_S
    )
    if not receipt.is_known:
        raise BrokerUnreachableError(f"the mailbox cannot be read: {receipt.message}")
    return receipt.is_waiting


def _callers(connection: Connection) -> Sequence[str]:
    """Whose calls can be read: everybody's, or one's own across an account boundary."""
    credentials = connection.credentials
    if credentials is None or credentials.is_core:
        return ("*",)
    return sorted(credentials.grant.speakers)


async def _find_newest(
    connection: Connection, call_id: str, patterns: Sequence[str]
) -> StoredMessage:
    """One call has one subject. It is looked for by its newest message, and then read by itself:
    among 200,000 stored subjects that takes a millisecond, and a history of the pattern 17.
    """
    for pattern in patterns:
        newest = await read_newest(connection, REPLY, pattern)
        if newest is not None:
            return newest
    raise _not_found(call_id)


def _not_found(call_id: str) -> CallNotFoundError:
    return CallNotFoundError(
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
    if not frames:  # The answer to an announcement, say: it comes on a reply subject too.
        raise _not_found(call_id)
    stored = _stored_body(frames)
    subject = messages[0].subject
    spoken = [one for one in frames if one.kind is not FrameKind.STORED]
    terminal = next((one for one in spoken if one.kind.is_terminal), None)
    last = terminal or (max(spoken, key=lambda one: one.attempt) if spoken else None)
    attempt = last.attempt if last else 0
    return CallRecord(
        call=StoredCall(
            id=call_id,
            agent=stored.agent if stored else _answering_agent(subject, spoken),
            reply_subject=subject,
            sequence=stored.sequence if stored else 0,
            state=_state(spoken, terminal),
        ),
        created_at=messages[0].headers.get("Nats-Time-Stamp", ""),
        stored=stored,
        outcome=_outcome(terminal),
        attempt=attempt,
        node=last.node if last else "",
        chunks=sum(one.kind is FrameKind.CHUNK and one.attempt == attempt for one in spoken),
    )


def _answering_agent(subject: str, spoken: Sequence[Frame]) -> str:
    """A caller without our library may leave the agent out of its reply subject."""
    if agent := subjects.answering_agent(subject):
        return agent
    for frame in spoken:
        if frame.kind is FrameKind.WORKING:
            try:
                return codec.decode(WorkingBody, frame.body).agent
            except ProtocolError:
                continue
    return ""


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
    call = replace(record.call, state=CallState.EXPIRED)
    error = CallTimeoutError(
        f"agent {call.agent!r} did not answer by the deadline", agent=call.agent, call_id=call.id
    )
    return replace(record, call=call, outcome=error)
