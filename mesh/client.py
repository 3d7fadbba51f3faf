"""Calls agents: the caller's side of the mesh.

A call is a message in the agent's mailbox and the wait for its frames. Does not run agents; see
`mesh.agent` and `mesh.runtime`.
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final
from uuid import uuid4

from mesh import headers as h
from mesh import otlp, subjects
from mesh.attachments import FileSource
from mesh.callers import NO_LINEAGE, Caller, Lineage, new_instance_id
from mesh.calls import Call, CallState, StoredCall
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory
from mesh.errors import AgentOfflineError, InvalidInputError
from mesh.inbox import ReplyInbox
from mesh.outbox import Outbox, compose
from mesh.publisher import PubAck
from mesh.questions import Question, encode_question
from mesh.retries import is_first, require_retry
from mesh.settings import DEFAULT_TIMEOUT_S, Settings
from mesh.trust.login import Login
from schemas.chat import ChatReply
from schemas.registry import AgentView, NodeView, State

RECONNECT_PATIENCE_S: Final = 2.0
"""How long a new call waits for a lost connection before it says so."""

KEEP_S: Final = 24 * 3600
"""How long the frames of a call are kept that nobody waits for: the horizon of resume and retry."""


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
        file: FileSource | None = None,
        node: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        wait: bool = True,
        lineage: Lineage = NO_LINEAGE,
    ) -> ChatReply:
        """Ask an agent and wait for its whole answer.

        An agent that is offline gets the question when it is back, if that is before the
        deadline; with `wait=False` it is an error at once. When the waiting is cancelled, so is
        the call. `file` goes with the question: a path, bytes, or pieces as they come. A file that
        comes with the answer is `reply.file`, to be read or saved for two minutes at least.

        Raises:
            AgentNotFoundError: no agent of this id was ever announced.
            AgentOfflineError: not running, and `wait` is false.
            MailboxFullError: too many requests wait for it already.
            CallTimeoutError: no answer within `timeout_s`.
            AgentFailedError: its handler raised.
            PayloadTooLargeError: question or file are over MESH_BODY_MAX.
            StorageFullError: the broker has no room for them.
            BodyLostError: the answer fits into no message, and what lies beside it is gone.
            MeshError: whatever else the agent said; the same class as was raised there.
        """
        body = encode_question(agent, question, stream=False)
        call = await self.start(
            agent, body, file=file, node=node, timeout_s=timeout_s, wait=wait, lineage=lineage
        )
        try:
            return await call.reply()
        finally:
            self.abandon(call)

    async def stream(
        self,
        agent: str,
        question: Question,
        *,
        file: FileSource | None = None,
        node: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        wait: bool = True,
        lineage: Lineage = NO_LINEAGE,
    ) -> AsyncGenerator[str, None]:
        """Ask an agent and yield the text of its answer as it comes.

        An agent that does not stream yields its whole answer at once. Raises what `ask` raises,
        and `StreamRestartedError` when the agent died half-way. Who stops reading, and closes the
        generator, cancels the call.
        """
        body = encode_question(agent, question, stream=True)
        call = await self.start(
            agent, body, file=file, node=node, timeout_s=timeout_s, wait=wait, lineage=lineage
        )
        try:
            async for text in call.text():
                yield text
        finally:
            self.abandon(call)

    async def start(
        self,
        agent: str,
        body: bytes,
        *,
        content_type: str = h.JSON,
        file: FileSource | None = None,
        node: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        wait: bool = True,
        lineage: Lineage = NO_LINEAGE,
        source: Caller | None = None,
        is_ping: bool = False,
    ) -> Call:
        """Send a request and return the call, without waiting for anything but the socket.

        A file, and a body that fits into no message, are stored first; the deadline counts from
        then. They are removed when the call has ended.

        `source` is who the agent is told asks, when that is not this caller; in secure mode only
        one for whom the credentials speak. A ping takes the
        way of every call, up to a slot of the agent, and is answered without its handler.

        Raises:
            InvalidInputError: the agent, the node, the deadline or the size cannot be.
            AgentNotFoundError, NodeNotFoundError, AgentNotOnNodeError: no such target.
            AgentOfflineError: not running, and `wait` is false.
            HopLimitError: agents call each other in a loop.
            MailboxFullError: as many wait as its card allows. As many as the broker allows: that
                is told by the call.
            BrokerUnreachableError: not connected.
        """
        await self._require_way(agent, node, timeout_s, wait=wait)
        if not is_ping:
            await self._require_room(agent, node)
        lineage.require_room(agent)
        call_id = os.urandom(16).hex()
        reply_subject = self._inbox.reply_subject(call_id, agent)
        call = Call(call_id, agent, reply_subject, timeout_s, self._connection)
        request = compose(
            call,
            body,
            content_type=content_type,
            node=node,
            source=self._source(source),
            lineage=lineage,
            signer=self._connection.credentials,
        )
        if is_ping:
            request.headers[h.PING] = "1"
        await self._outbox.stow(request, file)
        self._inbox.expect(call, is_counted=not is_ping)
        if h.BODY in request.headers or h.FILE in request.headers:
            self._outbox.drop_at_end(call, request)
        await self._outbox.send(call, request)
        return call

    async def submit(
        self,
        agent: str,
        body: bytes,
        *,
        content_type: str = h.JSON,
        file: FileSource | None = None,
        node: str | None = None,
        timeout_s: float = h.MAX_TIMEOUT_S,
        wait: bool = True,
        source: Caller | None = None,
        call_id: str = "",
        replay_of: str = "",
    ) -> StoredCall:
        """Send a request that nobody waits for, and return when JetStream has it.

        Its frames are kept for a day, for whoever knows the call's id; see `mesh.ledger`. With a
        `call_id` of the caller's own, 128 bits that nobody can guess, the call is idempotent: a
        second one is the same call, also through another process, and its agent is asked once.
        It is up to the caller to look into the ledger first. `replay_of` names the dead call that
        is sent again.

        Raises what `start` raises, and:
            KeyReusedError: another request was sent under this `call_id`.
            MailboxFullError: too many requests wait for the agent already.
            PublishRefusedError: JetStream does not take it.
            AckLostError: JetStream did not say; the call may be stored.
        """
        await self._require_way(agent, node, timeout_s, wait=wait)
        await self._require_room(agent, node)
        name = call_id or os.urandom(16).hex()
        instance = subjects.ANY_INSTANCE if call_id else self._caller.instance
        reply_subject = subjects.reply(self._caller.id, instance, name, agent)
        call = Call(name, agent, reply_subject, timeout_s)
        request = compose(
            call,
            body,
            content_type=content_type,
            node=node,
            source=self._source(source),
            lineage=NO_LINEAGE,
            signer=self._connection.credentials,
        )
        request.headers[h.KEEP_S] = str(KEEP_S)
        if call_id:
            request.headers[h.IDEMPOTENCY] = "1"
        if replay_of:
            request.headers[h.REPLAY_OF] = replay_of
        await self._outbox.stow(request, file)
        stored = await self._outbox.store(request, agent)
        if stored.is_duplicate:
            if request.claims and not await is_first(self._connection, request, stored.sequence):
                self._outbox.drop(request)
            await require_retry(self._connection, self._caller.id, request, stored.sequence)
        await self._outbox.record(request, stored.sequence)
        if call.span is not None:  # Nobody waits for its end.
            call.span.stored()
            call.span.end(CallState.STORED.value, "")
        return StoredCall(name, agent, reply_subject, stored.sequence)

    async def cancel(self, call: Call | StoredCall) -> None:
        """Ask for the end of a call, and return when JetStream has that.

        Whoever waits gets a `CallCancelledError`, unless the agent has answered by then. Work in
        a thread is only told: it goes on until it looks.

        Raises:
            BrokerUnreachableError: no acknowledgement.
        """
        await self._outbox.cancel(call)

    def abandon(self, call: Call) -> None:
        """Cancel a call that nobody waits for any more, unless it has ended."""
        self._outbox.abandon(call)

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

    def _source(self, named: Caller | None) -> Caller:
        """Return as whom to ask: in secure mode nobody can be named who has not signed."""
        signer = self._connection.credentials
        if signer is None:
            return named or self._caller
        if named is None or named.id not in signer.grant.speakers:
            return self._caller
        return replace(self._caller, id=named.id)

    async def _require_way(
        self, agent: str, node: str | None, timeout_s: float, *, wait: bool
    ) -> None:
        """Check that a request can be sent, and that there is a use in it."""
        if not 0 < timeout_s <= h.MAX_TIMEOUT_S:
            raise InvalidInputError(
                f"a deadline of {timeout_s:g} s cannot be: give more than 0 and at most 24 hours",
                field="timeout_s",
            )
        self.directory.require_target(agent, node)
        if not wait and self.directory.state_on(agent, node) is State.OFFLINE:
            where = f" on {node}" if node else ""
            message = f"agent {agent!r} is not running{where} now: start it, or say that you wait"
            raise AgentOfflineError(message, agent=agent)
        if not self._connection.client.is_connected:
            await self._connection.require_connected(RECONNECT_PATIENCE_S)

    async def _require_room(self, agent: str, node: str | None) -> None:
        """Check that the mailbox holds fewer requests than the agent's card allows."""
        record = self.directory.agent_record(agent)
        if record is not None and record.card.mailbox_max is not None:
            await self._outbox.require_room(agent, node, record.card.mailbox_max)


@asynccontextmanager
async def open_client(
    connection: Connection, directory: Directory, caller: Caller
) -> AsyncIterator[MeshClient]:
    """Make a client on a connection that is open, for one caller identity.

    Raises:
        InvalidIdError: the caller's id or node is none.
    """
    inbox = ReplyInbox(connection, caller.id, caller.instance)
    async with inbox.listening(), Outbox(connection).sending() as outbox:
        yield MeshClient(connection, directory, caller, inbox, outbox)


@asynccontextmanager
async def connect(
    url: str | None = None, *, name: str = "client", node: str | None = None
) -> AsyncIterator[MeshClient]:
    """Connect to the mesh, and close the connection at the end.

    `url` and `node` default to the environment (`MESH_NATS_URL`, `MESH_NODE`). In a secure mesh it
    logs in with MESH_CREDS, or what this machine has, and calls under a name that those allow.

    Raises:
        BrokerUnreachableError: there is no broker.
        CredentialsError: it does not let us in.
        StreamMissingError: the broker has no mesh on it.
        InvalidIdError: `name` is not an id.
    """
    named = {"MESH_NATS_URL": url} if url else {}
    settings = Settings.from_env({**os.environ, **named})
    subjects.require_id(name, "caller")
    async with (
        open_connection(Login.of(settings), name=f"mesh client {name}") as connection,
        follow_directory(connection) as directory,
        otlp.exporting(f"mesh-client {name}", node or settings.node),
    ):
        caller = Caller(connection.caller(name), node or settings.node, new_instance_id())
        async with open_client(connection, directory, caller) as client:
            yield client
