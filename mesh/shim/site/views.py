"""The pages, each as parts: pieces of HTML by the id of their element, of which some are lists.

A page is its template with the parts in it, and what changes on an open page is the parts that are
others than before. Whatever an agent says about itself is text here, and escaped by the templates.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from markupsafe import Markup

from mesh.errors import AgentNotFoundError
from mesh.presence import user_token
from mesh.shim.connection_test import LastRun
from mesh.shim.site.drawings import route, traffic_map
from mesh.shim.site.rows import AgentRow, Allows, NodeRow, agent_row, agent_rows, node_rows
from mesh.shim.site.snippets import Address, remote_call, snippets, test_command
from mesh.shim.site.sources import Sources
from schemas.presence import PersonView, PresenceState
from schemas.probe import Method
from schemas.registry import State

Part = str | dict[str, str]
"""HTML of one element, or of the elements of a list by their ids, in their order."""
Parts = Mapping[str, Part]

CALLS_SHOWN: Final = 12
ROWS_SHOWN: Final = 50
"""On one page: a browser lays a table of 500 rows out for a fifth of a second before it paints."""
OTHERS_SHOWN: Final = 30
WAYS: Final = (Method.INBOX, Method.ROUTER, Method.DIRECT, Method.REGISTRY, Method.PRESENCE)


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads a page, as far as the page depends on it."""

    root: str
    """The way from the page to the root of this server: `./` or `../`."""
    address: Address
    key: str = ""
    """Whose API key it is; empty where none is needed."""
    query: tuple[tuple[str, str], ...] = ()


class View(Protocol):
    """A page."""

    template: str
    title: str

    def context(self) -> Mapping[str, Any]:
        """Return what its template shows beside the parts, and never changes."""

    def parts(self) -> Parts:
        """Return what it shows now."""


class Painter:
    """Makes HTML of rows by the macros of `parts.html`; the same row costs nothing again."""

    def __init__(self, macros: Any, root: str) -> None:
        self._macros = macros
        self._root = root
        self._made: dict[str, tuple[Any, str]] = {}

    def one(self, macro: str, part: str, *data: Any) -> str:
        """Return the HTML of one element."""
        known = self._made.get(part)
        if known is None or known[0] != data:
            html: Markup = getattr(self._macros, macro)(self._root, part, *data)
            known = self._made[part] = (data, str(html).strip())
        return known[1]

    def many(self, macro: str, prefix: str, rows: Sequence[Any], *data: Any) -> dict[str, str]:
        """Return the HTML of a list of rows that have ids."""
        return {
            f"{prefix}-{row.id}": self.one(macro, f"{prefix}-{row.id}", row, *data) for row in rows
        }


class _Base:
    """What all pages have: the numbers on top."""

    def __init__(self, sources: Sources, painter: Painter, reader: Reader, allows: Allows) -> None:
        self._sources = sources
        self._paint = painter
        self._reader = reader
        self._allows = allows

    def _rows(self) -> list[AgentRow]:
        return agent_rows(self._sources.directory, self._sources.log, self._allows)

    def _nodes(self, rows: Sequence[AgentRow]) -> list[NodeRow]:
        return node_rows(self._sources.directory, rows)

    def _numbers(self, rows: Sequence[AgentRow], nodes: Sequence[NodeRow]) -> str:
        sources = self._sources
        shown = Strip(
            nodes_up=sum(one.state == State.ONLINE for one in nodes),
            nodes=len(nodes),
            agents_up=sum(one.is_up for one in rows),
            agents=len(rows),
            is_connected=sources.is_connected,
            is_watched=sources.directory.is_authoritative,
            has_traffic=self._sees_traffic,
            numbers=sources.log.numbers(time.time()),
        )
        return self._paint.one("strip", "strip", shown)

    @property
    def _sees_traffic(self) -> bool:
        return self._sources.hears_traffic and not self._reader.key


@dataclass(frozen=True, slots=True)
class Strip:
    """The numbers on top of every page."""

    nodes_up: int
    nodes: int
    agents_up: int
    agents: int
    is_connected: bool
    is_watched: bool
    has_traffic: bool
    numbers: Any


class Overview(_Base):
    """`/`: nodes and agents."""

    template = "overview.html"
    title = "Overview"

    def context(self) -> Mapping[str, Any]:
        """See `View`."""
        return {"address": self._reader.address}

    def parts(self) -> Parts:
        """See `View`."""
        rows = self._rows()
        nodes = self._nodes(rows)
        people = [_shown_person(one) for one in self._sources.people()]
        return {
            "strip": self._numbers(rows, nodes),
            "nodes": self._paint.many("node_card", "node", nodes),
            "agents": self._paint.many("agent_line", "agent", _first(rows)),
            "more": self._paint.one("more", "more", max(0, len(rows) - ROWS_SHOWN)),
            "people": self._paint.many("person", "person", people),
            "empty": self._paint.one("empty", "empty", not rows),
        }


def _first(rows: Sequence[AgentRow]) -> Sequence[AgentRow]:
    """Return as many as there is room for, those first that can be reached."""
    return sorted(rows, key=lambda row: not row.is_up)[:ROWS_SHOWN]


@dataclass(frozen=True, slots=True)
class ShownPerson:
    """A person, as the page shows one."""

    id: str
    name: str
    state: str
    message: str
    seen: str
    """When last seen, of who is not there."""


def _shown_person(one: PersonView) -> ShownPerson:
    is_gone = one.state is PresenceState.OFFLINE
    return ShownPerson(
        id=user_token(one.matrix_user_id),
        name=one.matrix_user_id,
        state=one.state.value,
        message=one.status_msg,
        seen=one.last_seen if is_gone else "",
    )


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


class Connections(_Base):
    """`/agents/connections`: the agents of each node, and the ways to them."""

    template = "connections.html"
    title = "Connections"

    def context(self) -> Mapping[str, Any]:
        """See `View`."""
        query = dict(self._reader.query)
        plain = "&".join(f"{name}={value}" for name, value in query.items() if name == "node")
        return {
            "ways": WAYS,
            "filters": query,
            "states": [one.value for one in State],
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


class Cabinet(_Base):
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
        address = self._reader.address
        return {
            "agent": row,
            "snippets": snippets(self._agent, address),
            "address": address,
            "own_node": self._sources.own_node,
        }

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


def _shown_call(call: Any, now: float) -> ShownCall | None:
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


class Flow(_Base):
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
                one.calls.since(0),
                one.errors.since(0),
            )
            for number, one in enumerate(edges)
        ]
        return {
            "strip": self._numbers(rows, nodes),
            "map": self._paint.one("traffic_map", "map", drawing),
            "edges": self._paint.many("edge_line", "edge", lines),
            "no-edges": self._paint.one("no_edges", "no-edges", not edges, self._sees_traffic),
        }


MakeView = Callable[[Sources, Painter, Reader, Allows], View]
