"""Who is in the mesh, as seen from this process: an in-memory view of the registry.

Loaded once for a command, followed for a long-lived process. Answers without asking anybody, so
that the data path needs nobody but the broker and the agent.
"""

import difflib
import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from nats.aio.msg import Msg

from mesh import codec, registry, subjects
from mesh.connection import Connection
from mesh.errors import AgentNotFoundError, AgentNotOnNodeError, NodeNotFoundError, ProtocolError
from mesh.history import is_stored_under
from mesh.streams import REGISTRY
from schemas.base import WireModel
from schemas.registry import (
    AgentRecord,
    AgentView,
    Instance,
    NodeRecord,
    NodeView,
    Placement,
    RegistryView,
    Role,
    State,
)

logger = logging.getLogger(__name__)

MODELS: Final[dict[str, type[WireModel]]] = {
    "agent": AgentRecord,
    "node": NodeRecord,
    "instance": Instance,
    "placement": Placement,
}


class Directory:
    """The registry's records, and what they say together."""

    def __init__(self) -> None:
        self._revisions: dict[str, int] = {}
        self._recent: dict[str, registry.Entry] | None = None
        self._agents: dict[str, AgentRecord] = {}
        self._nodes: dict[str, NodeRecord] = {}
        self._instances: dict[str, Instance] = {}
        self._seen_at: dict[str, float] = {}
        """When each instance was last written, by the local clock."""
        self._placements: dict[str, dict[str, Placement]] = {}
        """By agent, then by instance: a call looks up one agent, however many there are."""

    def apply(self, entry: registry.Entry) -> None:
        """Take in one change, unless a newer one of the same key is known."""
        if entry.revision < self._revisions.get(entry.key, 0):
            return
        self._revisions[entry.key] = entry.revision
        if self._recent is not None:
            self._recent[entry.key] = entry
        kind, _, rest = entry.key.partition(".")
        model = MODELS.get(kind)
        if model is None:
            return
        try:
            record = entry.value and codec.decode(model, entry.value, subject=entry.key)
        except ProtocolError as error:
            logger.warning("the registry holds a bad record under %s: %s", entry.key, error)
            record = None
        self._put(rest, record) if record else self._drop(kind, rest)

    def _put(self, rest: str, record: WireModel | bytes) -> None:
        match record:
            case AgentRecord():
                self._agents[rest] = record
            case NodeRecord():
                self._nodes[rest] = record
            case Instance():
                self._instances[rest] = record
                self._seen_at[rest] = time.monotonic()
            case Placement():
                self._placements.setdefault(record.agent, {})[record.instance] = record

    def _drop(self, kind: str, rest: str) -> None:
        if kind == "placement":
            agent, _, instance = rest.partition(".")
            self._placements.get(agent, {}).pop(instance, None)
            return
        records: dict[str, dict[str, Any]] = {
            "agent": self._agents,
            "node": self._nodes,
            "instance": self._instances,
        }
        records[kind].pop(rest, None)
        self._seen_at.pop(rest, None)

    def begin_reading(self) -> None:
        """Remember the changes from here on: a full reading may be older than some of them."""
        self._recent = {}

    def replace(self, entries: Iterable[registry.Entry]) -> None:
        """Take in a full reading: what it does not name is gone, unless it came since it began."""
        recent, self._recent = self._recent, None
        for records in (self._agents, self._nodes, self._instances, self._placements):
            records.clear()
        self._seen_at.clear()
        self._revisions.clear()
        for entry in (*entries, *(recent or {}).values()):
            self.apply(entry)

    @property
    def is_authoritative(self) -> bool:
        """Whether a registrar is alive, so that silence means offline."""
        return any(one.role is Role.REGISTRAR for one in self._instances.values())

    def instances(self) -> list[Instance]:
        """Return the live processes."""
        return list(self._instances.values())

    def silent_instances(self, longer_than_s: float) -> list[str]:
        """Return the processes whose key was not written for so long: it should have expired."""
        limit = time.monotonic() - longer_than_s
        return [instance for instance, seen_at in self._seen_at.items() if seen_at < limit]

    def placements(self) -> list[Placement]:
        """Return all placements, those of dead processes included."""
        return [one for group in self._placements.values() for one in group.values()]

    def agent_record(self, agent: str) -> AgentRecord | None:
        """Return the record of an agent, or None for an unknown one."""
        return self._agents.get(agent)

    def has_node(self, node: str) -> bool:
        """Whether a node of this id was ever announced."""
        return node in self._nodes

    def has_instance(self, instance: str) -> bool:
        """Whether this process is alive."""
        return instance in self._instances

    def agent(self, agent: str) -> AgentView:
        """Return an agent as it stands now.

        Raises:
            InvalidIdError: not an id.
            AgentNotFoundError: never announced; `suggestions` are the nearest ids.
        """
        record = self.agent_record(subjects.require_id(agent))
        if record is None:
            raise self._unknown_agent(agent)
        return self._agent_view(record)

    def agents(self) -> list[AgentView]:
        """Return all agents, by id."""
        return [self._agent_view(self._agents[agent]) for agent in sorted(self._agents)]

    def nodes(self) -> list[NodeView]:
        """Return all nodes, by id."""
        live: dict[str, list[Instance]] = {}
        for instance in self._instances.values():
            live.setdefault(instance.node, []).append(instance)
        return [self._node_view(self._nodes[one], live.get(one, [])) for one in sorted(self._nodes)]

    def view(self) -> RegistryView:
        """Return the whole registry."""
        return RegistryView(agents=tuple(self.agents()), nodes=tuple(self.nodes()))

    def require_target(self, agent: str, node: str | None) -> None:
        """Check that a call can be for this agent, and for this node when one is given.

        Raises:
            InvalidIdError: agent or node is not an id.
            AgentNotFoundError: the agent was never announced.
            NodeNotFoundError: the node was never announced.
            AgentNotOnNodeError: the agent has never run on that node.
        """
        record = self._agents.get(agent)
        if record is None:
            raise self._unknown_agent(subjects.require_id(agent))
        # A placement says more than the card, which two registrars may write at once.
        placed = self._placements.get(agent, {}).values()
        if node is None or node in record.nodes or any(one.node == node for one in placed):
            return
        if not self.has_node(subjects.require_id(node, "node")):
            known = ", ".join(sorted(self._nodes)) or "none"
            raise NodeNotFoundError(f"no node {node!r}; known nodes: {known}", node=node)
        raise AgentNotOnNodeError(
            f"agent {agent!r} has never run on {node!r}; it runs on {', '.join(record.nodes)}",
            agent=agent,
            node=node,
        )

    def state_on(self, agent: str, node: str | None) -> State:
        """Return whether the agent can be reached now, on `node` when one is given."""
        placements = self._placements.get(agent, {}).values()
        return self._state(
            is_live=any(
                self.has_instance(one.instance) and node in (None, one.node) for one in placements
            )
        )

    def _agent_view(self, record: AgentRecord) -> AgentView:
        placements = self._placements.get(record.card.id, {}).values()
        live = [one for one in placements if self.has_instance(one.instance)]
        return AgentView(
            card=record.card,
            state=self._state(is_live=bool(live)),
            nodes=tuple(sorted({one.node for one in live})) or record.nodes[-1:],
            instances=tuple(sorted(one.instance for one in live)),
            registered_at=record.registered_at,
        )

    def _node_view(self, record: NodeRecord, live: list[Instance]) -> NodeView:
        return NodeView(
            node=record.node,
            state=self._state(is_live=bool(live)),
            agents=tuple(sorted({agent for one in live for agent in one.agents})),
            instances=tuple(sorted(one.instance for one in live)),
            registered_at=record.registered_at,
        )

    def _state(self, *, is_live: bool) -> State:
        if is_live:
            return State.ONLINE
        return State.OFFLINE if self.is_authoritative else State.UNKNOWN

    def _unknown_agent(self, agent: str) -> AgentNotFoundError:
        known = sorted(self._agents)
        near = difflib.get_close_matches(agent, known, n=3)
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        else:
            hint = f"known agents: {', '.join(known[:10])}" if known else "no agent is registered"
        return AgentNotFoundError(f"no agent {agent!r}; {hint}", agent=agent, suggestions=near)


async def load_directory(connection: Connection) -> Directory:
    """Read the registry once.

    Raises:
        StreamMissingError: there is no registry on this broker.
        BrokerUnreachableError: no answer in time.
    """
    directory = Directory()
    directory.replace(await registry.read_registry(connection))
    return directory


@asynccontextmanager
async def follow_directory(connection: Connection) -> AsyncIterator[Directory]:
    """Read the registry, and keep up with its changes until the end.

    Changes come by the bucket's republish, and the whole is read again after every reconnect: a
    watch would be blind for up to 17 s after a broker restart.
    """
    directory = Directory()

    async def on_event(message: Msg) -> None:
        key = message.subject.removeprefix(registry.EVENT_PREFIX)
        headers = message.headers or {}
        # Only the bucket's own republish counts: a reply subject that somebody names in a request
        # of his own can bring other messages here, with a body of his choice.
        is_event = message.subject.startswith(registry.EVENT_PREFIX)
        if not (is_event and is_stored_under(headers, REGISTRY, registry.KEY_PREFIX + key)):
            return
        revision = int(headers.get("Nats-Sequence", 0))
        directory.apply(registry.Entry.read(key, headers, message.data, revision))

    async def read_again() -> None:
        directory.begin_reading()
        directory.replace(await registry.read_registry(connection))

    # Listen first, then read: nothing falls between.
    subscription = await connection.client.subscribe(subjects.REGISTRY_EVENTS, cb=on_event)
    connection.on_reconnect(read_again)
    try:
        await read_again()
        yield directory
    finally:
        connection.drop_hook(read_again)
        if not connection.client.is_closed:
            await subscription.unsubscribe()
