"""A test that hangs ends, whatever it does: what pytest-timeout leaves open.

Its timer fires once, and ends with the first failure of a test. But asyncio hands what a signal
raises to whichever task runs at that moment, and a fixture may hang when it is closed. So here the
timer goes on, and closing has one of its own.
"""

import faulthandler
import signal
from collections.abc import Generator
from typing import Final

import pytest

CLOSING_S: Final = 180.0
AGAIN_S: Final = 10.0


class Limits:
    """The hooks, to be registered."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None]:
        """Limit what is opened."""
        return (yield from _again_and_again())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None]:
        """Limit the test."""
        return (yield from _again_and_again())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Generator[None]:
        """Limit what is closed."""
        before = signal.signal(signal.SIGALRM, _give_up)
        signal.setitimer(signal.ITIMER_REAL, CLOSING_S, AGAIN_S)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _again_and_again() -> Generator[None]:
    rest_s, _ = signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, rest_s, AGAIN_S if rest_s else 0)
    try:
        yield
    except BaseException:
        signal.setitimer(signal.ITIMER_REAL, 0)  # Nothing may be raised while it is reported.
        raise
    else:
        signal.setitimer(signal.ITIMER_REAL, signal.getitimer(signal.ITIMER_REAL)[0])


def _give_up(*_: object) -> None:
    faulthandler.dump_traceback(2)  # pytest has put something else in place of sys.stderr
    pytest.fail(f"not closed within {CLOSING_S:g} s")
