"""Spans without a broker: what is told of them, to whom, and how little is believed."""

import base64
from collections.abc import Iterator

import orjson
import pytest
from google.protobuf import json_format
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

from mesh import headers as h
from mesh import otlp, tracing
from mesh.tracing import Kind, Span, SpanContext

TRACE, SPAN = "a" * 32, "b" * 16


@pytest.fixture
def spans() -> Iterator[list[Span]]:
    """What is collected."""
    found: list[Span] = []
    tracing.collect_with(found.append)
    yield found
    tracing.collect_with(None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01\r\nx: y",
        "x" * 10_000,
    ],
)
def test_what_is_no_traceparent(text: str) -> None:
    """Is none, as W3C Trace Context says."""
    assert SpanContext.read(text) is None
    assert h.RequestHeaders.read({h.TRACEPARENT: text}).traceparent == ""


def test_a_traceparent_is_read_and_written() -> None:
    """As it came; who is not told of stays so."""
    for flags, is_sampled in (("01", True), ("00", False)):
        text = f"00-{TRACE}-{SPAN}-{flags}"
        found = SpanContext.read(text)
        assert found == SpanContext(TRACE, SPAN, is_sampled)
        assert found.traceparent == text


def test_a_trace_that_is_not_told_of_is_not_told_of_below(spans: list[Span]) -> None:
    """What its beginning decided holds for all of it."""
    above = SpanContext(TRACE, SPAN, is_sampled=False)
    span = tracing.begin("x", Kind.INTERNAL, {}, parent=above)
    span.end()
    assert spans == []
    assert span.context.traceparent.endswith("-00")


def test_a_span_ends_once(spans: list[Span]) -> None:
    """Whoever ends it again changes nothing."""
    span = tracing.begin("x", Kind.INTERNAL, {})
    span.end()
    span.end("failed")
    assert [one.error for one in spans] == [""]


def test_what_fails_inside_is_told(spans: list[Span]) -> None:
    """And raised."""
    above = SpanContext(TRACE, SPAN)
    with pytest.raises(ValueError, match="x"), tracing.inside(above), tracing.part("step"):
        raise ValueError("x")
    (span,) = spans
    assert (span.name, span.parent_id, span.error) == ("step", SPAN, "failed")
    assert tracing.above() is None


def test_a_program_with_spans_of_its_own() -> None:
    """They are above ours, and ours above theirs: OpenTelemetry's own SDK, in one process."""
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("theirs") as theirs:
        found = tracing.above()
        context = theirs.get_span_context()
        assert found is not None
        assert (found.trace_id, found.span_id) == (
            f"{context.trace_id:032x}",
            f"{context.span_id:016x}",
        )
    ours = SpanContext(TRACE, SPAN)
    with tracing.inside(ours):
        below = tracer.start_span("below")
        assert f"{below.get_span_context().trace_id:032x}" == TRACE
        parent = below.parent  # type: ignore[attr-defined]
        assert f"{parent.span_id:016x}" == SPAN
    assert not trace.get_current_span().get_span_context().is_valid


def test_what_is_sent_is_otlp() -> None:
    """Read by OpenTelemetry's own schema, of which JSON writes ids in hexadecimal."""
    exporter = otlp.Exporter(otlp.Target("http://x"), {"service.name": "test"})
    attributes = {"text": "a\u202e", "number": 2**60, "truth": True}
    span = tracing.begin("x", Kind.SERVER, attributes, parent=SpanContext(TRACE, SPAN))
    span.end("timeout")
    body = orjson.loads(exporter._body([span]))
    told = body["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    for name in ("traceId", "spanId", "parentSpanId"):
        told[name] = base64.b64encode(bytes.fromhex(told[name])).decode()
    read = json_format.ParseDict(body, ExportTraceServiceRequest())
    (found,) = read.resource_spans[0].scope_spans[0].spans
    assert found.trace_id.hex() == TRACE
    assert found.parent_span_id.hex() == SPAN
    assert found.kind == 2
    assert found.status.code == 2
    assert found.end_time_unix_nano >= found.start_time_unix_nano > 10**18
    assert {one.key: one.value.int_value for one in found.attributes}["number"] == 2**60


@pytest.mark.parametrize(
    ("environ", "url", "ratio"),
    [
        ({}, None, 0),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/traces", 1),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/x"}, "http://c/x", 1),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, None, 0),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, None, 0),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c",
                "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "0.25",
            },
            "http://c/v1/traces",
            0.25,
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c",
                "OTEL_TRACES_SAMPLER": "traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "much",
            },
            "http://c/v1/traces",
            1,
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_SAMPLER": "always_off"},
            "http://c/v1/traces",
            0,
        ),
    ],
)
def test_opentelemetrys_own_variables(
    environ: dict[str, str], url: str | None, ratio: float
) -> None:
    """Say whether, where, and how many."""
    target = otlp.Target.from_env(environ)
    assert (target and target.url) == url
    if target is not None:
        chosen = sum(target.samples(tracing.new_trace_id()) for _ in range(4_000))
        assert abs(chosen / 4_000 - ratio) < 0.05


def test_headers_and_resource_are_read() -> None:
    """As lists of pairs, percent-encoded."""
    target = otlp.Target.from_env(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x, a=b=c",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test,,broken",
            "OTEL_SERVICE_NAME": "mine",
        }
    )
    assert target is not None
    assert target.headers == {"authorization": "Bearer x", "a": "b=c"}
    assert target.resource == {"deployment.environment": "test"}
    assert target.service == "mine"
