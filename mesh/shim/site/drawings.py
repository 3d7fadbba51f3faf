"""Where things stand on the two drawings: the way of one call, and the map of the traffic.

Coordinates only; templates make SVG of them. The same data give the same picture.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from mesh.shim.site.rows import AgentRow
from mesh.traffic_log import WINDOW_S, Edge, SeenCall

WIDTH: Final = 960
ROW: Final = 30
_GAP: Final = 14
_HEAD: Final = 26
_TOP: Final = 34
AGENTS_AT_MOST: Final = 40
"""On the map; the others are a number."""
EDGES_AT_MOST: Final = 60
NOWHERE: Final = "elsewhere"
"""Where a caller is that does not say it."""
NOBODY: Final = "somebody"
MOVING_S: Final = 10.0
"""How long an edge is drawn as moving after its newest call."""


class Window(Enum):
    """How far back the map looks, as its address says it."""

    HALF = ("30s", 30.0, "30 seconds")
    ONE = ("1m", 60.0, "a minute")
    FIVE = ("5m", WINDOW_S, "5 minutes")

    def __init__(self, parameter: str, seconds: float, words: str) -> None:
        self.parameter = parameter
        self.seconds = seconds
        self.words = words


@dataclass(frozen=True, slots=True)
class Stop:
    """A box on the way of a call."""

    title: str
    note: str
    x: int


@dataclass(frozen=True, slots=True)
class Leg:
    """An arrow between two boxes."""

    number: int
    label: str
    x1: int
    x2: int

    @property
    def middle(self) -> int:
        """Where its label stands."""
        return (self.x1 + self.x2) // 2


@dataclass(frozen=True, slots=True)
class Route:
    """The way of a call to an agent, and of its answer."""

    stops: Sequence[Stop]
    there: Sequence[Leg]
    back: Sequence[Leg]


BOX: Final = 168
_STEP: Final = (WIDTH - BOX) // 4


def route(row: AgentRow, *, caller: str, node: str, call: SeenCall | None) -> Route:
    """Draw the way of `call`; where none was seen, the one that a call of `caller` would go."""
    if call is not None and call.caller:
        caller, node = call.caller, call.source_node or node
    target = (call.node if call is not None else "") or row.node or "any node"
    stops = [
        Stop(caller, "asks", 0),
        Stop(node, "publishes" if caller != "http" else "HTTP door", _STEP),
        Stop("JetStream", "keeps it until it is answered", 2 * _STEP),
        Stop(target, "pulls when it has room", 3 * _STEP),
        Stop(row.id, "answers", 4 * _STEP),
    ]
    forth = ["request", f"agent.{row.id}.inbox", "pull", "handler"]
    reply = f"agent.{caller}.reply.…"
    return Route(
        stops=stops,
        there=[
            Leg(number + 1, label, stops[number].x + BOX, stops[number + 1].x)
            for number, label in enumerate(forth)
        ],
        back=[
            Leg(8 - number, label, stops[number + 1].x, stops[number].x + BOX)
            for number, label in enumerate(["result", "delivered.…", reply, "answer"])
        ],
    )


@dataclass(frozen=True, slots=True)
class Pill:
    """A name on the map, and where its edges end."""

    id: str
    x: int
    y: int
    state: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """A node on the map."""

    title: str
    state: str
    x: int
    y: int
    width: int
    height: int
    pills: Sequence[Pill]
    more: int = 0
    """Agents that are not drawn."""


@dataclass(frozen=True, slots=True)
class Line:
    """Calls of one caller to one agent, drawn through the agent's mailbox."""

    path: str
    width: float
    is_moving: bool
    has_errors: bool
    title: str


@dataclass(frozen=True, slots=True)
class TrafficMap:
    """The whole map: callers on the left, mailboxes in the middle, agents on the right."""

    height: int
    callers: Sequence[Box]
    mailboxes: Sequence[Pill]
    agents: Sequence[Box]
    lines: Sequence[Line]


_LEFT: Final = 210
_RIGHT_X: Final = 690
_RIGHT: Final = WIDTH - _RIGHT_X
_MIDDLE_X: Final = 370
MAILBOX: Final = 220


def traffic_map(
    rows: Sequence[AgentRow],
    node_states: dict[str, str],
    edges: Sequence[Edge],
    now: float,
    window: Window,
) -> TrafficMap:
    """Draw who asks whom. Agents with traffic come first, then as many as there is room for."""
    edges = edges[:EDGES_AT_MOST]
    asked = list(dict.fromkeys(edge.agent for edge in edges))
    known = {row.id: row for row in rows}
    asked += [row.id for row in rows if row.waiting and row.id not in asked]
    asked = [one for one in asked if one in known][:AGENTS_AT_MOST]
    rest = [row for row in rows if row.id not in asked]
    drawn = [known[one] for one in asked] + rest[: max(0, AGENTS_AT_MOST - len(asked))]
    right = _boxes(_by_node(drawn), _by_node(rows), node_states, _RIGHT_X, _RIGHT)
    left = _caller_boxes(edges, node_states)
    middle_of = {pill.id: pill for box in right for pill in box.pills}
    mailboxes = [
        Pill(one, _MIDDLE_X, middle_of[one].y, note=_waiting(known[one]) or f"agent.{one}.inbox")
        for one in asked
        if one in middle_of
    ]
    at = {pill.id: pill for pill in mailboxes}
    starts = {(box.title, pill.id): pill for box in left for pill in box.pills}
    lines = [
        _line(
            edge,
            starts[edge.source_node or NOWHERE, edge.caller or NOBODY],
            at[edge.agent],
            now,
            window,
        )
        for edge in edges
        if edge.agent in at
    ]
    ends = [box.y + box.height for box in (*left, *right)]
    return TrafficMap(max(ends, default=120) + 10, left, mailboxes, right, lines)


def _waiting(row: AgentRow) -> str:
    parts = [f"{row.running} running"] if row.running else []
    parts += [f"{row.waiting} waiting"] if row.waiting else []
    return ", ".join(parts)


def _by_node(rows: Iterable[AgentRow]) -> dict[str, list[AgentRow]]:
    found: dict[str, list[AgentRow]] = {}
    for row in rows:
        found.setdefault(row.node or NOWHERE, []).append(row)
    return dict(sorted(found.items()))


def _boxes(
    drawn: dict[str, list[AgentRow]],
    everybody: dict[str, list[AgentRow]],
    states: dict[str, str],
    x: int,
    width: int,
) -> list[Box]:
    boxes, y = [], _TOP
    for node, rows in drawn.items():
        pills = [
            Pill(row.id, x, y + _HEAD + ROW * number + ROW // 2, state=row.state)
            for number, row in enumerate(rows)
        ]
        more = len(everybody[node]) - len(rows)
        height = _HEAD + ROW * (len(rows) + bool(more)) + 8
        boxes.append(Box(node, states.get(node, ""), x, y, width, height, pills, more))
        y += height + _GAP
    return boxes


def _caller_boxes(edges: Sequence[Edge], states: dict[str, str]) -> list[Box]:
    groups: dict[str, list[str]] = {}
    for edge in edges:
        names = groups.setdefault(edge.source_node or NOWHERE, [])
        if (name := edge.caller or NOBODY) not in names:
            names.append(name)
    boxes, y = [], _TOP
    for node, names in sorted(groups.items()):
        pills = [
            Pill(name, _LEFT, y + _HEAD + ROW * number + ROW // 2)
            for number, name in enumerate(sorted(names))
        ]
        height = _HEAD + ROW * len(names) + 8
        boxes.append(Box(node, states.get(node, ""), 0, y, _LEFT, height, pills))
        y += height + _GAP
    return boxes


def _line(edge: Edge, start: Pill, mailbox: Pill, now: float, window: Window) -> Line:
    calls, errors = edge.calls(now, window.seconds), edge.errors(now, window.seconds)
    x1, y1, x2, y2 = start.x, start.y, mailbox.x, mailbox.y
    bend = (x2 - x1) // 2
    path = f"M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}M{x2 + MAILBOX} {y2}H{_RIGHT_X}"
    failed = f", {errors} failed" if errors else ""
    return Line(
        path=path,
        width=min(6.0, 1.5 + calls**0.5 / 4),
        is_moving=now - edge.last_at < MOVING_S,
        has_errors=bool(errors),
        title=f"{edge.caller or NOBODY} asked {edge.agent} {calls} times in {window.words}{failed}",
    )
