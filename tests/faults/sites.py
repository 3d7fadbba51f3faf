"""Where a fault test's broker runs, and how its callers get there: one server, or three."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from mesh.settings import authority
from mesh.trust.certificates import write_server_certificate
from mesh.trust.credentials import Credentials
from mesh.trust.grants import Grant
from mesh.trust.keyring import Keyring
from mesh.trust.login import Login
from mesh.trust.users import OPERATOR
from schemas.registry import UserRole
from tests.brokers import KillableBroker
from tests.cluster import SIZE, LoopbackCluster
from tests.proxy import FaultProxy, fault_proxy

AGENT: Final = "faulty"
NODE: Final = "node1"
CALLER: Final = "load"
HOST: Final = "hosts"


class Site(Protocol):
    """What a world needs of its broker."""

    @property
    def url(self) -> str:
        """For everybody but the callers."""

    @property
    def reader(self) -> Login:
        """How the test itself comes there."""

    @property
    def callers(self) -> Login:
        """How the callers do."""

    @property
    def of_the_hub(self) -> Mapping[str, str]:
        """The environment of the control plane and the doors."""

    @property
    def of_hosts(self) -> Mapping[str, str]:
        """The environment of the agent's hosts."""

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
    keyring: Keyring | None = None
    """Of a secure mesh."""
    replicas: int = 1
    neighbours: int = 0
    """Agents beside the one that is asked, in each of its processes."""

    @property
    def url(self) -> str:
        """The broker itself."""
        return self.broker.url

    @property
    def reader(self) -> Login:
        """To the broker itself, as its operator."""
        return self._login(self.broker.url, OPERATOR)

    @property
    def callers(self) -> Login:
        """To the proxy, as a person."""
        return self._login(self.proxy.url, CALLER)

    @property
    def of_the_hub(self) -> Mapping[str, str]:
        """Where the keys are."""
        return {"MESH_KEYS_DIR": str(self.keyring.folder)} if self.keyring else {}

    @property
    def of_hosts(self) -> Mapping[str, str]:
        """As on another machine: credentials, and whom to trust."""
        if self.keyring is None:
            return {"FAULT_NEIGHBOURS": str(self.neighbours)}
        return {
            "MESH_CREDS": str(self.keyring.credentials_path(HOST)),
            "MESH_TLS_CA": str(authority(self.keyring.folder)),
        }

    def _login(self, url: str, user: str) -> Login:
        if self.keyring is None:
            return Login(url)
        credentials = Credentials.read(self.keyring.credentials_path(user))
        return Login(url, credentials, authority(self.keyring.folder))

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
    def reader(self) -> Login:
        """All servers."""
        return Login(self.servers.url)

    @property
    def callers(self) -> Login:
        """All servers."""
        return self.reader

    @property
    def of_the_hub(self) -> Mapping[str, str]:
        """Nothing more."""
        return {}

    @property
    def of_hosts(self) -> Mapping[str, str]:
        """Nothing more."""
        return {}

    def pids(self) -> Mapping[str, int]:
        """The processes."""
        return {f"n{number + 1}": self.servers.pid(number) for number in range(SIZE)}

    async def is_whole(self) -> bool:
        """Tell whether every server has caught up."""
        await self.servers.healthy()
        return True


@asynccontextmanager
async def open_server(folder: Path, neighbours: int = 0) -> AsyncIterator[OneServer]:
    """Run one broker, for an agent that has `neighbours` in its processes."""
    async with KillableBroker(folder) as broker, fault_proxy(broker.url) as proxy:
        yield OneServer(broker, proxy, neighbours=neighbours)


@asynccontextmanager
async def open_secure_server(folder: Path) -> AsyncIterator[OneServer]:
    """Run one in secure mode, with TLS: hosts and callers are on the other side of the border."""
    keyring = Keyring.create(folder / "keys", ["127.0.0.1"])
    write_server_certificate(keyring.folder, ["127.0.0.1"])
    keyring.issue(HOST, UserRole.AGENT, Grant(NODE, (AGENT,)))
    keyring.issue(CALLER, UserRole.PERSON, Grant(callers=(CALLER,)))
    async with KillableBroker(folder, keyring.folder) as broker, fault_proxy(broker.url) as proxy:
        yield OneServer(broker, proxy, keyring)


@asynccontextmanager
async def open_cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Run three."""
    async with LoopbackCluster(folder) as servers:
        yield Cluster(servers)
