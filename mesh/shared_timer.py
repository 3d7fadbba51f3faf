"""One timer for much that takes a moment: what is over by then has paid next to nothing.

A timer of asyncio's own for each call would be made, sorted and thrown away again.
"""

import asyncio
from collections.abc import Callable, Hashable


class SharedTimer:
    """Calls back for what was begun and has not ended within `after_s`, in that order."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._waiting: dict[Hashable, tuple[float, Callable[[], object]]] = {}
        """When each is due; in the order of beginning, which is that of being due."""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, key: Hashable, on_due: Callable[[], object]) -> None:
        """Call `on_due` after the time, unless `key`, which nobody else uses, ends before."""
        loop = asyncio.get_running_loop()
        due_at = loop.time() + self._after_s
        self._waiting[key] = (due_at, on_due)
        if self._timer is None:
            self._timer = loop.call_at(due_at, self._look)

    def end(self, key: Hashable) -> None:
        """Forget one. It is no error if it is not there, or was due already."""
        self._waiting.pop(key, None)

    def stop(self) -> None:
        """Call nobody back any more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        # Of a copy: a dictionary whose first entries are gone is slow to begin with.
        for key, (due_at, on_due) in list(self._waiting.items()):
            if due_at > now:
                break
            if self._waiting.pop(key, None) is not None:
                on_due()
        if self._waiting and self._timer is None:
            next_at, _ = next(iter(self._waiting.values()))
            self._timer = loop.call_at(next_at, self._look)
