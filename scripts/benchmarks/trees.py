"""Compares two checkouts of this repository, call by call: `scripts/bench calls --against DIR`.

A broker, a control plane, an agent and a caller of each, in the environment of this one. Both are
measured by this bench: of the other checkout only `mesh`, `handlers`, `schemas` and `nats` run.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from scripts.benchmarks.figures import Row
from scripts.benchmarks.loads import LABELS
from scripts.benchmarks.processes import (
    ROOT,
    BenchError,
    Tree,
    mesh_run,
    mesh_up,
    running,
    told_by,
)
from scripts.benchmarks.resources import cpu_us_of
from scripts.benchmarks.rounds import Measured, beside, in_turns

PACKAGES: Final = ("mesh", "handlers", "schemas", "nats")
PEERS: Final = "scripts.benchmarks.peers"
CALLS: Final = {1: 2_000, 64: 10_000}
LEAST_ROUNDS: Final = 7
COSTS: Final = {"agent_us": "CPU µs/call of the agent", "broker_us": "CPU µs/call of the broker"}


@dataclass(frozen=True, slots=True)
class Site:
    """The mesh of a checkout, with its agent."""

    checkout: Path
    tree: Tree
    url: str
    agent_pid: int
    broker_pid: int


def plant(checkout: Path, folder: Path) -> Tree:
    """Put the packages of a checkout into a folder, and this bench beside them.

    Raises:
        BenchError: it is no checkout of this repository.
    """
    folder.mkdir(parents=True)
    for name in PACKAGES:
        if not (checkout / name).is_dir():
            raise BenchError(f"{checkout} is no checkout of this repository: it has no {name}")
        (folder / name).symlink_to((checkout / name).resolve())
    (folder / "scripts").symlink_to(ROOT / "scripts")
    return Tree(folder)


@asynccontextmanager
async def open_site(checkout: Path, folder: Path) -> AsyncIterator[Site]:
    """Run the mesh of a checkout, with its agent."""
    tree = plant(checkout, folder / "tree")
    async with (
        mesh_up(folder / "data", tree) as mesh,
        mesh_run(mesh.nats_url, f"{PEERS}.plain_agent:agent", "bench", tree=tree) as agent,
    ):
        yield Site(checkout, tree, mesh.nats_url, agent.pid, mesh.broker_pid)


def require_mesh_of(checkout: Path, found: str) -> None:
    """Check that a process runs the mesh of this checkout: else two would be compared as one.

    Raises:
        BenchError: it does not.
    """
    if checkout.resolve() not in Path(found).resolve().parents:
        raise BenchError(f"the mesh of {checkout} was to be run, not {found}")


async def measure(site: Site, in_flight: int, scale: float) -> Measured:
    """Call, in a process of its own that runs the client of the checkout."""
    count = max(in_flight, int(CALLS[in_flight] * scale))
    command = site.tree.python(f"{PEERS}.plain_caller", site.url, str(count), str(in_flight))
    with cpu_us_of({"agent_us": site.agent_pid, "broker_us": site.broker_pid}) as taken_us:
        async with running(f"caller of {site.checkout}", command, **site.tree.environ) as caller:
            require_mesh_of(site.checkout, await caller.says("^mesh is (.*)$"))
            measured = await told_by(caller)
    return {**measured, **{name: us / measured["made"] for name, us in taken_us.items()}}


async def run_bench(other: Path, rounds: int, scale: float) -> list[Row]:
    """Run both, and compare this checkout with the other one, round by round."""
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sites = [
            await stack.enter_async_context(open_site(checkout, folder / name))
            for name, checkout in (("other", other), ("this", ROOT))
        ]
        for in_flight in CALLS:
            turn = partial(measure, in_flight=in_flight, scale=scale)
            reference, ours = (await in_turns(sites, rounds, turn)).values()
            name = f"beside the other checkout, {in_flight} in flight"
            rows += beside(name, reference, ours, {**LABELS, **COSTS})
    return rows
