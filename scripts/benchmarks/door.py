"""Measures the OpenAI door in one run on one machine, beside its references.

A real `mesh up` and `mesh run`, and what they are compared with, each in processes of its own on
loopback. Rounds alternate, since machines are noisy: trust the medians and the ratios.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks import rates, references, wrk
from scripts.benchmarks.figures import Row, table
from scripts.benchmarks.processes import BenchError, Mesh, mesh_run, mesh_up

ECHO = "handlers.echo:agent"


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, and what."""

    rounds: int
    seconds: float
    judge: bool = True
    """Whether limits are held against what a run as short as this can show."""


async def run_bench(plan: Plan) -> list[Row]:
    """Start everything, and measure."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        async with mesh_up(Path(folder)) as mesh:
            rows += await beside_bare(mesh, plan)
    return rows


async def beside_bare(mesh: Mesh, plan: Plan) -> list[Row]:
    """Compare with the same round trip by hand."""
    echo = wrk.Target(mesh.http_url, "echo")
    async with mesh_run(mesh, ECHO), references.bare(mesh) as bare:
        return [
            *await rates.compare("bare ASGI", bare, echo, 0.7, plan.rounds, plan.seconds),
        ]


def main(arguments: list[str]) -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench http", description="The OpenAI door, beside its references."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of every point")
    parser.add_argument("--quick", action="store_true", help="a smoke run: nothing is judged")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    if not wrk.is_installed():
        print(wrk.MISSING, file=sys.stderr)
        sys.exit(2)
    plan = Plan(options.rounds, options.seconds)
    if options.quick:
        plan = Plan(rounds=1, seconds=1.0, judge=False)
    try:
        rows = asyncio.run(run_bench(plan))
    except BenchError as error:
        sys.exit(f"bench: {error}")
    if options.json:
        print(json.dumps([row.as_json() for row in rows], indent=2))
    else:
        print(table(rows, judge=plan.judge))


if __name__ == "__main__":
    main(sys.argv[1:])
