"""A pytest plugin for CI, `-p tests.standstill`: what can be said on a machine that stands still.

A virtual machine whose host is busy may be given time for a second out of ten. Whatever waits for
something then fails, and says nothing of the mesh; and a run of minutes becomes one of hours. So:

- `--budget-s`: what has not begun by then is not run, and is counted, file by file;
- a test that fails while the machine stands still has no verdict: it is named, and is no failure.

What waits for nothing is always run, and its failures count. Without the plugin,
and on a machine that runs, every failure is one.
"""

import inspect
import threading
import time
from collections import Counter, deque
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

TICK_S: Final = 0.05
LATE_S: Final = 0.25
"""The tests themselves make a thread wait for some hundredths of a second, not for that long."""
LOST_S: Final = 1.0
"""Who lost so much has no verdict: the shortest patience that tests ask of the mesh."""
BEFORE_S: Final = 60.0
"""What happened before a test counts as well: a fixture that many share may have failed then."""
ORDER: Final = ("unit", "wire", "integration", "attacks", "conformance", "acceptance", "faults")
"""The foundations first, so that a short budget is spent on them."""
NO_VERDICT: Final = "no verdict"
NOT_RUN: Final = "NOT RUN: the time for tests is used up"


class Standstills:
    """Notes when a thread of this process should have been woken and was not."""

    def __init__(self) -> None:
        self._lost: deque[tuple[float, float]] = deque(maxlen=10_000)
        threading.Thread(target=self._watch, name="standstills", daemon=True).start()

    def _watch(self) -> None:
        seen = time.monotonic()
        while True:
            time.sleep(TICK_S)
            late_s = (now := time.monotonic()) - seen - TICK_S
            if late_s > LATE_S:
                self._lost.append((now, late_s))
            seen = now

    def lost_s(self, since: float) -> float:
        """Return for how long nobody ran, in seconds; `since` is of the monotonic clock."""
        return sum(late_s for at, late_s in tuple(self._lost) if at >= since)


class Verdicts:
    """Decides what is run, and which failures count."""

    def __init__(self, config: pytest.Config) -> None:
        self._standstills = Standstills()
        self._until = time.monotonic() + config.getoption("--budget-s")
        self._begun = 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._begun = time.monotonic()
        if self._begun > self._until and not _waits_for_nothing(item):
            pytest.skip(NOT_RUN)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        lost_s = self._standstills.lost_s(self._begun - BEFORE_S)
        counts = report.when == "call" and _waits_for_nothing(item)
        if report.failed and lost_s >= LOST_S and not counts:
            whole_s = time.monotonic() - self._begun + BEFORE_S
            report.user_properties.append((NO_VERDICT, f"{lost_s:.0f} of {whole_s:.0f} s"))
            report.outcome = "skipped"
        return report


def _waits_for_nothing(item: pytest.Item) -> bool:
    """Tell whether a failure counts, however busy the machine is: no process and no clock."""
    is_async = inspect.iscoroutinefunction(getattr(item, "obj", None))
    return item.path.parent.name == "unit" and not is_async


def _stood_still(report: pytest.TestReport) -> str | None:
    return next((str(said) for name, said in report.user_properties if name == NO_VERDICT), None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("standstill")
    group.addoption("--budget-s", type=float, default=float("inf"), help="begin no test after that")
    group.addoption("--no-verdicts", type=Path, help="list here which tests have no verdict")


def pytest_configure(config: pytest.Config) -> None:
    """Watch the process in which tests run."""
    config.pluginmanager.register(Verdicts(config), "verdicts")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the foundations first."""
    rank = {folder: place for place, folder in enumerate(ORDER)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(rank)))


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Give what has no verdict a letter and a list of its own."""
    return (NO_VERDICT, "N", "NO VERDICT") if _stood_still(report) else None


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what is not known after this run."""
    unknown: list[pytest.TestReport] = terminalreporter.stats.get(NO_VERDICT, [])
    lines = [
        f"NO VERDICT: {one.nodeid} ({one.when}; the machine stood still {_stood_still(one)})"
        for one in unknown
    ]
    for one in unknown:
        terminalreporter.section(f"NO VERDICT {one.nodeid}", sep="_")
        terminalreporter.write_line(one.longreprtext)
    skipped: list[pytest.TestReport] = terminalreporter.stats.get("skipped", [])
    left = Counter(one.nodeid.partition("::")[0] for one in skipped if NOT_RUN in one.longreprtext)
    lines += [f"{NOT_RUN}: {file} ({tests} tests)" for file, tests in left.items()]
    for line in lines:
        terminalreporter.write_line(line, yellow=True)
    if listing := config.getoption("--no-verdicts"):
        listing.write_text("".join(f"{line}\n" for line in lines))
