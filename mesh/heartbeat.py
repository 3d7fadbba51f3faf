"""Says that this process is alive, once for all that it hosts.

Losing the registrar is no error here: calls go on without it, and it is told again when it is
back.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mesh import registry
from mesh.connection import Connection
from mesh.errors import MeshError
from schemas.registry import Heartbeat, Instance

logger = logging.getLogger(__name__)


async def beat_forever(
    connection: Connection,
    describe: Callable[[], Instance],
    *,
    interval_s: float,
    on_forgotten: Callable[[], Awaitable[None]],
) -> None:
    """Send a heartbeat every `interval_s` until cancelled, with what `describe` says by then.

    `on_forgotten` runs when the registry does not know this process: after a broker lost its
    data, or a registrar swept what it thought dead.
    """
    was_heard = True
    while True:
        await asyncio.sleep(interval_s)
        try:
            receipt = await registry.beat(connection, Heartbeat(instance=describe()))
            if not receipt.known:
                await on_forgotten()
            if not was_heard:
                logger.info("the registrar answers again")
            was_heard = True
        except MeshError as error:
            if was_heard:
                logger.warning("%s; calls go on without it", error)
            was_heard = False
