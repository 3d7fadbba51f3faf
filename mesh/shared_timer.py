"""A timer for much that is mostly over before its time: what begins together is due together.

A timer of asyncio's own for each call would be made, sorted and thrown away again.
"""

import asyncio
import math
from collections.abc import Callable, Hashable
from contextvars import Context
from typing import Final

LATE_S: Final = 0.01
"""So late at most, and as little as the loop can, somebody is called back."""
NEAR_S: Final = 1.0
"""A moment that is nearer comes, though nobody waits for it any more: others may."""


class SharedTimer:
    """Calls back for what was begun and has not ended within its time."""

    def __init__(self) -> None:
        self._ticks: dict[int, _Tick] = {}
        self._tick_of: dict[Hashable, _Tick] = {}

    def __len__(self) -> int:
        return len(self._tick_of)

    def begin(self, key: Hashable, after_s: float, on_due: Callable[[], object]) -> None:
        """Call `on_due` after a time, unless `key`, which nobody else uses, ends before."""
        loop = asyncio.get_running_loop()
        number = math.ceil((loop.time() + after_s) / LATE_S)
        tick = self._ticks.get(number)
        if tick is None:
            # In nobody's context: what is done then is of many calls, and not of this one.
            at_s, context = number * LATE_S, Context()
            timer = loop.call_at(at_s, self._ring, number, context=context)
            tick = self._ticks[number] = _Tick(number, timer, is_near=after_s < NEAR_S)
        tick.waiting[key] = on_due
        self._tick_of[key] = tick

    def end(self, key: Hashable) -> None:
        """Forget one. It is no error if it is not there, or was due already."""
        tick = self._tick_of.pop(key, None)
        if tick is not None:
            del tick.waiting[key]
            if not tick.waiting and not tick.is_near:
                self._stop(tick)

    def stop(self) -> None:
        """Call nobody back any more."""
        for tick in list(self._ticks.values()):
            self._stop(tick)
        self._tick_of.clear()

    def _stop(self, tick: "_Tick") -> None:
        tick.timer.cancel()
        if self._ticks.get(tick.number) is tick:
            del self._ticks[tick.number]

    def _ring(self, number: int) -> None:
        waiting = self._ticks.pop(number).waiting
        for key in list(waiting):
            if (on_due := waiting.pop(key, None)) is None:
                continue  # Who was called before has ended it.
            self._tick_of.pop(key, None)
            try:
                on_due()
            except Exception as error:  # noqa: BLE001, as asyncio does with what it calls
                told = {"message": f"{on_due} failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(told)


class _Tick:
    """What is due at the same moment."""

    __slots__ = ("is_near", "number", "timer", "waiting")

    def __init__(self, number: int, timer: asyncio.TimerHandle, *, is_near: bool) -> None:
        self.number = number
        self.timer = timer
        self.is_near = is_near
        self.waiting: dict[Hashable, Callable[[], object]] = {}
