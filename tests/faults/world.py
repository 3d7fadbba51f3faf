"""A mesh of real processes that a fault test takes apart, and what can be done to it.

A broker (`tests.faults.sites`), a control plane, two shims, and three hosts of one agent
(`tests.faults.agent`), each kept running as `mesh up` keeps its parts.
"""

import asyncio
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, TypeVar
from urllib.parse import urlsplit

from nats.aio.msg import Msg

from mesh.callers import Caller, new_instance_id
from mesh.client import MeshClient, open_client
from mesh.connection import Connection, open_connection
from mesh.directory import follow_directory
from mesh.supervisor import Part, Supervisor
from tests.brokers import free_port
from tests.conftest import until
from tests.faults.footprint import Footprint
from tests.faults.sites import AGENT, CALLER, NODE, Site

ROOT: Final = Path(__file__).parent.parent.parent
HOSTS: Final = ("host1", "host2", "host3")
SHIMS: Final = ("http1", "http2")
CONTROL: Final = "control"

KEPT_REQUESTS: Final = 20

S = TypeVar("S", bound=Site)
Request = tuple[str, bytes, dict[str, str]]


@dataclass(slots=True)
class World(Generic[S]):
    """What is running."""

    site: S
    parts: Supervisor
    client: MeshClient
    """On the callers' way to the broker."""
    reader: Connection
    """On the way that no fault is on."""
    shims: tuple[str, ...]
    """Base URLs."""
    effects_file: Path
    news: list[str]
    """What the processes printed, and what became of them."""
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    """The newest ones, as they were sent."""

    async def note_request(self, message: Msg) -> None:
        """Keep a request that was published."""
        if message.headers:
            self.requests.append((message.subject, message.data, dict(message.headers)))

    def take_footprint(self, footprint: Footprint) -> None:
        """Look at what every process takes, this one included."""
        footprint.sample("callers", os.getpid())
        for name, pid in self.site.pids().items():
            footprint.sample(name, pid)
        for part in (*HOSTS, *SHIMS, CONTROL):
            footprint.sample(part, self.parts.pid(part))

    def effects(self, what: str) -> Counter[str]:
        """Return how often a handler has `begun` or `done` something, by the text it was asked."""
        lines = (one.split(" ", 1) for one in self.effects_file.read_text().splitlines())
        return Counter(text for effect, text in lines if effect == what)

    def send(self, part: str, number: signal.Signals) -> None:
        """Send a signal to a process, if it runs at the moment."""
        if (pid := self.parts.pid(part)) is not None:
            os.kill(pid, number)

    async def freeze(self, part: str, for_s: float) -> None:
        """Give a process no time."""
        if (pid := self.parts.pid(part)) is None:
            return
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(for_s)
        finally:
            os.kill(pid, signal.SIGCONT)

    async def is_whole(self) -> bool:
        """Tell whether all parts run, the shims listen, and the agent has all its hosts."""
        if not await self.site.is_whole():
            return False
        if any(self.parts.pid(one) is None for one in (*HOSTS, *SHIMS, CONTROL)):
            return False
        if not all([await _listens(url) for url in self.shims]):
            return False
        directory = self.client.directory
        if directory.agent_record(AGENT) is None:
            return False
        return len(directory.standing(AGENT).instances) >= len(HOSTS)


@asynccontextmanager
async def open_world(
    folder: Path, opening: AbstractAsyncContextManager[S], *, work_s: float
) -> AsyncIterator[World[S]]:
    """Start everything, and stop it at the end. A handler works for up to `work_s` seconds."""
    effects, news = folder / "effects", list[str]()
    effects.touch()
    async with (
        opening as site,
        Supervisor(on_line=lambda name, line: news.append(f"{name}: {line}")) as parts,
    ):
        environ = {
            "MESH_NATS_URL": site.url,
            "MESH_REPLICAS": str(site.replicas),
            "FAULT_EFFECTS": str(effects),
            "FAULT_WORK_S": str(work_s),
            "PYTHONPATH": str(ROOT),
        }
        hosting, hub = {**environ, **site.of_hosts}, {**environ, **site.of_the_hub}
        caller = Caller(CALLER, NODE, new_instance_id())
        ports = {one: free_port() for one in SHIMS}
        await parts.start(_part(CONTROL, hub, "up", "control"))
        await parts.start_all(
            [_part(one, hosting, "run", "tests.faults.agent:agents") for one in HOSTS]
            + [
                _part(one, {**hub, "MESH_HTTP_PORTS": str(port)}, "up", "http")
                for one, port in ports.items()
            ]
        )
        async with (
            open_connection(site.reader, name="fault reader") as reader,
            open_connection(site.callers, name="fault callers") as connection,
            follow_directory(connection) as directory,
            open_client(connection, directory, caller) as client,
        ):
            urls = tuple(f"http://127.0.0.1:{port}" for port in ports.values())
            world = World(site, parts, client, reader, urls, effects, news)
            await reader.client.subscribe(f"agent.{AGENT}.inbox", cb=world.note_request)
            await until(world.is_whole, within_s=60)
            yield world


async def _listens(url: str) -> bool:
    address = urlsplit(url)
    try:
        _, writer = await asyncio.open_connection(address.hostname, address.port)
    except OSError:
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


def _part(name: str, environ: dict[str, str], *arguments: str) -> Part:
    return Part(name, (sys.executable, "-m", "mesh", *arguments), {**environ, "MESH_NODE": NODE})
