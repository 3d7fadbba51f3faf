"""How a call went, hop by hop, told afterwards by what JetStream keeps of it.

Every time is of the broker's clock: when a frame was stored, when the request was, and between the
two what the agent says it took. What an attempt that died has not said, its process's end tells.
Does not judge; `mesh.cli.trace` shows it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Final

from mesh import headers as h
from mesh import registry, subjects
from mesh.calls import CallState
from mesh.connection import Connection
from mesh.errors import CallNotFoundError, InvalidInputError, MeshError
from mesh.frames import Frame
from mesh.history import StoredMessage, read_history, read_newest, read_since, stored_ns
from mesh.ledger import CallRecord, is_waiting, read_record
from mesh.nats_client import is_guarded
from mesh.streams import AUDIT, CONTROL, REPLY
from schemas.frame import FrameKind

CHILDREN_READ: Final = 20_000
"""Frames of an agent that are looked through for the calls that it made."""
MAX_CALLS: Final = 200
"""In one tree."""


class Hop(StrEnum):
    """What happens to a call."""

    STORED = "stored"
    RECORDED = "recorded"
    """Its sender has written down where it lies, as it takes long or nobody waits."""
    BEGAN = "began"
    WORKING = "working"
    FIRST_CHUNK = "first chunk"
    LAST_CHUNK = "last chunk"
    LOST = "lost"
    """The process of an attempt that did not end was heard last, or given up."""
    CANCEL = "cancel"
    ANSWERED = "answered"
    FAILED = "failed"
    ACKNOWLEDGED = "acknowledged"
    """The request is out of the mailbox. JetStream does not say since when."""
    WAITING = "waiting"
    """It is still in there, worked on or not."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened."""

    hop: Hop
    at_ns: int = 0
    """By the broker's clock; 0 where nobody knows."""
    attempt: int = 0
    node: str = ""
    instance: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class CallTrace:
    """One call, what happened to it, and the calls that its agent made for it."""

    call_id: str
    agent: str
    caller: str
    state: CallState
    trace_id: str
    steps: Sequence[Step]
    """In the order of their times."""
    children: Sequence["CallTrace"] = ()

    @property
    def began_ns(self) -> int:
        """When it is first known, by the broker's clock."""
        return min((step.at_ns for step in self.steps if step.at_ns), default=0)

    @property
    def took_s(self) -> float | None:
        """From its first sign to its end; None as long as it goes on."""
        ends = [one.at_ns for one in self.steps if one.hop in (Hop.ANSWERED, Hop.FAILED)]
        return (ends[0] - self.began_ns) / 1e9 if ends else None


async def read_trace(connection: Connection, call_id: str) -> CallTrace:
    """Read what happened to a call, and to those that were made for it.

    Behind an account boundary only calls of one's own are told.

    Raises:
        InvalidInputError: this cannot be a call id.
        CallNotFoundError: no frame of it is stored, or no longer.
        BrokerUnreachableError: no answer in time.
    """
    return await _Reader(connection).read(call_id)


class _Reader:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left = MAX_CALLS

    async def read(self, call_id: str) -> CallTrace:
        self._left -= 1
        record = await read_record(self._connection, call_id)
        messages = await read_history(self._connection, REPLY, record.call.reply_subject)
        origin = _origin(messages)
        steps = [*_request_steps(origin, record), *_frame_steps(call_id, messages)]
        steps += await self._losses(steps, record)
        steps += await self._cancels(record)
        steps.sort(key=lambda step: step.at_ns)
        steps = [*_with_silent_attempts(steps)]
        steps += await self._settlement(origin, record)
        trace_id, span_id = h.span_of(origin.traceparent)
        return CallTrace(
            call_id=call_id,
            agent=record.call.agent,
            caller=subjects.caller_of(record.call.reply_subject),
            state=record.state,
            trace_id=trace_id,
            steps=steps,
            children=await self._children(record, trace_id, span_id, messages),
        )

    async def _losses(self, steps: Sequence[Step], record: CallRecord) -> list[Step]:
        """Tell of attempts that others came after when their process was last heard."""
        lost = {
            step.instance: step
            for step in steps
            if step.instance and 0 < step.attempt < record.attempt
        }
        if is_guarded(self._connection.client):
            return []
        found = []
        for instance, step in lost.items():
            subject = f"audit.registry.{registry.instance_key(instance)}"
            newest = await read_newest(self._connection, AUDIT, subject)
            if newest is None:
                continue
            is_gone = registry.is_end(newest.headers)
            told = "had left, or was silent for too long" if is_gone else "was heard last"
            note = f"attempt {step.attempt} did not end: here its process {told}"
            at_ns = stored_ns(newest.headers)
            found.append(Step(Hop.LOST, at_ns, step.attempt, step.node, instance, note))
        return found

    async def _cancels(self, record: CallRecord) -> list[Step]:
        if is_guarded(self._connection.client):
            return []
        subject = subjects.cancel(record.call.agent, record.call.id)
        newest = await read_newest(self._connection, CONTROL, subject)
        return [Step(Hop.CANCEL, stored_ns(newest.headers))] if newest else []

    async def _settlement(self, origin: "_Origin", record: CallRecord) -> list[Step]:
        sequence = origin.sequence or record.call.sequence
        if not sequence:
            return []
        waits = await is_waiting(self._connection, record.call.reply_subject, sequence)
        return [Step(Hop.WAITING if waits else Hop.ACKNOWLEDGED)]

    async def _children(
        self,
        record: CallRecord,
        trace_id: str,
        span_id: str,
        messages: Sequence[StoredMessage],
    ) -> list[CallTrace]:
        if not span_id:
            return []
        first_ns = min((stored_ns(one.headers) for one in messages), default=0)
        request_ns = _origin(messages).stored_ns
        pattern = subjects.replies_to(record.call.agent)
        try:
            made = await read_since(
                self._connection, REPLY, pattern, request_ns or first_ns, limit=CHILDREN_READ
            )
        except MeshError:
            return []  # Not for these credentials.
        ids = dict.fromkeys(
            one.headers.get(h.CORRELATION_ID, "")
            for one in made
            if one.headers.get(h.PARENT) == span_id
            and h.span_of(h.trace_of(one.headers))[0] == trace_id
        )
        found = []
        for call_id in ids:
            if self._left <= 0:
                break
            try:
                found.append(await self.read(call_id))
            except (CallNotFoundError, InvalidInputError):
                continue  # Gone, or an agent has written what is no id.
        return sorted(found, key=lambda one: one.began_ns)


@dataclass(frozen=True, slots=True)
class _Origin:
    """Which message the frames of a call answer."""

    sequence: int = 0
    stored_ns: int = 0
    traceparent: str = ""


def _origin(messages: Iterable[StoredMessage]) -> _Origin:
    for one in messages:
        if found := h.request_of(one.headers):
            return _Origin(*found, h.trace_of(one.headers))
    return _Origin()


def _request_steps(origin: _Origin, record: CallRecord) -> Iterable[Step]:
    if origin.stored_ns:
        inbox = subjects.inbox(record.call.agent, record.stored.node if record.stored else None)
        yield Step(Hop.STORED, origin.stored_ns, note=f"in {inbox}, message {origin.sequence}")


def _frame_steps(call_id: str, messages: Sequence[StoredMessage]) -> Iterable[Step]:
    read = [
        (frame, one)
        for one in messages
        if (frame := Frame.read(call_id, one.headers, one.body, one.sequence)) is not None
    ]
    for frame, one in read:
        if frame.kind is FrameKind.STORED:
            yield Step(Hop.RECORDED, stored_ns(one.headers))
    spoken = [pair for pair in read if pair[0].kind is not FrameKind.STORED]
    spoken.sort(key=lambda pair: (pair[0].attempt, pair[1].sequence))
    for _, group in groupby(spoken, key=lambda pair: pair[0].attempt):
        yield from _attempt_steps(list(group))


def _attempt_steps(spoken: Sequence[tuple[Frame, StoredMessage]]) -> Iterable[Step]:
    """Tell of one attempt, by its frames."""
    began_ns = [
        stored_ns(one.headers) - int(ran_ms * 1e6)
        for _, one in spoken
        if (ran_ms := _ran_ms(one.headers)) is not None
    ]
    frame = spoken[0][0]
    if began_ns:
        yield _step(Hop.BEGAN, frame, min(began_ns))
    chunks = [(one, message) for one, message in spoken if one.kind is FrameKind.CHUNK]
    if chunks:
        yield _step(Hop.FIRST_CHUNK, chunks[0][0], stored_ns(chunks[0][1].headers))
        last, message = chunks[-1]
        note = f"{len(chunks)} in all"
        yield _step(Hop.LAST_CHUNK, last, stored_ns(message.headers), note)
    for one, message in spoken:
        at_ns = stored_ns(message.headers)
        if one.kind is FrameKind.WORKING:
            yield _step(Hop.WORKING, one, at_ns)
        elif one.kind is FrameKind.FINAL:
            yield _step(Hop.ANSWERED, one, at_ns, _work(message.headers))
        elif one.kind is FrameKind.ERROR:
            yield _step(Hop.FAILED, one, at_ns, f"{one.error.code}: {one.error.message}")


def _with_silent_attempts(steps: Sequence[Step]) -> Iterable[Step]:
    """Put in what died before it said a word, which is known by the attempt that came after."""
    known = 0
    for step in steps:
        if (last := step.attempt - 1) > known:
            which = f"attempt {last}" if last == known + 1 else f"attempts {known + 1} to {last}"
            note = f"{which} said nothing: the process ended, or lost the broker, at once"
            yield Step(Hop.LOST, attempt=last, note=note)
        known = max(known, step.attempt)
        yield step


def _step(hop: Hop, frame: Frame, at_ns: int, note: str = "") -> Step:
    return Step(hop, at_ns, frame.attempt, frame.node, frame.instance, note)


def _work(headers: Mapping[str, str]) -> str:
    ran_ms = _ran_ms(headers)
    return "" if ran_ms is None else f"after {ran_ms:g} ms of work"


def _ran_ms(headers: Mapping[str, str]) -> float | None:
    try:
        found = float(headers.get(h.RAN_MS, ""))
    except ValueError:
        return None
    return found if 0 <= found <= h.MAX_TIMEOUT_S * 1_000 else None
