"""What passes in a mesh, message by message: requests, frames, events, and who comes and goes.

Heard live as it is stored, or read again from the streams; the same facts either way. Of a request
that was answered its mailbox keeps nothing: what is read again begins with its first frame.
"""

import asyncio
import heapq
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError

from mesh import headers as h
from mesh import registry, subjects
from mesh.connection import Connection
from mesh.errors import BrokerUnreachableError, InvalidInputError, NotPermittedError
from mesh.frames import Frame
from mesh.history import stored_ns
from mesh.nats_client import is_guarded
from mesh.streams import AUDIT, CONTROL, DEAD, EVENT, REPLY
from schemas.base import is_id
from schemas.frame import FrameKind

logger = logging.getLogger(__name__)

LIVE: Final = (
    *(subjects.ALL_INBOXES, subjects.ALL_PINNED_INBOXES),
    *("delivered.*.reply.>", "delivered.*.cancel.*", subjects.ALL_EVENTS),
    *(subjects.REGISTRY_EVENTS, subjects.ALL_DEAD),
)
STORED: Final = (REPLY, CONTROL, EVENT, DEAD, AUDIT)
_REPLAYED: Final = {CONTROL: subjects.ALL_CANCELS, AUDIT: "audit.registry.*.>"}
MAX_HELD: Final = 10_000
"""Messages that are heard and not yet shown; a reader that is slower misses some."""
PULL: Final = 500
PULL_WAIT_S: Final = 2.0


Heard = tuple[Msg, int]
"""A message, and when it was heard, in nanoseconds."""


class What(StrEnum):
    """What has happened."""

    ASKED = "asked"
    STORED = "stored"
    WORKING = "working"
    CHUNK = "chunk"
    ANSWERED = "answered"
    FAILED = "failed"
    CANCEL = "cancel"
    DEAD = "dead"
    EVENT = "event"
    KNOWN = "known"
    """The card of an agent was written: it is new, or another one."""
    ONLINE = "online"
    OFFLINE = "offline"
    """A process no longer runs an agent."""
    GONE = "gone"
    """A process has left, or is silent."""


_OF_FRAMES: Final = {
    FrameKind.STORED: What.STORED,
    FrameKind.WORKING: What.WORKING,
    FrameKind.CHUNK: What.CHUNK,
    FrameKind.FINAL: What.ANSWERED,
    FrameKind.ERROR: What.FAILED,
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One message, as far as it tells something."""

    at_ns: int
    what: What
    agent: str = ""
    node: str = ""
    """Where the agent is, or is asked for."""
    caller: str = ""
    source_node: str = ""
    call_id: str = ""
    trace_id: str = ""
    attempt: int = 0
    code: str = ""
    """Of an error, or the reason of a dead letter, or the name of an event."""
    took_ms: float | None = None
    """From the storing of a request to the end of its call."""
    instance: str = ""
    body: bytes = b""
    place: tuple[str, int] = ("", 0)
    """Its stream and its number there, where that is known."""


def read_fact(subject: str, headers: Mapping[str, str], body: bytes, at_ns: int) -> Fact | None:
    """Return what a message tells; None where that is nothing, or it is a ping or malformed."""
    tokens = subject.split(".")
    if h.PING in headers or len(tokens) < 2:
        return None
    fact: Fact | None = None
    match tokens:
        case ["agent", _, "inbox", *_]:
            fact = _request(subject, headers, body, at_ns)
        case ["agent" | "delivered", caller, "reply", *_]:
            fact = _frame(tokens, caller, headers, body, at_ns)
        case ["agent" | "delivered", agent, "cancel", call_id]:
            fact = Fact(at_ns, What.CANCEL, agent=_id(agent), call_id=call_id)
        case ["agent", agent, "event", *name]:
            node = _id(headers.get(h.SOURCE_NODE, ""))
            fact = Fact(at_ns, What.EVENT, _id(agent), node, code=".".join(name), body=body)
        case ["dead", agent]:
            fact = _letter(agent, headers, body, at_ns)
        case ["registry", "event", *key] | ["audit", "registry", *key]:
            fact = _change(key, headers, at_ns)
    return fact


def _letter(agent: str, headers: Mapping[str, str], body: bytes, at_ns: int) -> Fact:
    said = h.RequestHeaders.read(headers)
    return Fact(
        at_ns,
        What.DEAD,
        agent=_id(agent),
        caller=said.source_agent,
        source_node=said.source_node,
        call_id=said.call_id,
        code=headers.get(h.REASON, "")[:64],
        body=body,
    )


def _request(subject: str, headers: Mapping[str, str], body: bytes, at_ns: int) -> Fact | None:
    try:
        target = subjects.parse_inbox(subject)
    except InvalidInputError:
        return None
    said = h.RequestHeaders.read(headers)
    return Fact(
        at_ns,
        What.ASKED,
        agent=_id(target.agent),
        node=_id(target.node or ""),
        caller=said.source_agent,
        source_node=said.source_node,
        call_id=said.call_id,
        trace_id=h.span_of(said.traceparent)[0],
        body=body,
    )


def _frame(
    tokens: Sequence[str], caller: str, headers: Mapping[str, str], body: bytes, at_ns: int
) -> Fact | None:
    call_id = headers.get(h.CORRELATION_ID, "")
    frame = Frame.read(call_id, headers, body)
    answering = tokens[5] if len(tokens) > 5 else ""
    # What the registrar answers to an announcement looks like a foreign agent's frame.
    is_receipt = h.KIND not in headers and answering in ("", caller)
    if frame is None or not call_id or is_receipt:
        return None
    said = h.RequestHeaders.read(headers)
    asked = h.request_of(headers)
    took_ms = (at_ns - asked[1]) / 1e6 if asked and frame.kind.is_terminal else None
    return Fact(
        at_ns,
        _OF_FRAMES[frame.kind],
        agent=_id(answering),
        node=_id(frame.node),
        caller=_id(caller),
        call_id=said.call_id,
        trace_id=h.span_of(h.trace_of(headers))[0],
        attempt=frame.attempt if frame.kind is not FrameKind.STORED else 0,
        code=frame.code[:64],
        took_ms=took_ms,
        instance=frame.instance,
        body=body,
    )


def _change(key: Sequence[str], headers: Mapping[str, str], at_ns: int) -> Fact | None:
    is_gone = registry.is_end(headers)
    match key:
        case ["agent", agent] if not is_gone:
            return Fact(at_ns, What.KNOWN, agent=agent)
        case ["placement", agent, instance]:
            what = What.OFFLINE if is_gone else What.ONLINE
            return Fact(at_ns, what, agent=agent, instance=instance)
        case ["instance", instance] if is_gone:
            return Fact(at_ns, What.GONE, instance=instance)
    return None


def _id(text: str) -> str:
    return text if is_id(text) else ""


@asynccontextmanager
async def listening(connection: Connection) -> AsyncIterator[AsyncIterator[Fact]]:
    """Hear what passes from here on: all of it as it is stored, but for requests, as they are sent.

    Raises:
        NotPermittedError: a machine that has joined sees no calls of others.
        BrokerUnreachableError: it cannot be listened to, or the connection is closed for good.
    """
    require_hub(connection)
    heard: asyncio.Queue[Heard] = asyncio.Queue(MAX_HELD)
    missed = 0

    async def on_message(message: Msg) -> None:
        nonlocal missed
        if heard.full():
            missed += 1
        else:
            heard.put_nowait((message, time.time_ns()))

    async def facts() -> AsyncIterator[Fact]:
        nonlocal missed
        while True:
            message, heard_ns = await _next(connection, heard)
            if missed and heard.empty():
                logger.warning(
                    "%d messages came faster than they were taken, and are left out", missed
                )
                missed = 0
            headers = message.headers or {}
            at_ns = stored_ns(headers) or heard_ns
            if (fact := read_fact(message.subject, headers, message.data, at_ns)) is not None:
                yield replace(fact, place=_place(headers))

    async with AsyncExitStack() as stack:
        try:
            for subject in LIVE:
                one = await connection.client.subscribe(subject, cb=on_message)
                stack.push_async_callback(_unsubscribe, one)
            await connection.client.flush(timeout=2)
        except nats.errors.Error as error:
            raise BrokerUnreachableError(f"cannot listen: {error}") from error
        yield facts()


async def _next(connection: Connection, heard: "asyncio.Queue[Heard]") -> Heard:
    """Return what is heard next. Raises why nothing will be any more, when that is so."""
    if not heard.empty():
        return heard.get_nowait()
    waiting = asyncio.create_task(heard.get())
    closing = asyncio.create_task(connection.closed.wait())
    try:
        await asyncio.wait({waiting, closing}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise connection.ending()
    finally:
        waiting.cancel()
        closing.cancel()


def _place(headers: Mapping[str, str]) -> tuple[str, int]:
    return headers.get(h.STREAM, ""), h.number(headers.get(h.SEQUENCE)) or 0


async def _unsubscribe(subscription: Subscription) -> None:
    with suppress(nats.errors.Error):
        await subscription.unsubscribe()


async def replay(connection: Connection, since_s: float) -> AsyncIterator[Fact]:
    """Yield what is stored of the last `since_s` seconds, in the order of its times.

    Raises what `listening` raises.
    """
    require_hub(connection)
    at = datetime.fromtimestamp(max(0.0, time.time() - since_s), UTC)
    tapes = [_tape(connection, stream, at) for stream in STORED]
    heads: list[tuple[int, int, Fact]] = []
    for place, tape in enumerate(tapes):
        await _push(heads, place, tape)
    try:
        while heads:
            _, place, fact = heapq.heappop(heads)
            yield fact
            await _push(heads, place, tapes[place])
    finally:
        for tape in tapes:
            await tape.aclose()  # type: ignore[attr-defined]


async def _push(heads: list[tuple[int, int, Fact]], place: int, tape: AsyncIterator[Fact]) -> None:
    fact = await anext(tape, None)
    if fact is not None:
        heapq.heappush(heads, (fact.at_ns, place, fact))


async def _tape(connection: Connection, stream: str, since: datetime) -> AsyncIterator[Fact]:
    """Yield what one stream holds, by a consumer that ends with this."""
    jetstream = connection.client.jetstream()
    config = ConsumerConfig(
        ack_policy=AckPolicy.NONE,
        deliver_policy=DeliverPolicy.BY_START_TIME,
        opt_start_time=since.isoformat().replace("+00:00", "Z"),  # type: ignore[arg-type]
        inactive_threshold=30.0,
        mem_storage=True,
    )
    try:
        subject = _REPLAYED.get(stream, "")
        puller = await jetstream.pull_subscribe(subject, stream=stream, config=config)
        left = (await puller.consumer_info()).num_pending or 0
        while left > 0:
            messages = await _fetched(puller, min(PULL, left))
            if not messages:  # What was counted may be gone meanwhile.
                left = (await puller.consumer_info()).num_pending or 0
                if left:
                    raise BrokerUnreachableError(f"reading {stream}: no answer; try again")
            left -= len(messages)
            for message in messages:
                at_ns = int(message.metadata.timestamp.timestamp() * 1e9)
                headers = message.headers or {}
                if (fact := read_fact(message.subject, headers, message.data, at_ns)) is not None:
                    yield replace(fact, place=(stream, message.metadata.sequence.stream))
        await puller.unsubscribe()
    except (nats.errors.Error, APIError) as error:
        raise BrokerUnreachableError(f"cannot read {stream}: {error}") from error


async def _fetched(puller: JetStreamContext.PullSubscription, count: int) -> list[Msg]:
    try:
        return await puller.fetch(count, timeout=PULL_WAIT_S)
    except (nats.errors.TimeoutError, TimeoutError):
        return []


def require_hub(connection: Connection) -> None:
    """Check that calls of others may be seen here.

    Raises:
        NotPermittedError: a machine that has joined sees none.
    """
    if is_guarded(connection.client):
        raise NotPermittedError(
            "these credentials see no calls of others: look at the hub, as its operator",
            subject="delivered.>",
        )
