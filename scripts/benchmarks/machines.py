"""Measures whether throughput adds up: more hosts, more doors, and three servers instead of one.

All on the cores of one machine. Where these are full nothing can add up, hence the table says what
a call takes of whom, how many cores that kept busy, and how many were idle. Agents that answer at
once fill the cores; those that wait for their model, as real ones do, leave them to others.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from scripts.benchmarks import cluster_calls, crowds, two_doors
from scripts.benchmarks.calls import MESH
from scripts.benchmarks.crowds import COSTS
from scripts.benchmarks.figures import Limit, Row, report
from scripts.benchmarks.loads import LABELS
from scripts.benchmarks.options import complete, parser
from scripts.benchmarks.peers.machine_agents import SLOW
from scripts.benchmarks.processes import BenchError, Mesh, mesh_run, mesh_up
from scripts.benchmarks.rounds import Measured, in_turns

DESCRIPTION: Final = "Whether hosts, doors and servers add up, on the cores of one machine."
MODULE: Final = "scripts.benchmarks.peers.machine_agents"
IN_FLIGHT: Final = 64
SHOWN: Final = {"rate": LABELS["rate"], "p50_ms": LABELS["p50_ms"], **COSTS}
ADDS_UP: Final = {"rate": Limit(least=1.8)}
"""Two hosts of agents that wait for their model make twice the calls of one."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Processes of agents, and whom of them to ask."""

    name: str
    agents: tuple[str, ...]
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """Some hosts, asked by some callers."""

    hosts: Hosts
    callers: int
    is_slow: bool = False

    @property
    def agents(self) -> list[str]:
        """Whom to ask."""
        return [SLOW * self.is_slow + one for one in self.hosts.agents]


@asynccontextmanager
async def open_hosts(mesh: Mesh) -> AsyncIterator[list[Hosts]]:
    """Run one host, two of one agent, and two of two agents. Who is not asked costs nothing."""
    wanted = {
        "one host": ("one",),
        "two hosts of one agent": ("both", "both"),
        "two hosts of two agents": ("left", "right"),
    }
    async with AsyncExitStack() as stack:
        found = []
        for name, targets in wanted.items():
            running = [
                await stack.enter_async_context(
                    mesh_run(mesh.nats_url, f"{MODULE}:{one}", one, SLOW + one)
                )
                for one in targets
            ]
            agents = tuple(dict.fromkeys(targets))
            found.append(Hosts(name, agents, tuple(one.pid for one in running)))
        yield found


async def measure(point: Point, mesh: Mesh, seconds: float) -> Measured:
    """Measure one point once."""
    return await crowds.measure(
        MESH,
        mesh.nats_url,
        point.agents,
        {"broker_us": [mesh.broker_pid], "agents_us": point.hosts.pids},
        callers=point.callers,
        in_flight=IN_FLIGHT,
        seconds=seconds,
    )


async def host_rows(mesh: Mesh, rounds: int, seconds: float) -> list[Row]:
    """Compare two hosts with one, and two callers with one."""
    async with open_hosts(mesh) as hosts:
        one, *others = hosts
        quick = [Point(some, callers) for callers in (1, 2) for some in hosts]
        slow = [Point(some, 2, is_slow=True) for some in hosts]
        turn = partial(measure, mesh=mesh, seconds=seconds)
        found = await in_turns([*quick, *slow], rounds, turn)
    fewer, more = found[Point(one, 1)], found[Point(one, 2)]
    rows = crowds.compared("one host, 2 callers beside 1", fewer, more, SHOWN)
    for some in others:
        for callers in (1, 2):
            pair = found[Point(one, callers)], found[Point(some, callers)]
            name = f"{some.name} beside one, {callers} caller{'s'[: callers > 1]}"
            rows += crowds.compared(name, *pair, SHOWN)
    for some in others:
        pair = found[Point(one, 2, is_slow=True)], found[Point(some, 2, is_slow=True)]
        name = f"{some.name} beside one, 20 ms a call, 8 at once"
        rows += crowds.compared(name, *pair, SHOWN, ADDS_UP)
    return rows


async def run_bench(rounds: int, seconds: float) -> list[Row]:
    """Start everything, and measure."""
    with tempfile.TemporaryDirectory() as folder:
        async with mesh_up(Path(folder) / "hosts") as mesh:
            rows = await host_rows(mesh, rounds, seconds)
            rows += await two_doors.rows(mesh, rounds, seconds)
        return [*rows, *await cluster_calls.rows(Path(folder) / "servers", rounds, seconds)]


def main(arguments: list[str]) -> None:
    """Run, and print the table; or play a role in it."""
    reading = parser("machines", DESCRIPTION, rounds=5, is_scaled=False)
    reading.add_argument("--seconds", type=float, default=3.0, help="of every point")
    options = reading.parse_args(arguments)
    match options.role:
        case []:
            rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
            rows = complete(run_bench(rounds, seconds))
            report(rows, judge=not options.quick, as_json=options.json)
        case ["caller", kind, url, in_flight, seconds, *agents]:
            complete(crowds.run_caller(kind, url, int(in_flight), float(seconds), agents))
        case _:
            raise BenchError(f"no such role: {options.role}")
