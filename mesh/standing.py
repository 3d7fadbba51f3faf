"""An agent or a node as it stands in one version of the directory.

Cheap to make by the thousand; what leaves the process is one of the models of
`schemas.registry` or `schemas.listing`.
"""

from dataclasses import dataclass
from enum import StrEnum

from schemas.registry import AgentRecord, AgentView, Instance, NodeRecord, NodeView, State


class Condition(StrEnum):
    """How an agent is, for people: its state, and what it does."""

    ONLINE = "online"
    BUSY = "busy"
    """Online, without a free slot."""
    DRAINING = "draining"
    """Online until what it has is finished; it takes nothing more."""
    OFFLINE = "offline"
    UNKNOWN = "unknown"

    @property
    def is_up(self) -> bool:
        """Whether the agent is there."""
        return self in (Condition.ONLINE, Condition.BUSY, Condition.DRAINING)


@dataclass(frozen=True, slots=True)
class AgentStanding:
    """An agent, known or alive."""

    id: str
    record: AgentRecord
    state: State
    nodes: tuple[str, ...]
    """Where it runs now, or where it last ran."""
    instances: tuple[Instance, ...]
    """The live processes that run it, by id."""

    @property
    def key(self) -> str:
        """Its key in the registry."""
        return f"agent.{self.id}"

    def condition(self, *, is_busy: bool | None = None) -> Condition:
        """Return how it is: busy if no process had a free slot at its last heartbeat.

        `is_busy` is what somebody knows better who sees its calls.
        """
        if self.state is not State.ONLINE:
            return Condition(self.state.value)
        taking = [one for one in self.instances if not one.draining]
        if not taking:
            return Condition.DRAINING
        if is_busy is None:
            is_busy = all(self.id in one.busy for one in taking)
        return Condition.BUSY if is_busy else Condition.ONLINE

    def view(self, last_seen: str) -> AgentView:
        """Return it as the wire has it."""
        return AgentView(
            card=self.record.card,
            state=self.state,
            nodes=self.nodes,
            instances=tuple(one.instance for one in self.instances),
            registered_at=self.record.registered_at,
            last_seen=last_seen,
        )


@dataclass(frozen=True, slots=True)
class NodeStanding:
    """A node, known or alive."""

    id: str
    record: NodeRecord
    state: State
    instances: tuple[Instance, ...]
    """Its live processes, by id."""

    @property
    def key(self) -> str:
        """Its key in the registry."""
        return f"node.{self.id}"

    def view(self, last_seen: str) -> NodeView:
        """Return it as the wire has it."""
        return NodeView(
            node=self.id,
            state=self.state,
            agents=tuple(sorted({agent for one in self.instances for agent in one.agents})),
            instances=tuple(one.instance for one in self.instances),
            registered_at=self.record.registered_at,
            last_seen=last_seen,
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """What is gone, and has no `last_seen` on record."""

    key: str
    record: AgentRecord | NodeRecord
    """The record, with its `last_seen`."""
    revision: int
    """What it replaces."""
