"""Waits for an answer as long as there is a use in it: the client is there, and the door is open.

Knows no call and no HTTP status; `mesh.shim.exchange` waits, and `mesh.shim.door` closes.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from mesh.errors import CallError
from mesh.shared_timer import SharedTimer

WATCH_AFTER_S: Final = 0.1
"""A client that leaves sooner is noticed then, or a little later."""

Result = TypeVar("Result")


class Waiting:
    """A context that gives a future to wait on, for its owner to `settle`.

    The future raises `ClientDisconnect` when the client leaves, and `CallError` when the door
    closes. The call itself goes on in both cases.
    """

    __slots__ = ("_patrol", "_receive", "_watcher", "over")

    def __init__(self, patrol: "Patrol", receive: Receive, *, is_late: bool) -> None:
        self._patrol = patrol
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if is_late:
            self.interrupt()

    def __enter__(self) -> "asyncio.Future[None]":
        self._patrol.add(self)
        return self.over

    def __exit__(self, *_: object) -> None:
        self._patrol.remove(self)
        if self._watcher is not None:
            self._watcher.cancel()
        settle(self.over)
        if not self.over.cancelled():
            self.over.exception()  # Perhaps nobody came to wait: not an unretrieved exception.

    def watch(self) -> None:
        """Begin to look whether the client is still there."""
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def interrupt(self) -> None:
        """End the wait: the door closes."""
        if not self.over.done():
            self.over.set_exception(
                CallError("this server is stopping; the call itself goes on, its answer is stored")
            )

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.over.done():
            self.over.set_exception(ClientDisconnect())


class Patrol:
    """Has the clients watched whose answer takes a moment.

    A task for each request would be a tenth of a fast one's cost.
    """

    def __init__(self) -> None:
        self._waiting: set[Waiting] = set()
        self._unwatched = SharedTimer()

    def add(self, one: Waiting) -> None:
        """Take in a wait that begins."""
        self._waiting.add(one)
        self._unwatched.begin(one, WATCH_AFTER_S, one.watch)

    def remove(self, one: Waiting) -> None:
        """Forget a wait that has ended."""
        self._waiting.discard(one)
        self._unwatched.end(one)

    def interrupt(self) -> None:
        """End all waits."""
        for one in list(self._waiting):
            one.interrupt()


async def beside(over: "asyncio.Future[None]", work: Coroutine[Any, Any, Result]) -> Result:
    """Do some work as long as there is a use in it, and return its result.

    Raises what it raises, or what `over` does; the work has ended either way.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(lambda _: settle(over))
    try:
        await over
        return await task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # It may fail while the client leaves: not an unretrieved exception.


def settle(over: "asyncio.Future[None]") -> None:
    """End a wait as it should end."""
    if not over.done():
        over.set_result(None)
