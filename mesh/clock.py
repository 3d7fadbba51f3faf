"""The broker's clock, as seen from here.

Ages and deadlines are counted from stream timestamps. Comparing those with this machine's clock
would let a wrong clock kill or revive work, so the broker's time is estimated from the messages
themselves: none can arrive before it was stored.
"""

import time


class BrokerClock:
    """Estimates the broker's time from message timestamps and the local monotonic clock.

    The estimate is never ahead of the broker's clock, and behind it by no more than the
    fastest delivery so far: an age is never counted too long.
    """

    def __init__(self) -> None:
        self._offset_ns: int | None = None

    def observe(self, stored_ns: int) -> None:
        """Take note of a message that has just arrived, stored at `stored_ns`."""
        offset = stored_ns - time.monotonic_ns()
        if self._offset_ns is None or offset > self._offset_ns:
            self._offset_ns = offset

    def reset(self) -> None:
        """Forget the estimate: after a reconnect the broker may be another machine."""
        self._offset_ns = None

    def age_s(self, stored_ns: int) -> float:
        """Return how long ago the broker stored a message. Observe something first."""
        if self._offset_ns is None:
            return 0.0
        return max(0.0, (time.monotonic_ns() + self._offset_ns - stored_ns) / 1e9)
