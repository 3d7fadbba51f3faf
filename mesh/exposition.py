"""Tells Prometheus what the process has counted: as a text, or on a port of its own."""

import asyncio
import errno
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import accumulate
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from mesh import metrics
from mesh.errors import PortInUseError, SettingsError
from mesh.settings import Settings

logger = logging.getLogger(__name__)

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
TICK_S: Final = 0.5
LOOKED_BACK: Final = 30
"""Ticks: 15 s, the usual time between two looks of Prometheus."""
_LIMITS: Final = (*(f"{limit:g}" for limit in metrics.SECONDS), "+Inf")


class _Counted(Collector):
    """Our metrics, as Prometheus's client has them."""

    def collect(self) -> Iterator[Metric]:
        """Yield them all. May run beside whoever counts: what is copied is whole."""
        for one in metrics.ALL:
            if isinstance(one, metrics.Counter):
                yield _counter(one)
            elif isinstance(one, metrics.Gauge):
                yield _gauge(one)
            elif isinstance(one, metrics.Histogram):
                yield _histogram(one)


def _counter(one: metrics.Counter) -> Metric:
    family = CounterMetricFamily(one.name, one.about, labels=one.labels)
    # A counter without labels is there from the beginning: what has not happened is 0.
    for labels, value in (one.values.copy() or ({} if one.labels else {(): 0})).items():
        family.add_metric(labels, value)
    return family


def _gauge(one: metrics.Gauge) -> Metric:
    family = GaugeMetricFamily(one.name, one.about, labels=one.labels)
    for labels, value in one.values.copy().items():
        family.add_metric(labels, value() if callable(value) else value)
    return family


def _histogram(one: metrics.Histogram) -> Metric:
    family = HistogramMetricFamily(one.name, one.about, labels=one.labels)
    for labels, times in one.values.copy().items():
        buckets = list(zip(_LIMITS, accumulate(times.buckets.copy()), strict=True))
        family.add_metric(labels, buckets=buckets, sum_value=times.sum_s)
    return family


REGISTRY: Final = CollectorRegistry()
REGISTRY.register(_Counted())
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)


def told() -> bytes:
    """Return all that was counted, as Prometheus's text format."""
    return generate_latest(REGISTRY)


@asynccontextmanager
async def exposing(settings: Settings) -> AsyncIterator[None]:
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
        server, thread = start_http_server(port, host, REGISTRY)
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
