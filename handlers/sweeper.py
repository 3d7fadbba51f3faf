"""Removes what should have expired: JetStream keeps what is sent with the TTL `never`, against the
age of its stream.

Nobody but a broken or hostile client sends that. It would fill the mailboxes, the answers and the
bodies for good, where everything else makes room for others after a day.
"""

import asyncio
import logging
from typing import Final

import nats.errors
from nats.js.errors import APIError

from mesh import subjects
from mesh.clock import BrokerClock
from mesh.connection import Connection
from mesh.errors import TransportError
from mesh.history import read_next, stored_ns
from mesh.streams import BODIES, DAY_S, INBOX, REPLY, UPLOAD_S

logger = logging.getLogger(__name__)

SWEEP_S: Final = 3_600.0
CLOCK_S: Final = 60.0
"""By then heartbeats have told the broker's time: before, nothing looks old."""
KEPT_S: Final = DAY_S + 2 * UPLOAD_S
"""Longer than any of the streams keeps anything by itself."""
PURGE_TIMEOUT_S: Final = 30.0
SWEPT: Final = (
    (INBOX, ">"),
    (REPLY, ">"),
    # What the object store of NATS has is under its subjects, and is whole or nothing.
    (BODIES, subjects.ALL_PARCELS),
)


class Sweeper:
    """Looks through the streams that take a TTL, oldest message first."""

    def __init__(
        self, connection: Connection, clock: BrokerClock, *, kept_s: float = KEPT_S
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._kept_s = kept_s

    async def sweep_forever(self) -> None:
        """Sweep after a minute and then every hour, until cancelled."""
        await asyncio.sleep(CLOCK_S)
        while True:
            try:
                await self.sweep()
            except (nats.errors.Error, APIError, TransportError) as error:
                logger.debug("cannot look for what should have expired: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Remove what is older than anything may be.

        Raises:
            TransportError: the broker does not answer, or refuses a read.
            nats.errors.Error, APIError: it does not answer, or refuses a purge.
        """
        for stream, subject in SWEPT:
            await self._sweep(stream, subject)

    async def _sweep(self, stream: str, subject: str) -> None:
        oldest = await read_next(self._connection, stream, subject, 1)
        if oldest is None or not self._is_old(stored_ns(oldest.headers)):
            return
        manager = self._connection.client.jsm(timeout=PURGE_TIMEOUT_S)
        # Before it is asked what is young: what comes meanwhile is that.
        end = (await manager.stream_info(stream)).state.last_seq + 1
        until = await self._first_young(stream, subject, oldest.sequence + 1, end)
        await manager.purge_stream(stream, seq=until, subject=subject)
        logger.warning("removed what was sent to %s to outlive every call", stream)

    async def _first_young(self, stream: str, subject: str, start: int, end: int) -> int:
        """Return the place from which on all is young; what is behind another is younger."""
        while start < end:
            middle = (start + end) // 2
            found = await read_next(self._connection, stream, subject, middle)
            if found is None or not self._is_old(stored_ns(found.headers)):
                end = middle
            else:
                start = found.sequence + 1
        return start

    def _is_old(self, at_ns: int) -> bool:
        return self._clock.age_s(at_ns) > self._kept_s
