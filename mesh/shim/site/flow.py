"""`/flow`: who asks whom, and where calls wait."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from mesh.errors import InvalidInputError
from mesh.shim.site.drawings import Window, traffic_map
from mesh.shim.site.mermaid import flowchart
from mesh.shim.site.page import Page, page_operation
from mesh.shim.site.painting import PageView, Painter, Parts, Reader, View
from mesh.shim.site.rows import Allows
from mesh.shim.site.sources import Sources


class FlowPage(Page):
    """`GET /flow`: who asks whom."""

    operations = page_operation("getFlow", "/flow", "See the traffic")
    parameters = ("window",)

    def _view(self, scope: Scope, reader: Reader) -> View:
        return Flow(*self._shown(scope, reader), _read_window(reader))


def _read_window(reader: Reader) -> Window:
    wanted = dict(reader.query).get("window", Window.FIVE.parameter)
    for one in Window:
        if one.parameter == wanted:
            return one
    known = ", ".join(one.parameter for one in Window)
    raise InvalidInputError(f"window: {wanted[:40]!r} is none of {known}", field="window")


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

    def __init__(
        self, sources: Sources, painter: Painter, reader: Reader, allows: Allows, window: Window
    ) -> None:
        super().__init__(sources, painter, reader, allows)
        self._window = window

    def context(self) -> Mapping[str, Any]:
        """See `View`."""
        return {"window": self._window, "windows": list(Window)}

    def parts(self) -> Parts:
        """See `View`."""
        rows, now, window = self._rows(), time.time(), self._window
        nodes = self._nodes(rows)
        edges = self._sources.log.edges(now, window.seconds) if self._sees_traffic else []
        states = {one.id: one.state for one in nodes}
        drawing = traffic_map(rows, states, edges, now, window)
        lines = [
            FlowRow(
                f"{number}",
                one.caller,
                one.source_node,
                one.agent,
                one.node,
                one.calls(now, window.seconds),
                one.errors(now, window.seconds),
            )
            for number, one in enumerate(edges)
        ]
        return {
            "strip": self._numbers(rows, nodes),
            "map": self._paint.one("traffic_map", "map", drawing),
            "edges": self._paint.many("edge_line", "edge", lines),
            "no-edges": self._paint.one(
                "no_edges", "no-edges", not edges, self._sees_traffic, window.words
            ),
            "mermaid": self._paint.one("mermaid", "mermaid", flowchart(edges, now, window)),
        }
