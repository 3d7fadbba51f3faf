"""Hears the traffic, as long as somebody watches: `mesh.traffic_log` is told what passes.

Heard beside the calls, on the subjects that each of them takes anyway; nothing is asked of agents,
and nobody is told. It costs some microseconds for each message. A process behind an account
boundary hears nothing, as others' calls are not its business.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.errors import APIError

from mesh import subjects
from mesh.connection import Connection
from mesh.errors import InvalidInputError, MeshError
from mesh.history import read_history, read_newest, stored_ns
from mesh.nats_client import is_guarded
from mesh.pings import is_pong
from mesh.streams import INBOX, REPLY
from mesh.traffic_log import TrafficLog

logger = logging.getLogger(__name__)

BACKFILL: Final = 300
"""Frames that are read when somebody begins to watch."""
DEPTHS_S: Final = 2.0
"""How often the mailboxes are counted."""
LINGER_S: Final = 60.0
"""Who reloads a page shall find what was there."""
_ALL_FRAMES: Final = "delivered.*.reply.>"

OnMessage = Callable[[Msg], Awaitable[None]]


class Traffic:
    """Watches, as long as anybody wants to know."""

    def __init__(self, connection: Connection, *, linger_s: float = LINGER_S) -> None:
        self.log = TrafficLog()
        """A new one after nobody has watched for a while: what it has missed would stay wrong."""
        self._linger_s = linger_s
        self._connection = connection
        self._watchers = 0
        self._subscriptions: list[Subscription] = []
        self._changing = asyncio.Lock()
        self._counting: asyncio.Task[None] | None = None
        self._stopping: asyncio.TimerHandle | None = None

    @property
    def is_visible(self) -> bool:
        """Whether this process may hear calls of others at all."""
        return not is_guarded(self._connection.client)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[TrafficLog]:
        """Keep the log up to date for the length of the context."""
        self._watchers += 1
        if self._stopping is not None:
            self._stopping.cancel()
            self._stopping = None
        try:
            if self.is_visible:
                await self._start()
            yield self.log
        finally:
            self._watchers -= 1
            if not self._watchers and self._subscriptions:
                loop = asyncio.get_running_loop()
                self._stopping = loop.call_later(self._linger_s, self._stop_soon)

    async def _start(self) -> None:
        async with self._changing:
            if self._subscriptions:
                return
            client = self._connection.client
            with suppress(nats.errors.Error):
                for subject in (subjects.ALL_INBOXES, subjects.ALL_PINNED_INBOXES):
                    await self._subscribe(subject, self._on_request)
                await self._subscribe(_ALL_FRAMES, self._on_frame)
                await client.flush(timeout=2)
            with suppress(MeshError):
                await self._read_back()
            self.log.is_fed = True
            self._counting = self._connection.tasks.start(self._count_forever())

    async def _subscribe(self, subject: str, on_message: OnMessage) -> None:
        subscription = await self._connection.client.subscribe(subject, cb=on_message)
        self._subscriptions.append(subscription)

    def _stop_soon(self) -> None:
        self._connection.tasks.start(self._stop())

    async def _stop(self) -> None:
        async with self._changing:
            if self._watchers:  # Somebody came in between.
                return
            if self._counting is not None:
                self._counting.cancel()
            subscriptions, self._subscriptions = self._subscriptions, []
            for one in subscriptions:
                with suppress(nats.errors.Error):
                    await one.unsubscribe()
            self.log = TrafficLog()

    async def _on_request(self, message: Msg) -> None:
        self.log.on_request(message.subject, message.headers or {}, time.time())

    async def _on_frame(self, message: Msg) -> None:
        self.log.on_frame(message.subject, message.headers or {}, time.time())

    async def _read_back(self) -> None:
        """Read the newest answers that are still stored: who comes to look wants to see some."""
        newest = await read_newest(self._connection, REPLY, subjects.ALL_REPLIES)
        if newest is None:
            return
        first = max(1, newest.sequence - BACKFILL)
        stored = await read_history(
            self._connection, REPLY, subjects.ALL_REPLIES, from_sequence=first
        )
        for one in stored:
            if is_pong(one.body):
                continue
            self.log.on_frame(one.subject, one.headers, stored_ns(one.headers) / 1e9)

    async def _count_forever(self) -> None:
        while True:
            try:
                info = await self._connection.client.jsm().stream_info(INBOX, subjects_filter=">")
                self.log.tell_depths(_depths(info.state.subjects or {}))
            except (nats.errors.Error, APIError) as error:
                logger.debug("cannot count the mailboxes: %s", error)
            await asyncio.sleep(DEPTHS_S)


def _depths(counted: Mapping[str, int]) -> Mapping[str, int]:
    found = Counter[str]()
    for subject, count in counted.items():
        with suppress(InvalidInputError):
            found[subjects.parse_inbox(subject).agent] += count
    return found
