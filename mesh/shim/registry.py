"""The registry over HTTP: agents, nodes, where they run, and when they were last seen.

Answers from memory, in the shapes of `schemas.listing`. An API key that is for some agents shows no
others. Does not call anybody: what an agent's `endpoint` does is told elsewhere.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from mesh import codec, subjects
from mesh.directory import Directory
from mesh.errors import (
    AgentNotFoundError,
    InvalidIdError,
    MeshError,
    NodeNotFoundError,
    NotAllowedError,
)
from mesh.shim.door import Door
from mesh.shim.guard import may_call, require_agent, sees_everybody
from mesh.shim.http import base_url, send_json
from mesh.shim.operations import EXAMPLE_NODE, Answer, Operation, Parameter, Tag
from mesh.shim.paging import MAX_TEXT_CHARS, PAGE_PARAMETERS, STATE_PARAMETER, Page, Query
from mesh.shim.status import (
    NO_AGENT_ID,
    NO_NODE_ID,
    UNKNOWN_AGENT,
    UNKNOWN_NODE,
    Row,
    refusal,
)
from mesh.shim.target import AGENT_IN_PATH, ID_SCHEMA
from mesh.standing import AgentStanding, NodeStanding
from schemas.listing import AgentList, ListedAgent, ListedNode, NodeList
from schemas.registry import Instance, State

CHAT_PATH: Final = "/api/agent/{id}/chat"
"""Where this shim takes a message for an agent."""
_TEXT: Final = {"type": "string", "maxLength": MAX_TEXT_CHARS}


class Agents:
    """`GET /api/v1/agents`: who is known, by id. Filters: `node`, `state`, `q` (id and text)."""

    operations = (
        Operation(
            "listAgents",
            "GET",
            "/api/v1/agents",
            Tag.REGISTRY,
            "List the agents",
            parameters=(
                Parameter("node", "query", "Only those on this node.", ID_SCHEMA),
                STATE_PARAMETER,
                Parameter("q", "query", "Only those with this in id or description.", _TEXT),
                *PAGE_PARAMETERS,
            ),
            answers=(Answer(200, "A page of them, by id.", AgentList),),
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        query = Query.read(scope, ("node", "state", "q"))
        page = Page.read(query)
        directory, base = self._door.client.directory, base_url(scope)
        found = _filtered(directory.standings(), query)
        if not sees_everybody(scope):
            found = [one for one in found if may_call(scope, one.id)]
        writer = Writer(directory, base, self._door.caller.node)
        body = {
            "agents": [writer.agent(one) for one in page.of(found)],
            **page.facts(len(found), base + scope["path"]),
        }
        await send_json(send, 200, codec.dumps(body))


class Agent:
    """`GET /api/v1/agent/{id}`: one agent."""

    operations = (
        Operation(
            "getAgent",
            "GET",
            "/api/v1/agent/{id}",
            Tag.REGISTRY,
            "Look an agent up",
            parameters=(AGENT_IN_PATH,),
            answers=(Answer(200, "The agent.", ListedAgent),),
            failures=(UNKNOWN_AGENT, NO_AGENT_ID, NotAllowedError),
            # The guide says /agent/, and most registries the plural.
            aliases=("/api/v1/agents/{id}",),
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        directory = self._door.client.directory
        writer = Writer(directory, base_url(scope), self._door.caller.node)
        name = scope["path_params"]["id"]
        require_agent(scope, name)
        try:
            found = directory.standing(name)
        except AgentNotFoundError as error:
            await _send_unknown(send, UNKNOWN_AGENT, error)
        except InvalidIdError as error:
            await _send_unknown(send, NO_AGENT_ID, error)
        else:
            await send_json(send, 200, codec.dumps(writer.agent(found)))


class Nodes:
    """`GET /api/v1/nodes`: the machines of the mesh, by id. Filter: `state`."""

    operations = (
        Operation(
            "listNodes",
            "GET",
            "/api/v1/nodes",
            Tag.REGISTRY,
            "List the nodes",
            parameters=(STATE_PARAMETER, *PAGE_PARAMETERS),
            answers=(Answer(200, "A page of them, by id.", NodeList),),
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        query = Query.read(scope, ("state",))
        page, state = Page.read(query), query.choice("state", State)
        directory, base = self._door.client.directory, base_url(scope)
        found = [one for one in directory.node_standings() if state in (None, one.state)]
        writer = Writer(directory, base, self._door.caller.node)
        shown = page.of(found)
        agents = _agents_of(directory, scope, (one.id for one in shown))
        body = {
            "nodes": [writer.node(one, agents[one.id]) for one in shown],
            **page.facts(len(found), base + scope["path"]),
        }
        await send_json(send, 200, codec.dumps(body))


class Node:
    """`GET /api/v1/node/{id}`: one node."""

    operations = (
        Operation(
            "getNode",
            "GET",
            "/api/v1/node/{id}",
            Tag.REGISTRY,
            "Look a node up",
            parameters=(Parameter("id", "path", "The node's id.", ID_SCHEMA, EXAMPLE_NODE),),
            answers=(Answer(200, "The node.", ListedNode),),
            failures=(UNKNOWN_NODE, NO_NODE_ID),
            aliases=("/api/v1/nodes/{id}",),
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        directory = self._door.client.directory
        writer = Writer(directory, base_url(scope), self._door.caller.node)
        try:
            found = directory.node_standing(scope["path_params"]["id"])
        except NodeNotFoundError as error:
            await _send_unknown(send, UNKNOWN_NODE, error)
        except InvalidIdError as error:
            await _send_unknown(send, NO_NODE_ID, error)
        else:
            agents = _agents_of(directory, scope, (found.id,))
            await send_json(send, 200, codec.dumps(writer.node(found, agents[found.id])))


class Writer:
    """Writes one answer: plain data in the shapes of `schemas.listing`, a thousand in a blink."""

    def __init__(self, directory: Directory, base: str, own_node: str) -> None:
        self._directory = directory
        self._base = base
        self._own_node = own_node
        self._written: dict[str, dict[str, Any]] = {}
        """The processes: many agents may run in one."""

    def agent(self, one: AgentStanding) -> dict[str, Any]:
        """Write a `ListedAgent`."""
        record, card = one.record, one.record.card
        return {
            "agent_id": one.id,
            "node": one.nodes[0] if one.nodes else None,
            "nodes": one.nodes,
            "endpoint": self._base + CHAT_PATH.replace("{id}", one.id),
            "subject": subjects.inbox(one.id),
            "model": card.model,
            "description": card.description,
            "version": card.version,
            "state": one.state,
            "instances": [self._instance(it) for it in one.instances],
            "last_seen": self._directory.last_seen(one) or None,
            "registered_at": record.registered_at or None,
            "streams": card.streams,
            "concurrency": card.concurrency,
        }

    def node(self, one: NodeStanding, agents: list[AgentStanding]) -> dict[str, Any]:
        """Write a `ListedNode`."""
        return {
            "node": one.id,
            "state": one.state,
            "endpoint": self._base if one.id == self._own_node else None,
            "agents": [{"agent_id": it.id, "state": it.state} for it in agents],
            "processes": [{**self._instance(it), "role": it.role} for it in one.instances],
            "last_seen": self._directory.last_seen(one) or None,
            "registered_at": one.record.registered_at or None,
        }

    def _instance(self, one: Instance) -> dict[str, Any]:
        written = self._written.get(one.instance)
        if written is None:
            written = self._written[one.instance] = {
                "instance": one.instance,
                "node": one.node,
                "pid": one.pid,
                "host": one.host,
                "started_at": one.started_at,
                "last_seen_s": round(self._directory.silence_s(one.instance), 1),
            }
        return written


def _filtered(standings: Sequence[AgentStanding], query: Query) -> list[AgentStanding]:
    node, state, text = query.id("node"), query.choice("state", State), query.text("q")
    return [
        one
        for one in standings
        if (node is None or node in one.nodes)
        and state in (None, one.state)
        and (not text or text in one.id or text in one.record.card.description.casefold())
    ]


def _agents_of(
    directory: Directory, scope: Scope, nodes: Iterable[str]
) -> dict[str, list[AgentStanding]]:
    """Return the agents of some nodes, as far as a request may know of them."""
    found: dict[str, list[AgentStanding]] = {node: [] for node in nodes}
    for one in directory.standings():
        for node in one.nodes:
            if node in found and may_call(scope, one.id):
                found[node].append(one)
    return found


async def _send_unknown(send: Send, row: Row, error: MeshError) -> None:
    """Answer that the path names nobody: there is no `model` here to blame, as elsewhere."""
    told = refusal(row, error.message)
    await send_json(send, told.status, told.body, told.headers)
