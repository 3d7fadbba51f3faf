"""Measures a mesh of very many agents: several hundred in each process, all of them on one hub.

Real commands: `mesh up`, and as many `mesh run` as there are processes. The broker is killed under
all of them, and then one of the processes.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from mesh import MeshClient, connect
from mesh.connection import open_connection
from mesh.subjects import ALL_HEARTBEATS
from schemas.registry import State
from scripts.benchmarks.door import fresh_mesh
from scripts.benchmarks.figures import Figure, Limit, Row, report
from scripts.benchmarks.loads import quantiles_ms
from scripts.benchmarks.lookups import looked_up
from scripts.benchmarks.options import complete, parser
from scripts.benchmarks.pages import painted
from scripts.benchmarks.peers.many_agents import COUNT, FIRST, id_of
from scripts.benchmarks.processes import BenchError, Mesh, Spoken, python, running
from scripts.benchmarks.registrations import list_times
from scripts.benchmarks.resources import memory_of, percent_of_a_core, until_ended
from scripts.benchmarks.starts import until_answered

DESCRIPTION: Final = "Very many agents, several hundred in each process."
PROGRAM: Final = "scripts.benchmarks.peers.many_agents:some"
ASKED: Final = 500
LOOKUPS: Final = 20_000
PATIENCE_S: Final = 120.0
POLL_S: Final = 0.05
IDLE_S: Final = 20.0
REGISTRATION: Final = Limit(most=60, unit="s")
RESTART: Final = Limit(most=15, unit="s")


@dataclass(frozen=True, slots=True)
class Size:
    """How many agents, and how many in each process."""

    agents: int
    each: int

    @property
    def ids(self) -> list[str]:
        """All of them."""
        return [id_of(number) for number in range(self.agents)]

    @property
    def firsts(self) -> Sequence[int]:
        """The first of each process."""
        return range(0, self.agents, self.each)

    @property
    def sample(self) -> list[str]:
        """Some of them, of all processes."""
        return self.ids[:: max(1, self.agents // ASKED)]


def one_host(mesh: Mesh, size: Size, first: int) -> AbstractAsyncContextManager[Spoken]:
    """Run one process of agents."""
    environ = {
        "MESH_NATS_URL": mesh.nats_url,
        "MESH_NODE": "node1",
        FIRST: str(first),
        COUNT: str(min(size.each, size.agents - first)),
    }
    return running(f"agents from {first}", python("mesh", "run", PROGRAM), **environ)


@asynccontextmanager
async def hosts(mesh: Mesh, size: Size) -> AsyncIterator[list[Spoken]]:
    """Start all processes at once."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(one_host(mesh, size, one)) for one in size.firsts]


async def until(is_so: Callable[[], bool], what: str) -> float:
    """Wait until something is true, and return the seconds that took.

    Raises:
        BenchError: it is not, after two minutes.
    """
    start = time.perf_counter()
    while not is_so():
        if time.perf_counter() - start > PATIENCE_S:
            raise BenchError(f"in {PATIENCE_S:g} s not {what}")
        await asyncio.sleep(POLL_S)
    return time.perf_counter() - start


async def first_answer_s(client: MeshClient, agent: str) -> float:
    """Ask until there is an answer, and return the seconds to it."""
    start = time.perf_counter()
    await until_answered(client, agent)
    return time.perf_counter() - start


def pids_of(mesh: Mesh, processes: Sequence[Spoken]) -> dict[str, int]:
    """Return whose memory and processor time are looked at."""
    return {
        "broker": mesh.broker_pid,
        "control plane": mesh.control_pid,
        "door": mesh.http_pid,
        "first host": processes[0].pid,
    }


async def measure(mesh: Mesh, size: Size, idle_s: float, lookups: int) -> list[Row]:
    """Register them, look at them, ask them, and kill what carries them."""
    async with (
        connect(mesh.nats_url, name="bencher", node="node1") as client,
        hosts(mesh, size) as processes,
    ):
        registered_s = await until(
            lambda: client.directory.online_count() == size.agents, "all registered"
        )
        name = f"{size.agents} agents, {size.each} to a process"
        rows: list[Row] = [
            Figure(f"{name}: all registered, s", registered_s, REGISTRATION),
            *memory_rows(mesh, processes),
            *looked_up(client.directory, size.ids, lookups),
            *await list_times(mesh, size.agents),
            *await painted(mesh, ("/",), 3),
            *await asked(client, size),
            *await idle_rows(mesh, processes, idle_s),
        ]
        return [*rows, *await killed(mesh, client, size, processes)]


def memory_rows(mesh: Mesh, processes: Sequence[Spoken]) -> list[Row]:
    """Show what everybody takes."""
    memories = {name: memory_of(pid) for name, pid in pids_of(mesh, processes).items()}
    return [
        Figure(f"{name}: RSS, MB (PSS {memory.pss_mb:.0f})", memory.rss_mb)
        for name, memory in memories.items()
    ]


async def asked(client: MeshClient, size: Size) -> list[Row]:
    """Ask some of every process, one after the other."""
    taken = []
    for agent in size.sample:
        start = time.perf_counter()
        await client.ask(agent, "hello", timeout_s=PATIENCE_S)
        taken.append(time.perf_counter() - start)
    found = quantiles_ms(taken)
    return [
        Figure(f"a call to one of {len(taken)}, p50 ms", found["p50_ms"]),
        Figure(f"a call to one of {len(taken)}, p99 ms", found["p99_ms"]),
    ]


async def idle_rows(mesh: Mesh, processes: Sequence[Spoken], for_s: float) -> list[Row]:
    """Look at processors and heartbeats while nobody asks anything."""
    heard = 0

    async def on_beat(_: object) -> None:
        nonlocal heard
        heard += 1

    pids = pids_of(mesh, processes)
    async with open_connection(mesh.nats_url, name="bench heartbeats") as connection:
        await connection.client.subscribe(ALL_HEARTBEATS, cb=on_beat)
        taken = await asyncio.gather(*(percent_of_a_core(pid, for_s) for pid in pids.values()))
    return [
        *(
            Figure(f"idle {name}: % of a core", percent)
            for name, percent in zip(pids, taken, strict=True)
        ),
        Figure("heartbeats a second and process", heard / for_s / (len(processes) + 1)),
    ]


async def killed(
    mesh: Mesh, client: MeshClient, size: Size, processes: Sequence[Spoken]
) -> list[Row]:
    """Kill the broker, and then a process."""
    broker = mesh.broker_pid
    os.kill(broker, signal.SIGKILL)
    await until_ended(broker)
    restart_s = await first_answer_s(client, size.ids[0])
    start = time.perf_counter()
    await asyncio.gather(
        *(client.ask(agent, "hello", timeout_s=PATIENCE_S) for agent in size.sample)
    )
    all_s = time.perf_counter() - start
    processes[0].kill()
    dead = size.ids[0]
    seen_s = await until(
        lambda: client.directory.state_on(dead, None) is State.OFFLINE, "seen as dead"
    )
    async with one_host(mesh, size, 0):
        again_s = await first_answer_s(client, dead)
    return [
        Figure("broker killed: first answer, s", restart_s, RESTART),
        Figure(f"then {len(size.sample)} agents of all processes, s", all_s),
        Figure("a process killed: its agents are offline, s", seen_s),
        Figure("started again: first answer, s", again_s),
    ]


async def run_bench(size: Size, idle_s: float, lookups: int) -> list[Row]:
    """Start a mesh, and measure."""
    async with fresh_mesh() as mesh:
        return await measure(mesh, size, idle_s, lookups)


def main(arguments: list[str]) -> None:
    """Run, and print the table."""
    reader = parser("agents", DESCRIPTION)
    reader.add_argument("--agents", type=int, default=10_000)
    reader.add_argument("--each", type=int, default=500, help="agents in one process")
    options = reader.parse_args(arguments)
    size = Size(300, 100) if options.quick else Size(options.agents, options.each)
    idle_s, lookups = (2.0, 1_000) if options.quick else (IDLE_S, LOOKUPS)
    rows = complete(run_bench(size, idle_s, lookups))
    report(rows, judge=not options.quick, as_json=options.json)
