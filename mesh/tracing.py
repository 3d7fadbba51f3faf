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
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from mesh import headers as h

SAMPLED: Final = 1


class Kind(IntEnum):
    """What a span is, with OTLP's numbers."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


@dataclass(frozen=True, slots=True)
class SpanContext:
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
        found = h.valid_traceparent(traceparent)
        if not found:
            return None
        _, trace_id, span_id, flags = found.split("-")
        return cls(trace_id, span_id, bool(int(flags, 16) & SAMPLED))


@dataclass(slots=True)
class Span:
    """Something that took time. Ended once, and told to the collector then."""

    name: str
    kind: Kind
    context: SpanContext
    parent_id: str
    start_ns: int
    attributes: dict[str, Any]
    end_ns: int = 0
    error: str = ""
    """Why it failed; empty where it did not."""

    def end(self, error: str = "") -> None:
        """End it, now, and let it be collected."""
        if self.end_ns:
            return
        self.end_ns = time.time_ns()
        self.error = error
        if _process.collect is not None and self.context.is_sampled:
            _process.collect(self)


Collect = Callable[[Span], None]
Sample = Callable[[str], bool]
"""Whether a trace, by its id, is one that is told of."""


def _always(_: str) -> bool:
    return True


@dataclass(slots=True)
class _Process:
    """Who collects the spans of this process, and which."""

    collect: Collect | None = None
    sample: Sample = _always


_process: Final = _Process()
current: ContextVar[SpanContext | None] = ContextVar("mesh_span", default=None)
"""The span that this task is in."""


def collect_with(collect: Collect | None, sample: Sample | None = None) -> None:
    """Begin to tell spans to `collect`; None ends that."""
    _process.collect = collect
    _process.sample = sample or _always


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


def begin(
    name: str,
    kind: Kind,
    attributes: dict[str, Any],
    *,
    parent: SpanContext | None = None,
    trace_id: str = "",
    start_ns: int = 0,
) -> Span:
    """Begin a span below `parent`; without one in the trace `trace_id`, or in a new one."""
    if parent is not None:
        trace_id, is_sampled = parent.trace_id, parent.is_sampled
    else:
        trace_id = trace_id or new_trace_id()
        is_sampled = _process.sample(trace_id)
    return Span(
        name=name,
        kind=kind,
        context=SpanContext(trace_id, new_span_id(), is_sampled),
        parent_id=parent.span_id if parent is not None else "",
        start_ns=start_ns or time.time_ns(),
        attributes=attributes,
    )


@contextmanager
def inside(context: SpanContext) -> Iterator[None]:
    """Let what is done meanwhile be below a span."""
    token: Token[SpanContext | None] = current.set(context)
    bridged = _bridge.attach(context)
    try:
        yield
    finally:
        _bridge.detach(bridged)
        current.reset(token)


@contextmanager
def part(name: str, kind: Kind = Kind.INTERNAL) -> Iterator[None]:
    """Tell how long something takes, below whatever this task is in."""
    if _process.collect is None:
        yield
        return
    span = begin(name, kind, {}, parent=above())
    error = "failed"
    try:
        yield
        error = ""
    finally:
        span.end(error)


@dataclass(slots=True)
class CallSpan:
    """The two spans of a caller: the call, and its publishing."""

    call: Span
    publish: Span

    def stored(self, sequence: int) -> None:
        """The request is in the mailbox."""
        self.publish.attributes["messaging.nats.stream_sequence"] = sequence
        self.publish.end()

    def end(self, outcome: str, code: str) -> None:
        """The call has ended."""
        self.publish.end()
        self.call.attributes["mesh.outcome"] = outcome
        self.call.end(code)


def begin_call(agent: str, subject: str, call_id: str, trace_id: str) -> CallSpan:
    """Begin the spans of a call, below whatever this task is in."""
    attributes = {"mesh.agent": agent, "mesh.call_id": call_id}
    call = begin(f"call {agent}", Kind.CLIENT, attributes, parent=above(), trace_id=trace_id)
    sent = {"messaging.system": "nats", "messaging.destination.name": subject}
    publish = begin(f"publish {subject}", Kind.PRODUCER, sent, parent=call.context)
    return CallSpan(call, publish)


@dataclass(slots=True)
class HandlingSpan:
    """The span of an agent that works on a request."""

    span: Span
    asked: SpanContext | None
    """The call, as its request says."""

    @property
    def context(self) -> SpanContext:
        """What is below it says."""
        return self.span.context

    def end(self, outcome: str) -> None:
        """The request is answered, or comes again."""
        self.span.attributes["mesh.outcome"] = outcome
        self.span.end("" if outcome == "answered" else outcome)


def begin_handling(
    agent: str, subject: str, headers: h.RequestHeaders, *, attempt: int, stored_ns: int
) -> HandlingSpan:
    """Tell how long a request has waited, and begin the span of the work on it."""
    asked = SpanContext.read(headers.traceparent)
    attributes = {
        "messaging.system": "nats",
        "messaging.destination.name": subject,
        "mesh.agent": agent,
        "mesh.attempt": attempt,
        "mesh.call_id": headers.call_id,
    }
    again = f", attempt {attempt}" if attempt > 1 else ""
    waited = begin(
        f"wait in {subject}{again}", Kind.CONSUMER, attributes, parent=asked, start_ns=stored_ns
    )
    waited.end()
    # In the same trace, also where the request had none.
    below = asked or waited.context
    span = begin(f"handle {agent}{again}", Kind.CONSUMER, dict(attributes), parent=below)
    return HandlingSpan(span, asked)


def begin_request(method: str, path: str, traceparent: str) -> Span:
    """Begin the span of a request at a door."""
    attributes = {"http.request.method": method, "url.path": path}
    return begin(f"{method} {path}", Kind.SERVER, attributes, parent=SpanContext.read(traceparent))


def outgoing(name: str, url: str) -> Span:
    """Begin the span of a request to somewhere else; its header goes along."""
    return begin(name, Kind.CLIENT, {"url.full": url}, parent=above())


@dataclass(slots=True)
class _Bridge:
    """To the spans of a program that has configured OpenTelemetry's SDK by itself.

    Looked at only where its API has been imported by somebody: that takes a fifth of a second.
    """

    _api: Any = field(default=None)

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
