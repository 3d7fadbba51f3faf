"""Which of the calls that are worked on a cancel stops."""

from mesh.runs import Runs


def test_callers_that_chose_the_same_id() -> None:
    """A cancel that names a place stops the call there, and no other one."""
    runs = Runs()
    mine, other = runs.begin(1, "call-1"), runs.begin(2, "call-1")
    runs.cancel("call-1", 1)
    assert (mine.is_cancelled, other.is_cancelled) == (True, False)


def test_a_sender_that_does_not_know_the_place() -> None:
    """What runs under the id stops, wherever its request lies."""
    runs = Runs()
    run = runs.begin(7, "call-1")
    runs.cancel("call-1", 0)
    assert run.is_cancelled


def test_a_cancel_that_comes_first() -> None:
    """It is remembered for its place, and for its id there."""
    runs = Runs()
    runs.cancel("call-1", 1)
    assert runs.begin(1, "call-1").is_cancelled
    assert not runs.begin(2, "call-1").is_cancelled
    assert not runs.begin(1, "call-2").is_cancelled
