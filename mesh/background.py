"""Tasks that nobody awaits, owned by somebody all the same.

An owner cancels them when it stops, and a failure is logged instead of getting lost.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger(__name__)


class BackgroundTasks:
    """The loose tasks of one owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` until it ends or the owner stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which says itself with `end` that it ends, and fails never.

        For what is begun thousands of times a second: a callback at the end of a task is a
        twentieth of a call.
        """
        self._tasks.add(asyncio.get_running_loop().create_task(work))

    def end(self) -> None:
        """Forget the task that calls this: there is nothing to be awaited in it any more."""
        if (task := asyncio.current_task()) is not None:
            self._tasks.discard(task)

    async def join(self, timeout_s: float) -> None:
        """Let the tasks finish, for at most `timeout_s`."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=timeout_s)

    async def cancel(self, *, again_after_s: float = 5.0) -> None:
        """Cancel the tasks and wait until they are gone.

        One that lives on is cancelled again: `asyncio.wait_for` before Python 3.12, which every
        request of nats-py waits in, swallows a cancel that comes together with its result.
        """
        while tasks := [one for one in self._tasks if not one.done()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=again_after_s)
        self._tasks.clear()  # Of `begin`, who had not begun when they were cancelled.

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("background task failed: %s", error, exc_info=error)
