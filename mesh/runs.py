"""The calls that are worked on in one place, and how a cancel reaches them.

A cancel may overtake its request, which is then held here for want of a slot, on its way, or to
come again: it is remembered. Does not hear cancels (`mesh.worker`) and tells no caller
(`mesh.execution`).
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from mesh.tracing import HandlingSpan

REMEMBERED: Final = 1_000


@dataclass(slots=True)
class Run:
    """A delivery that is worked on."""

    call_id: str
    is_cancelled: bool = False
    limit: asyncio.Timeout | None = None
    """Of the handler, as long as that runs."""
    span: HandlingSpan | None = None
    """What OpenTelemetry is told of it, if anything."""

    def enter(self, limit: asyncio.Timeout) -> None:
        """Let `limit`, which has begun, stop the handler from now on.

        Raises:
            TimeoutError: the call was cancelled before.
        """
        if self.is_cancelled:
            raise TimeoutError
        self.limit = limit

    def stop(self) -> None:
        """Stop the handler, or do not let it begin."""
        self.is_cancelled = True
        if self.limit is not None and not self.limit.expired():
            self.limit.reschedule(0)


class Runs:
    """What one agent works on in this process."""

    def __init__(self) -> None:
        self._runs: dict[int, Run] = {}
        """By place in the stream."""
        self._cancelled: dict[int, str] = {}
        """The calls whose requests are not to be begun, oldest cancel first."""

    def begin(self, sequence: int, call_id: str) -> Run:
        """Take note of a delivery, to be given back with `end`."""
        run = Run(call_id, is_cancelled=self._cancelled.get(sequence) == call_id)
        self._runs[sequence] = run
        return run

    def end(self, sequence: int) -> None:
        """Forget a delivery."""
        self._runs.pop(sequence, None)

    def cancel(self, call_id: str, sequence: int) -> None:
        """Stop a call; `sequence` is the place of its request, 0 where the sender did not know."""
        for place, run in self._runs.items():
            # Two callers may have chosen the same id: where the place is known, it counts.
            if run.call_id == call_id and sequence in (0, place):
                run.stop()
        if sequence:
            self._cancelled[sequence] = call_id
            if len(self._cancelled) > REMEMBERED:
                del self._cancelled[next(iter(self._cancelled))]
