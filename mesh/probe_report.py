"""Puts the results of a connection test together: rows for nodes and agents, and one verdict.

Pure; `mesh.probes` finds the results.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from schemas.probe import (
    AgentReport,
    ConnectionReport,
    Method,
    NodeReport,
    Outcome,
    PlaceReport,
    ProbeEnd,
    ProbeResult,
    ProbeState,
    ProbeSummary,
    Verdict,
)


@dataclass(slots=True)
class ReportBuilder:
    """Takes results in the order in which they come."""

    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    results: list[ProbeResult] = field(default_factory=list)
    _begun: float = field(default_factory=time.perf_counter)

    def add(self, result: ProbeResult) -> None:
        """Take in one result."""
        self.results.append(result)

    def end(self) -> ProbeEnd:
        """Return what it all comes to."""
        took_ms = round((time.perf_counter() - self._begun) * 1000, 1)
        return ProbeEnd(
            started_at=self.started_at, took_ms=took_ms, summary=summarise(self.results)
        )

    def report(self, end: ProbeEnd) -> ConnectionReport:
        """Return everything, by node and by agent."""
        return ConnectionReport(
            **dict(end),
            broker=tuple(one for one in self.results if one.agent_id is None and one.node is None),
            nodes=tuple(_node_reports(self.results)),
            agents=tuple(_agent_reports(self.results)),
        )


def summarise(results: Sequence[ProbeResult]) -> ProbeSummary:
    """Count results, and say what they come to: without broker and JetStream, nothing works."""
    count = Counter(one.state.value for one in results)
    verdict = verdict_of(one.state for one in results)
    is_down = any(
        one.method in (Method.BROKER, Method.JETSTREAM) and one.state is not ProbeState.OK
        for one in results
    )
    return ProbeSummary(state=Verdict.FAILED if is_down else verdict, **count)


def verdict_of(states: Iterable[ProbeState]) -> Verdict:
    """Return what states come to, together."""
    tried = {one for one in states if one is not ProbeState.NOT_TRIED}
    if not tried:
        return Verdict.NOT_TRIED
    if tried == {ProbeState.OK}:
        return Verdict.OK
    return Verdict.DEGRADED if ProbeState.OK in tried else Verdict.FAILED


def _row_verdict(states: Sequence[ProbeState]) -> Verdict:
    return Verdict.OFFLINE if ProbeState.OFFLINE in states else verdict_of(states)


def _node_reports(results: Sequence[ProbeResult]) -> Iterable[NodeReport]:
    for node in sorted({one.node for one in results if one.node and not one.agent_id}):
        row = [one for one in results if one.node == node and not one.agent_id]
        verdict = _row_verdict([one.state for one in row])
        yield NodeReport(node=node, state=verdict, methods=_by_method(row))


def _agent_reports(results: Sequence[ProbeResult]) -> Iterable[AgentReport]:
    by_agent: dict[str, list[ProbeResult]] = {}
    for one in results:
        if one.agent_id:
            by_agent.setdefault(one.agent_id, []).append(one)
    for agent, row in sorted(by_agent.items()):
        nodes = sorted({one.node for one in row if one.node})
        yield AgentReport(
            agent_id=agent,
            state=_row_verdict([one.state for one in row]),
            methods=_by_method(one for one in row if not one.node),
            nodes=tuple(
                PlaceReport(node=node, methods=_by_method(one for one in row if one.node == node))
                for node in nodes
            ),
        )


def _by_method(results: Iterable[ProbeResult]) -> dict[Method, Outcome]:
    found = {}
    for one in results:
        found[one.method] = Outcome(
            state=one.state, latency_ms=one.latency_ms, detail=one.detail, fix=one.fix
        )
    return found
