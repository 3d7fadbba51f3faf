"""Calls over three servers that keep everything three times, beside one: by hand and by the mesh.

A part of `scripts/bench machines`. All connect to one server of the three, whoever leads the
streams: by hand and through the mesh the way is the same.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from mesh.broker import embedded_broker
from mesh.connection import open_connection
from mesh.provision import ensure_streams
from mesh.settings import Settings
from scripts.benchmarks import calls, crowds, hand
from scripts.benchmarks.calls import BARE, MESH
from scripts.benchmarks.crowds import COSTS
from scripts.benchmarks.figures import Row
from scripts.benchmarks.loads import LABELS
from scripts.benchmarks.rounds import Measured, beside, in_turns
from tests.cluster import SIZE, LoopbackCluster

ONE, THREE = "one server", "three servers"
IN_FLIGHT: Final = (1, 64)
AGENTS: Final = {BARE: BARE, MESH: "bench"}
SHOWN: Final = {"rate": LABELS["rate"], "p50_ms": LABELS["p50_ms"]}


@dataclass(frozen=True, slots=True)
class Site:
    """A broker with an agent, by hand or of the mesh."""

    name: str
    kind: str
    url: str
    broker_pids: tuple[int, ...]
    agent_pid: int


@dataclass(frozen=True, slots=True)
class Broker:
    """Where to connect, and its processes."""

    url: str
    pids: tuple[int, ...]


@asynccontextmanager
async def one_server(folder: Path) -> AsyncIterator[Broker]:
    """Run one server."""
    settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=folder)
    async with embedded_broker(settings) as broker:
        yield Broker(broker.url, (broker.pid,))


@asynccontextmanager
async def three_servers(folder: Path) -> AsyncIterator[Broker]:
    """Run three that are one broker."""
    async with LoopbackCluster(folder) as cluster:
        yield Broker(cluster.urls[0], tuple(cluster.pid(one) for one in range(SIZE)))


@asynccontextmanager
async def sites_on(name: str, broker: Broker, replicas: int) -> AsyncIterator[list[Site]]:
    """Run a control plane and both agents on a broker."""
    settings = Settings(nats_url=broker.url, replicas=replicas)
    async with open_connection(broker.url, name="bench") as connection:
        await ensure_streams(connection, settings)
    await hand.declare_mailbox(broker.url, BARE)
    async with AsyncExitStack() as stack:
        environ = {"MESH_REPLICAS": str(replicas)}
        await stack.enter_async_context(calls.control_plane(broker.url, **environ))
        sites = []
        for kind in AGENTS:
            agent = await stack.enter_async_context(calls.child("agent", kind, broker.url))
            await agent.says("ready")
            sites.append(Site(name, kind, broker.url, broker.pids, agent.pid))
        yield sites


async def measure(site: Site, in_flight: int, seconds: float) -> Measured:
    """Call for some seconds, from a process of its own."""
    return await crowds.measure(
        site.kind,
        site.url,
        [AGENTS[site.kind]],
        {"broker_us": site.broker_pids, "agents_us": [site.agent_pid]},
        callers=1,
        in_flight=in_flight,
        seconds=seconds,
    )


async def rows(folder: Path, rounds: int, seconds: float) -> list[Row]:
    """Compare the mesh with by hand on each, and three servers with one for each."""
    found: list[Row] = []
    async with (
        one_server(folder / "one") as one,
        three_servers(folder / "three") as three,
        sites_on(ONE, one, 1) as single,
        sites_on(THREE, three, SIZE) as triple,
    ):
        for in_flight in IN_FLIGHT:
            turn = partial(measure, in_flight=in_flight, seconds=seconds)
            taken = await in_turns((*single, *triple), rounds, turn)
            by = {(site.name, site.kind): measured for site, measured in taken.items()}
            where = f"{in_flight} in flight"
            for name in (ONE, THREE):
                pair = by[name, BARE], by[name, MESH]
                found += beside(f"{name}, the mesh beside by hand, {where}", *pair, SHOWN)
            for kind, who in ((BARE, "by hand"), (MESH, "the mesh")):
                pair = by[ONE, kind], by[THREE, kind]
                title = f"three servers beside one, {who}, {where}"
                found += crowds.compared(title, *pair, {**SHOWN, **COSTS})
    return found
