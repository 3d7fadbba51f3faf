"""The spans of a call, as OpenTelemetry has them; none, and no cost, until somebody collects them.

W3C Trace Context goes through every hop in any case: what a client sends is the trace of its call,
of the calls that agents make for it, and of what the relay asks. With a collector configured
(`mesh.otlp`), each process adds spans: the request at a door, the call, its publishing, the wait in
the mailbox, the handler, the reply.

The spans are ours and not the OpenTelemetry SDK's: one of its spans takes 45 us of a processor,
export included, and a call has six. Where a program has configured the SDK itself, its spans and
ours know each other: see `_Bridge`.
"""

import random
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from enum import IntEnum
from time import time_ns
from typing import Any, Final, NamedTuple

from mesh import headers as h

SAMPLED: Final = 1
MAX_PATH: Final = 200


class Kind(IntEnum):
    """What a span is, with OTLP's numbers."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class SpanContext(NamedTuple):
    """What of a span goes on to others: W3C Trace Context."""

    trace_id: str
    span_id: str
    is_sampled: bool = True

    @property
    def traceparent(self) -> str:
        """The header."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}"

    @classmethod
    def read(cls, traceparent: str) -> "SpanContext | None":
        """Read a header that may be anything; None where it is none."""
        return cls.of(h.valid_traceparent(traceparent))

    @classmethod
    def of(cls, traceparent: str) -> "SpanContext | None":
        """Read a header that is one, or empty."""
        if not traceparent:
            return None
        _, trace_id, span_id, flags = traceparent.split("-")
        return cls(trace_id, span_id, bool(int(flags, 16) & SAMPLED))


Attributes = tuple[tuple[str, str | int], ...]
Ended = tuple[Any, ...]
"""What is collected, by its first item: a `SPAN`, or the spans of a `CALL` or `HANDLING` together,
which are taken apart when they are sent. See those who write them.

A plain tuple of plain values: the garbage collector lets go of those, and of nothing with a name.
With 20,000 named ones waiting a second for their sending, a call took a fifth longer.
"""
SPAN: Final = 0
CALL: Final = 1
HANDLING: Final = 2


Collect = Callable[[Ended], None]
Sample = Callable[[str], bool]
"""Whether a trace, by its id, is one that is told of."""


def _always(_: str) -> bool:
    return True


@dataclass(slots=True)
class _Process:
    """Who collects the spans of this process, and which."""

    collect: Collect | None = None
    sample: Sample = _always
    heeds_parent: bool = True


_process: Final = _Process()
current: ContextVar[SpanContext | None] = ContextVar("mesh_span", default=None)
"""The span that this task is in."""


def collect_with(
    collect: Collect | None, sample: Sample | None = None, *, heeds_parent: bool = True
) -> None:
    """Begin to tell spans to `collect`; None ends that."""
    _process.collect = collect
    _process.sample = sample or _always
    _process.heeds_parent = heeds_parent


def has_neighbour() -> bool:
    """Tell whether somebody in this process uses OpenTelemetry's API: its spans shall know ours."""
    return _bridge.is_loaded


def is_on() -> bool:
    """Tell whether spans are collected."""
    return _process.collect is not None


def new_trace_id() -> str:
    """Return an id that nobody has used."""
    return f"{random.getrandbits(128) or 1:032x}"


def new_span_id() -> str:
    """Return an id that nobody has used in its trace."""
    return f"{random.getrandbits(64) or 1:016x}"


def above() -> SpanContext | None:
    """Return the span that this task is in: ours, or that of a program that has its own."""
    return current.get() or _bridge.current()


def _beginning(parent: SpanContext | None, trace_id: str = "") -> SpanContext:
    """Return the context of a span below `parent`; or else in `trace_id`, or in a new trace."""
    if parent is not None:
        heeds = _process.heeds_parent
        is_sampled = parent.is_sampled if heeds else _process.sample(parent.trace_id)
        return SpanContext(parent.trace_id, new_span_id(), is_sampled)
    trace_id = trace_id or new_trace_id()
    return SpanContext(trace_id, new_span_id(), _process.sample(trace_id))


@dataclass(slots=True)
class Span:
    """Something that takes time, and is told when it has ended."""

    name: str
    """May be another one by its end."""
    kind: Kind
    attributes: Attributes
    context: SpanContext
    parent: SpanContext | None
    start_ns: int
    is_over: bool = False

    @classmethod
    def begin(
        cls,
        name: str,
        kind: Kind,
        parent: SpanContext | None,
        attributes: Attributes = (),
    ) -> "Span":
        """Begin one below `parent`, or a new trace."""
        return cls(name, kind, attributes, _beginning(parent), parent, time_ns())

    def end(self, error: str = "", *more: tuple[str, str | int]) -> None:
        """End it now, the first time."""
        if self.is_over or _process.collect is None or not self.context.is_sampled:
            return
        self.is_over = True
        parent_id = self.parent.span_id if self.parent is not None else ""
        ids = (self.context.trace_id, self.context.span_id, parent_id)
        times = (self.start_ns, time_ns())
        attributes = (*self.attributes, *more)
        _process.collect((SPAN, self.name, self.kind.value, *ids, *times, attributes, error))


# A context written as a class takes half the time of one that is a generator.
class inside:  # noqa: N801
    """Let what is done meanwhile be below a span."""

    __slots__ = ("_bridged", "_context", "_token")

    def __init__(self, context: SpanContext) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token: Token[SpanContext | None] = current.set(self._context)
        self._bridged = _bridge.attach(self._context)

    def __exit__(self, *_: object) -> None:
        _bridge.detach(self._bridged)
        current.reset(self._token)


@dataclass(slots=True)
class CallSpan:
    """The two spans of a caller: the call, and its publishing."""

    agent: str
    subject: str
    call_id: str
    context: SpanContext
    parent_id: str
    start_ns: int
    stored_ns: int = 0
    """When the broker had acknowledged the request; 0 before."""
    is_over: bool = False

    def stored(self) -> None:
        """The request is in the mailbox."""
        self.stored_ns = time_ns()

    def end(self, outcome: str, code: str) -> None:
        """The call has ended. A fast answer may be here before the acknowledgement."""
        if self.is_over or _process.collect is None or not self.context.is_sampled:
            return
        self.is_over = True
        ids = (self.context.trace_id, self.context.span_id, self.parent_id)
        now_ns = time_ns()
        times = (self.start_ns, self.stored_ns or now_ns, now_ns)
        _process.collect(
            (CALL, self.agent, self.subject, self.call_id, *ids, *times, outcome, code)
        )


def begin_call(agent: str, subject: str, call_id: str, trace_id: str) -> CallSpan:
    """Begin the spans of a call, below whatever this task is in."""
    parent = above()
    parent_id = parent.span_id if parent is not None else ""
    context = _beginning(parent, trace_id)
    return CallSpan(agent, subject, call_id, context, parent_id, time_ns())


@dataclass(slots=True)
class HandlingSpan:
    """The three spans of an agent: a request's wait, the work on it, the storing of its answer."""

    agent: str
    subject: str
    call_id: str
    attempt: int
    context: SpanContext
    parent_id: str
    """Of the call; empty where its request names none."""
    stored_ns: int
    began_ns: int
    reply_ns: int = 0
    """When the storing of the answer began; 0 before."""
    replied_ns: int = 0
    is_waited: bool = False
    """Whether its wait has been told."""

    def replying(self) -> None:
        """The answer is there, and goes out."""
        self.reply_ns = time_ns()

    def replied(self) -> None:
        """The answer is stored."""
        self.replied_ns = time_ns()

    def turn_slow(self) -> None:
        """Tell of the wait now: the process may die before the end."""
        if not self.is_waited:
            self._tell(0, "")
            self.is_waited = True

    def end(self, outcome: str) -> None:
        """The request is answered, or comes again."""
        self._tell(time_ns(), outcome)

    def _tell(self, end_ns: int, outcome: str) -> None:
        if _process.collect is not None and self.context.is_sampled:
            ids = (self.context.trace_id, self.context.span_id, self.parent_id)
            # What has been told has no beginning any more.
            times = (0 if self.is_waited else self.stored_ns, self.began_ns, end_ns)
            reply = (self.reply_ns, self.replied_ns)
            named = (self.agent, self.subject, self.call_id, self.attempt)
            _process.collect((HANDLING, *named, *ids, *times, *reply, outcome))


def begin_handling(
    agent: str, subject: str, headers: h.RequestHeaders, *, attempt: int, waited_s: float
) -> HandlingSpan:
    """Begin the spans of the work on a request."""
    asked = SpanContext.of(headers.traceparent)
    parent_id = asked.span_id if asked is not None else ""
    named = (agent, subject, headers.call_id, attempt)
    began_ns = time_ns()
    stored_ns = began_ns - max(0, int(waited_s * 1e9))
    return HandlingSpan(*named, _beginning(asked), parent_id, stored_ns, began_ns)


def begin_request(method: str, path: str, traceparent: str) -> Span:
    """Begin the span of a request at a door; its name is the route's, once that is known."""
    attributes = (("http.request.method", method), ("url.path", path[:MAX_PATH]))
    return Span.begin(method, Kind.SERVER, SpanContext.read(traceparent), attributes)


def outgoing(name: str, url: str) -> Span:
    """Begin the span of a request to somewhere else; its header goes along."""
    return Span.begin(name, Kind.CLIENT, above(), (("url.full", url),))


@dataclass(slots=True)
class _Bridge:
    """To the spans of a program that has configured OpenTelemetry's SDK by itself.

    Looked at only where its API has been imported by somebody: that takes a fifth of a second.
    """

    _api: Any = field(default=None)

    @property
    def is_loaded(self) -> bool:
        return self._loaded() is not None

    def _loaded(self) -> Any:
        if self._api is None:
            self._api = sys.modules.get("opentelemetry.trace")
        return self._api

    def current(self) -> SpanContext | None:
        api = self._loaded()
        if api is None:
            return None
        found = api.get_current_span().get_span_context()
        if not found.is_valid:
            return None
        is_sampled = bool(found.trace_flags & SAMPLED)
        return SpanContext(f"{found.trace_id:032x}", f"{found.span_id:016x}", is_sampled)

    def attach(self, context: SpanContext) -> Any:
        api = self._loaded()
        if api is None:
            return None
        named = api.SpanContext(
            trace_id=int(context.trace_id, 16),
            span_id=int(context.span_id, 16),
            is_remote=False,
            trace_flags=api.TraceFlags(SAMPLED if context.is_sampled else 0),
        )
        span = api.NonRecordingSpan(named)
        attach = sys.modules["opentelemetry.context"].attach
        return attach(api.set_span_in_context(span))

    def detach(self, token: Any) -> None:
        if token is not None:
            sys.modules["opentelemetry.context"].detach(token)


_bridge: Final = _Bridge()


def header_of(context: SpanContext | None) -> Mapping[str, str]:
    """Return the header that tells somebody else of a span."""
    return {h.TRACEPARENT: context.traceparent} if context is not None else {}
