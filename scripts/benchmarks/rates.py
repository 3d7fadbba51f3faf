"""Answers per second: the mesh's door beside other ways to an agent, asked by wrk."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from scripts.benchmarks import wrk
from scripts.benchmarks.figures import NO_LIMIT, Figure, Limit, of_rounds
from scripts.benchmarks.processes import BenchError
from scripts.benchmarks.wrk import Point, Target

CONNECTIONS: Final = (1, 64)
WARM_UPS_S: Final = (1.0, 4.0, 16.0)
"""The first answer of LiteLLM's proxy takes seconds, and wrk asks anew each time."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often, and how long."""

    rounds: int
    seconds: float
    """Of one point of the mesh."""
    reference_seconds: float
    """Of one point of the reference. A slow one answers 64 connections in waves of seconds."""


Rounds = list[tuple[Point, Point]]
"""Of each round the reference's point and the mesh's."""


async def compare(
    name: str, reference: Target, mesh: Target, least: float, pace: Pace
) -> list[Figure]:
    """Return rates and latencies beside a reference; the rate must be `least` times its."""
    for target in (reference, mesh):
        await _warm_up(target)
    figures = []
    for connections in CONNECTIONS:
        rounds = await _alternate(reference, mesh, connections, pace)
        where = f"{name}, {connections} connection{'s'[: connections > 1]}"
        figures += [
            _figure(f"{where}: requests/s", rounds, "rate", Limit(least=least)),
            _figure(f"{where}: p50 ms", rounds, "p50_ms"),
            _figure(f"{where}: p99 ms", rounds, "p99_ms"),
        ]
    return figures


async def _warm_up(target: Target) -> None:
    *first, last = WARM_UPS_S
    for seconds in first:
        with suppress(BenchError):
            await wrk.measure(target, 4, seconds)
            return
    await wrk.measure(target, 4, last)


async def _alternate(reference: Target, mesh: Target, connections: int, pace: Pace) -> Rounds:
    """Measure both in turn, the first one changing every round: machines are noisy."""
    found = []
    for number in range(pace.rounds):
        points = {}
        for target in (reference, mesh) if number % 2 else (mesh, reference):
            seconds = pace.seconds if target is mesh else pace.reference_seconds
            points[target] = await wrk.measure(target, connections, seconds)
        found.append((points[reference], points[mesh]))
    return found


def _figure(name: str, rounds: Rounds, field: str, limit: Limit = NO_LIMIT) -> Figure:
    pairs = [(getattr(one, field), getattr(other, field)) for one, other in rounds]
    return of_rounds(name, pairs, limit)
