"""What was measured, as rows: a figure, its reference, and the limit that it is held against."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

HEAD: Final = ("figure", "reference", "mesh", "ratio", "limit", "")


@dataclass(frozen=True, slots=True)
class Limit:
    """What a value must be. Without a bound nothing is demanded."""

    least: float | None = None
    most: float | None = None
    unit: str = ""

    def allows(self, value: float) -> bool:
        """Tell whether a value keeps to it."""
        is_enough = self.least is None or value >= self.least
        return is_enough and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        least = "" if self.least is None else f"≥ {self.least:g}"
        most = "" if self.most is None else f"≤ {self.most:g}"
        return " ".join(part for part in (least, most, self.unit) if part)


NO_LIMIT: Final = Limit()


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. The limit is for the ratio if there is a reference, and else for the value."""

    name: str
    mesh: float
    limit: Limit = NO_LIMIT
    reference: float | None = None
    ratio: float | None = None

    @property
    def is_kept(self) -> bool | None:
        """Whether the limit is kept; None without any."""
        if self.limit == NO_LIMIT:
            return None
        return self.limit.allows(self.mesh if self.ratio is None else self.ratio)

    def row(self, *, judge: bool) -> tuple[str, ...]:
        """Return the cells of the table."""
        verdict = {True: "ok", False: "MISS", None: ""}[self.is_kept] if judge else ""
        numbers = (_shown(self.reference), _shown(self.mesh), _shown(self.ratio, 2))
        return (self.name, *numbers, str(self.limit), verdict)

    def as_json(self) -> dict[str, Any]:
        """Return the figure as plain data."""
        return {**asdict(self), "is_kept": self.is_kept}


@dataclass(frozen=True, slots=True)
class NotRun:
    """A row that says so."""

    name: str
    reason: str

    @property
    def is_kept(self) -> None:
        """Nothing is known."""
        return

    def row(self, *, judge: bool) -> tuple[str, ...]:
        """Return the cells of the table."""
        return (self.name, "NOT RUN", "NOT RUN", "", "", self.reason)

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return {"name": self.name, "not_run": self.reason}


Row = Figure | NotRun


def row_of(plain: Mapping[str, Any]) -> Row:
    """Return the row that `as_json` has made plain."""
    if "not_run" in plain:
        return NotRun(plain["name"], plain["not_run"])
    fields = {name: plain[name] for name in ("name", "mesh", "reference", "ratio")}
    return Figure(**fields, limit=Limit(**plain["limit"]))


Pairs = list[tuple[float, float]]
"""Of each round the reference's value and the mesh's."""


def of_rounds(name: str, pairs: Pairs, limit: Limit = NO_LIMIT) -> Figure:
    """Return the medians, and the median of the ratios round by round.

    A round whose reference is 0 has no ratio: a short one may take less than a tick of the clock.
    """
    ratios = [mesh / reference for reference, mesh in pairs if reference]
    return Figure(
        name,
        mesh=statistics.median(mesh for _, mesh in pairs),
        reference=statistics.median(reference for reference, _ in pairs),
        ratio=statistics.median(ratios) if ratios else None,
        limit=limit,
    )


def table(rows: list[Row], *, judge: bool) -> str:
    """Render rows as Markdown. Without `judge` limits are shown, and not held against anything."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.row(judge=judge) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def report(rows: list[Row], *, judge: bool, as_json: bool) -> None:
    """Print what was measured: a table, or the same as plain data."""
    print(
        json.dumps([row.as_json() for row in rows], indent=2)
        if as_json
        else table(rows, judge=judge)
    )


def _shown(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return ""
    if digits is None:
        digits = 0 if value >= 1_000 else 1 if value >= 100 else 2
    return f"{value:.{digits}f}"
