"""How long something took, on a machine that may stand still."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

TICK_S: Final = 0.005
LATE_S: Final = 0.03
"""A thread that wakes so late was not the only one that slept: the machine gave time to nobody."""


@dataclass(slots=True)
class Taken:
    """How long a stretch was, and for how much of it the machine stood still."""

    whole_s: float = 0.0
    lost_s: float = 0.0

    @property
    def took_s(self) -> float:
        """What it took by itself. Known when the stretch is over."""
        return self.whole_s - self.lost_s


@contextmanager
def stopwatch() -> Iterator[Taken]:
    """Measure what is done inside."""
    taken, is_over = Taken(), threading.Event()

    def watch() -> None:
        seen = time.monotonic()
        while not is_over.is_set():
            is_over.wait(TICK_S)
            late_s = (now := time.monotonic()) - seen - TICK_S
            taken.lost_s += late_s if late_s > LATE_S else 0.0
            seen = now

    watching = threading.Thread(target=watch, daemon=True)
    started = time.monotonic()
    watching.start()
    try:
        yield taken
    finally:
        taken.whole_s = time.monotonic() - started
        is_over.set()
        watching.join()
