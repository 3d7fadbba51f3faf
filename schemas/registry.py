"""The registry's records, and the messages that change it.

Six kinds of key stand in the bucket `registry`: `agent.<id>`, `node.<node>`,
`placement.<id>.<instance>`, `instance.<instance>`, `reign.<node>`, and in secure mode
`identity.<key>`. Only instances expire. An
agent is online if one of its placements has a live instance: a reader works that out by itself.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints

from schemas.base import Id, InstanceId, WireModel
from schemas.card import AgentCard


class Role(StrEnum):
    """What a process does in the mesh."""

    HOST = "host"
    """Runs agents."""
    REGISTRAR = "registrar"
    """Writes the registry. With none alive, nobody's liveness can be known."""
    HTTP = "http"
    """Answers HTTP clients."""


class Instance(WireModel):
    """One live process. Its key expires three heartbeats after the last one."""

    instance: InstanceId
    node: Id
    role: Role
    agents: tuple[Id, ...] = ()
    host: str = ""
    pid: int = 0
    started_at: str = ""
    mesh_version: str = ""
    draining: bool = False
    """It finishes what it has, takes nothing more, and leaves."""
    busy: tuple[Id, ...] = ()
    """Those of its agents that had no free slot at the last heartbeat."""
    crowded: tuple[Id, ...] = ()
    """Those that hold up the others of their group: each is to have a durable of its own."""


class NodeRecord(WireModel):
    """A machine, or what stands for one. Never expires."""

    node: Id
    registered_at: str = ""
    last_seen: str = ""
    """When the last of its processes was last heard. Empty as long as one lives."""


class AgentRecord(WireModel):
    """A card, and every node the agent has been placed on."""

    card: AgentCard
    nodes: tuple[Id, ...] = ()
    registered_at: str = ""
    last_seen: str = ""
    """When the last process that ran it was last heard. Empty as long as one lives."""
    group: str = ""
    """The durable that it shares with other agents. Empty where it has one of its own."""
    is_leaving: bool = False
    """It is to have one of its own: as soon as nothing is open that the group has delivered."""
    pins: tuple[Id, ...] = ()
    """Of a grouped agent, the nodes for which its pinned work has a durable: made when needed."""


class Placement(WireModel):
    """An agent on one process. Gone when the process leaves or expires."""

    agent: Id
    node: Id
    instance: InstanceId
    since: str = ""


class Reign(WireModel):
    """A registrar of this node has looked at the whole registry, when this was stored.

    Whatever had no `last_seen` then was alive then: so the time outlives all processes and the
    broker, though nobody writes it down heartbeat by heartbeat.
    """

    node: Id
    instance: InstanceId


class UserRole(StrEnum):
    """What somebody is to a secure mesh."""

    AGENT = "agent"
    """Runs agents on one node."""
    NODE = "node"
    """A machine that has joined: runs agents, and calls under the node's own name."""
    PERSON = "person"
    """Calls agents."""
    DOOR = "door"
    """Answers HTTP clients, on the hub."""
    OPERATOR = "operator"
    """Has the keys of the mesh."""


class Identity(WireModel):
    """Whose key this is, and in whose names it may sign. Only in secure mode."""

    key: Annotated[str, StringConstraints(pattern=r"^U[A-Z2-7]{55}$")]
    name: Id
    role: UserRole
    node: Id | None = None
    speaks_for: tuple[Id, ...] = ()


class JoinRequest(WireModel):
    """Body of `registry.join.<invite>`, a core request: a machine asks to be let in."""

    public: Annotated[str, StringConstraints(pattern=r"^U[A-Z2-7]{55}$")]
    """The key that it has made for itself."""


class JoinReceipt(WireModel):
    """The answer to a `JoinRequest`."""

    ok: bool = True
    node: str = ""
    token: str = ""
    """What that key may do, as a NATS JWT."""
    code: str = ""
    message: str = ""


class Announcement(WireModel):
    """Body of `registry.announce.<id>.<node>`: this process hosts this agent, and more."""

    card: AgentCard
    instance: Instance
    group: str = ""
    """The durable that it is to share with those beside it. Only in an open mesh."""
    beside: tuple[AgentCard, ...] = ()

    @property
    def cards(self) -> tuple[AgentCard, ...]:
        """All that is announced."""
        return (self.card, *self.beside)


class Withdrawal(WireModel):
    """Body of `registry.withdraw.<id>`: this process no longer hosts this agent."""

    instance: InstanceId


class Heartbeat(WireModel):
    """Body of `registry.heartbeat.<node>.<instance>`, a core request."""

    instance: Instance
    leaving: bool = False
    """The last one: forget the instance and its placements now."""


class OpenQuestion(WireModel):
    """Body of `registry.open.<instance>`, a core request: what of this agent is not settled?"""

    agent: Id


class OpenRequests(WireModel):
    """The answer to an `OpenQuestion`: places in the stream of mailboxes, of work for any node."""

    sequences: tuple[int, ...] = ()


class Receipt(WireModel):
    """The registrar's answer to an announcement or a heartbeat."""

    ok: bool = True
    known: bool = True
    """False after a heartbeat of a forgotten instance: its host announces again."""
    cards: int = 1
    """How many were taken of an announcement: a registrar that knows no groups takes the first."""
    alone: tuple[Id, ...] = ()
    """Of a group that was announced, those that have durables of their own."""
    code: str = ""
    message: str = ""


class State(StrEnum):
    """Whether an agent or node can be reached now."""

    ONLINE = "online"
    OFFLINE = "offline"
    UNKNOWN = "unknown"
    """No registrar is alive, so silence proves nothing. Calls are published and wait."""


class AgentView(WireModel):
    """Body of the answer to `registry.get.<id>`: an agent as it stands now."""

    card: AgentCard
    state: State
    nodes: tuple[Id, ...] = ()
    """Where it runs now, or where it last ran when it is offline."""
    instances: tuple[str, ...] = ()
    registered_at: str = ""
    last_seen: str = ""
    """The newest heartbeat of its processes, or the last there was, by the broker's clock."""


class NodeView(WireModel):
    """A node as it stands now."""

    node: Id
    state: State
    agents: tuple[Id, ...] = ()
    instances: tuple[str, ...] = ()
    registered_at: str = ""
    last_seen: str = ""
    """The newest heartbeat of its processes, or the last there was, by the broker's clock."""


class RegistryView(WireModel):
    """Body of the answer to `registry.list`: the whole registry."""

    agents: tuple[AgentView, ...] = ()
    nodes: tuple[NodeView, ...] = ()
