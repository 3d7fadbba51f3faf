"""`/flow`: who asks whom, and where calls wait."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from mesh.shim.site.drawings import traffic_map
from mesh.shim.site.page import Page, page_operation
from mesh.shim.site.painting import PageView, Parts, Reader, View


class FlowPage(Page):
    """`GET /flow`: who asks whom."""

    operations = page_operation("getFlow", "/flow", "See the traffic")

    def _view(self, scope: Scope, reader: Reader) -> View:
        return Flow(*self._shown(scope, reader))


@dataclass(frozen=True, slots=True)
class FlowRow:
    """The calls of one caller to one agent, in numbers."""

    id: str
    caller: str
    source_node: str
    agent: str
    node: str
    calls: int
    errors: int


class Flow(PageView):
    """`/flow`: who asks whom."""

    template = "flow.html"
    title = "Flow"

    def context(self) -> Mapping[str, Any]:
        """See `View`."""
        return {}

    def parts(self) -> Parts:
        """See `View`."""
        rows, now = self._rows(), time.time()
        nodes = self._nodes(rows)
        edges = self._sources.log.edges(now) if self._sees_traffic else []
        states = {one.id: one.state for one in nodes}
        drawing = traffic_map(rows, states, edges, now)
        lines = [
            FlowRow(
                f"{number}",
                one.caller,
                one.source_node,
                one.agent,
                one.node,
                one.calls(now),
                one.errors(now),
            )
            for number, one in enumerate(edges)
        ]
        return {
            "strip": self._numbers(rows, nodes),
            "map": self._paint.one("traffic_map", "map", drawing),
            "edges": self._paint.many("edge_line", "edge", lines),
            "no-edges": self._paint.one("no_edges", "no-edges", not edges, self._sees_traffic),
        }
