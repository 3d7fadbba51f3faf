"""Ages are counted by the broker's clock, whatever this machine's says."""

import time

from mesh.clock import BrokerClock


def test_a_wrong_wall_clock_changes_no_age() -> None:
    """The broker may live in another year: only differences count."""
    clock, year_ns = BrokerClock(), 365 * 86_400 * 10**9
    stored_ns = time.time_ns() - year_ns
    clock.observe(stored_ns)
    assert clock.age_s(stored_ns) < 5
    assert 59.9 < clock.age_s(stored_ns - 60 * 10**9) < 65


def test_the_estimate_is_never_ahead() -> None:
    """A message that waited in the mailbox does not move the estimate back."""
    clock, now_ns = BrokerClock(), time.time_ns()
    clock.observe(now_ns)
    clock.observe(now_ns - 10**10)
    assert 9.9 < clock.age_s(now_ns - 10**10) < 10.1


def test_nothing_is_old_before_anything_was_seen() -> None:
    """Without an estimate no deadline has passed."""
    clock = BrokerClock()
    assert clock.age_s(0) == 0.0
