"""What every endpoint works with, and when there is no use in waiting any longer.

Opens nothing; `mesh.shim.server` does. Knows no HTTP status and no OpenAI shape.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from mesh.access import Access
from mesh.callers import Caller
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.errors import CallError
from mesh.shim.sse import PACE, Pace

HEADER_ROOM_BYTES: Final = 2048
"""What our headers of a request take at most: they count against the broker's limit."""
Result = TypeVar("Result")

WATCH_AFTER_S: Final = 0.02
"""A client that leaves is noticed no sooner."""


class Door:
    """The way from HTTP into the mesh: one client, and everybody who waits for an answer."""

    def __init__(
        self,
        client: MeshClient,
        connection: Connection,
        caller: Caller,
        *,
        monitor_url: str = "",
        pace: Pace = PACE,
    ) -> None:
        self.client = client
        self.connection = connection
        self.caller = caller
        """Who calls when a client does not say who it is."""
        self.access = Access(connection)
        """The API keys."""
        self.pace = pace
        """Of streamed answers."""
        self.monitor_url = monitor_url
        """Where the broker's monitoring answers; empty where it is not known."""
        self._waiting: set[asyncio.Future[None]] = set()
        self._is_closing = False

    @property
    def is_connected(self) -> bool:
        """Whether the broker can be reached right now."""
        return self.connection.client.is_connected

    @property
    def limit_bytes(self) -> int:
        """The longest body that the broker takes."""
        return self.connection.publisher.limit_bytes - HEADER_ROOM_BYTES

    def waiting(self, receive: Receive) -> "Waiting":
        """Wait for an answer beside a client; the request's body has been read."""
        return Waiting(self._waiting, receive, is_late=self._is_closing)

    def close(self) -> None:
        """End all waiting, and whatever begins from now on."""
        self._is_closing = True
        for over in list(self._waiting):
            _interrupt(over)


class Waiting:
    """A context that gives a future to wait on, for its owner to `settle`.

    The future raises `ClientDisconnect` when the client leaves, and `CallError` when the door
    closes. The call itself goes on in both cases.
    """

    __slots__ = ("_over", "_receive", "_timer", "_waiting", "_watcher")

    def __init__(
        self, waiting: set[asyncio.Future[None]], receive: Receive, *, is_late: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = waiting
        self._receive = receive
        self._over: asyncio.Future[None] = loop.create_future()
        self._watcher: asyncio.Task[None] | None = None
        # A task a request would be a tenth of a fast one's cost.
        self._timer = loop.call_later(WATCH_AFTER_S, self._start_watching)
        if is_late:
            _interrupt(self._over)

    def __enter__(self) -> "asyncio.Future[None]":
        self._waiting.add(self._over)
        return self._over

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        self._waiting.discard(self._over)
        settle(self._over)
        if not self._over.cancelled():
            self._over.exception()  # Perhaps nobody came to wait: not an unretrieved exception.

    def _start_watching(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._over.done():
            self._over.set_exception(ClientDisconnect())


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


def _interrupt(over: "asyncio.Future[None]") -> None:
    if not over.done():
        over.set_exception(
            CallError("this server is stopping; the call itself goes on, its answer is stored")
        )
