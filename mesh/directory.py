"""Who is in the mesh, as seen from this process: an in-memory view of the registry.

Loaded once for a command, followed for a long-lived process. Answers without asking anybody, so
that the data path needs nobody but the broker and the agent.
"""

import asyncio
import difflib
import heapq
import logging
from bisect import bisect
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from nats.aio.msg import Msg

from mesh import registry, subjects
from mesh.connection import Connection
from mesh.errors import (
    AgentNotFoundError,
    AgentNotOnNodeError,
    NodeNotFoundError,
    TransportError,
)
from mesh.history import is_stored_under
from mesh.records import Records
from mesh.standing import AgentStanding, Ending, NodeStanding
from mesh.streams import REGISTRY
from schemas.registry import AgentView, Instance, NodeView, RegistryView, State

logger = logging.getLogger(__name__)

RETRY_PAUSE_S: Final = 0.5
COMPARED: Final = 100
"""Ids that are compared with one that nobody has."""
SLIPS: Final = 2
"""Letters that somebody may have left out, or put in."""
SHOWN: Final = 10


class Directory(Records):
    """The registry's records, and what they say together."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = asyncio.Lock()
        """Held while the whole registry is read."""
        self._standings: tuple[int, tuple[AgentStanding, ...]] = (-1, ())
        """With the version it was made of."""

    def standings(self) -> Sequence[AgentStanding]:
        """Return all agents, by id. Costs nothing as long as the version stays."""
        version, standings = self._standings
        if version != self.version:
            standings = tuple(self._agent_standing(one) for one in sorted(self._agents))
            self._standings = (self.version, standings)
        return standings

    def standing(self, agent: str) -> AgentStanding:
        """Return an agent as it stands now. Raises what `agent` raises."""
        if subjects.require_id(agent) not in self._agents:
            raise self._unknown_agent(agent)
        return self._agent_standing(agent)

    def node_standings(self) -> list[NodeStanding]:
        """Return all nodes, by id."""
        live: dict[str, list[Instance]] = {}
        for instance in self._instances.values():
            live.setdefault(instance.node, []).append(instance)
        return [self._node_standing(one, live.get(one, ())) for one in sorted(self._nodes)]

    def node_standing(self, node: str) -> NodeStanding:
        """Return a node as it stands now.

        Raises:
            InvalidIdError: not an id.
            NodeNotFoundError: never announced.
        """
        if not self.has_node(subjects.require_id(node, "node")):
            raise self._unknown_node(node)
        live = [one for one in self._instances.values() if one.node == node]
        return self._node_standing(node, live)

    def online_count(self) -> int:
        """Return how many agents are online."""
        return sum(bool(one.instances) for one in self.standings())

    def last_seen(self, one: AgentStanding | NodeStanding) -> str:
        """Return when an agent or node was last alive, by the broker's clock.

        Exact to a heartbeat, and after a restart of everything to three. ISO 8601; empty where
        nobody knows.
        """
        newest = None
        for it in one.instances:
            sign = self._signs.get(it.instance)
            if sign and (newest is None or sign.stored_ns > newest.stored_ns):
                newest = sign
        if newest:
            return newest.time
        if one.record.last_seen:
            return one.record.last_seen
        if (last := self._last_signs.get(one.key)) and last.time:
            return last.time
        # No end was written down: it lived when the registry was last watched.
        return max(self._watched.time, one.record.registered_at)

    def endings(self) -> list[Ending]:
        """Return what is gone, and has no `last_seen` on record."""
        everybody: list[AgentStanding | NodeStanding] = [*self.standings(), *self.node_standings()]
        found = []
        for one in everybody:
            if one.instances or one.record.last_seen:
                continue
            if last_seen := self.last_seen(one):
                record = one.record.model_copy(update={"last_seen": last_seen})
                found.append(Ending(one.key, record, self._revisions[one.key]))
        return found

    def agent(self, agent: str) -> AgentView:
        """Return an agent as it stands now.

        Raises:
            InvalidIdError: not an id.
            AgentNotFoundError: never announced; `suggestions` are the nearest ids.
        """
        standing = self.standing(agent)
        return standing.view(self.last_seen(standing))

    def agents(self) -> list[AgentView]:
        """Return all agents, by id."""
        return [one.view(self.last_seen(one)) for one in self.standings()]

    def nodes(self) -> list[NodeView]:
        """Return all nodes, by id."""
        return [one.view(self.last_seen(one)) for one in self.node_standings()]

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
            raise self._unknown_node(node)
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

    def _agent_standing(self, agent: str) -> AgentStanding:
        record = self._agents[agent]
        live = [
            self._instances[one]
            for one in sorted(self._placements.get(agent, ()))
            if one in self._instances
        ]
        placed = {self._placements[agent][one.instance].node for one in live}
        nodes = tuple(sorted(placed)) or record.nodes[-1:]
        return AgentStanding(agent, record, self._state(is_live=bool(live)), nodes, tuple(live))

    def _node_standing(self, node: str, live: Iterable[Instance]) -> NodeStanding:
        instances = tuple(sorted(live, key=lambda one: one.instance))
        state = self._state(is_live=bool(instances))
        return NodeStanding(node, self._nodes[node], state, instances)

    def _state(self, *, is_live: bool) -> State:
        if is_live:
            return State.ONLINE
        return State.OFFLINE if self.is_authoritative else State.UNKNOWN

    def _unknown_agent(self, agent: str) -> AgentNotFoundError:
        near = difflib.get_close_matches(agent, self._candidates(agent), n=3)
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        elif known := heapq.nsmallest(SHOWN, self._agents):
            hint = f"known agents: {', '.join(known)}"
        else:
            hint = "no agent is registered"
        return AgentNotFoundError(f"no agent {agent!r}; {hint}", agent=agent, suggestions=near)

    def _candidates(self, agent: str) -> Iterable[str]:
        """Return the ids that are worth comparing with one that nobody has.

        A comparison takes 4 µs: with ten thousand ids the loop would stand still for 45 ms. One
        slip leaves what stands before it and what stands after it: sorted by either, the id that
        was meant is among the neighbours.
        """
        if len(self._agents) <= COMPARED:
            return self._agents
        alike = [one for one in self._agents if abs(len(one) - len(agent)) <= SLIPS]
        begins = _neighbours(agent, alike)
        ends = _neighbours(agent[::-1], (one[::-1] for one in alike))
        return {*begins, *(one[::-1] for one in ends)}

    def _unknown_node(self, node: str) -> NodeNotFoundError:
        known = ", ".join(sorted(self._nodes)) or "none"
        return NodeNotFoundError(f"no node {node!r}; known nodes: {known}", node=node)


def _neighbours(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that would stand around a name if it were one of them, in their order."""
    ordered = sorted(names)
    place = bisect(ordered, name)
    around = COMPARED // 4
    return ordered[max(0, place - around) : place + around]


async def load_directory(connection: Connection) -> Directory:
    """Read the registry once.

    Raises:
        StreamMissingError: there is no registry on this broker.
        BrokerUnreachableError: no answer in time.
    """
    directory = Directory()
    directory.replace(await registry.read_registry(connection))
    return directory


async def read_directory(connection: Connection, directory: Directory) -> None:
    """Read the whole registry into a directory that somebody follows.

    Raises what `load_directory` raises.
    """
    # One at a time: an older reading would undo what was heard since a newer one began.
    async with directory.reading:
        await _read(connection, directory)


async def _read(connection: Connection, directory: Directory) -> None:
    directory.begin_reading()
    directory.replace(await registry.read_registry(connection))


class _Reader:
    """Reads the registry again when something of it may have been missed."""

    def __init__(self, connection: Connection, directory: Directory) -> None:
        self._connection = connection
        self._directory = directory
        self._is_wanted = False

    async def read_again(self) -> None:
        """Read until that succeeds, or the connection is lost: the next reconnect reads then."""
        if self._is_wanted:
            return  # One that has not begun yet will see what made us come.
        self._is_wanted = True
        while self._connection.client.is_connected:
            try:
                async with self._directory.reading:
                    self._is_wanted = False
                    await _read(self._connection, self._directory)
                return
            except TransportError as error:
                logger.warning("reading the registry again: %s", error)
                self._is_wanted = True
                await asyncio.sleep(RETRY_PAUSE_S)
        self._is_wanted = False


@asynccontextmanager
async def follow_directory(connection: Connection) -> AsyncIterator[Directory]:
    """Read the registry, and keep up with its changes until the end.

    Changes come by the bucket's republish, and the whole is read again after every reconnect and
    election: a watch would be blind for up to 17 s after a broker restart.
    """
    directory = Directory()
    reader = _Reader(connection, directory)

    async def on_event(message: Msg) -> None:
        key = message.subject.removeprefix(registry.EVENT_PREFIX)
        headers = message.headers or {}
        # Only the bucket's own republish counts: a reply subject that somebody names in a request
        # of his own can bring other messages here, with a body of his choice.
        is_event = message.subject.startswith(registry.EVENT_PREFIX)
        if not (is_event and is_stored_under(headers, REGISTRY, registry.KEY_PREFIX + key)):
            return
        revision = int(headers.get("Nats-Sequence", 0))
        entry = registry.Entry.read(key, headers, message.data, revision)
        if directory.is_of_another_bucket(entry):
            connection.start_hook(reader.read_again)
        directory.apply(entry)

    # Listen first, then read: nothing falls between.
    subscription = await connection.client.subscribe(subjects.REGISTRY_EVENTS, cb=on_event)
    connection.on_reconnect(reader.read_again)
    connection.elections.on_leader(REGISTRY, reader.read_again)
    try:
        await read_directory(connection, directory)
        yield directory
    finally:
        connection.drop_hook(reader.read_again)
        connection.elections.drop(REGISTRY, reader.read_again)
        if not connection.client.is_closed:
            await subscription.unsubscribe()
