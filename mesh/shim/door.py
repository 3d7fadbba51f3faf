"""What every endpoint works with, and when there is no use in waiting any longer.

Opens nothing; `mesh.shim.server` does. Knows no HTTP status and no OpenAI shape.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from mesh.callers import Caller
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.errors import CallError

HEADER_ROOM_BYTES: Final = 2048
"""What our headers of a request take at most: they count against the broker's limit."""


class Door:
    """The way from HTTP into the mesh: one client, and everybody who waits for an answer."""

    def __init__(
        self,
        client: MeshClient,
        connection: Connection,
        caller: Caller,
        *,
        monitor_url: str = "",
    ) -> None:
        self.client = client
        self.caller = caller
        """Who calls when a client does not say who it is."""
        self.monitor_url = monitor_url
        """Where the broker's monitoring answers; empty where it is not known."""
        self._connection = connection
        self._waiting: set[asyncio.Future[None]] = set()
        self._is_closing = False

    @property
    def connection(self) -> Connection:
        """The connection to the broker, for what is no call."""
        return self._connection

    @property
    def is_connected(self) -> bool:
        """Whether the broker can be reached right now."""
        return self._connection.client.is_connected

    @property
    def limit_bytes(self) -> int:
        """The longest body that the broker takes."""
        return self._connection.publisher.limit_bytes - HEADER_ROOM_BYTES

    @asynccontextmanager
    async def waiting(self, receive: Receive) -> AsyncIterator["asyncio.Future[None]"]:
        """Give a future to wait on, for its owner to `settle`; the request's body has been read.

        It raises `ClientDisconnect` when the client leaves, and `CallError` when this door
        closes. The call itself goes on in both cases.
        """
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        watcher = asyncio.create_task(_watch(receive, over))
        self._waiting.add(over)
        if self._is_closing:
            _interrupt(over)
        try:
            yield over
        finally:
            watcher.cancel()
            self._waiting.discard(over)
            settle(over)
            if not over.cancelled():
                over.exception()  # Perhaps nobody came to wait: not an unretrieved exception.

    def close(self) -> None:
        """End all waiting, and whatever begins from now on."""
        self._is_closing = True
        for over in list(self._waiting):
            _interrupt(over)


def settle(over: "asyncio.Future[None]") -> None:
    """End a wait as it should end."""
    if not over.done():
        over.set_result(None)


def _interrupt(over: "asyncio.Future[None]") -> None:
    if not over.done():
        over.set_exception(
            CallError("this server is stopping; the call itself goes on, its answer is stored")
        )


async def _watch(receive: Receive, over: "asyncio.Future[None]") -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if not over.done():
        over.set_exception(ClientDisconnect())
