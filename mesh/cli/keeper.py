"""Keeps the embedded broker running: the same ports and data when it dies and starts again."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

from mesh.broker import EmbeddedBroker, OnLog, embedded_broker
from mesh.errors import EmbeddedBrokerError
from mesh.settings import Settings

MAX_DEATHS: Final = 5
PERIOD_S: Final = 60.0
"""More deaths than that in a minute is no accident: a person must look."""


class BrokerKeeper:
    """A broker for `mesh up`: embedded, or one that is there already."""

    def __init__(self, settings: Settings, *, on_log: OnLog) -> None:
        self._settings = settings
        self._on_log = on_log
        self._stack = AsyncExitStack()
        self._broker: EmbeddedBroker | None = None
        self._deaths: list[float] = []
        self.url = settings.nats_url
        self.monitor_url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["BrokerKeeper"]:
        """Have a broker, until the end. Raises what `embedded_broker` raises."""
        async with self._stack:
            if not self._settings.is_broker_external:
                await self._start()
            yield self

    async def watch(self) -> None:
        """Start the broker again whenever it dies, until cancelled.

        Raises:
            EmbeddedBrokerError: it dies again and again, or cannot be started again.
        """
        while self._broker is not None:
            code = await self._broker.wait()
            now = time.monotonic()
            self._deaths = [at for at in self._deaths if now - at < PERIOD_S] + [now]
            if len(self._deaths) > MAX_DEATHS:
                raise EmbeddedBrokerError(
                    f"the broker died {len(self._deaths)} times in a minute; see its log above"
                )
            self._on_log("ERR", f"the broker ended (exit code {code}); starting it again")
            await self._stack.aclose()
            await self._start()
        await asyncio.Event().wait()

    async def _start(self) -> None:
        opened = embedded_broker(self._settings, on_log=self._on_log)
        self._broker = await self._stack.enter_async_context(opened)
        self.url, self.monitor_url = self._broker.url, self._broker.monitor_url
        # Clients know these ports now, so a second start must have them too.
        self._settings = replace(
            self._settings,
            nats_port=urlsplit(self.url).port or 0,
            nats_monitor_port=urlsplit(self.monitor_url).port or 0,
        )
