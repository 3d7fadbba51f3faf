"""Where a fault test's broker runs, and how its callers get there: one server, or three."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.brokers import KillableBroker
from tests.cluster import SIZE, LoopbackCluster
from tests.proxy import FaultProxy, fault_proxy


class Site(Protocol):
    """What a world needs of its broker."""

    @property
    def url(self) -> str:
        """For everybody but the callers."""

    @property
    def callers_url(self) -> str:
        """For the callers."""

    @property
    def replicas(self) -> int:
        """Copies of every stream."""

    def pids(self) -> Mapping[str, int]:
        """The processes."""

    async def is_whole(self) -> bool:
        """Tell whether every server is ready."""


@dataclass(frozen=True, slots=True)
class OneServer:
    """A broker, and a proxy in front of it for the callers."""

    broker: KillableBroker
    proxy: FaultProxy
    replicas: int = 1

    @property
    def url(self) -> str:
        """The broker itself."""
        return self.broker.url

    @property
    def callers_url(self) -> str:
        """The proxy."""
        return self.proxy.url

    def pids(self) -> Mapping[str, int]:
        """The process."""
        return {"broker": self.broker.pid}

    async def is_whole(self) -> bool:
        """Its faults end when it is ready."""
        return True


@dataclass(frozen=True, slots=True)
class Cluster:
    """Three servers. Callers learn the addresses of all, so no proxy can stand in front of one."""

    servers: LoopbackCluster
    replicas: int = SIZE

    @property
    def url(self) -> str:
        """All servers."""
        return self.servers.url

    @property
    def callers_url(self) -> str:
        """All servers."""
        return self.servers.url

    def pids(self) -> Mapping[str, int]:
        """The processes."""
        return {f"n{number + 1}": self.servers.pid(number) for number in range(SIZE)}

    async def is_whole(self) -> bool:
        """Tell whether every server has caught up."""
        await self.servers.healthy()
        return True


@asynccontextmanager
async def open_server(folder: Path) -> AsyncIterator[OneServer]:
    """Run one broker."""
    async with KillableBroker(folder) as broker, fault_proxy(broker.url) as proxy:
        yield OneServer(broker, proxy)


@asynccontextmanager
async def open_cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Run three."""
    async with LoopbackCluster(folder) as servers:
        yield Cluster(servers)
