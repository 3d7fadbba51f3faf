"""Clocks that say what a test wants."""

from mesh.clock import BrokerClock


class StoppedClock(BrokerClock):
    """The broker's clock, always at the same moment."""

    def __init__(self, now_ns: int) -> None:
        super().__init__()
        self._now_ns = now_ns

    def age_s(self, stored_ns: int) -> float:
        """Return how long before that the broker stored a message; never less than no time."""
        return max(0.0, (self._now_ns - stored_ns) / 1e9)
