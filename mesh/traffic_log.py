"""The calls of the last minutes, as far as they were seen: who asks whom, where, how fast.

Told what passes, and when; asks nobody. See `mesh.traffic` for who tells it.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mesh import headers as h
from mesh import subjects
from mesh.calls import CallState
from mesh.errors import InvalidInputError
from schemas.base import is_id
from schemas.frame import FrameKind

WINDOW_S: Final = 300.0
"""How far back numbers and edges reach."""
RATE_S: Final = 10.0
"""What "calls per second" is an average of."""
KEPT_CALLS: Final = 2_000
KEPT_TIMES: Final = 4_000
KEPT_PINGS: Final = 256
"""Their answers look like those of calls."""
_BUCKET_S: Final = 5.0
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
    asked: Buckets = field(default_factory=Buckets)
    failed: Buckets = field(default_factory=Buckets)

    def calls(self, now: float, window_s: float = WINDOW_S) -> int:
        """Return how many there were in the last minutes, or in less."""
        return self.asked.since(now - window_s)

    def errors(self, now: float, window_s: float = WINDOW_S) -> int:
        """Return how many of them have failed."""
        return self.failed.since(now - window_s)


@dataclass(frozen=True, slots=True)
class AgentNumbers:
    """What the calls to one agent come to, of the last minutes."""

    calls_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    errors: int


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
        self.is_fed = False
        """Whether what passes is told at all."""
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
        self._times: deque[tuple[float, float, str]] = deque(maxlen=KEPT_TIMES)
        """When calls ended, how long they took, and who answered."""

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
        call = self._calls.get(call_id) or self._remember(SeenCall(call_id, target.agent))
        if call.asked_at:  # Sent again by a caller that was not sure.
            return
        # Its first frames may have been heard before: nothing orders two subscriptions.
        call.caller, call.source_node = said.source_agent, said.source_node
        call.node = call.node or target.node or ""
        call.asked_at = min(now, call.ended_at or now)
        call.deadline_at = now + said.timeout_ms / 1_000 if said.timeout_ms else 0.0
        self._asked.add(now)
        edge = self._edge(call)
        edge.asked.add(now)
        edge.last_at = self.last_at = now
        if call.ended_at:
            self._end(call, call.ended_at)
        self._note_running(call)
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
            call = self._remember(SeenCall(call_id, agent, caller=caller))
        if call.ended_at or (frame is FrameKind.STORED and call.state is CallState.WORKING):
            return  # The sender says that it is stored when an agent may be at it already.
        node = headers.get(h.NODE, "")
        call.node = node if is_id(node) else call.node
        call.attempt = h.number(headers.get(h.ATTEMPT)) or 1
        call.state = _STATES[frame]
        if frame is FrameKind.ERROR:
            call.code = headers.get(h.CODE, "")[:64]
            call.state = _ENDS.get(call.code, CallState.FAILED)
        if frame.is_terminal:
            call.ended_at = now
            self.last_at = max(self.last_at, now)
            if call.state is not CallState.ANSWERED:
                self._failed.add(now)
            self._end(call, now)
        self._note_running(call)
        self.version += 1

    def tell_depths(self, depths: Mapping[str, int]) -> None:
        """Take in how many requests lie in each mailbox."""
        if depths != self.depths:
            self.depths = depths
            self.version += 1

    def numbers(self, now: float) -> Numbers:
        """Return what the last minutes come to."""
        took = sorted(took_s for at, took_s, _ in self._times if at > now - WINDOW_S)
        return Numbers(
            calls_per_s=self._asked.since(now - RATE_S) / RATE_S,
            in_flight=sum(self.depths.values()),
            p99_ms=_quantile_ms(took, 0.99),
            errors=self._failed.since(now - WINDOW_S),
        )

    def by_agent(self, now: float) -> dict[str, AgentNumbers]:
        """Return the same for each agent that was asked."""
        took: dict[str, list[float]] = {}
        for at, took_s, agent in self._times:
            if at > now - WINDOW_S:
                took.setdefault(agent, []).append(took_s)
        edges = self.edges(now)
        found = {}
        for agent in {edge.agent for edge in edges}:
            times = sorted(took.get(agent, ()))
            asked = [edge for edge in edges if edge.agent == agent]
            found[agent] = AgentNumbers(
                calls_per_s=sum(edge.calls(now, RATE_S) for edge in asked) / RATE_S,
                p50_ms=_quantile_ms(times, 0.5),
                p99_ms=_quantile_ms(times, 0.99),
                errors=sum(edge.errors(now) for edge in asked),
            )
        return found

    def edges(self, now: float, window_s: float = WINDOW_S) -> list[Edge]:
        """Return who has asked whom in the last minutes, or in less, the busiest first."""
        for key in [key for key, one in self._edges.items() if one.last_at < now - WINDOW_S]:
            del self._edges[key]
        recent = (one for one in self._edges.values() if one.last_at >= now - window_s)
        return sorted(recent, key=lambda one: (-one.calls(now, window_s), one.caller, one.agent))

    def calls_of(self, agent: str, limit: int) -> list[SeenCall]:
        """Return the newest calls to an agent, the newest first."""
        found = []
        for call in reversed(self._calls.values()):
            if call.agent == agent:
                found.append(call)
                if len(found) == limit:
                    break
        return found

    def running(self, agent: str, now: float) -> int:
        """Return how many calls an agent works on, as far as it says so.

        Of a call whose deadline has passed nobody says anything more.
        """
        running = (self._calls[one] for one in self._running.get(agent, ()))
        return sum(one.state_at(now) is CallState.WORKING for one in running)

    def _remember(self, call: SeenCall) -> SeenCall:
        self._calls[call.id] = call
        if len(self._calls) > KEPT_CALLS:
            _, gone = self._calls.popitem(last=False)
            self._running.get(gone.agent, set()).discard(gone.id)
        return call

    def _note_running(self, call: SeenCall) -> None:
        running = self._running.setdefault(call.agent, set())
        # Of one whose request was not seen, nobody knows until when it may run.
        if call.state is CallState.WORKING and call.asked_at:
            running.add(call.id)
        else:
            running.discard(call.id)

    def _edge(self, call: SeenCall) -> Edge:
        key = (call.caller, call.source_node, call.agent)
        if key not in self._edges:
            self._edges[key] = Edge(*key)
        return self._edges[key]

    def _end(self, call: SeenCall, now: float) -> None:
        """Count a call whose request and end were both seen."""
        if call.took_s is not None:
            self._times.append((now, call.took_s, call.agent))
            edge = self._edge(call)
            edge.node = call.node
            if call.state is not CallState.ANSWERED:
                edge.failed.add(now)


def _quantile_ms(took: Sequence[float], share: float) -> float | None:
    """Return a quantile of sorted seconds; None of none."""
    return took[math.ceil(len(took) * share) - 1] * 1_000 if took else None
