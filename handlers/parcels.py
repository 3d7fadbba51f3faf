"""Removes parcels: the bodies and files of a secure mesh, which its members may not purge.

Those that are done with, as they ask for it; and now and then those that have outlived every call,
which nobody but a broken or hostile member leaves: JetStream keeps what is sent with the TTL
`never` beyond the age of its stream.
"""

import asyncio
import logging
from typing import Annotated, Final

import nats.errors
from faststream import Context, Path
from faststream.nats import NatsMessage, NatsRouter
from nats.js.errors import APIError

from handlers.cancel import LINK
from mesh import subjects
from mesh.clock import BrokerClock
from mesh.connection import Connection
from mesh.errors import MeshError, TransportError
from mesh.history import read_first_since, read_next, stored_ns
from mesh.parcels import purge
from mesh.streams import BODIES, DAY_S, UPLOAD_S
from schemas.object import DiscardReceipt

logger = logging.getLogger(__name__)

router = NatsRouter()
SWEEP_S: Final = 3_600.0
CLOCK_S: Final = 60.0
"""By then heartbeats have told the broker's time: before, nothing looks old."""
KEPT_S: Final = DAY_S + 2 * UPLOAD_S
"""Longer than the stream keeps anything by itself."""
PURGE_TIMEOUT_S: Final = 30.0


@router.subscriber("registry.discard.{reader}.{nuid}", queue="registrar")
async def on_discard(
    message: NatsMessage,
    connection: Annotated[Connection, Context(LINK)],
    reader: Annotated[str, Path()],
    nuid: Annotated[str, Path()],
) -> DiscardReceipt:
    """Whoever knows a parcel is done with it."""
    try:
        await purge(connection, subjects.parcel_chunks(subjects.parcel(reader, nuid)))
    except MeshError as error:
        logger.info("a parcel for %s is not removed: %s", reader[:32], error)
        return DiscardReceipt(ok=False, message=error.message)
    return DiscardReceipt()


class Sweeper:
    """Removes what should have expired."""

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
                logger.debug("cannot look for parcels that should have expired: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Remove every parcel that is older than any may be.

        Raises:
            TransportError: the broker does not answer, or refuses the read.
            nats.errors.Error, APIError: it does not answer, or refuses the purge.
        """
        oldest = await read_next(self._connection, BODIES, subjects.ALL_PARCELS, 1)
        if oldest is None:
            return
        stored = stored_ns(oldest.headers)
        over_s = self._clock.age_s(stored) - self._kept_s
        if over_s <= 0:
            return
        manager = self._connection.client.jsm(timeout=PURGE_TIMEOUT_S)
        # Before it is asked what is young: what comes meanwhile is that.
        end = (await manager.stream_info(BODIES)).state.last_seq + 1
        young = await read_first_since(
            self._connection, BODIES, subjects.ALL_PARCELS, stored + int(over_s * 1e9)
        )
        until = young.sequence if young is not None else end
        await manager.purge_stream(BODIES, seq=until, subject=subjects.ALL_PARCELS)
        logger.warning("removed parcels that were sent to outlive every call")
