"""One door beside two of the same mesh, asked by wrk: a part of `scripts/bench machines`."""

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from scripts.benchmarks import wrk
from scripts.benchmarks.crowds import COSTS, compared, costs, per_call
from scripts.benchmarks.figures import NO_LIMIT, Limit, Row
from scripts.benchmarks.notes import not_run
from scripts.benchmarks.peers.machine_agents import OPEN
from scripts.benchmarks.processes import Mesh, mesh_run, python, running
from scripts.benchmarks.registrations import until_listed
from scripts.benchmarks.rounds import Measured, in_turns
from scripts.benchmarks.wrk import Target

QUICK: Final = "quick"
TARGET: Final = "scripts.benchmarks.peers.machine_agents:behind_doors"
CONNECTIONS: Final = {QUICK: 64, OPEN: 16}
"""To each door, by the agent behind it. With 16 that wait 20 ms the cores are not full."""
TITLES: Final = {
    QUICK: "two doors beside one, 64 connections each",
    OPEN: "two doors beside one, 20 ms a call, 16 connections each",
}
LIMITS: Final = {QUICK: NO_LIMIT, OPEN: Limit(least=1.8)}
SHOWN: Final = {
    "rate": "requests/s",
    "p50_ms": "p50 ms",
    **COSTS,
    "doors_us": "CPU µs/call of the doors",
    "callers_us": "CPU µs/call of wrk",
}


@dataclass(frozen=True, slots=True)
class Doors:
    """Some doors, and the agent to ask behind them."""

    agent: str
    urls: tuple[str, ...]
    pids: tuple[int, ...]


@asynccontextmanager
async def second_door(mesh: Mesh) -> AsyncIterator[Mesh]:
    """Run another door of the same mesh; gives the mesh as it is seen there."""
    environ = {"MESH_NATS_URL": mesh.nats_url, "MESH_NODE": "node2", "MESH_HTTP_PORTS": "0"}
    async with running("door", python("mesh", "up", "http"), **environ) as door:
        url = await door.says(r"(http://127\.0\.0\.1:\d+)")
        yield Mesh(mesh.nats_url, url, door.pid)


async def measure(doors: Doors, broker_pid: int, host_pid: int, seconds: float) -> Measured:
    """Ask all doors at once for some seconds."""
    pids = {"broker_us": [broker_pid], "agents_us": [host_pid], "doors_us": doors.pids}
    connections = CONNECTIONS[doors.agent]
    before = _children_us()
    with costs(pids) as taken:
        points = await asyncio.gather(
            *(wrk.measure(Target(url, doors.agent), connections, seconds) for url in doors.urls)
        )
    taken["callers_us"] = _children_us() - before
    rate = sum(one.rate for one in points)
    p50_ms = sum(one.p50_ms for one in points) / len(points)
    return {"rate": rate, "p50_ms": p50_ms, **per_call(taken, rate * max(1, round(seconds)))}


async def rows(mesh: Mesh, rounds: int, seconds: float) -> list[Row]:
    """Compare two doors with one."""
    if not wrk.is_installed():
        return [not_run("two doors beside one", wrk.MISSING)]
    found: list[Row] = []
    async with mesh_run(mesh.nats_url, TARGET, *CONNECTIONS) as host, second_door(mesh) as other:
        for door in (mesh, other):
            await until_listed(door, list(CONNECTIONS))
        urls, pids = (mesh.http_url, other.http_url), (mesh.http_pid, other.pid)
        turn = partial(measure, broker_pid=mesh.broker_pid, host_pid=host.pid, seconds=seconds)
        for agent, title in TITLES.items():
            one, two = (Doors(agent, urls[:count], pids[:count]) for count in (1, 2))
            taken = await in_turns((one, two), rounds, turn)
            found += compared(title, taken[one], taken[two], SHOWN, {"rate": LIMITS[agent]})
    return found


def _children_us() -> float:
    """Return the processor time of all processes that we have started, and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1e6
