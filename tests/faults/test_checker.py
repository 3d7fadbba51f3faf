"""The checker itself: each broken promise is found, and what is allowed is not one."""

from dataclasses import replace

import pytest

from tests.faults.checker import Attempt, Evidence, check
from tests.faults.nemesis import Blow
from tests.faults.report import counts

GOOD = Attempt("c1", "t1", 0.0, 1.0, 10.0, "answered", "t1", is_stored=True)


def evidence(*attempts: Attempt, **known: object) -> Evidence:
    """What is known of a run in which every text was worked on once, if nothing else is said."""
    found: dict[str, object] = {
        "begun": {one.text: 1 for one in attempts},
        "done": {one.text: 1 for one in attempts},
        "terminals": {one.call_id: 1 for one in attempts},
        "letters": set(),
        "waiting": set(),
        **known,
    }
    return Evidence(attempts, **found)  # type: ignore[arg-type]


def test_a_good_run() -> None:
    """Nothing is broken."""
    verdict = check(evidence(GOOD, replace(GOOD, call_id="c2", text="t2", answer="t2")))
    assert verdict.is_kept
    assert verdict.outcomes == {"answered": 2}


def test_a_call_that_vanished_is_lost() -> None:
    """It was acknowledged, and nothing is left of it."""
    gone = replace(GOOD, outcome="broker_unreachable", answer="")
    assert check(evidence(gone, begun={}, done={})).lost == ["c1 (t1, begun 0 times)"]


@pytest.mark.parametrize(
    ("ended_s", "begun", "is_lost"),
    [(60.0, 0, False), (50.0, 0, True), (60.0, 1, True), (60.0, 3, True), (60.0, 4, False)],
)
def test_an_end_by_the_deadline(ended_s: float, begun: int, is_lost: bool) -> None:
    """Before the deadline nothing has expired. What was begun was acknowledged too early, unless
    four workers died of it, at 0, 10, 20 and 40 s.
    """
    gone = replace(GOOD, outcome="timeout", answer="", ended_s=ended_s, timeout_s=60.0)
    assert bool(check(evidence(gone, begun={"t1": begun}, done={})).lost) is is_lost


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({"is_stored": False}, {}),
        ({}, {"letters": {"c1"}}),
        ({}, {"waiting": {"c1"}}),
        ({}, {"done": {"t1": 1}}),
    ],
)
def test_what_is_not_lost(changes: dict[str, object], known: dict[str, object]) -> None:
    """Never acknowledged, dead, waiting, or done."""
    gone = replace(GOOD, outcome="broker_unreachable", answer="")
    assert check(evidence(replace(gone, **changes), **{"done": {}, **known})).lost == []  # type: ignore[arg-type]


def test_two_answers() -> None:
    """A call with two terminal frames."""
    assert check(evidence(GOOD, terminals={"c1": 2})).two_answers == ["c1"]


@pytest.mark.parametrize(
    ("answer", "done"), [("t2", {"t1": 1}), ("t1", {})], ids=["another's", "nobody's"]
)
def test_an_answer_that_nobody_can_explain(answer: str, done: dict[str, int]) -> None:
    """It is of another call, or no handler has done it."""
    found = check(evidence(replace(GOOD, answer=answer), done=done))
    assert found.unexplained == ["c1"]


@pytest.mark.parametrize(
    ("changes", "is_late"), [({}, True), ({"lost_s": 0.6}, False), ({"grace_s": 3.0}, False)]
)
def test_a_late_end(changes: dict[str, float], is_late: bool) -> None:
    """A second after the deadline, without the time in which nobody ran."""
    found = check(evidence(replace(GOOD, ended_s=11.5, **changes)))  # type: ignore[arg-type]
    assert bool(found.late) is is_late


def test_what_may_happen_is_counted() -> None:
    """A handler that began twice, and an error for a call that was worked on."""
    failed = replace(GOOD, outcome="broker_unreachable", answer="")
    found = check(evidence(failed, begun={"t1": 2}))
    assert found.is_kept
    assert (found.repeated, found.recovered) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "is_counted"),
    [
        ({}, True),
        ({"started_s": 2.9}, False),
        ({"started_s": 15.0, "ended_s": 16.0}, False),
        ({"lost_s": 1.0}, False),
        ({"outcome": "ConnectError"}, True),
        ({"outcome": "ConnectError", "ended_s": 19.0}, False),
        ({"ended_s": 19.0}, False),
        ({"started_s": 3.5, "ended_s": 19.0}, True),
    ],
    ids=[
        "ended",
        "began early",
        "of the next",
        "stood still",
        "failed",
        "met the next, and failed",
        "met the next",
        "met the next when late",
    ],
)
def test_calls_after_a_fault(changes: dict[str, object], is_counted: bool) -> None:
    """Those that begin between two faults; not what the machine or the next fault spoilt."""
    one = replace(GOOD, **{"started_s": 4.0, "ended_s": 6.0, **changes})  # type: ignore[arg-type]
    assert counts(one, Blow("first", 1.0, 3.0), 14.0) is is_counted
