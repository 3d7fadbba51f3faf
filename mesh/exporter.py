"""Tells a process's metrics on a port of its own, and measures how late its event loop is."""

import asyncio
import errno
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client import start_http_server

from mesh import metrics
from mesh.errors import PortInUseError, SettingsError
from mesh.settings import Settings

logger = logging.getLogger(__name__)

TICK_S: Final = 0.5
LOOKED_BACK: Final = 30
"""Ticks: 15 s, the usual time between two looks of Prometheus."""


@asynccontextmanager
async def exporting(settings: Settings) -> AsyncIterator[None]:
    """Tell metrics on `MESH_METRICS_PORT` for the length of the context; on 0 nowhere.

    Raises:
        PortInUseError: another program listens there.
        SettingsError: there is no such address to listen on.
    """
    if not settings.metrics_port:
        yield
        return
    host, port = settings.metrics_host, settings.metrics_port
    try:
        # A thread of its own answers: a loop that is late can still be seen to be.
        server, thread = start_http_server(port, host, metrics.REGISTRY)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} is in use: set MESH_METRICS_PORT to another one, or to 0", port=port
            ) from None
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error}", variable="MESH_METRICS_HOST"
        ) from None
    logger.info("metrics: http://%s:%d/metrics", host, port)
    watching = asyncio.create_task(watch_lag_forever())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()


async def watch_lag_forever() -> None:
    """Measure how late the loop is, until cancelled."""
    loop = asyncio.get_running_loop()
    late: deque[float] = deque(maxlen=LOOKED_BACK)
    while True:
        due = loop.time() + TICK_S
        await asyncio.sleep(TICK_S)
        late.append(max(0.0, loop.time() - due))
        metrics.LOOP_LAG_S.set(max(late))
