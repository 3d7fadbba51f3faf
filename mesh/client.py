"""Calls agents: the caller's side of the mesh.

A call is a message in the agent's mailbox and the wait for its frames. Does not run agents; see
`mesh.agent` and `mesh.runtime`.
"""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

from mesh import codec, subjects
from mesh import headers as h
from mesh.callers import NO_LINEAGE, Caller, Lineage, new_instance_id
from mesh.calls import Call
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory
from mesh.errors import (
    AgentOfflineError,
    BrokerUnreachableError,
    InvalidInputError,
)
from mesh.inbox import ReplyInbox
from mesh.outbox import Outbox, Request
from mesh.publisher import PubAck
from mesh.settings import DEFAULT_TIMEOUT_S, Settings
from schemas.chat import ChatReply, ChatRequest
from schemas.registry import AgentView, NodeView, State

RECONNECT_PATIENCE_S: Final = 2.0
"""How long a new call waits for a lost connection before it says so."""

Question = str | ChatRequest | Mapping[str, Any]


class MeshClient:
    """Calls agents as one caller, over one connection."""

    def __init__(
        self,
        connection: Connection,
        directory: Directory,
        caller: Caller,
        inbox: ReplyInbox,
        outbox: Outbox,
    ) -> None:
        self._connection = connection
        self._caller = caller
        self._inbox = inbox
        self._outbox = outbox
        self.directory = directory

    def agents(self) -> list[AgentView]:
        """Return every agent of the mesh, as it stands now."""
        return self.directory.agents()

    def nodes(self) -> list[NodeView]:
        """Return every node of the mesh, as it stands now."""
        return self.directory.nodes()

    async def ask(
        self,
        agent: str,
        question: Question,
        *,
        node: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        wait: bool = True,
    ) -> ChatReply:
        """Ask an agent and wait for its whole answer.

        An agent that is offline gets the question when it is back, if that is before the
        deadline; with `wait=False` it is an error at once.

        Raises:
            AgentNotFoundError: no agent of this id was ever announced.
            AgentOfflineError: not running, and `wait` is false.
            MailboxFullError: too many requests wait for it already.
            CallTimeoutError: no answer within `timeout_s`.
            AgentFailedError: its handler raised.
            MeshError: whatever else the agent said; the same class as was raised there.
        """
        body = encode_question(agent, question, stream=False)
        call = await self.start(agent, body, node=node, timeout_s=timeout_s, wait=wait)
        return await call.reply()

    async def stream(
        self,
        agent: str,
        question: Question,
        *,
        node: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        wait: bool = True,
    ) -> AsyncIterator[str]:
        """Ask an agent and yield the text of its answer as it comes.

        An agent that does not stream yields its whole answer at once. Raises what `ask` raises,
        and `StreamRestartedError` when the agent died half-way.
        """
        body = encode_question(agent, question, stream=True)
        call = await self.start(agent, body, node=node, timeout_s=timeout_s, wait=wait)
        async for text in call.text():
            yield text

    async def start(
        self,
        agent: str,
        body: bytes,
        *,
        content_type: str = h.JSON,
        node: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        wait: bool = True,
        lineage: Lineage = NO_LINEAGE,
        source: Caller | None = None,
        is_ping: bool = False,
    ) -> Call:
        """Send a request and return the call, without waiting for anything but the socket.

        `source` is who the agent is told asks, when that is not this caller. A ping takes the
        way of every call, up to a slot of the agent, and is answered without its handler.

        Raises:
            InvalidInputError: the agent, the node, the deadline or the size cannot be.
            AgentNotFoundError, NodeNotFoundError, AgentNotOnNodeError: no such target.
            AgentOfflineError: not running, and `wait` is false.
            HopLimitError: agents call each other in a loop.
            BrokerUnreachableError: not connected.
        """
        _require_timeout(timeout_s)
        self.directory.require_target(agent, node)
        lineage.require_room(agent)
        if not wait and self.directory.state_on(agent, node) is State.OFFLINE:
            where = f" on {node}" if node else ""
            raise AgentOfflineError(f"agent {agent!r} is not running{where} now", agent=agent)
        if not self._connection.client.is_connected:
            await self._require_connection()
        call_id = os.urandom(16).hex()
        call = Call(call_id, agent, self._inbox.reply_subject(call_id, agent), timeout_s)
        headers = self._headers(call, content_type, node, lineage, source or self._caller)
        if is_ping:
            headers[h.PING] = "1"
        request = Request(subjects.inbox(agent, node), body, headers)
        self._connection.publisher.require_size(body, headers)
        self._inbox.expect(call)
        await self._outbox.send(call, request)
        return call

    async def publish_event(
        self, agent: str, name: str, body: bytes, *, content_type: str = h.JSON
    ) -> PubAck:
        """Publish an event of `agent`, and return when it is stored.

        Raises:
            InvalidInputError: the agent's id or the event's name is none, or it is too large.
            BrokerUnreachableError: the broker does not acknowledge it.
        """
        headers = {
            h.CONTENT_TYPE: content_type,
            h.MSG_ID: uuid4().hex,
            h.SOURCE_AGENT: agent,
            h.SOURCE_NODE: self._caller.node,
        }
        subject = subjects.event(agent, name)
        return await self._connection.publisher.publish(subject, body, headers)

    async def _require_connection(self) -> None:
        client = self._connection.client
        deadline = asyncio.get_running_loop().time() + RECONNECT_PATIENCE_S
        while not client.is_connected:
            if client.is_closed or asyncio.get_running_loop().time() > deadline:
                raise BrokerUnreachableError(
                    "the broker is not reachable; nothing was sent", servers=""
                )
            await asyncio.sleep(0.05)

    def _headers(
        self, call: Call, content_type: str, node: str | None, lineage: Lineage, source: Caller
    ) -> dict[str, str]:
        # Never the call's id: whoever knows that can answer the call.
        trace_id = lineage.trace_id or os.urandom(16).hex()
        headers = {
            h.REPLY_TO: call.reply_subject,
            h.CORRELATION_ID: call.id,
            h.CONTENT_TYPE: content_type,
            h.MSG_ID: call.id,
            h.TTL: h.ttl(call.timeout_s),
            h.TIMEOUT_MS: str(math.ceil(call.timeout_s * 1000)),
            h.SOURCE_AGENT: source.id,
            h.SOURCE_NODE: source.node,
            h.TRACEPARENT: f"00-{trace_id}-{os.urandom(8).hex()}-01",
        }
        if node:
            headers[h.TARGET_NODE] = node
        if lineage.hops:
            headers[h.HOPS] = ",".join(lineage.hops)
        return headers


def encode_question(agent: str, question: Question, *, stream: bool) -> bytes:
    """Encode a question as the OpenAI body that travels.

    Raises:
        InvalidInputError: it is empty, or no chat request.
    """
    if isinstance(question, str):
        if not question.strip():
            raise InvalidInputError("the message is empty", field="messages")
        value: dict[str, Any] = {"messages": [{"role": "user", "content": question}]}
    elif isinstance(question, ChatRequest):
        value = question.model_dump(mode="json", exclude_unset=True)
    else:
        codec.validate(ChatRequest, question)
        value = dict(question)
    value.setdefault("model", agent)
    value["stream"] = stream
    return codec.dumps(value)


def _require_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s <= h.MAX_TIMEOUT_S:
        raise InvalidInputError(
            f"a deadline of {timeout_s:g} s cannot be: give more than 0 and at most 24 hours",
            field="timeout_s",
        )


@asynccontextmanager
async def open_client(
    connection: Connection, directory: Directory, caller: Caller
) -> AsyncIterator[MeshClient]:
    """Make a client on a connection that is open, for one caller identity.

    Raises:
        InvalidIdError: the caller's id or node is none.
    """
    inbox = ReplyInbox(connection, caller.id, caller.instance)
    async with inbox.listening(), Outbox(connection.publisher).sending() as outbox:
        yield MeshClient(connection, directory, caller, inbox, outbox)


@asynccontextmanager
async def connect(
    url: str | None = None, *, name: str = "client", node: str | None = None
) -> AsyncIterator[MeshClient]:
    """Connect to the mesh, and close the connection at the end.

    `url` and `node` default to the environment (`MESH_NATS_URL`, `MESH_NODE`).

    Raises:
        BrokerUnreachableError: there is no broker.
        StreamMissingError: the broker has no mesh on it.
        InvalidIdError: `name` is not an id.
    """
    settings = Settings.from_env()
    subjects.require_id(name, "caller")
    caller = Caller(id=name, node=node or settings.node, instance=new_instance_id())
    async with (
        open_connection(url or settings.nats_url, name=f"mesh client {name}") as connection,
        follow_directory(connection) as directory,
        open_client(connection, directory, caller) as client,
    ):
        yield client
