"""The A2A protocol 1.0 for each agent: a card, and JSON-RPC, which is translated into calls.

A task is a call by another name, so that it is durable, can be looked at for a day, and stopped,
also through another door. A message that comes twice is asked once: its id is the key. Nothing is
remembered between messages; what a context shares, its client sends.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from mesh import codec, log_lines
from mesh import headers as h
from mesh.calls import Call, CallState, StoredCall
from mesh.completions import read_delta, read_reply
from mesh.errors import (
    CallNotFoundError,
    InvalidInputError,
    KeyReusedError,
    MeshError,
    NotAllowedError,
    RegistryError,
)
from mesh.followers import follow_call
from mesh.frames import Frame
from mesh.ledger import CallRecord, read_answered
from mesh.questions import encode_question
from mesh.settings import DEFAULT_TIMEOUT_S
from mesh.shim.door import Door
from mesh.shim.guard import owner_of, require_agent
from mesh.shim.http import BodyRoom, base_url, read_body, read_headers, send_json
from mesh.shim.idempotency import call_id_of, find_call
from mesh.shim.operations import Operation, Tag
from mesh.shim.rules import Rules
from mesh.shim.sse import EventStream, event
from mesh.shim.target import Target
from mesh.shim.waiting import beside
from schemas.a2a import Message, RpcRequest, SendParams, TaskParams
from schemas.frame import FrameKind

PATH: Final = "/a2a/{id}"
CARD_PATH: Final = f"{PATH}/.well-known/agent-card.json"
VERSION: Final = "1.0"
VERSION_HEADER: Final = "a2a-version"
TIMEOUT_S: Final = 2 * DEFAULT_TIMEOUT_S
"""How long an answer may take that is waited for; one that is not has a day."""
CANCEL_PATIENCE_S: Final = 2.0
ANSWER: Final = "answer"
"""Id of a task's one artifact."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL: Final = -32603
TASK_NOT_FOUND: Final = -32001
TASK_NOT_CANCELABLE: Final = -32002
NO_PUSH: Final = -32003
UNSUPPORTED: Final = -32004
CONTENT_TYPE: Final = -32005
NO_EXTENDED_CARD: Final = -32007
WRONG_VERSION: Final = -32009

_STATES: Final = {
    CallState.SENT: "TASK_STATE_SUBMITTED",
    CallState.STORED: "TASK_STATE_SUBMITTED",
    CallState.WORKING: "TASK_STATE_WORKING",
    CallState.ANSWERED: "TASK_STATE_COMPLETED",
    CallState.FAILED: "TASK_STATE_FAILED",
    CallState.EXPIRED: "TASK_STATE_FAILED",
    CallState.DEAD: "TASK_STATE_FAILED",
    CallState.CANCELLED: "TASK_STATE_CANCELED",
}
_REASONS: Final = {
    TASK_NOT_FOUND: "TASK_NOT_FOUND",
    TASK_NOT_CANCELABLE: "TASK_NOT_CANCELABLE",
    NO_PUSH: "PUSH_NOTIFICATION_NOT_SUPPORTED",
    UNSUPPORTED: "UNSUPPORTED_OPERATION",
    CONTENT_TYPE: "CONTENT_TYPE_NOT_SUPPORTED",
    NO_EXTENDED_CARD: "EXTENDED_AGENT_CARD_NOT_CONFIGURED",
    WRONG_VERSION: "VERSION_NOT_SUPPORTED",
}
_REFUSED: Final = {
    "ListTasks": (UNSUPPORTED, "tasks are not listed: who knows a task's id may look at it"),
    "GetExtendedAgentCard": (NO_EXTENDED_CARD, "there is one card, and it is whole"),
    "CreateTaskPushNotificationConfig": (NO_PUSH, "subscribe to the task instead"),
    "GetTaskPushNotificationConfig": (NO_PUSH, "subscribe to the task instead"),
    "ListTaskPushNotificationConfigs": (NO_PUSH, "subscribe to the task instead"),
    "DeleteTaskPushNotificationConfig": (NO_PUSH, "subscribe to the task instead"),
}


class RpcError(Exception):
    """A refusal, as JSON-RPC has it."""

    def __init__(self, code: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        """What happened, as the mesh calls it; empty where it is A2A's alone."""


class AgentCards:
    """`GET /a2a/{id}/.well-known/agent-card.json`."""

    operations = (
        Operation("getAgentCard", "GET", CARD_PATH, Tag.CHAT, "Read a card", is_listed=False),
    )

    def __init__(self, door: Door, rules: Rules) -> None:
        self._door = door
        self._needs_key = rules.requires_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. An agent that nobody knows is raised, and told as 404."""
        agent = scope["path_params"]["id"]
        require_agent(scope, agent)
        card = self._door.client.directory.standing(agent).record.card
        about = card.description or f"Agent {agent} of a mesh."
        skill = {"id": agent, "name": agent, "description": about, "tags": ["chat"]}
        told: dict[str, Any] = {
            "name": agent,
            "description": about,
            "version": card.version or "1.0.0",
            "supportedInterfaces": [
                {
                    "url": f"{self._door.public_url or base_url(scope)}/a2a/{agent}",
                    "protocolBinding": "JSONRPC",
                    "protocolVersion": VERSION,
                }
            ],
            "capabilities": {"streaming": True, "pushNotifications": False},
            "defaultInputModes": ["text/plain", "application/json"],
            "defaultOutputModes": ["text/plain"],
            "skills": [skill],
        }
        if self._needs_key:
            told["securitySchemes"] = {"key": {"httpAuthSecurityScheme": {"scheme": "Bearer"}}}
            told["securityRequirements"] = [{"schemes": {"key": {"list": []}}}]
        await send_json(send, 200, codec.dumps(told), {"cache-control": "no-cache"})


class A2A:
    """`POST /a2a/{id}`: JSON-RPC for one agent."""

    operations = (Operation("callA2A", "POST", PATH, Tag.CHAT, "Speak A2A", is_listed=False),)

    def __init__(self, door: Door) -> None:
        self._door = door
        self._methods: dict[str, Callable[[_Exchange], Awaitable[None]]] = {
            "SendMessage": self._send,
            "SendStreamingMessage": self._stream,
            "GetTask": self._get,
            "CancelTask": self._cancel,
            "SubscribeToTask": self._subscribe,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What is wrong with it is told by JSON-RPC, with status 200."""
        exchange = _Exchange(scope, receive, send)
        try:
            await exchange.read(self._door.limit_bytes, self._door.body_room)
            require_agent(scope, exchange.agent)
            self._door.client.directory.standing(exchange.agent)
            method = exchange.request.method
            if refused := _REFUSED.get(method):
                raise RpcError(*refused)
            if method not in self._methods:
                raise RpcError(METHOD_NOT_FOUND, f"there is no method {method[:60]!r}")
            await self._methods[method](exchange)
        except RpcError as error:
            await exchange.fail(error)
        except MeshError as error:
            await exchange.fail(_as_rpc(error))

    async def _send(self, exchange: "_Exchange") -> None:
        params = codec.validate(SendParams, exchange.request.params)
        is_detached = params.configuration.returnImmediately
        stored = await self._begin(exchange, params.message, is_detached=is_detached)
        if not is_detached:
            async with follow_call(self._door.connection, stored, is_counted=True) as call:
                with self._door.waiting(exchange.receive) as over:
                    try:
                        await beside(over, call.result())
                    except MeshError:
                        if not call.is_done:  # This door closes. Else the record tells it.
                            raise
        record = await read_answered(self._door.connection, stored.id)
        await exchange.answer({"task": _task(record, params.message.contextId)})

    async def _stream(self, exchange: "_Exchange") -> None:
        params = codec.validate(SendParams, exchange.request.params)
        stored = await self._begin(exchange, params.message, is_detached=False)
        await self._relay(exchange, stored, params.message.contextId, is_counted=True)

    async def _get(self, exchange: "_Exchange") -> None:
        record = await self._find(exchange)
        await exchange.answer(_task(record, ""))

    async def _cancel(self, exchange: "_Exchange") -> None:
        record = await self._find(exchange)
        if record.outcome is not None:
            raise RpcError(TASK_NOT_CANCELABLE, f"the task has ended: {record.state.value}")
        await self._door.client.cancel(record.call)
        async with follow_call(self._door.connection, record.call) as call:
            with suppress(TimeoutError, MeshError):  # The record tells it.
                async with asyncio.timeout(CANCEL_PATIENCE_S):
                    await call.result()
        record = await read_answered(self._door.connection, record.call.id)
        await exchange.answer(_task(record, ""))

    async def _subscribe(self, exchange: "_Exchange") -> None:
        record = await self._find(exchange)
        if record.outcome is not None:
            raise RpcError(UNSUPPORTED, f"the task has ended: {record.state.value}; get it instead")
        await self._relay(exchange, record.call, "")

    async def _begin(
        self, exchange: "_Exchange", message: Message, *, is_detached: bool
    ) -> StoredCall:
        """Put a message into the agent's mailbox; one that was there before is found again."""
        if message.taskId:
            raise RpcError(
                UNSUPPORTED, "a task takes no second message: send a new one, with all it needs"
            )
        agent, body = exchange.agent, _question(exchange.agent, message)
        key = f"a2a/{agent}/{message.messageId}"
        call_id = await call_id_of(self._door, owner_of(exchange.scope), key)
        log_lines.work_on(call_id, "")
        known = await find_call(self._door, call_id, Target(agent, None), body)
        if known is not None:
            return known
        timeout_s = h.MAX_TIMEOUT_S if is_detached else TIMEOUT_S
        submit = self._door.client.submit
        return await submit(agent, body, call_id=call_id, timeout_s=timeout_s)

    async def _find(self, exchange: "_Exchange") -> CallRecord:
        """Return the task that is asked for: a call of this agent."""
        params = codec.validate(TaskParams, exchange.request.params)
        try:
            record = await read_answered(self._door.connection, params.id)
        except CallNotFoundError:
            record = None
        if record is None or record.call.agent != exchange.agent:
            raise RpcError(TASK_NOT_FOUND, f"there is no task {params.id[:64]!r} of this agent")
        return record

    async def _relay(
        self,
        exchange: "_Exchange",
        stored: StoredCall,
        context_id: str,
        *,
        is_counted: bool = False,
    ) -> None:
        stream = EventStream(exchange.send, {}, pace=self._door.pace)
        async with follow_call(self._door.connection, stored, is_counted=is_counted) as call:
            with self._door.waiting(exchange.receive) as over:
                try:
                    await beside(over, stream.relay(exchange.events(_updates(call, context_id))))
                except MeshError as error:  # This door closes; the task goes on.
                    if not stream.has_begun:
                        raise
                    await stream.fail(event(exchange.failure(_as_rpc(error))))


class _Exchange:
    """One JSON-RPC request, and the ways to answer it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.agent: str = scope["path_params"]["id"]
        self.request = RpcRequest(jsonrpc="2.0", method="")

    async def read(self, limit_bytes: int, room: BodyRoom) -> None:
        """Read it. Raises `RpcError`, and what `read_body` raises."""
        body = await read_body(self.scope, self.receive, limit_bytes, room)
        try:
            value = codec.loads(body)
        except InvalidInputError as error:
            raise RpcError(PARSE_ERROR, error.message) from None
        try:
            self.request = codec.validate(RpcRequest, value)
        except InvalidInputError as error:
            raise RpcError(INVALID_REQUEST, error.message) from None
        # A2A 1.0, 3.6.2: none is 0.3, whose bodies are others.
        version = read_headers(self.scope).get(VERSION_HEADER, "") or "0.3"
        if version.split(".")[:2] != VERSION.split("."):
            told = f"this is A2A {VERSION}, and not {version[:20]!r}: send 'A2A-Version: {VERSION}'"
            raise RpcError(WRONG_VERSION, told)

    async def answer(self, result: Mapping[str, Any]) -> None:
        """Send the result."""
        await send_json(self.send, 200, self._enveloped({"result": result}))

    async def fail(self, error: RpcError) -> None:
        """Send why there is none."""
        await send_json(self.send, 200, self.failure(error))

    def failure(self, error: RpcError) -> bytes:
        """Encode why there is no result."""
        told: dict[str, Any] = {"code": error.code, "message": error.message}
        reason, domain = error.reason, "mesh"
        if not reason and error.code in _REASONS:
            reason, domain = _REASONS[error.code], "a2a-protocol.org"
        if reason:
            kind = "type.googleapis.com/google.rpc.ErrorInfo"
            told["data"] = [{"@type": kind, "reason": reason.upper(), "domain": domain}]
        return self._enveloped({"error": told})

    async def events(
        self, results: AsyncGenerator[Mapping[str, Any], None]
    ) -> AsyncGenerator[bytes, None]:
        """Yield results as encoded server-sent events."""
        async for result in results:
            yield event(self._enveloped({"result": result}))

    def _enveloped(self, body: Mapping[str, Any]) -> bytes:
        return codec.dumps({"jsonrpc": "2.0", "id": self.request.id, **body})


async def _updates(call: Call, context_id: str) -> AsyncGenerator[Mapping[str, Any], None]:
    """Yield what becomes of a task: itself, its work, parts of its answer, and its end."""
    ids = {"taskId": call.id, "contextId": context_id or call.id}
    yield {"task": {"id": call.id, "contextId": ids["contextId"], "status": _status(call.state)}}
    has_parts = False
    try:
        async for frame in call.chunks():
            text = read_delta(frame.body).content
            if not text:
                continue
            if not has_parts:
                yield {"statusUpdate": {**ids, "status": _status(CallState.WORKING)}}
            yield {"artifactUpdate": {**ids, "artifact": _artifact(text), "append": has_parts}}
            has_parts = True
        if not has_parts:
            text = (await call.reply()).text
            yield {"artifactUpdate": {**ids, "artifact": _artifact(text), "lastChunk": True}}
    except MeshError as error:
        if not call.is_done:
            raise
        yield {"statusUpdate": {**ids, "status": _status(call.state, error)}}
    else:
        yield {"statusUpdate": {**ids, "status": _status(call.state)}}


def _task(record: CallRecord, context_id: str) -> dict[str, Any]:
    """Return a call as a task."""
    outcome = record.outcome
    error = outcome if isinstance(outcome, MeshError) else None
    told: dict[str, Any] = {
        "id": record.call.id,
        "contextId": context_id or record.call.id,
        "status": _status(record.state, error),
    }
    if isinstance(outcome, Frame) and outcome.kind is FrameKind.FINAL:
        told["artifacts"] = [_artifact(read_reply(outcome).text)]
    return told


def _status(state: CallState, error: MeshError | None = None) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told: dict[str, Any] = {"state": _STATES[state], "timestamp": now}
    if error is not None:
        told["message"] = {
            "messageId": f"{state.value}-{error.code}",
            "role": "ROLE_AGENT",
            "parts": [{"text": f"{error.code}: {error.message}"}],
        }
    return told


def _artifact(text: str) -> dict[str, Any]:
    return {"artifactId": ANSWER, "parts": [{"text": text}]}


def _question(agent: str, message: Message) -> bytes:
    """Return a message as a chat request; the answer may come in parts."""
    texts = []
    for part in message.parts:
        if part.text is not None:
            texts.append(part.text)
        elif part.data is not None:
            texts.append(codec.dumps(part.data).decode())
        else:
            raise RpcError(CONTENT_TYPE, "send text or data: files and links are not passed on")
    return encode_question(agent, "\n".join(texts), stream=True)


def _as_rpc(error: MeshError) -> RpcError:
    is_theirs = isinstance(
        error, InvalidInputError | RegistryError | KeyReusedError | NotAllowedError
    )
    code = INVALID_PARAMS if is_theirs else INTERNAL
    return RpcError(code, error.message, error.code)
