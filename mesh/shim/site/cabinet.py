"""`/agent/{id}`: one agent, where it is, how to call it, and who has."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import Scope

from mesh.errors import AgentNotFoundError
from mesh.shim.guard import require_agent
from mesh.shim.site.drawings import route
from mesh.shim.site.page import Page, page_operation
from mesh.shim.site.painting import PageView, Painter, Parts, Reader, View
from mesh.shim.site.rows import AgentRow, Allows, agent_row
from mesh.shim.site.snippets import remote_call, snippets
from mesh.shim.site.sources import Sources
from mesh.traffic_log import SeenCall

CALLS_SHOWN: Final = 12
OTHERS_SHOWN: Final = 30


class CabinetPage(Page):
    """`GET /agent/{id}`: one agent."""

    operations = page_operation("getCabinet", "/agent/{id}", "See an agent")

    def _view(self, scope: Scope, reader: Reader) -> View:
        agent = scope["path_params"]["id"]
        require_agent(scope, agent)
        self._site.sources.directory.standing(agent)
        return Cabinet(*self._shown(scope, reader), agent)


@dataclass(frozen=True, slots=True)
class Remote:
    """Another agent, and how to call it where it is."""

    id: str
    agent: AgentRow
    node: str
    command: str


@dataclass(frozen=True, slots=True)
class ShownCall:
    """A call, as a page shows it."""

    id: str
    caller: str
    source_node: str
    node: str
    state: str
    code: str
    attempt: int
    at: float
    took_ms: float | None


class Cabinet(PageView):
    """`/agent/{id}`: one agent."""

    template = "cabinet.html"

    def __init__(
        self, sources: Sources, painter: Painter, reader: Reader, allows: Allows, agent: str
    ) -> None:
        super().__init__(sources, painter, reader, allows)
        self._agent = agent
        self.title = agent

    def context(self) -> Mapping[str, Any]:
        """See `View`."""
        row = agent_row(
            self._sources.directory,
            self._sources.log,
            self._sources.directory.standing(self._agent),
        )
        return {"agent": row, "snippets": snippets(self._agent, self._reader.address)}

    def parts(self) -> Parts:
        """See `View`."""
        sources = self._sources
        try:
            standing = sources.directory.standing(self._agent)
        except AgentNotFoundError:
            return {}
        rows = self._rows()
        row = agent_row(sources.directory, sources.log, standing)
        calls = sources.log.calls_of(self._agent, CALLS_SHOWN) if self._sees_traffic else []
        now = time.time()
        last = next((one for one in calls if one.ended_at and one.caller), None)
        others = [
            Remote(f"{one.id}.{node}", one, node, remote_call(one.id, node))
            for one in rows
            for node in one.nodes
            if one.id != self._agent and node not in row.nodes
        ]
        drawing = route(row, caller="http", node=sources.own_node, call=last)
        shown = [_shown_call(one, now) for one in calls]
        return {
            "strip": self._numbers(rows, self._nodes(rows)),
            "state": self._paint.one("agent_state", "state", row),
            "route": self._paint.one("route", "route", drawing, _shown_call(last, now)),
            "others": self._paint.many("remote", "remote", others[:OTHERS_SHOWN]),
            "more": self._paint.one("more", "more", max(0, len(others) - OTHERS_SHOWN)),
            "calls": self._paint.many("call_line", "call", shown),
            "no-calls": self._paint.one("no_calls", "no-calls", not calls, self._sees_traffic),
        }


def _shown_call(call: SeenCall | None, now: float) -> ShownCall | None:
    if call is None:
        return None
    return ShownCall(
        id=call.id,
        caller=call.caller,
        source_node=call.source_node,
        node=call.node,
        state=call.state_at(now).value,
        code=call.code,
        attempt=call.attempt,
        at=call.asked_at or call.ended_at,
        took_ms=call.took_s * 1_000 if call.took_s is not None else None,
    )
