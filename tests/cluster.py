"""Three brokers that are one, on loopback: nats/cluster as an operator would start it.

`scripts/cluster` runs it for people, and the tests take it apart.
"""

import asyncio
import contextlib
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Self

import typer

from mesh.child import Child
from mesh.cli import exits
from mesh.cli.signals import stop_on_signals
from mesh.errors import EmbeddedBrokerError
from mesh.settings import Settings
from tests.brokers import NATS_SERVER, free_port

CONFIG: Final = Path(__file__).parent.parent / "nats" / "cluster" / "server.conf"
SIZE: Final = 3
STOP_GRACE_S: Final = 10.0
POLL_S: Final = 0.1
RESTART_PAUSE_S: Final = 1.0

OnLine = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where one server listens."""

    clients: int
    monitor: int
    routes: int

    @classmethod
    def any_free(cls) -> Self:
        """Return ports on which nobody listens."""
        return cls(free_port(), free_port(), free_port())


class LoopbackCluster:
    """Three servers, each of which can be killed, frozen, told to leave, and started again."""

    def __init__(
        self, data_dir: Path, ports: list[Ports] | None = None, on_line: OnLine | None = None
    ) -> None:
        self._data_dir = data_dir
        self.ports = ports or [Ports.any_free() for _ in range(SIZE)]
        self._on_line = on_line or (lambda name, line: None)
        self._servers: dict[int, Child] = {}

    @property
    def urls(self) -> list[str]:
        """Where clients connect, server by server."""
        return [f"nats://127.0.0.1:{one.clients}" for one in self.ports]

    @property
    def url(self) -> str:
        """All of them, as the mesh takes them."""
        return ",".join(self.urls)

    def pid(self, number: int) -> int:
        """The process of a server. They are numbered from 0."""
        return self._servers[number].pid

    async def __aenter__(self) -> Self:
        try:
            for number in range(SIZE):
                await self.start(number)
            await self.healthy()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _stop(self) -> None:
        await asyncio.gather(*(one.stop(STOP_GRACE_S) for one in self._servers.values()))

    async def start(self, number: int) -> None:
        """Start a server that does not run, and do not wait for it."""
        name = f"n{number + 1}"
        environ = {**os.environ, **self._variables(number, name)}
        command = (NATS_SERVER, "-c", CONFIG)
        self._servers[number] = await Child.start(
            command, lambda line: self._on_line(name, line), environ=environ
        )

    async def end(self, number: int, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a server a signal, and return when it has ended. SIGUSR2: leave in good order."""
        server = self._servers[number]
        os.kill(server.pid, how)
        await server.wait()
        await server.stop(STOP_GRACE_S)

    async def healthy(self, *, within_s: float = 60.0) -> None:
        """Wait until every server says that it is ready, its streams caught up."""
        waiting = (asyncio.to_thread(_await_health, one.monitor, within_s) for one in self.ports)
        await asyncio.gather(*waiting)

    async def wait(self, number: int) -> int:
        """Wait for a server to end, and return its exit code."""
        return await self._servers[number].wait()

    def _variables(self, number: int, name: str) -> dict[str, str]:
        own = self.ports[number]
        others = [f'"nats://127.0.0.1:{one.routes}"' for one in self.ports if one is not own]
        return {
            "HUB_NAME": f'"{name}"',
            "HUB_HOST": '"127.0.0.1"',
            "HUB_PORT": str(own.clients),
            "HUB_MONITOR": f'"127.0.0.1:{own.monitor}"',
            "HUB_DATA_DIR": f'"{self._data_dir / name}"',
            "HUB_SYNC_INTERVAL": '"2m"',
            "CLUSTER_LISTEN": f'"127.0.0.1:{own.routes}"',
            "CLUSTER_ROUTES": f"[{', '.join(others)}]",
        }


def _await_health(port: int, within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2).close()
            return
        time.sleep(POLL_S)
    raise TimeoutError(f"the server at {port} is not healthy after {within_s:g} s")


async def _keep(cluster: LoopbackCluster, number: int) -> None:
    while True:
        code = await cluster.wait(number)
        typer.echo(f"n{number + 1} ended ({code}); starting it again", err=True)
        await asyncio.sleep(RESTART_PAUSE_S)
        await cluster.start(number)


async def _run(data_dir: Path, ports: list[Ports]) -> None:
    stop = stop_on_signals()
    async with AsyncExitStack() as stack:
        try:
            cluster = await stack.enter_async_context(LoopbackCluster(data_dir, ports))
        except TimeoutError:
            raise EmbeddedBrokerError("the servers are not ready: are their ports free?") from None
        typer.echo("three servers are one broker; each is started again when it ends")
        for number, url in enumerate(cluster.urls):
            typer.echo(f"  n{number + 1}  {url}  process {cluster.pid(number)}")
        typer.echo(f"  data {data_dir}")
        typer.echo(f"Next: MESH_NATS_URL={cluster.url} MESH_REPLICAS=3 mesh up. Ctrl-C stops.")
        keeping = [asyncio.create_task(_keep(cluster, number)) for number in range(SIZE)]
        await stop.wait()
        for one in keeping:
            one.cancel()
        await asyncio.wait(keeping)


def main(
    port: Annotated[int, typer.Option(help="Of the first server's clients.")] = 4222,
    monitor_port: Annotated[int, typer.Option(help="Of its monitoring.")] = 8222,
    routes_port: Annotated[int, typer.Option(help="Of the other servers.")] = 6222,
    data: Annotated[Path | None, typer.Option(help="Where the streams are kept.")] = None,
) -> None:
    """Run the cluster of nats/cluster on loopback. The other servers listen on the next ports."""
    ports = [Ports(port + one, monitor_port + one, routes_port + one) for one in range(SIZE)]
    data_dir = data or Settings.from_env().data_dir / "cluster"
    exits.run(_run(data_dir, ports))


if __name__ == "__main__":
    typer.run(main)
