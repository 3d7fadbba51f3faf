"""The calls of the last minutes, as they pass: who asks whom, where it is answered, how fast.

Heard beside the traffic, on the subjects that every call takes anyway; nothing is asked of agents,
and nobody is told. Only while somebody watches: it costs some microseconds for each message. A
process behind an account boundary hears nothing, as others' calls are not its business.
"""

import asyncio
import logging
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.errors import APIError

from mesh import headers as h
from mesh import subjects
from mesh.calls import CallState
from mesh.connection import Connection
from mesh.errors import InvalidInputError, MeshError
from mesh.history import read_history, read_newest, stored_ns
from mesh.nats_client import is_guarded
from mesh.pings import is_pong
from mesh.streams import INBOX, REPLY
from schemas.base import is_id
from schemas.frame import FrameKind

logger = logging.getLogger(__name__)

WINDOW_S: Final = 300.0
"""How far back numbers and edges reach."""
RATE_S: Final = 10.0
"""What "calls per second" is an average of."""
KEPT_CALLS: Final = 2_000
KEPT_TIMES: Final = 4_000
KEPT_PINGS: Final = 256
"""Their answers look like those of calls."""
BACKFILL: Final = 300
"""Frames that are read when somebody begins to watch."""
DEPTHS_S: Final = 2.0
"""How often the mailboxes are counted."""
LINGER_S: Final = 60.0
"""Who reloads a page shall find what was there."""
_BUCKET_S: Final = 5.0
_ALL_FRAMES: Final = "delivered.*.reply.>"
_STATES: Final = {
    FrameKind.STORED: CallState.STORED,
    FrameKind.WORKING: CallState.WORKING,
    FrameKind.CHUNK: CallState.WORKING,
    FrameKind.FINAL: CallState.ANSWERED,
    FrameKind.ERROR: CallState.FAILED,
}
_KINDS: Final = frozenset(FrameKind)
_ENDS: Final = {
    "timeout": CallState.EXPIRED,
    "cancelled": CallState.CANCELLED,
    "dead_letter": CallState.DEAD,
}


OnMessage = Callable[[Msg], Awaitable[None]]


@dataclass(slots=True)
class SeenCall:
    """A call, as far as it was seen. Times are seconds of this machine's clock."""

    id: str
    agent: str
    caller: str = ""
    """Empty where nobody says."""
    source_node: str = ""
    node: str = ""
    """Where it is answered; before that, the node that it insists on."""
    state: CallState = CallState.SENT
    code: str = ""
    """Of the error, when it failed."""
    attempt: int = 1
    asked_at: float = 0.0
    """0 when only its answer was seen."""
    deadline_at: float = 0.0
    """0 where nobody says."""
    ended_at: float = 0.0

    def state_at(self, now: float) -> CallState:
        """Return where it stands: that a deadline has passed, nobody tells."""
        is_overdue = self.deadline_at and now > self.deadline_at and not self.ended_at
        return CallState.EXPIRED if is_overdue else self.state

    @property
    def took_s(self) -> float | None:
        """How long it took; None before its end, and where its beginning was not seen."""
        return self.ended_at - self.asked_at if self.ended_at and self.asked_at else None


class Buckets:
    """Counts of the last minutes, by five seconds."""

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int]] = deque()

    def add(self, now: float) -> None:
        """Count one."""
        bucket = int(now // _BUCKET_S)
        if self._counts and self._counts[-1][0] == bucket:
            self._counts[-1] = (bucket, self._counts[-1][1] + 1)
        else:
            self._counts.append((bucket, 1))
            while self._counts[0][0] < bucket - WINDOW_S // _BUCKET_S:
                self._counts.popleft()

    def since(self, at: float) -> int:
        """Return how many there were since then, to five seconds."""
        first = at // _BUCKET_S
        return sum(count for bucket, count in self._counts if bucket >= first)


@dataclass(slots=True)
class Edge:
    """The calls of one caller to one agent."""

    caller: str
    source_node: str
    agent: str
    node: str = ""
    """Where the newest one was answered."""
    last_at: float = 0.0
    calls: Buckets = field(default_factory=Buckets)
    errors: Buckets = field(default_factory=Buckets)


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the traffic of the last minutes comes to."""

    calls_per_s: float
    in_flight: int
    p99_ms: float | None
    """None where no call has ended."""
    errors: int


class TrafficLog:
    """What was seen. Pure: it is told what passes, and when."""

    def __init__(self) -> None:
        self.version = 0
        self.last_at = 0.0
        """When the newest call began or ended."""
        self.depths: Mapping[str, int] = {}
        """Requests in the mailbox of each agent, worked on or not; only those that have any."""
        self._calls: OrderedDict[str, SeenCall] = OrderedDict()
        self._edges: dict[tuple[str, str, str], Edge] = {}
        self._running: dict[str, set[str]] = {}
        """By agent, the calls that are worked on."""
        self._pings: deque[str] = deque(maxlen=KEPT_PINGS)
        self._asked, self._failed = Buckets(), Buckets()
        self._times: deque[tuple[float, float]] = deque(maxlen=KEPT_TIMES)

    def on_request(self, subject: str, headers: Mapping[str, str], now: float) -> None:
        """Take in a request."""
        if h.PING in headers:
            self._pings.append(headers.get(h.CORRELATION_ID, ""))
            return
        try:
            target = subjects.parse_inbox(subject)
        except InvalidInputError:
            return
        if not target.is_valid:
            return
        said = h.RequestHeaders.read(headers)
        call_id = said.call_id or f"unnamed-{self.version}"
        if call_id in self._calls:  # Sent again by a caller that was not sure.
            return
        call = SeenCall(
            call_id,
            target.agent,
            caller=said.source_agent,
            source_node=said.source_node,
            node=target.node or "",
            asked_at=now,
            deadline_at=now + said.timeout_ms / 1_000 if said.timeout_ms else 0.0,
        )
        self._remember(call)
        self._asked.add(now)
        edge = self._edge(call)
        edge.calls.add(now)
        edge.last_at = self.last_at = now
        self.version += 1

    def on_frame(self, subject: str, headers: Mapping[str, str], now: float) -> None:
        """Take in a part of an answer; `subject` is the reply subject."""
        kind, call_id = headers.get(h.KIND, ""), headers.get(h.CORRELATION_ID, "")
        if not call_id or (kind and kind not in _KINDS):
            return
        frame = FrameKind(kind) if kind else FrameKind.FINAL
        call = self._calls.get(call_id)
        if call is None and (not kind or call_id in self._pings):
            return  # A ping, or what the registrar answers to an announcement.
        if call is None:
            agent = subjects.answering_agent(subject)
            caller = subjects.caller_of(subject)
            if not is_id(agent) or not is_id(caller):
                return
            call = SeenCall(call_id, agent, caller=caller)
            self._remember(call)
        if call.ended_at:
            return
        call.node = headers.get(h.NODE, "") or call.node
        call.attempt = h.number(headers.get(h.ATTEMPT)) or 1
        call.state = _STATES[frame]
        if frame is FrameKind.ERROR:
            call.code = headers.get(h.CODE, "")[:64]
            call.state = _ENDS.get(call.code, CallState.FAILED)
        if frame.is_terminal:
            self._end(call, now)
            self.last_at = max(self.last_at, now)
        elif frame is not FrameKind.STORED:
            self._running.setdefault(call.agent, set()).add(call.id)
        self.version += 1

    def tell_depths(self, depths: Mapping[str, int]) -> None:
        """Take in how many requests lie in each mailbox."""
        if depths != self.depths:
            self.depths = depths
            self.version += 1

    def numbers(self, now: float) -> Numbers:
        """Return what the last minutes come to."""
        took = sorted(took_s for at, took_s in self._times if at > now - WINDOW_S)
        p99 = took[math.ceil(len(took) * 0.99) - 1] * 1_000 if took else None
        return Numbers(
            calls_per_s=self._asked.since(now - RATE_S) / RATE_S,
            in_flight=sum(self.depths.values()),
            p99_ms=p99,
            errors=self._failed.since(now - WINDOW_S),
        )

    def edges(self, now: float) -> list[Edge]:
        """Return who has asked whom in the last minutes, the busiest first."""
        for key in [key for key, one in self._edges.items() if one.last_at < now - WINDOW_S]:
            del self._edges[key]
        since = now - WINDOW_S
        return sorted(
            self._edges.values(), key=lambda one: (-one.calls.since(since), one.caller, one.agent)
        )

    def calls_of(self, agent: str, limit: int) -> list[SeenCall]:
        """Return the newest calls to an agent, the newest first."""
        found = []
        for call in reversed(self._calls.values()):
            if call.agent == agent:
                found.append(call)
                if len(found) == limit:
                    break
        return found

    def running(self, agent: str) -> int:
        """Return how many calls an agent works on, as far as it says so."""
        return len(self._running.get(agent, ()))

    def _remember(self, call: SeenCall) -> None:
        self._calls[call.id] = call
        if len(self._calls) > KEPT_CALLS:
            _, gone = self._calls.popitem(last=False)
            self._running.get(gone.agent, set()).discard(gone.id)

    def _edge(self, call: SeenCall) -> Edge:
        key = (call.caller, call.source_node, call.agent)
        if key not in self._edges:
            self._edges[key] = Edge(*key)
        return self._edges[key]

    def _end(self, call: SeenCall, now: float) -> None:
        call.ended_at = now
        self._running.get(call.agent, set()).discard(call.id)
        if call.took_s is not None:
            self._times.append((now, call.took_s))
            edge = self._edge(call)
            edge.node = call.node
            if call.state is not CallState.ANSWERED:
                edge.errors.add(now)
        if call.state is not CallState.ANSWERED:
            self._failed.add(now)


class Traffic:
    """Watches, as long as anybody wants to know."""

    def __init__(self, connection: Connection) -> None:
        self.log = TrafficLog()
        self._connection = connection
        self._watchers = 0
        self._subscriptions: list[Subscription] = []
        self._starting = asyncio.Lock()
        self._counting: asyncio.Task[None] | None = None
        self._stopping: asyncio.TimerHandle | None = None

    @property
    def is_visible(self) -> bool:
        """Whether this process may hear calls of others at all."""
        return not is_guarded(self._connection.client)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[TrafficLog]:
        """Keep the log up to date for the length of the context."""
        self._watchers += 1
        if self._stopping is not None:
            self._stopping.cancel()
            self._stopping = None
        try:
            if self.is_visible:
                await self._start()
            yield self.log
        finally:
            self._watchers -= 1
            if not self._watchers and self._subscriptions:
                loop = asyncio.get_running_loop()
                self._stopping = loop.call_later(LINGER_S, self._stop_soon)

    async def _start(self) -> None:
        async with self._starting:
            if self._subscriptions:
                return
            client = self._connection.client
            with suppress(nats.errors.Error):
                for subject in (subjects.ALL_INBOXES, subjects.ALL_PINNED_INBOXES):
                    await self._subscribe(subject, self._on_request)
                await self._subscribe(_ALL_FRAMES, self._on_frame)
                await client.flush(timeout=2)
            with suppress(MeshError):
                await self._read_back()
            self._counting = self._connection.tasks.start(self._count_forever())

    async def _subscribe(self, subject: str, on_message: OnMessage) -> None:
        subscription = await self._connection.client.subscribe(subject, cb=on_message)
        self._subscriptions.append(subscription)

    def _stop_soon(self) -> None:
        if not self._watchers:
            self._connection.tasks.start(self._stop())

    async def _stop(self) -> None:
        if self._counting is not None:
            self._counting.cancel()
        subscriptions, self._subscriptions = self._subscriptions, []
        for one in subscriptions:
            with suppress(nats.errors.Error):
                await one.unsubscribe()

    async def _on_request(self, message: Msg) -> None:
        self.log.on_request(message.subject, message.headers or {}, time.time())

    async def _on_frame(self, message: Msg) -> None:
        self.log.on_frame(message.subject, message.headers or {}, time.time())

    async def _read_back(self) -> None:
        """Read the newest answers that are still stored: who comes to look wants to see some."""
        newest = await read_newest(self._connection, REPLY, subjects.ALL_REPLIES)
        if newest is None:
            return
        first = max(1, newest.sequence - BACKFILL)
        stored = await read_history(
            self._connection, REPLY, subjects.ALL_REPLIES, from_sequence=first
        )
        for one in stored:
            if is_pong(one.body):
                continue
            self.log.on_frame(one.subject, one.headers, stored_ns(one.headers) / 1e9)

    async def _count_forever(self) -> None:
        while True:
            try:
                info = await self._connection.client.jsm().stream_info(INBOX, subjects_filter=">")
                self.log.tell_depths(_depths(info.state.subjects or {}))
            except (nats.errors.Error, APIError) as error:
                logger.debug("cannot count the mailboxes: %s", error)
            await asyncio.sleep(DEPTHS_S)


def _depths(counted: Mapping[str, int]) -> Mapping[str, int]:
    found = Counter[str]()
    for subject, count in counted.items():
        with suppress(InvalidInputError):
            found[subjects.parse_inbox(subject).agent] += count
    return found
