"""Answers per second: the mesh's door beside other ways to an agent, asked by wrk."""

import statistics
from typing import Final

from scripts.benchmarks import wrk
from scripts.benchmarks.figures import NO_LIMIT, Figure, Limit
from scripts.benchmarks.wrk import Point, Target

CONNECTIONS: Final = (1, 64)
WARM_UP_S: Final = 1.0

Rounds = list[tuple[Point, Point]]
"""Of each round the reference's point and the mesh's."""


async def alternate(
    reference: Target, mesh: Target, connections: int, rounds: int, seconds: float
) -> Rounds:
    """Measure both in turn, the first one changing every round: machines are noisy."""
    found = []
    for number in range(rounds):
        points = {}
        for target in (reference, mesh) if number % 2 else (mesh, reference):
            points[target] = await wrk.measure(target, connections, seconds)
        found.append((points[reference], points[mesh]))
    return found


async def compare(
    name: str, reference: Target, mesh: Target, least: float, rounds: int, seconds: float
) -> list[Figure]:
    """Return rates and latencies beside a reference; the rate must be `least` times its."""
    for target in (reference, mesh):
        await wrk.measure(target, 4, WARM_UP_S)
    figures = []
    for connections in CONNECTIONS:
        found = await alternate(reference, mesh, connections, rounds, seconds)
        where = f"{name}, {connections} connection{'s'[: connections > 1]}"
        figures += [
            _figure(f"{where}: requests/s", found, "rate", Limit(least=least)),
            _figure(f"{where}: p50 ms", found, "p50_ms"),
            _figure(f"{where}: p99 ms", found, "p99_ms"),
        ]
    return figures


def _figure(name: str, found: Rounds, field: str, limit: Limit = NO_LIMIT) -> Figure:
    """Return medians, and the median of the ratios round by round."""
    pairs = [(getattr(one, field), getattr(other, field)) for one, other in found]
    return Figure(
        name,
        mesh=statistics.median(mesh for _, mesh in pairs),
        reference=statistics.median(reference for reference, _ in pairs),
        ratio=statistics.median(mesh / reference for reference, mesh in pairs),
        limit=limit,
    )
