"""Spans without a broker: what is told of them, to whom, and how little is believed."""

import base64
import gc
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

from mesh import headers as h
from mesh import otlp, tracing
from mesh.tracing import Ended, Kind, Span, SpanContext

TRACE, SPAN = "a" * 32, "b" * 16


@pytest.fixture
def spans() -> Iterator[list[Ended]]:
    """What is collected."""
    found: list[Ended] = []
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
        f"00-{TRACE}-{SPAN}-01-more",
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


def test_a_later_version_may_say_more() -> None:
    """Which is not read, and not passed on."""
    found = SpanContext.read(f"01-{TRACE}-{SPAN}-01-more-of-it")
    assert found == SpanContext(TRACE, SPAN)
    assert found.traceparent == f"00-{TRACE}-{SPAN}-01"


def test_a_sampler_that_heeds_no_parent() -> None:
    """Decides by itself, for every trace."""
    found: list[Ended] = []
    tracing.collect_with(found.append, lambda _: False, heeds_parent=False)
    try:
        Span.begin("x", Kind.INTERNAL, SpanContext(TRACE, SPAN)).end()
    finally:
        tracing.collect_with(None)
    assert found == []


def test_a_trace_that_is_not_told_of_is_not_told_of_below(spans: list[Ended]) -> None:
    """What its beginning decided holds for all of it."""
    above = SpanContext(TRACE, SPAN, is_sampled=False)
    span = Span.begin("x", Kind.INTERNAL, above)
    span.end()
    assert spans == []
    assert span.context.traceparent.endswith("-00")


def test_a_span_ends_once(spans: list[Ended]) -> None:
    """Whoever ends it again changes nothing."""
    span = Span.begin("x", Kind.INTERNAL, None)
    span.end()
    span.end("failed")
    assert [one[-1] for one in spans] == [""]


def test_what_waits_is_nothing_for_the_garbage_collector(spans: list[Ended]) -> None:
    """Of plain values only: with thousands of others each call took a fifth longer."""
    call = tracing.begin_call("sun", "agent.sun.inbox", "c1", TRACE)
    call.stored()
    call.end("failed", "agent_failed")
    headers = h.RequestHeaders(traceparent=call.context.traceparent, call_id="c1")
    handling = tracing.begin_handling("sun", "agent.sun.inbox", headers, attempt=2, waited_s=2.0)
    handling.turn_slow()
    handling.end("failed")
    Span.begin("x", Kind.INTERNAL, None, (("a", 1),)).end()
    for _ in range(2):  # What is in a tuple, and then the tuple.
        gc.collect()
    assert len(spans) == 4
    assert not any(gc.is_tracked(one) for one in spans)


def told_of(spans: list[Ended]) -> dict[str, Any]:
    """Return the spans that are sent, by name."""
    exporter = otlp.Exporter(otlp.Target("http://x"), {"service.name": "test"})
    body = orjson.loads(exporter._body(spans))
    found = body["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert len({one["spanId"] for one in found}) == len(found)
    return {one["name"]: one for one in found}


def test_the_spans_of_a_call(spans: list[Ended]) -> None:
    """Two of its caller, three of its agent, each below the right one."""
    call = tracing.begin_call("sun", "agent.sun.inbox", 'c"\\1', TRACE)
    headers = h.RequestHeaders(traceparent=call.context.traceparent, call_id='c"\\1')
    handling = tracing.begin_handling("sun", "agent.sun.inbox", headers, attempt=1, waited_s=2.0)
    handling.replying()
    handling.replied()
    handling.end("answered")
    call.end("answered", "")  # Before the acknowledgement was here.
    call.end("failed", "twice")
    found = told_of(spans)
    assert {one["traceId"] for one in found.values()} == {TRACE}
    top = found["call sun"]
    assert "parentSpanId" not in top
    handled = found["handle sun"]
    for name, above in (
        ("publish agent.sun.inbox", top),
        ("wait in agent.sun.inbox", top),
        ("handle sun", top),
        ("reply of sun", handled),
    ):
        assert found[name]["parentSpanId"] == above["spanId"]
    wait = found["wait in agent.sun.inbox"]
    assert wait["endTimeUnixNano"] == handled["startTimeUnixNano"]
    assert int(wait["endTimeUnixNano"]) - int(wait["startTimeUnixNano"]) == 2_000_000_000
    assert {"key": "mesh.call_id", "value": {"stringValue": 'c"\\1'}} in top["attributes"]
    assert not any("status" in one for one in found.values())


def test_a_wait_is_told_once(spans: list[Ended]) -> None:
    """At once where the work is slow: the process may die before its end."""
    headers = h.RequestHeaders(call_id="c1")
    handling = tracing.begin_handling("sun", "agent.sun.inbox", headers, attempt=2, waited_s=2.0)
    handling.turn_slow()
    handling.turn_slow()
    assert list(told_of(spans)) == ["wait in agent.sun.inbox, attempt 2"]
    handling.end("expired")
    found = told_of(spans)
    assert set(found) == {"wait in agent.sun.inbox, attempt 2", "handle sun, attempt 2"}
    assert found["handle sun, attempt 2"]["status"] == {"code": 2, "message": "expired"}
    assert len(spans) == 2


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
    tracing.collect_with(exporter.collect)
    attributes = (("text", "a\u202e"), ("number", 2**60))
    Span.begin("x", Kind.SERVER, SpanContext(TRACE, SPAN), attributes).end("timeout", ("more", 1))
    tracing.collect_with(None)
    body = orjson.loads(exporter._body(exporter._waiting))
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
