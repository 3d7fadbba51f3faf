"""The calls that are worked on in one place, and how a cancel reaches them.

A cancel may overtake its request, which is then held here for want of a slot, on its way, or to
come again: it is remembered. Does not hear cancels (`mesh.worker`) and tells no caller
(`mesh.execution`).
"""

import asyncio
from typing import Final

from mesh.tracing import HandlingSpan

REMEMBERED: Final = 1_000


class Run:
    """A delivery that is worked on: what is done `with` it can be stopped.

    In the manner of `asyncio.timeout`, of which it takes a third of the time: most runs are neither
    stopped nor given a deadline. Who is stopped gets a `TimeoutError`, unless he ends all the same.
    """

    __slots__ = ("_cancels", "_is_stopped", "_task", "_timer", "call_id", "is_cancelled", "span")

    def __init__(self, call_id: str, *, is_cancelled: bool = False) -> None:
        self.call_id = call_id
        self.is_cancelled = is_cancelled
        self.span: HandlingSpan | None = None
        """What OpenTelemetry is told of it, if anything."""
        self._task: asyncio.Task[object] | None = None
        """Whose work can be stopped now."""
        self._cancels = 0
        """How often somebody else had cancelled it, when that began."""
        self._is_stopped = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> "Run":
        if self.is_cancelled:
            raise TimeoutError
        task = self._task = asyncio.current_task()
        assert task is not None, "a run is that of a task"
        self._cancels = task.cancelling()
        self._is_stopped = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_stopped and task is not None:
            is_ours = task.uncancel() <= self._cancels
            if is_ours and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise TimeoutError from error

    @property
    def is_running(self) -> bool:
        """Whether something is being done that can be stopped, and is to go on."""
        return self._task is not None and not self._is_stopped

    def stop_at(self, deadline: float) -> None:
        """Stop what is being done at a time by the event loop's clock."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(deadline, self._stop)

    def cancel(self) -> None:
        """Stop it now, or do not let it begin."""
        self.is_cancelled = True
        self._stop()

    def _stop(self) -> None:
        if self._task is not None and not self._is_stopped:
            self._is_stopped = True
            self._task.cancel()


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
                run.cancel()
        if sequence:
            self._cancelled[sequence] = call_id
            if len(self._cancelled) > REMEMBERED:
                del self._cancelled[next(iter(self._cancelled))]
