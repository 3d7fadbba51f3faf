"""Callers in processes of their own that begin at once, and what everybody takes meanwhile.

Each opens its connections, warms up, says that it is ready, and waits for a word on the broker.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import cycle
from typing import Final

from mesh import connect, heap
from scripts.benchmarks import hand
from scripts.benchmarks.calls import BARE
from scripts.benchmarks.figures import Figure, Limit, Row
from scripts.benchmarks.loads import WARM_UP, Ask, load_for
from scripts.benchmarks.peers.plain_caller import BODY
from scripts.benchmarks.processes import python, running, tell, told_by
from scripts.benchmarks.resources import cpu_us_of, idle_s
from scripts.benchmarks.rounds import NO_LIMITS, Measured, beside

GO: Final = "bench.go"
CORES: Final = os.cpu_count() or 1
COSTS: Final = {
    "broker_us": "CPU µs/call of the broker",
    "agents_us": "CPU µs/call of the agents",
    "callers_us": "CPU µs/call of the callers",
    "cores": "cores taken",
}
REST: Final = {
    "idle_cores": f"cores idle, of {CORES}",
    "other_cores": f"cores that others took, of {CORES}",
}
"""Of the machine, hence without a ratio."""


@contextmanager
def costs(pids: Mapping[str, Sequence[int]]) -> Iterator[Measured]:
    """Give, behind the block, the processor time of groups of processes, in µs.

    `elapsed_s` and `idle_cores` are of the block and of the machine: others may run on it as well.
    """
    named = {f"{group} {pid}": pid for group, some in pids.items() for pid in some}
    found: Measured = {}
    start, idle = time.perf_counter(), idle_s()
    with cpu_us_of(named) as taken_us:
        yield found
    found["elapsed_s"] = time.perf_counter() - start
    found["idle_cores"] = (idle_s() - idle) / found["elapsed_s"]
    for group in pids:
        found[group] = sum(us for name, us in taken_us.items() if name.split()[0] == group)


def per_call(taken: Measured, calls: float) -> Measured:
    """Return what one call took of each group, and how many cores all of them kept busy."""
    groups = {name: us for name, us in taken.items() if name.endswith("_us")}
    cores = sum(groups.values()) / 1e6 / taken["elapsed_s"]
    each = {name: us / calls for name, us in groups.items()}
    idle = taken["idle_cores"]
    others = max(0.0, CORES - idle - cores)
    return {**each, "cores": cores, "idle_cores": idle, "other_cores": others}


def compared(
    name: str,
    reference: Sequence[Measured],
    ours: Sequence[Measured],
    labels: Mapping[str, str],
    limits: Mapping[str, Limit] = NO_LIMITS,
) -> list[Row]:
    """Compare two points round by round, and tell how full the cores were."""
    cores = beside(name, reference, ours, REST)
    bare = [replace(row, ratio=None) for row in cores if isinstance(row, Figure)]
    return [*beside(name, reference, ours, labels, limits), *bare]


async def measure(
    kind: str,
    url: str,
    agents: Sequence[str],
    pids: Mapping[str, Sequence[int]],
    *,
    callers: int,
    in_flight: int,
    seconds: float,
) -> Measured:
    """Let callers ask `agents` in turn for some seconds; `pids` are who answers, by group."""
    numbers = (str(in_flight), str(seconds))
    command = python("scripts.benchmarks", "machines", "caller", kind, url, *numbers, *agents)
    async with AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(running(f"caller {number}", command))
            for number in range(callers)
        ]
        for one in crowd:
            await one.says("^ready$")
        async with hand.opened(url) as client:
            with costs(pids) as taken:
                await client.publish(GO, b"")
                told = await asyncio.gather(*(told_by(one) for one in crowd))
    taken["callers_us"] = sum(one["cpu_us"] for one in told)
    return {
        "rate": sum(one["rate"] for one in told),
        "p50_ms": sum(one["p50_ms"] for one in told) / callers,
        **per_call(taken, sum(one["made"] for one in told)),
    }


async def run_caller(
    kind: str, url: str, in_flight: int, seconds: float, agents: Sequence[str]
) -> None:
    """Be one of the callers."""
    opening = asking_by_hand if kind == BARE else asking_mesh
    async with hand.opened(url) as client, opening(url, agents) as ask:
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def go(_: object) -> None:
            gone.set_result(None)

        await client.subscribe(GO, cb=go)
        await client.flush()
        for _ in range(WARM_UP):
            await asyncio.gather(*(ask() for _ in range(in_flight)))
        heap.settle()
        print("ready", flush=True)
        await gone
        before = time.process_time()
        measured = await load_for(ask, seconds, in_flight)
        tell({**measured, "cpu_us": (time.process_time() - before) * 1e6})


@asynccontextmanager
async def asking_by_hand(url: str, agents: Sequence[str]) -> AsyncIterator[Ask]:
    """Ask by hand, one agent after the other."""
    async with hand.calling(url) as caller:
        names = cycle(agents)

        async def ask() -> None:
            await caller.ask(next(names), BODY)

        yield ask


@asynccontextmanager
async def asking_mesh(url: str, agents: Sequence[str]) -> AsyncIterator[Ask]:
    """Ask with the mesh's client."""
    async with connect(url, name="bencher", node="node1") as client:
        names = cycle(agents)

        async def ask() -> None:
            call = await client.start(next(names), BODY, timeout_s=30)
            await call.result()

        yield ask
