"""`/agents/connections`: the agents of each node, the ways to them, and what the test says."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final
from urllib.parse import urlencode

from starlette.types import Scope

from mesh.shim.connection_test import LastRun
from mesh.shim.paging import Query
from mesh.shim.site.page import Page, page_operation
from mesh.shim.site.painting import ROWS_SHOWN, PageView, Parts, Reader, View
from mesh.shim.site.rows import AgentRow, NodeRow
from mesh.shim.site.snippets import test_command
from mesh.standing import Condition
from schemas.probe import Method
from schemas.registry import State

WAYS: Final = (Method.INBOX, Method.ROUTER, Method.DIRECT, Method.REGISTRY, Method.PRESENCE)
MAX_PAGE: Final = 10_000


class ConnectionsPage(Page):
    """`GET /agents/connections`: the ways to every agent, and what the test says of them."""

    operations = page_operation("getConnections", "/agents/connections", "See the connections")
    parameters = ("node", "state", "q", "page")

    def _view(self, scope: Scope, reader: Reader) -> View:
        query = Query.read(scope, self.parameters)
        query.number("page", 1, 1, MAX_PAGE)
        query.choice("state", Condition)
        return Connections(*self._shown(scope, reader))


@dataclass(frozen=True, slots=True)
class Cell:
    """A way to an agent or node, and what the newest test found."""

    method: str
    state: str = ""
    latency_ms: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Pager:
    """Where in a long list a page is."""

    page: int
    pages: int
    total: int
    query: str
    """The filters, for the addresses of the other pages."""


@dataclass(frozen=True, slots=True)
class TestedRow:
    """A line of the matrix: an agent, with its cells."""

    id: str
    agent: AgentRow
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class TestedNode:
    """A heading of the matrix: a node, with its cells."""

    id: str
    node: NodeRow
    cells: tuple[Cell, ...]


class Connections(PageView):
    """`/agents/connections`: the agents of each node, and the ways to them."""

    template = "connections.html"
    title = "Connections"

    def context(self) -> Mapping[str, Any]:
        """See `View`."""
        query = dict(self._reader.query)
        plain = urlencode({name: value for name, value in query.items() if name == "node"})
        return {
            "ways": WAYS,
            "filters": query,
            "states": [one.value for one in Condition],
            "node_ids": [one.id for one in self._sources.directory.node_standings()],
            "query": plain,
            "command": test_command(self._reader.address, plain),
        }

    def parts(self) -> Parts:
        """See `View`."""
        rows = self._rows()
        nodes = self._nodes(rows)
        run = self._sources.tests.last_run
        placed = _placed(one for one in rows if self._is_wanted(one))
        shown = self._pager(len(placed))
        first = (shown.page - 1) * ROWS_SHOWN
        return {
            "strip": self._numbers(rows, nodes),
            "last-run": self._paint.one("last_run", "last-run", run.facts),
            "broker-ways": self._paint.one("broker_ways", "broker-ways", _broker_cells(run)),
            "matrix": self._matrix(placed[first : first + ROWS_SHOWN], nodes, run),
            "pager": self._paint.one("pager", "pager", shown),
        }

    def _pager(self, total: int) -> Pager:
        query = dict(self._reader.query)
        pages = max(1, -(-total // ROWS_SHOWN))
        page = min(int(query.pop("page", "1")), pages)
        return Pager(page, pages, total, urlencode(query))

    def _is_wanted(self, row: AgentRow) -> bool:
        wanted = dict(self._reader.query)
        text = wanted.get("q", "").lower()
        return (
            (not wanted.get("state") or row.state == wanted["state"] or _is_online(row, wanted))
            and (not wanted.get("node") or wanted["node"] in row.nodes)
            and (not text or text in row.id or text in row.description.lower())
        )

    def _matrix(
        self, placed: Sequence[tuple[str, AgentRow]], nodes: Sequence[NodeRow], run: LastRun
    ) -> dict[str, str]:
        found: dict[str, str] = {}
        states = {one.id: one for one in nodes}
        for node, group in groupby(placed, key=itemgetter(0)):
            head = states.get(node) or NodeRow(node, State.UNKNOWN, "", 0, ())
            cells = tuple(_cell(run, method, None, node) for method in WAYS)
            found |= self._paint.many("matrix_head", "on", [TestedNode(node, head, cells)])
            lines = [
                TestedRow(f"{row.id}.{node}", row, _agent_cells(run, row.id, node))
                for _, row in group
            ]
            found |= self._paint.many("matrix_row", "row", lines)
        return found


def _is_online(row: AgentRow, wanted: Mapping[str, str]) -> bool:
    return wanted["state"] == State.ONLINE and row.is_up


def _placed(rows: Iterable[AgentRow]) -> list[tuple[str, AgentRow]]:
    """Return each agent on each of its nodes, by node and then by id."""
    found = [(node, row) for row in rows for node in row.nodes or ("nowhere",)]
    return sorted(found, key=lambda one: (one[0], one[1].id))


def _cell(run: LastRun, method: Method, agent: str | None, node: str | None) -> Cell:
    found = run.results.get((method, agent, node))
    if found is None:
        return Cell(method.value)
    return Cell(method.value, found.state.value, found.latency_ms, found.fix or found.detail)


def _agent_cells(run: LastRun, agent: str, node: str) -> tuple[Cell, ...]:
    """The inbox on this node where it was tried, and else every way to the agent wherever it is."""
    pinned = _cell(run, Method.INBOX, agent, node)
    cells = [_cell(run, method, agent, None) for method in WAYS]
    return (pinned if pinned.state else cells[0], *cells[1:])


def _broker_cells(run: LastRun) -> tuple[Cell, ...]:
    methods = (Method.BROKER, Method.JETSTREAM, Method.REGISTRY, Method.MONITORING)
    return tuple(_cell(run, method, None, None) for method in methods)
