"""Measures the OpenAI door in one run on one machine, beside its references.

A real `mesh up` and `mesh run`, and what they are compared with, each in processes of its own on
loopback. Rounds alternate, since machines are noisy: trust the medians and the ratios.
"""

import argparse
import asyncio
import os
import resource
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from scripts.benchmarks import rates, references, registrations, streams, wrk
from scripts.benchmarks.figures import Figure, Row, report
from scripts.benchmarks.notes import not_run, note
from scripts.benchmarks.peers import waiting_agents
from scripts.benchmarks.processes import ROOT, BenchError, Mesh, mesh_run, mesh_up
from scripts.benchmarks.rates import Pace

ECHO: Final = "handlers.echo:agent"
WAITING: Final = "scripts.benchmarks.peers.waiting_agents:agents"
OPEN_FILES: Final = 8_192
SLOW_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how much, and beside whom."""

    pace: Pace
    slow_pace: Pace
    """Beside those who take tens of milliseconds for an answer."""
    first_chunks: int = 200
    idle_streams: int = 1_000
    agents: int = 1_000
    with_guide: bool = True
    with_litellm: bool = True
    judge: bool = True
    """Whether limits are held against it: a smoke run shows nothing."""


QUICK: Final = Plan(
    Pace(1, 1, 1), Pace(1, 1, 5), first_chunks=20, idle_streams=100, agents=100, judge=False
)


async def run_bench(plan: Plan) -> list[Row]:
    """Start everything, and measure."""
    rows: list[Row] = []
    async with fresh_mesh() as mesh:
        echo = wrk.Target(mesh.http_url, "echo")
        async with mesh_run(mesh.nats_url, ECHO, "echo"):
            await registrations.until_listed(mesh, ["echo"])
            rows += await beside_bare(mesh, echo, plan)
            rows += await beside_guide(echo, plan)
            rows += await beside_litellm(echo, plan)
    # Its memory is that of a door which has done nothing else.
    async with fresh_mesh() as mesh:
        async with mesh_run(mesh.nats_url, WAITING, *waiting_agents.IDS):
            await registrations.until_listed(mesh, list(waiting_agents.IDS))
            rows += await streams.idle(mesh, plan.idle_streams)
        rows += await registrations.listing(mesh, plan.agents)
    return rows


@asynccontextmanager
async def fresh_mesh() -> AsyncIterator[Mesh]:
    """Run a mesh with nothing in it."""
    with tempfile.TemporaryDirectory() as folder:
        async with mesh_up(Path(folder)) as mesh:
            yield mesh


async def beside_bare(mesh: Mesh, echo: wrk.Target, plan: Plan) -> list[Figure]:
    """Compare with the same round trip by hand."""
    note("beside a bare ASGI application")
    async with references.bare(mesh) as bare:
        return [
            *await rates.compare("bare ASGI", bare, echo, 0.8, plan.pace),
            await streams.first_chunk(bare, echo, plan.pace.rounds, plan.first_chunks),
        ]


async def beside_guide(echo: wrk.Target, plan: Plan) -> list[Row]:
    """Compare with the guide's own design."""
    name = "the guide's design"
    if not plan.with_guide:
        return [not_run(name, "--no-guide")]
    note(f"beside {name}")
    try:
        await references.environment("bench")
        async with references.guide() as guide:
            return [*await rates.compare(name, guide, echo, 30, plan.slow_pace)]
    except BenchError as error:
        return [not_run(name, str(error))]


async def beside_litellm(echo: wrk.Target, plan: Plan) -> list[Row]:
    """Compare with LiteLLM's proxy."""
    name = "LiteLLM's proxy"
    if not plan.with_litellm:
        return [not_run(name, "--no-litellm")]
    note(f"beside {name}")
    try:
        await references.environment("litellm")
        with tempfile.TemporaryDirectory() as folder:
            async with references.litellm(Path(folder)) as proxy:
                return [*await rates.compare(name, proxy, echo, 40, plan.slow_pace)]
    except BenchError as error:
        return [not_run(name, str(error))]


def allow_open_files() -> None:
    """Let this process, and those that it starts, hold thousands of connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def read_plan(arguments: list[str]) -> tuple[Plan, bool]:
    """Read the command line; the second is whether JSON is wanted."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench http", description="The OpenAI door, beside its references."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of every point")
    parser.add_argument("--quick", action="store_true", help="a smoke run that judges nothing")
    parser.add_argument("--no-guide", action="store_true", help="leave the guide's design out")
    parser.add_argument("--no-litellm", action="store_true", help="leave LiteLLM's proxy out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    rounds, seconds = options.rounds, options.seconds
    slow_rounds = max(1, min(rounds, SLOW_ROUNDS))
    pace, slow_pace = Pace(rounds, seconds, seconds), Pace(slow_rounds, seconds, 3 * seconds)
    plan = QUICK if options.quick else Plan(pace, slow_pace)
    plan = replace(plan, with_guide=not options.no_guide, with_litellm=not options.no_litellm)
    return plan, options.json


def main(arguments: list[str]) -> None:
    """Run, and print the table. A missed limit is told, and is no failure: machines are noisy."""
    plan, as_json = read_plan(arguments)
    if not wrk.is_installed():
        print(wrk.MISSING, file=sys.stderr)
        sys.exit(2)
    allow_open_files()
    os.chdir(ROOT)
    try:
        rows = asyncio.run(run_bench(plan))
    except BenchError as error:
        sys.exit(f"bench: {error}")
    report(rows, judge=plan.judge, as_json=as_json)
    for row in rows:
        if plan.judge and row.is_kept is False:
            note(f"MISS: {row.name} is not {row.limit}")
