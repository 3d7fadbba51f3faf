"""A run in numbers: what was promised and broken, and how long it took after each fault."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults.checker import ANSWERED, Attempt, Verdict
from tests.faults.nemesis import Blow

SOON_S = 10.0
"""P6: after a fault is removed, 99 % of calls succeed within this."""
STOOD_STILL_S = 1.0
"""A call during which the machine stood still for so long says nothing of the mesh."""


@dataclass(slots=True)
class Recovery:
    """How calls fared that were begun after faults of one kind, and before the next fault."""

    blows: int = 0
    times_s: list[float] = field(default_factory=list)
    """Of each such call; endless where it was not answered."""

    @property
    def soon(self) -> float:
        """The share that was answered soon enough; 1 where there was no call."""
        in_time = sum(one <= SOON_S for one in self.times_s)
        return in_time / len(self.times_s) if self.times_s else 1.0


def recoveries(attempts: Sequence[Attempt], blows: Sequence[Blow]) -> Mapping[str, Recovery]:
    """Sort the calls by the fault before them."""
    found: dict[str, Recovery] = {}
    ends = [blow.began_s for blow in blows[1:]] + [float("inf")]
    for blow, end_s in zip(blows, ends, strict=True):
        recovery = found.setdefault(blow.fault, Recovery())
        recovery.blows += 1
        for one in attempts:
            if counts(one, blow, end_s):
                is_answered = one.outcome == ANSWERED
                took_s = one.ended_s - one.started_s - one.lost_s
                recovery.times_s.append(took_s if is_answered else float("inf"))
    return found


def counts(one: Attempt, blow: Blow, end_s: float = float("inf")) -> bool:
    """Tell whether a call says how the mesh is after a fault, when the next begins at `end_s`.

    One that the next fault met while it was not late yet says nothing of this one.
    """
    began_in_time = blow.over_s <= one.started_s < end_s
    is_met_by_next = one.ended_s >= end_s and end_s - one.started_s <= SOON_S
    return began_in_time and not is_met_by_next and one.lost_s < STOOD_STILL_S


def broken_gently(attempts: Sequence[Attempt], blows: Sequence[Blow]) -> list[str]:
    """Return the calls that failed of what no call may fail of, each with its error.

    They began while it was done, and ended before the next fault.
    """
    ends = [blow.began_s for blow in blows[1:]] + [float("inf")]
    return [
        f"{one.text}: {one.outcome}"
        for blow, end_s in zip(blows, ends, strict=True)
        for one in attempts
        if blow.is_gentle
        and blow.began_s <= one.started_s < blow.over_s
        and one.ended_s < end_s
        and one.lost_s < STOOD_STILL_S
        and one.outcome != ANSWERED
    ]


def failures(attempts: Sequence[Attempt], blows: Sequence[Blow]) -> str:
    """Return what was not answered as lines for a person: when, and what had happened by then."""
    lines = []
    for one in attempts:
        if one.outcome != ANSWERED:
            before = [blow for blow in blows if blow.began_s <= one.ended_s][-1:]
            since = "".join(
                f"{one.ended_s - blow.began_s:.1f} s after: {blow.fault}" for blow in before
            )
            took_s = one.ended_s - one.started_s
            lines.append(
                f"{one.text:<14}{one.outcome:<22}took {took_s:5.1f} s, of which nobody ran "
                f"{one.lost_s:5.1f}; {since}"
            )
    return "\n".join(lines)


def table(verdict: Verdict, found: Mapping[str, Recovery]) -> str:
    """Return the run as lines for a person."""
    lines = [f"{'fault':<26}{'runs':>6}{'calls after':>13}{'in 10 s':>9}{'slowest':>9}"]
    for name, one in sorted(found.items()):
        slowest = f"{max(one.times_s):.1f} s" if one.times_s else "-"
        lines.append(f"{name:<26}{one.blows:>6}{len(one.times_s):>13}{one.soon:>9.1%}{slowest:>9}")
    calls = sum(verdict.outcomes.values())
    outcomes = ", ".join(f"{name} {many}" for name, many in verdict.outcomes.most_common())
    lines += [
        "",
        f"{calls} calls: {outcomes}",
        f"lost {len(verdict.lost)}, two answers {len(verdict.two_answers)}, "
        f"unexplained {len(verdict.unexplained)}, late {len(verdict.late)}; "
        f"begun twice {verdict.repeated}, failed and yet worked on {verdict.recovered}",
    ]
    named = {"lost": verdict.lost, "unexplained": verdict.unexplained, "late": verdict.late}
    lines += [f"{name}: {one}" for name, found in named.items() for one in found]
    return "\n".join(lines)
