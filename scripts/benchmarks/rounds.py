"""Rounds of a bench: everybody in turn, the first one changing, since machines are noisy."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from scripts.benchmarks.figures import NO_LIMIT, Limit, Row, of_rounds

Site = TypeVar("Site")
Measured = dict[str, float]
"""What one round has measured, by the name of the figure."""
NO_LIMITS: Final[Mapping[str, Limit]] = {}


async def in_turns(
    sites: Sequence[Site], rounds: int, measure: Callable[[Site], Awaitable[Measured]]
) -> dict[Site, list[Measured]]:
    """Measure every site once a round. The order is reversed from round to round."""
    found: dict[Site, list[Measured]] = {site: [] for site in sites}
    for number in range(rounds):
        for site in sites if number % 2 else sites[::-1]:
            found[site].append(await measure(site))
    return found


def beside(
    name: str,
    reference: Sequence[Measured],
    ours: Sequence[Measured],
    labels: Mapping[str, str],
    limits: Mapping[str, Limit] = NO_LIMITS,
) -> list[Row]:
    """Compare two sites round by round: a row for each of `labels`, with the limit of its ratio."""
    return [
        of_rounds(
            f"{name}: {label}",
            [(one[field], other[field]) for one, other in zip(reference, ours, strict=True)],
            limits.get(field, NO_LIMIT),
        )
        for field, label in labels.items()
    ]
