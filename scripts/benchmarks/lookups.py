"""Measures look-ups in the registry: in a process that follows it, over NATS, and over HTTP.

For those in memory, agents are written to the registry's bucket as the registrar writes them, a
hundred to a process; no mailboxes are made, for nobody calls them. Over NATS and HTTP agents are
announced to a real registrar.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Final

from mesh import heap, registry, subjects
from mesh.callers import new_instance_id
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory
from mesh.errors import AgentNotFoundError
from mesh.runtime import describe_process
from schemas.base import WireModel
from schemas.card import AgentCard
from schemas.registry import AgentRecord, AgentView, Instance, NodeRecord, Placement, Role
from scripts.benchmarks import calls
from scripts.benchmarks.door import fresh_mesh
from scripts.benchmarks.figures import Figure, Limit, Row, report
from scripts.benchmarks.loads import load, quantiles_ms
from scripts.benchmarks.options import complete, parser
from scripts.benchmarks.processes import BenchError, Mesh
from scripts.benchmarks.registrations import list_times, registered, until_listed

DESCRIPTION: Final = "Look-ups in the registry: in memory, over NATS, over HTTP."
COUNTS: Final = (100, 1_000, 10_000)
LISTED: Final = 500
PER_PROCESS: Final = 100
AT_ONCE: Final = 500
LOOKUPS: Final = 20_000
UNKNOWN: Final = 20
NODE: Final = "node1"
GOAL: Final = Limit(most=50, unit="µs")
SEED: Final = 7


def records_of(ids: list[str]) -> Iterator[tuple[str, WireModel]]:
    """Yield keys and values for agents that run, as the registrar writes them."""
    yield registry.node_key(NODE), NodeRecord(node=NODE)
    for start in range(0, len(ids), PER_PROCESS):
        share = ids[start : start + PER_PROCESS]
        instance = describe_process(NODE, Role.HOST, share)
        yield registry.instance_key(instance.instance), instance
        for agent in share:
            placement = Placement(agent=agent, node=NODE, instance=instance.instance)
            yield registry.placement_key(agent, instance.instance), placement
            yield registry.agent_key(agent), AgentRecord(card=AgentCard(id=agent), nodes=(NODE,))


async def write(connection: Connection, ids: list[str]) -> None:
    """Write agents to the registry's bucket."""
    records = list(records_of(ids))
    for start in range(0, len(records), AT_ONCE):
        some = records[start : start + AT_ONCE]
        await asyncio.gather(*(registry.put(connection, key, value) for key, value in some))


async def in_memory(url: str, counts: tuple[int, ...], lookups: int) -> list[Row]:
    """Let the registry grow, and look agents up at each size."""
    rows: list[Row] = []
    async with open_connection(url, name="bench lookups") as connection:
        # Without a registrar, nobody is online for sure, and that is another way through the code.
        registrar = Instance(instance=new_instance_id(), node=NODE, role=Role.REGISTRAR)
        await registry.put(connection, registry.instance_key(registrar.instance), registrar)
        ids: list[str] = []
        for count in counts:
            more = [f"agent{number}" for number in range(len(ids), count)]
            await write(connection, more)
            ids += more
            start = time.perf_counter()
            async with follow_directory(connection) as directory:
                read_s = time.perf_counter() - start
                heap.settle()
                rows += looked_up(directory, ids, lookups)
            rows.append(Figure(f"{count} agents: reading all of them, s", read_s))
    return rows


def looked_up(directory: Directory, ids: list[str], lookups: int) -> list[Row]:
    """Time each way to look one agent up, one after the other, each alone."""
    ways: dict[str, Callable[[str], object]] = {
        "agent()": directory.agent,
        "standing()": directory.standing,
        "require_target()": lambda agent: directory.require_target(agent, NODE),
    }
    rows: list[Row] = []
    chosen = random.Random(SEED).choices(ids, k=lookups)
    for name, look_up in ways.items():
        taken = quantiles_ms([seconds_of(look_up, agent) for agent in chosen])
        where = f"{len(ids)} agents: {name}"
        rows += [
            Figure(f"{where}, p50 µs", taken["p50_ms"] * 1e3),
            Figure(f"{where}, p99 µs", taken["p99_ms"] * 1e3, GOAL),
        ]
    unknown = quantiles_ms(
        [seconds_of(directory.agent, f"agemt{number}") for number in range(UNKNOWN)]
    )
    rows.append(Figure(f"{len(ids)} agents: one that nobody knows, p50 ms", unknown["p50_ms"]))
    return rows


def seconds_of(look_up: Callable[[str], object], agent: str) -> float:
    """Look an agent up, and return how long it took; one that nobody knows as well."""
    start = time.perf_counter()
    with suppress(AgentNotFoundError):
        look_up(agent)
    return time.perf_counter() - start


async def over_nats(mesh: Mesh, ids: list[str], lookups: int) -> list[Row]:
    """Ask the registrar, one question at a time and 64 at once."""
    chosen = cycle(random.Random(SEED).choices(ids, k=lookups))
    rows: list[Row] = []
    async with open_connection(mesh.nats_url, name="bench lookups") as connection:

        async def ask() -> None:
            agent = next(chosen)
            answer = await connection.client.request(subjects.lookup(agent), b"", timeout=30)
            if AgentView.model_validate_json(answer.data).card.id != agent:
                raise BenchError(f"registry.get.{agent}: {answer.data.decode()}")

        for in_flight in (1, 64):
            taken = await load(ask, lookups, in_flight, heap.settle)
            name = f"registry.get.<id>, {len(ids)} agents, {in_flight} in flight"
            rows += [
                Figure(f"{name}: p50 ms", taken["p50_ms"]),
                Figure(f"{name}: p99 ms", taken["p99_ms"]),
                Figure(f"{name}: look-ups/s", taken["rate"]),
            ]
    return rows


async def run_bench(counts: tuple[int, ...], listed: int, scale: float) -> list[Row]:
    """Start everything, and measure."""
    with tempfile.TemporaryDirectory() as name:
        async with calls.open_broker(Path(name)) as url:
            rows = await in_memory(url, counts, int(LOOKUPS * scale))
    ids = [f"model{number}" for number in range(listed)]
    async with fresh_mesh() as mesh, registered(mesh, ids):
        await until_listed(mesh, ids)
        rows += await over_nats(mesh, ids, int(LOOKUPS / 10 * scale))
        rows += await list_times(mesh, listed)
    return rows


def main(arguments: list[str]) -> None:
    """Run, and print the table."""
    options = parser("lookups", DESCRIPTION).parse_args(arguments)
    scale = options.scale * (0.1 if options.quick else 1.0)
    counts, listed = (COUNTS[:-1], 100) if options.quick else (COUNTS, LISTED)
    rows = complete(run_bench(counts, listed, scale))
    report(rows, judge=not options.quick, as_json=options.json)
