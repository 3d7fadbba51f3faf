"""What the registry's addresses answer over HTTP: agents, nodes, and the processes they run in.

`mesh.shim.registry` writes them; times are ISO 8601 by the broker's clock, null where nobody
knows. How the registry itself keeps all this stands in `schemas.registry`.
"""

from schemas.base import Id, InstanceId, WireModel
from schemas.registry import Role, State


class ListedInstance(WireModel):
    """A live process that runs an agent."""

    instance: InstanceId
    node: Id
    pid: int
    host: str
    started_at: str
    last_seen_s: float
    """Seconds since its newest heartbeat."""


class ListedProcess(ListedInstance):
    """A live process of a node."""

    role: Role


class ListedAgent(WireModel):
    """Body of `GET /api/v1/agent/{id}`."""

    agent_id: Id
    node: Id | None
    """Where it runs, or where it last ran: the first by name of `nodes`."""
    nodes: tuple[Id, ...]
    endpoint: str
    """Where to `POST` a message for it: at this router, wherever the agent runs."""
    subject: str
    """Where to publish a message for it on NATS."""
    model: str
    description: str
    version: str
    state: State
    instances: tuple[ListedInstance, ...]
    last_seen: str | None
    registered_at: str | None
    streams: bool
    concurrency: int
    """Calls that each of its processes works on at once."""


class AgentList(WireModel):
    """Body of `GET /api/v1/agents`: a page of those that fit the filters, by id."""

    agents: tuple[ListedAgent, ...]
    total: int
    """How many fit, on all pages."""
    limit: int
    offset: int
    next: str | None
    """The next page."""


class AgentOnNode(WireModel):
    """An agent that runs on a node, or last ran there."""

    agent_id: Id
    state: State


class ListedNode(WireModel):
    """Body of `GET /api/v1/node/{id}`."""

    node: Id
    state: State
    endpoint: str | None
    """The router that answers, for its own node. Another may be out of reach, behind NAT."""
    agents: tuple[AgentOnNode, ...]
    processes: tuple[ListedProcess, ...]
    last_seen: str | None
    registered_at: str | None


class NodeList(WireModel):
    """Body of `GET /api/v1/nodes`: a page of those that fit the filters, by id."""

    nodes: tuple[ListedNode, ...]
    total: int
    """How many fit, on all pages."""
    limit: int
    offset: int
    next: str | None
    """The next page."""
