"""Sends spans to an OpenTelemetry collector: OTLP over HTTP, in JSON, a second after they ended.

By aiohttp, which nats-py brings and has loaded by then. Configured as OpenTelemetry is, by its own
variables. A collector that is away, or slow, costs spans, and never a call.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

import aiohttp
import orjson

from mesh import metrics, tracing
from mesh.tracing import Span
from mesh.version import VERSION

logger = logging.getLogger(__name__)

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
HEADERS: Final = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
SEND_S: Final = 1.0
TIMEOUT_S: Final = 10.0
LAST_WORDS_S: Final = 2.0
BATCH: Final = 512
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
    """Of the traces that begin here; others are told of if their beginning was."""

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
        )

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
        self._head = _resource({**resource, **target.resource})
        self._waiting: deque[Span] = deque(maxlen=MAX_WAITING)
        self._is_away = False

    def collect(self, span: Span) -> None:
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
                    logger.warning("spans are lost, %s takes none: %s", self._target.url, error)
                self._is_away = True
                return
            self._is_away = False

    def _body(self, spans: Iterable[Span]) -> bytes:
        scope = {"name": "mesh", "version": VERSION}
        told = [_told(span) for span in spans]
        return orjson.dumps(
            {"resourceSpans": [{**self._head, "scopeSpans": [{"scope": scope, "spans": told}]}]}
        )


def _told(span: Span) -> dict[str, Any]:
    """Write a span as OTLP has it in JSON: ids in hexadecimal, 64 bits as text."""
    found = {
        "traceId": span.context.trace_id,
        "spanId": span.context.span_id,
        "name": span.name,
        "kind": int(span.kind),
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
    }
    if span.parent_id:
        found["parentSpanId"] = span.parent_id
    if span.error:
        found["status"] = {"code": _ERROR, "message": span.error}
    return found


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(one)} for name, one in values.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": str(value)}


def _resource(attributes: Mapping[str, str]) -> dict[str, Any]:
    return {"resource": {"attributes": _attributes(attributes)}}


@asynccontextmanager
async def exporting(service: str, node: str) -> AsyncIterator[None]:
    """Send the spans of this process for the length of the context, if a collector is named.

    `service` is what the process is called where `OTEL_SERVICE_NAME` says nothing.
    """
    target = Target.from_env()
    if target is None or tracing.is_on():
        yield
        return
    resource = {
        "service.name": target.service or service,
        "service.version": VERSION,
        "service.instance.id": str(os.getpid()),
        "mesh.node": node,
    }
    exporter = Exporter(target, resource)
    logger.info("traces: %s", target.url)
    tracing.collect_with(exporter.collect, target.samples)
    sending = asyncio.create_task(exporter.send_forever())
    try:
        yield
    finally:
        tracing.collect_with(None)
        sending.cancel()
        await asyncio.wait({sending})
        await exporter.send_last()
