"""Keeps the embedded broker running: the same ports and data when it dies and starts again.

It is also started again when the disk was full: nats-server stops a stream when a write has failed,
and does not go on with it when there is room again.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from mesh.broker import EmbeddedBroker, OnLog, embedded_broker
from mesh.errors import EmbeddedBrokerError
from mesh.settings import Settings

MAX_STARTS: Final = 5
PERIOD_S: Final = 60.0
"""More starts than that in a minute are no accident: a person must look."""
LOOK_S: Final = 2.0
NO_SPACE: Final = "no space left on device"
"""What nats-server logs of a write that has failed. Its health may forget what it has stopped."""
ROOM_BYTES: Final = 64 * 1024 * 1024
"""Free on the disk before it is tried again."""


class BrokerKeeper:
    """A broker for `mesh up`: embedded, or one that is there already."""

    def __init__(self, settings: Settings, *, on_log: OnLog) -> None:
        self._settings = settings
        self._tell = on_log
        self._is_out_of_space = asyncio.Event()
        self._stack = AsyncExitStack()
        self._broker: EmbeddedBroker | None = None
        self._starts: list[float] = []
        self.url = settings.nats_url
        self.monitor_url = ""

    def _on_log(self, level: str, message: str) -> None:
        self._tell(level, message)
        if NO_SPACE in message:
            self._is_out_of_space.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["BrokerKeeper"]:
        """Have a broker, until the end. Raises what `embedded_broker` raises."""
        async with self._stack:
            if not self._settings.is_broker_external:
                await self._start()
            yield self

    async def watch(self) -> None:
        """Start the broker again whenever it dies or has stopped a stream, until cancelled.

        Raises:
            EmbeddedBrokerError: it dies again and again, or cannot be started again.
        """
        while self._broker is not None:
            ending = asyncio.create_task(self._broker.wait())
            healing = asyncio.create_task(self._until_curable())
            try:
                await asyncio.wait({ending, healing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ending.cancel()
                healing.cancel()
            self._count_start()
            if ending.done():
                code = ending.result()
                self._on_log("ERR", f"the broker ended (exit code {code}); starting it again")
            await self._stack.aclose()
            await self._start()
        await asyncio.Event().wait()

    def _count_start(self) -> None:
        now = time.monotonic()
        self._starts = [at for at in self._starts if now - at < PERIOD_S] + [now]
        if len(self._starts) > MAX_STARTS:
            raise EmbeddedBrokerError(
                f"the broker died {len(self._starts)} times in a minute; see its log above"
            )

    async def _until_curable(self) -> None:
        """Return when the broker has run out of space, and there is room to go on."""
        await self._is_out_of_space.wait()
        self._tell("ERR", "the disk is full: nothing is stored until there is room again")
        while True:
            await asyncio.sleep(LOOK_S)
            if self._free_bytes() >= ROOM_BYTES:
                break
        self._tell("WRN", "starting the broker again, as there is room now")

    def _free_bytes(self) -> int:
        try:
            return shutil.disk_usage(self._settings.data_dir).free
        except OSError:
            return 0

    async def _start(self) -> None:
        self._is_out_of_space.clear()
        opened = embedded_broker(self._settings, on_log=self._on_log)
        self._broker = await self._stack.enter_async_context(opened)
        self.url, self.monitor_url = self._broker.url, self._broker.monitor_url
        # Clients know these ports now, so a second start must have them too.
        self._settings = replace(
            self._settings,
            nats_port=urlsplit(self.url).port or 0,
            nats_monitor_port=urlsplit(self.monitor_url).port or 0,
        )
