"""Ends a process that has gone deaf.

FastStream 0.7.8 swallows a closed connection in its pull loop without yielding, which freezes
the event loop for ever, and a refused reconnect leaves it neither connected nor closed. Neither
can be seen from inside the loop, so a thread looks at it. Whoever started the process starts it
again.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

EXIT_CODE: Final = 70
"""EX_SOFTWARE of sysexits.h."""
LOOK_S: Final = 1.0


class Watchdog:
    """A thread that expects a sign of life from the loop, and a connection."""

    def __init__(self, is_connected: Callable[[], bool], *, limit_s: float = 30.0) -> None:
        self._is_connected = is_connected
        self._limit_s = limit_s
        self._seen_at = time.monotonic()
        self._stopped = threading.Event()

    async def tick_forever(self) -> None:
        """Give signs of life while connected, until cancelled."""
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            while True:
                if self._is_connected():
                    self._seen_at = time.monotonic()
                await asyncio.sleep(LOOK_S)
        finally:
            self._stopped.set()

    def _watch(self) -> None:
        looked_at = time.monotonic()
        while not self._stopped.wait(LOOK_S):
            late_s = time.monotonic() - looked_at - LOOK_S
            looked_at += LOOK_S + late_s
            if late_s > LOOK_S:
                # A machine asleep, a stopped process: nobody could give a sign, nor hear one.
                self._seen_at = min(self._seen_at + late_s, looked_at)
            silent_s = looked_at - self._seen_at
            if silent_s > self._limit_s:
                logger.critical("deaf for %.0f s: ending the process", silent_s)
                os._exit(EXIT_CODE)
