"""Sends spans to an OpenTelemetry collector: OTLP over HTTP, in JSON, a second after they ended.

By aiohttp, which nats-py brings and has loaded by then. Configured as OpenTelemetry is, by its own
variables. A collector that is away, or slow, costs spans, and never a call.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import aiohttp
import orjson

from mesh import metrics, tracing
from mesh.tracing import Ended, Kind
from mesh.version import VERSION

logger = logging.getLogger(__name__)

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
HEADERS: Final = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
SEND_S: Final = 1.0
TIMEOUT_S: Final = 10.0
LAST_WORDS_S: Final = 2.0
BATCH: Final = 256
"""Collected things in one request; a call is one of them at its caller, and one at its agent."""
MAX_WAITING: Final = 20_000
"""Spans that are not sent yet; beyond them the oldest are dropped."""
_ERROR: Final = 2
_FULL_RATIO: Final = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where spans go, and what is said of this process with them."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    service: str = ""
    resource: Mapping[str, str] = field(default_factory=dict)
    ratio: float = _FULL_RATIO
    """Of the traces that begin here."""
    heeds_parent: bool = True
    """Whether of others those are told of whose beginning was."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Target | None":
        """Read OpenTelemetry's own variables; None where no collector is named."""
        url = environ.get(TRACES_ENDPOINT, "")
        base = environ.get(ENDPOINT, "")
        is_off = (
            environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
            or environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
        )
        if is_off or not (url or base):
            return None
        headers: dict[str, str] = {}
        for name in HEADERS:
            headers |= _pairs(environ.get(name, ""))
        return cls(
            url=url or f"{base.rstrip('/')}/v1/traces",
            headers=headers,
            service=environ.get("OTEL_SERVICE_NAME", ""),
            resource=_pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", "")),
            ratio=_ratio(environ),
            heeds_parent=environ.get("OTEL_TRACES_SAMPLER", "parentbased").startswith(
                "parentbased"
            ),
        )

    @property
    def shown(self) -> str:
        """The address without a password in it."""
        split = urlsplit(self.url)
        return f"{split.scheme}://{split.netloc.rpartition('@')[2]}{split.path}"

    def samples(self, trace_id: str) -> bool:
        """Tell whether a trace that begins here is told of: the same in every process."""
        return self.ratio >= _FULL_RATIO or int(trace_id[16:], 16) < self.ratio * 2**64


def _pairs(text: str) -> dict[str, str]:
    """Read `a=b,c=d`, each value percent-encoded."""
    found = (one.partition("=") for one in text.split(",") if "=" in one)
    return {name.strip(): unquote(value.strip()) for name, _, value in found}


def _ratio(environ: Mapping[str, str]) -> float:
    sampler = environ.get("OTEL_TRACES_SAMPLER", "")
    if sampler.endswith("always_off"):
        return 0.0
    if not sampler.endswith("traceidratio"):
        return _FULL_RATIO
    try:
        return min(1.0, max(0.0, float(environ.get("OTEL_TRACES_SAMPLER_ARG", "1"))))
    except ValueError:
        logger.warning("OTEL_TRACES_SAMPLER_ARG is no number: every trace is told of")
        return _FULL_RATIO


class Exporter:
    """Collects spans, and sends them now and then."""

    def __init__(self, target: Target, resource: Mapping[str, str]) -> None:
        self._target = target
        self._head = _head(resource)
        self._waiting: deque[Ended] = deque(maxlen=MAX_WAITING)
        self._is_away = False

    def collect(self, span: Ended) -> None:
        """Take in a span that has ended."""
        if len(self._waiting) == MAX_WAITING:
            metrics.SPANS_DROPPED.inc()
        self._waiting.append(span)

    async def send_forever(self) -> None:
        """Send what there is every second, until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as http:
            while True:
                await asyncio.sleep(SEND_S)
                await self._send(http)

    async def send_last(self) -> None:
        """Send what is left, and wait no longer than two seconds for it."""
        try:
            async with asyncio.timeout(LAST_WORDS_S), aiohttp.ClientSession() as http:
                await self._send(http)
        except TimeoutError:
            logger.info("the last spans are not sent: the collector is slow")

    async def _send(self, http: aiohttp.ClientSession) -> None:
        while self._waiting:
            # Encoding holds the loop up for a millisecond: others have their turn in between.
            await asyncio.sleep(0)
            spans = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            headers = {"content-type": "application/json", **self._target.headers}
            try:
                async with http.post(
                    self._target.url, data=self._body(spans), headers=headers
                ) as answer:
                    answer.raise_for_status()
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                metrics.SPANS_DROPPED.inc(by=len(spans))
                if not self._is_away:
                    told = error or type(error).__name__
                    logger.warning(
                        "spans are lost, %s takes none by OTLP over HTTP (port 4318, mostly): %s",
                        *(self._target.shown, told),
                    )
                self._is_away = True
                return
            self._is_away = False

    def _body(self, spans: Iterable[Ended]) -> bytes:
        told = ",".join(one for ended in spans for one in _told(ended))
        return b"%b%b]}]}]}" % (self._head, told.encode())


def _told(ended: Ended) -> Iterator[str]:
    """Yield spans as OTLP has them in JSON: ids in hexadecimal, 64 bits as text.

    By hand: of plain dictionaries orjson would make the same in three times the time.
    """
    if ended[0] == tracing.CALL:
        yield from _call(ended)
    elif ended[0] == tracing.HANDLING:
        yield from _handling(ended)
    else:
        yield _plain(ended)


def _plain(ended: Ended) -> str:
    _, name, kind, trace_id, span_id, parent_id, start_ns, end_ns, attributes, error = ended
    told = orjson.dumps(_attributes(dict(attributes))).decode()[1:-1]
    ids = (trace_id, span_id, parent_id)
    return _span((name, kind), ids, (start_ns, end_ns), told, error)


def _call(ended: Ended) -> Iterator[str]:
    """Write the spans of a caller."""
    _, agent, subject, call_id, trace_id, span_id, parent_id, *times, outcome, code = ended
    start_ns, stored_ns, end_ns = times
    told = ",".join((_pair(_AGENT, agent), _pair(_CALL, call_id), _pair(_OUTCOME, outcome)))
    ids = (trace_id, span_id, parent_id)
    yield _span((f"call {agent}", Kind.CLIENT), ids, (start_ns, end_ns), told, code)
    ids = (trace_id, tracing.new_span_id(), span_id)
    yield _span((f"publish {subject}", Kind.PRODUCER), ids, (start_ns, stored_ns), _NATS)


def _handling(ended: Ended) -> Iterator[str]:
    """Write the spans of an agent, as far as they are not told and have ended."""
    _, agent, subject, call_id, attempt, trace_id, span_id, parent_id, *times, outcome = ended
    stored_ns, began_ns, end_ns, reply_ns, replied_ns = times
    again = f", attempt {attempt}" if attempt > 1 else ""
    if stored_ns:
        ids = (trace_id, tracing.new_span_id(), parent_id)
        named = (f"wait in {subject}{again}", Kind.CONSUMER)
        yield _span(named, ids, (stored_ns, began_ns), _NATS)
    if replied_ns:
        ids = (trace_id, tracing.new_span_id(), span_id)
        yield _span((f"reply of {agent}", Kind.PRODUCER), ids, (reply_ns, replied_ns), _NATS)
    if end_ns:
        tried = f'{{"key":"mesh.attempt","value":{{"intValue":"{attempt}"}}}}'
        pairs = (_pair(_AGENT, agent), _pair(_CALL, call_id), tried, _pair(_OUTCOME, outcome))
        error = "" if outcome == _ANSWERED else outcome
        ids, named = (trace_id, span_id, parent_id), (f"handle {agent}{again}", Kind.CONSUMER)
        yield _span(named, ids, (began_ns, end_ns), ",".join(pairs), error)


def _span(
    named: tuple[str, int],
    ids: tuple[str, str, str],
    times: tuple[int, int],
    told: str,
    error: str = "",
) -> str:
    """Write one, by its name and kind; the attributes in `told` are JSON already."""
    trace_id, span_id, parent_id = ids
    below = f',"parentSpanId":"{parent_id}"' if parent_id else ""
    status = f',"status":{{"code":{_ERROR},"message":{_quoted(error)}}}' if error else ""
    return (
        f'{{"traceId":"{trace_id}","spanId":"{span_id}"{below},"name":{_quoted(named[0])},'
        f'"kind":{named[1]:d},"startTimeUnixNano":"{times[0]}","endTimeUnixNano":"{times[1]}",'
        f'"attributes":[{told}]{status}}}'
    )


def _pair(key: str, text: str) -> str:
    return f'{{"key":"{key}","value":{{"stringValue":{_quoted(text)}}}}}'


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()


_AGENT: Final = "mesh.agent"
_CALL: Final = "mesh.call_id"
_OUTCOME: Final = "mesh.outcome"
_ANSWERED: Final = "answered"
_NATS: Final = _pair("messaging.system", "nats")


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(one)} for name, one in values.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": str(value)}


def _head(resource: Mapping[str, str]) -> bytes:
    """Encode what stands before the spans of an export."""
    scope = {"name": "mesh", "version": VERSION}
    told = {"resource": {"attributes": _attributes(resource)}}
    scoped = {"scopeSpans": [{"scope": scope, "spans": []}]}
    return orjson.dumps({"resourceSpans": [{**told, **scoped}]}).removesuffix(b"]}]}]}")


class _Shared:
    """The exporter of this process, and how many use it."""

    def __init__(self) -> None:
        self._users = 0
        self._exporter: Exporter | None = None
        self._sending: asyncio.Task[None] | None = None

    def join(self, target: Target, service: str, node: str) -> None:
        """Begin to send, if nobody does."""
        self._users += 1
        if self._exporter is not None or tracing.is_on():
            return
        resource = {
            "service.version": VERSION,
            "service.instance.id": str(os.getpid()),
            "mesh.node": node,
            **target.resource,
            "service.name": target.service or target.resource.get("service.name", service),
        }
        self._exporter = exporter = Exporter(target, resource)
        logger.info("traces: %s", target.shown)
        tracing.collect_with(exporter.collect, target.samples, heeds_parent=target.heeds_parent)
        self._sending = asyncio.create_task(exporter.send_forever())

    async def leave(self) -> None:
        """Send what is left, and end it, if nobody else uses it."""
        self._users -= 1
        if self._users or self._exporter is None or self._sending is None:
            return
        exporter, self._exporter = self._exporter, None
        tracing.collect_with(None)
        self._sending.cancel()
        await asyncio.wait({self._sending})
        await exporter.send_last()


_shared: Final = _Shared()


@asynccontextmanager
async def exporting(service: str, node: str) -> AsyncIterator[None]:
    """Send the spans of this process for the length of the context, if a collector is named.

    `service` is what the process is called where OpenTelemetry's variables say nothing. Within
    another such context it shares that one's way.
    """
    target = Target.from_env()
    if target is None:
        yield
        return
    _shared.join(target, service, node)
    try:
        yield
    finally:
        await _shared.leave()
