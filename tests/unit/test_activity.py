"""What a message tells, read from its subject and headers; and what it does not."""

import pytest

from mesh import headers as h
from mesh.activity import What, read_fact
from mesh.registry import OPERATION

CALL = "c" * 32
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
ASKED_NS = 1_700_000_000_000_000_000
REPLY = f"delivered.ann.reply.i.{CALL}.sun"


def frame(kind: str, **more: str) -> dict[str, str]:
    """Return the headers of a frame."""
    return {h.KIND: kind, h.CORRELATION_ID: CALL, h.NODE: "hub", **more}


def test_a_request() -> None:
    """Who asks whom, where."""
    headers = {
        h.SOURCE_AGENT: "ann",
        h.SOURCE_NODE: "laptop",
        h.CORRELATION_ID: CALL,
        h.TRACEPARENT: TRACE,
    }
    fact = read_fact("agent.sun.inbox.hub", headers, b"hello", 5)
    assert fact is not None
    assert (fact.what, fact.agent, fact.node) == (What.ASKED, "sun", "hub")
    assert (fact.caller, fact.source_node, fact.call_id) == ("ann", "laptop", CALL)
    assert (fact.trace_id, fact.body) == ("a" * 32, b"hello")


def test_a_bare_request() -> None:
    """A message without any header is one too."""
    fact = read_fact("agent.sun.inbox", {}, b"hello", 5)
    assert fact is not None
    assert (fact.what, fact.agent, fact.caller) == (What.ASKED, "sun", "")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("stored", What.STORED),
        ("working", What.WORKING),
        ("chunk", What.CHUNK),
        ("final", What.ANSWERED),
        ("error", What.FAILED),
    ],
)
def test_frames(kind: str, what: What) -> None:
    """Each says what it is; the last one how long the call took since its request was stored."""
    headers = frame(kind, **{h.REQUEST: f"7/{ASKED_NS}", h.ATTEMPT: "2", h.CODE: "x"})
    fact = read_fact(REPLY, headers, b"{}", ASKED_NS + 5_000_000)
    assert fact is not None
    assert (fact.what, fact.agent, fact.node, fact.caller) == (what, "sun", "hub", "ann")
    assert fact.took_ms == (5.0 if what in (What.ANSWERED, What.FAILED) else None)
    assert fact.attempt == (0 if what is What.STORED else 2)


def test_the_registry() -> None:
    """Who comes and goes; heartbeats say nothing new."""
    told = []
    for subject, headers in (
        ("registry.event.placement.sun.i1", {}),
        ("audit.registry.placement.sun.i1", {OPERATION: "DEL"}),
        ("registry.event.instance.i1", {}),
        ("registry.event.instance.i1", {"Nats-Marker-Reason": "MaxAge"}),
        ("registry.event.agent.sun", {}),
        ("registry.event.node.hub", {}),
    ):
        fact = read_fact(subject, headers, b"{}", 1)
        told.append(fact and fact.what)
    assert told == [What.ONLINE, What.OFFLINE, None, What.GONE, What.KNOWN, None]


@pytest.mark.parametrize(
    ("subject", "headers"),
    [
        ("agent.sun.inbox", {h.PING: "1"}),
        ("agent.sun.inbox.a.b", {}),
        # What the registrar answers to an announcement.
        ("agent.sun.reply.i.x.sun", {h.CORRELATION_ID: "x"}),
        ("delivered.ann.reply.i.x.sun", {}),
        ("delivered.ann.reply.i.x.sun", {h.KIND: "nonsense", h.CORRELATION_ID: "x"}),
        ("registry.event.identity.UABC", {}),
        ("whatever", {}),
        ("", {}),
    ],
)
def test_what_tells_nothing(subject: str, headers: dict[str, str]) -> None:
    """Is left out."""
    assert read_fact(subject, headers, b"{}", 1) is None


def test_hostile_headers_are_left_out() -> None:
    """What is no id, no call and no time is not shown."""
    hostile = "\x1b[31m" + "x" * 10_000
    headers = {
        h.KIND: "final",
        h.CORRELATION_ID: hostile,
        h.NODE: hostile,
        h.REQUEST: "9" * 50,
        h.CODE: hostile,
        h.ATTEMPT: "-1",
    }
    fact = read_fact(f"delivered.ann.reply.i.{CALL}.S U N", headers, b"\xff", ASKED_NS)
    assert fact is not None
    assert (fact.agent, fact.node, fact.call_id, fact.took_ms) == ("", "", "", None)
    assert len(fact.code) == 64
