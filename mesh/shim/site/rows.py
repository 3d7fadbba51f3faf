"""What pages show of agents and nodes: plain rows, of the registry and of the traffic.

A row holds nothing that changes by itself, so that a page on which nothing happens costs nothing.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mesh.directory import Directory
from mesh.standing import AgentStanding, Condition, NodeStanding
from mesh.traffic_log import TrafficLog

Allows = Callable[[str], bool]
"""Whether an agent may be shown."""


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An agent, now."""

    id: str
    state: Condition
    nodes: tuple[str, ...]
    description: str
    model: str
    version: str
    since: str
    """When the oldest of its processes began; for who is offline, when it was last seen. ISO 8601,
    empty where nobody knows."""
    instances: int
    capacity: int
    """Calls that its processes work on at once."""
    running: int
    waiting: int
    """Calls in its mailbox that nobody works on."""
    streams: bool

    @property
    def is_up(self) -> bool:
        """Whether it is there now."""
        return self.state.is_up

    @property
    def node(self) -> str:
        """Where it runs, or last ran; empty where nobody knows."""
        return self.nodes[0] if self.nodes else ""


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node, now."""

    id: str
    state: str
    since: str
    """As of an agent."""
    processes: int
    agents: tuple[str, ...]
    """Those that run there and may be shown."""


def agent_row(directory: Directory, log: TrafficLog, one: AgentStanding) -> AgentRow:
    """Return the row of an agent."""
    card = one.record.card
    capacity = card.concurrency * len(one.instances)
    depth, running = log.depths.get(one.id, 0), log.running(one.id, time.time())
    return AgentRow(
        id=one.id,
        # What is heard now is newer than what a heartbeat said.
        state=one.condition(is_busy=max(running, depth) >= capacity if log.is_fed else None),
        nodes=one.nodes,
        description=card.description,
        model=card.model,
        version=card.version,
        since=_since(directory, one),
        instances=len(one.instances),
        capacity=capacity,
        running=running,
        waiting=max(0, depth - running),
        streams=card.streams,
    )


def agent_rows(directory: Directory, log: TrafficLog, allows: Allows) -> list[AgentRow]:
    """Return the rows of all agents that may be shown, by id."""
    shown = (one for one in directory.standings() if allows(one.id))
    return [agent_row(directory, log, one) for one in shown]


def node_rows(directory: Directory, rows: Iterable[AgentRow]) -> list[NodeRow]:
    """Return the rows of all nodes, by id; `rows` are the agents that may be shown."""
    placed: dict[str, list[str]] = {}
    for row in rows:
        if row.is_up:
            for node in row.nodes:
                placed.setdefault(node, []).append(row.id)
    return [
        NodeRow(
            id=one.id,
            state=one.state.value,
            since=_since(directory, one),
            processes=len(one.instances),
            agents=tuple(placed.get(one.id, ())),
        )
        for one in directory.node_standings()
    ]


def _since(directory: Directory, one: AgentStanding | NodeStanding) -> str:
    if one.instances:
        return min(it.started_at for it in one.instances)
    return directory.last_seen(one)
