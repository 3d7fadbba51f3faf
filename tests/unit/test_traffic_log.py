"""What is made of the traffic that was seen, and what is never believed of it."""

import pytest

from mesh import headers as h
from mesh.traffic_log import KEPT_CALLS, WINDOW_S, TrafficLog

NOW = 1_700_000_000.0


def ask(
    log: TrafficLog, call: str, now: float, *, timeout_s: float = 60.0, is_ping: bool = False
) -> None:
    """Somebody asks sun."""
    headers = {
        h.CORRELATION_ID: call,
        h.SOURCE_AGENT: "ann",
        h.SOURCE_NODE: "node1",
        h.TIMEOUT_MS: str(int(timeout_s * 1_000)),
        **({h.PING: "1"} if is_ping else {}),
    }
    log.on_request("agent.sun.inbox", headers, now)


def say(log: TrafficLog, call: str, kind: str, now: float, **more: str) -> None:
    """Sun answers."""
    headers = {h.CORRELATION_ID: call, h.KIND: kind, h.NODE: "node2", **more}
    log.on_frame(f"delivered.ann.reply.i.{call}.sun", headers, now)


def test_a_call_from_its_beginning_to_its_end() -> None:
    """Who asked, where it was answered, and how long it took."""
    log = TrafficLog()
    ask(log, "c1", NOW)
    say(log, "c1", "working", NOW + 0.3)
    assert log.running("sun", NOW + 0.4) == 1
    say(log, "c1", "final", NOW + 0.5)
    (call,) = log.calls_of("sun", 5)
    assert (call.caller, call.source_node, call.node) == ("ann", "node1", "node2")
    assert call.state_at(NOW + 1).value == "answered"
    assert call.took_s == pytest.approx(0.5)
    assert log.running("sun", NOW + 1) == 0
    assert log.numbers(NOW + 1).p99_ms == pytest.approx(500)
    assert log.numbers(NOW + 1).errors == 0


@pytest.mark.parametrize(
    ("code", "state"),
    [("timeout", "expired"), ("cancelled", "cancelled"), ("dead_letter", "dead"), ("x", "failed")],
)
def test_a_call_that_fails(code: str, state: str) -> None:
    """It counts as an error, of the edge as well."""
    log = TrafficLog()
    ask(log, "c1", NOW)
    say(log, "c1", "error", NOW + 1, **{h.CODE: code})
    (call,) = log.calls_of("sun", 5)
    assert call.state_at(NOW + 2).value == state
    assert log.numbers(NOW + 2).errors == 1
    (edge,) = log.edges(NOW + 2)
    assert (edge.calls(NOW + 2), edge.errors(NOW + 2)) == (1, 1)


def test_nothing_runs_for_ever() -> None:
    """Nobody tells that a deadline has passed: the agent is not busy with that call any more."""
    log = TrafficLog()
    ask(log, "c1", NOW, timeout_s=10)
    say(log, "c1", "working", NOW + 1)
    assert log.running("sun", NOW + 9) == 1
    assert log.running("sun", NOW + 11) == 0
    assert log.calls_of("sun", 1)[0].state_at(NOW + 11).value == "expired"


def test_what_was_begun_unseen_does_not_run() -> None:
    """Of a call that is known by its answer alone, nobody knows until when it may run."""
    log = TrafficLog()
    say(log, "c1", "working", NOW)
    assert log.running("sun", NOW) == 0
    assert log.calls_of("sun", 1)[0].caller == "ann"


def test_the_sender_does_not_take_back_what_the_agent_says() -> None:
    """It says that a call is stored when it has waited for a moment: somebody may be at it."""
    log = TrafficLog()
    ask(log, "c1", NOW)
    say(log, "c1", "working", NOW + 0.2)
    say(log, "c1", "stored", NOW + 0.21)
    assert log.running("sun", NOW + 1) == 1
    assert log.calls_of("sun", 1)[0].state_at(NOW + 1).value == "working"


@pytest.mark.parametrize("kind", ["working", "final"])
def test_an_answer_that_is_heard_before_its_question(kind: str) -> None:
    """Two subscriptions are not ordered: what is known in the end is the same."""
    early, late = TrafficLog(), TrafficLog()
    say(early, "c1", kind, NOW)
    ask(early, "c1", NOW)
    ask(late, "c1", NOW)
    say(late, "c1", kind, NOW)
    assert early.calls_of("sun", 1) == late.calls_of("sun", 1)
    assert early.running("sun", NOW) == late.running("sun", NOW)
    assert early.numbers(NOW) == late.numbers(NOW)
    assert [one.calls(NOW) for one in early.edges(NOW)] == [1]


def test_the_last_minutes_are_not_longer() -> None:
    """Also while nothing new comes."""
    log = TrafficLog()
    for second in range(0, 240, 10):
        ask(log, f"c{second}", NOW + second)
    late = NOW + 230 + WINDOW_S - 20
    (edge,) = log.edges(late)
    assert edge.calls(NOW + 240) == 24
    assert 2 <= edge.calls(late) <= 4
    assert log.edges(late + 30) == []


def test_numbers_of_each_agent() -> None:
    """Its own calls, times and failures."""
    log = TrafficLog()
    for number, (kind, took_s) in enumerate([("final", 0.1), ("final", 0.3), ("error", 0.5)]):
        ask(log, f"c{number}", NOW)
        say(log, f"c{number}", kind, NOW + took_s)
    numbers = log.by_agent(NOW + 1)
    assert list(numbers) == ["sun"]
    assert numbers["sun"].p50_ms == pytest.approx(300)
    assert numbers["sun"].p99_ms == pytest.approx(500)
    assert (numbers["sun"].errors, numbers["sun"].calls_per_s) == (1, 0.3)
    assert log.by_agent(NOW + 2 * WINDOW_S) == {}


def test_a_shorter_look_back() -> None:
    """Shows less, and forgets nothing."""
    log = TrafficLog()
    ask(log, "c1", NOW)
    ask(log, "c2", NOW + 100)
    (edge,) = log.edges(NOW + 101, 30)
    assert (edge.calls(NOW + 101, 30), edge.calls(NOW + 101)) == (1, 2)
    assert log.edges(NOW + 140, 30) == []
    assert len(log.edges(NOW + 140)) == 1


@pytest.mark.parametrize("kind", ["", "nonsense", "final\r\n"])
def test_what_is_no_frame_is_no_call(kind: str) -> None:
    """A registrar's receipt, say, comes on a reply subject too."""
    log = TrafficLog()
    say(log, "c1", kind, NOW)
    assert log.calls_of("sun", 5) == []


def test_a_ping_is_no_call() -> None:
    """Nor is its answer."""
    log = TrafficLog()
    ask(log, "c1", NOW, is_ping=True)
    say(log, "c1", "final", NOW + 0.1)
    assert log.calls_of("sun", 5) == []
    assert log.numbers(NOW + 1).calls_per_s == 0


def test_a_node_that_is_none_is_not_shown() -> None:
    """An agent writes that header as it likes."""
    log = TrafficLog()
    ask(log, "c1", NOW)
    say(log, "c1", "final", NOW, **{h.NODE: "x" * 4_000})
    assert log.calls_of("sun", 1)[0].node == ""


def test_what_is_kept_is_bounded() -> None:
    """However long somebody watches."""
    log = TrafficLog()
    for number in range(KEPT_CALLS + 500):
        ask(log, f"c{number}", NOW + number / 100)
        say(log, f"c{number}", "working", NOW + number / 100)
    assert len(log.calls_of("sun", 10 * KEPT_CALLS)) == KEPT_CALLS
    assert log.running("sun", NOW + 25) == KEPT_CALLS
