"""The registry's records, and the messages that change it.

Four kinds of key stand in the bucket `registry`: `agent.<id>`, `node.<node>`,
`placement.<id>.<instance>` and `instance.<instance>`. Only the last one expires. An agent is
online if one of its placements has a live instance: a reader works that out by itself.
"""

from enum import StrEnum

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


class NodeRecord(WireModel):
    """A machine, or what stands for one. Never expires."""

    node: Id
    registered_at: str = ""


class AgentRecord(WireModel):
    """A card, and every node the agent has been placed on."""

    card: AgentCard
    nodes: tuple[Id, ...] = ()
    registered_at: str = ""


class Placement(WireModel):
    """An agent on one process. Gone when the process leaves or expires."""

    agent: Id
    node: Id
    instance: InstanceId
    since: str = ""


class Announcement(WireModel):
    """Body of `registry.announce.<id>.<node>`: this process hosts this agent."""

    card: AgentCard
    instance: Instance


class Withdrawal(WireModel):
    """Body of `registry.withdraw.<id>`: this process no longer hosts this agent."""

    instance: InstanceId


class Heartbeat(WireModel):
    """Body of `registry.heartbeat.<node>.<instance>`, a core request."""

    instance: Instance
    leaving: bool = False
    """The last one: forget the instance and its placements now."""


class Receipt(WireModel):
    """The registrar's answer to an announcement or a heartbeat."""

    ok: bool = True
    known: bool = True
    """False after a heartbeat of a forgotten instance: its host announces again."""
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


class NodeView(WireModel):
    """A node as it stands now."""

    node: Id
    state: State
    agents: tuple[Id, ...] = ()
    instances: tuple[str, ...] = ()
    registered_at: str = ""


class RegistryView(WireModel):
    """Body of the answer to `registry.list`: the whole registry."""

    agents: tuple[AgentView, ...] = ()
    nodes: tuple[NodeView, ...] = ()
