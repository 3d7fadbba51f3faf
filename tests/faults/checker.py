"""What a history of calls says of the promises: the queue checker of Jepsen, for request and reply.

Pure: it is given what callers saw, what handlers did, and what JetStream holds in the end.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from mesh.streams import ACK_BACKOFF_S

ANSWERED: Final = "answered"
EXPIRED: Final = "timeout"
GRACE_S: Final = 1.0
"""P5: a call ends by its deadline and a second."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call, as its caller saw it. Times are of the monotonic clock of one process."""

    call_id: str
    text: str
    started_s: float
    ended_s: float
    timeout_s: float
    outcome: str
    """`answered`, or the code of the error."""
    answer: str
    is_stored: bool
    """Whether the broker acknowledged the request."""
    lost_s: float = 0.0
    """For how long nobody ran on this machine meanwhile."""
    grace_s: float = GRACE_S
    """How long after its deadline it may be told so."""

    @property
    def took_s(self) -> float:
        """How long the caller waited."""
        return self.ended_s - self.started_s


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known at the end of a run."""

    attempts: Sequence[Attempt]
    begun: Mapping[str, int]
    """How often a handler began, by the text it was asked."""
    done: Mapping[str, int]
    """How often one came to its end."""
    terminals: Mapping[str, int]
    """Terminal frames that were stored, by call."""
    letters: Set[str]
    """Calls that are dead letters."""
    waiting: Set[str]
    """Calls whose requests are still in a mailbox."""


@dataclass(slots=True)
class Verdict:
    """Which promises were broken, by call; and what may happen, counted."""

    lost: list[str] = field(default_factory=list)
    """P1: acknowledged, and then neither done, nor dead, nor expired, nor waiting."""
    two_answers: list[str] = field(default_factory=list)
    """P2."""
    unexplained: list[str] = field(default_factory=list)
    """P3: an answer to something else, or to what no handler was asked."""
    late: list[str] = field(default_factory=list)
    """P5: ended after its deadline and a second."""
    outcomes: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    """Calls whose handler began more than once: that is allowed."""
    recovered: int = 0
    """Calls that ended with an error and were worked on all the same: that is allowed, too."""

    @property
    def is_kept(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.two_answers or self.unexplained or self.late)


def check(evidence: Evidence) -> Verdict:
    """Compare what was promised with what happened."""
    verdict = Verdict()
    for one in evidence.attempts:
        done = evidence.done.get(one.text, 0)
        verdict.outcomes[one.outcome] += 1
        verdict.repeated += evidence.begun.get(one.text, 0) > 1
        verdict.recovered += done > 0 and one.outcome != ANSWERED
        if _is_lost(one, evidence):
            begun = evidence.begun.get(one.text, 0)
            verdict.lost.append(f"{one.call_id} ({one.text}, begun {begun} times)")
        if one.outcome == ANSWERED and (one.answer != one.text or not done):
            verdict.unexplained.append(one.call_id)
        if one.took_s - one.lost_s > one.timeout_s + one.grace_s:
            verdict.late.append(one.call_id)
    verdict.two_answers = [call for call, frames in evidence.terminals.items() if frames > 1]
    return verdict


def _is_lost(one: Attempt, evidence: Evidence) -> bool:
    is_accounted_for = (
        evidence.done.get(one.text, 0) > 0
        or one.call_id in evidence.letters
        or one.call_id in evidence.waiting
        or _has_expired(one, evidence)
    )
    return one.is_stored and not is_accounted_for


def _has_expired(one: Attempt, evidence: Evidence) -> bool:
    """Tell whether a call may be over with nobody having done it.

    Not before its deadline; and not if somebody had begun it, unless every worker died that the
    deadline left time for: one that was begun less often was acknowledged before it was done.
    """
    is_overdue = one.took_s > one.timeout_s - GRACE_S
    begun = evidence.begun.get(one.text, 0)
    return one.outcome == EXPIRED and is_overdue and begun in (0, attempts_within(one.timeout_s))


def attempts_within(timeout_s: float) -> int:
    """Return how many workers can take a call before its deadline, when each dies at once."""
    begins_s = accumulate(ACK_BACKOFF_S, initial=0.0)
    return sum(at_s < timeout_s for at_s in begins_s)
