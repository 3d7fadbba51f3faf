"""The OpenAI Responses API over calls: ask, look up, cancel. It is the default of many clients.

A request becomes a chat request before it travels, and the agent's answer a response: see
`mesh.shim.response_options` and `mesh.shim.response_output`. Remembers nothing: a response can be
looked up for as long as JetStream has the frames of its call. Source of the endpoints: the OpenAI
API reference, "Responses".
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from mesh import codec
from mesh.callers import known_source
from mesh.calls import Call, CallState, StoredCall
from mesh.completions import read_delta, read_reply
from mesh.errors import MeshError
from mesh.followers import follow_call
from mesh.frames import Frame
from mesh.ledger import CallRecord, read_answered
from mesh.shim.door import Door
from mesh.shim.exchange import LOCATION, Asked, Exchange
from mesh.shim.failures import ASKING, OF_A_CALL
from mesh.shim.guard import owner_of, require_agent
from mesh.shim.http import CALL_ID, read_body, read_headers, read_query, send_json
from mesh.shim.openai import chunk_bodies
from mesh.shim.operations import (
    EXAMPLE_AGENT,
    Answer,
    Events,
    Link,
    Operation,
    Parameter,
    Tag,
)
from mesh.shim.response_events import ResponseEvents
from mesh.shim.response_input import unsupported
from mesh.shim.response_options import chat_body, echo, read_request
from mesh.shim.response_output import PREFIX, Draft, looked_up
from mesh.shim.status import NO_MEMORY, OK, UNSUPPORTED, Failure
from mesh.shim.target import TARGET_PARAMETERS, read_source, read_target
from mesh.shim.terms import TERMS_PARAMETERS, OnLeave, Terms, read_terms
from mesh.shim.waiting import beside
from mesh.subjects import CALL_PATTERN
from schemas.chat import ChatDelta, FinishReason
from schemas.responses import ResponseEvent, ResponseObject, ResponseQuestion

CANCEL_PATIENCE_S: Final = 2.0
"""How long a cancel is waited for; then it is on its way."""

_QUESTION: Final = {"model": EXAMPLE_AGENT, "input": "Hello!"}
_RESPONSE: Final = Parameter(
    "id",
    "path",
    "The response's id, or the call's.",
    {"type": "string", "pattern": f"^({PREFIX})?{CALL_PATTERN.pattern}$"},
)


class Responses:
    """`POST /v1/responses`: one call, plain, streamed or in the background."""

    operations = (
        Operation(
            "createResponse",
            "POST",
            "/v1/responses",
            Tag.RESPONSES,
            "Ask an agent for a response",
            description="The agent gets a chat request that says the same. Tools are functions of "
            "yours: those that OpenAI runs itself are not served.",
            parameters=(*TARGET_PARAMETERS, *TERMS_PARAMETERS),
            request=ResponseQuestion,
            examples={
                "plain": _QUESTION,
                "streamed": {**_QUESTION, "stream": True},
                "background": {**_QUESTION, "background": True},
            },
            answers=(
                Answer(
                    200,
                    "The response: whole, or with `stream` its events as they come. With "
                    "`background` it is queued.",
                    ResponseObject,
                    events=Events((ResponseEvent,), fails_with_envelope=False),
                    headers=(CALL_ID, LOCATION),
                    links=tuple(
                        Link(to, example="background") for to in ("getResponse", "cancelResponse")
                    ),
                ),
            ),
            failures=(*ASKING, NO_MEMORY),
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door
        self._exchange = Exchange(door)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What fails before the call is sent is raised as a `MeshError`."""
        body = await read_body(scope, receive, self._door.limit_bytes, self._door.body_room)
        request = read_request(body)
        headers, fields = read_headers(scope), request.model_extra or {}
        target = read_target(request.model, fields, headers)
        require_agent(scope, target.agent)
        source = read_source(fields, headers)
        terms = read_terms(fields, headers)
        asked = Asked(
            target=target,
            body=chat_body(request, target.agent),
            is_streamed=bool(request.stream),
            source=known_source(source.agent, source.node, self._door.caller),
            terms=_watched(terms) if request.stream and terms.is_background else terms,
            owner=owner_of(scope),
        )
        echoed = {**echo(request), "background": terms.is_background}
        dialect = ResponseDialect(echoed, self._door.pace.begin_after_s)
        await self._exchange.run(asked, dialect, receive, send)


class ResponseDialect:
    """Answers one request with a response object, or with its events."""

    # To OpenAI's clients this is an answer like any other.
    accepted_status: Final = OK

    def __init__(self, echoed: Mapping[str, Any], begin_after_s: float) -> None:
        self._echoed = echoed
        self._begin_after_s = begin_after_s
        self._created_at = int(time.time())
        self._events: ResponseEvents | None = None

    def answer(self, call: Call, frame: Frame) -> bytes:
        """Return a final frame as a response."""
        return codec.encode(self._draft(call).answered(frame))

    async def events(self, call: Call) -> AsyncGenerator[bytes, None]:
        """Yield the events of a response."""
        events = self._written(call)
        reason: FinishReason = "stop"
        async with aclosing(_deltas(call, self._begin_after_s)) as deltas:
            async for delta in deltas:
                for one in events.add(delta):
                    yield one
                reason = delta.finish_reason or reason
        final = await call.result()
        for one in events.end(reason, read_reply(final).usage, final.node):
            yield one

    def failed_event(self, call: Call, told: Failure) -> bytes:
        """Return the events of a failure."""
        return b"".join(self._written(call).fail(told))

    def accepted(self, call: StoredCall) -> bytes:
        """Return a response that waits."""
        # One that was asked before may have ended; its client learns that when it looks it up.
        is_queued = call.state is CallState.STORED
        return codec.encode(self._draft(call).response("queued" if is_queued else "in_progress"))

    def _written(self, call: Call) -> ResponseEvents:
        if self._events is None:
            self._events = ResponseEvents(self._draft(call))
        return self._events

    def _draft(self, call: Call | StoredCall) -> Draft:
        return Draft(call.id, call.agent, self._created_at, self._echoed)


class ResponseResource:
    """`GET /v1/responses/{id}`: where a response stands, or what it ended with."""

    operations = (
        Operation(
            "getResponse",
            "GET",
            "/v1/responses/{id}",
            Tag.RESPONSES,
            "Look at a response",
            description="Its events are not read again here: `/v1/calls/{id}/events` has the "
            "answer as a stream.",
            parameters=(_RESPONSE,),
            answers=(Answer(200, "Where it stands.", ResponseObject, headers=(CALL_ID,)),),
            failures=(*OF_A_CALL, UNSUPPORTED),
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        record = await _find(self._door, scope)
        if read_query(scope).get("stream", "").lower() in ("true", "1"):
            raise unsupported(
                "stream", f"read the events of the chat at /v1/calls/{record.call.id}/events"
            )
        await _send_record(send, record)


class ResponseCancel:
    """`POST /v1/responses/{id}/cancel`: stop it. One that has ended stays as it is."""

    operations = (
        Operation(
            "cancelResponse",
            "POST",
            "/v1/responses/{id}/cancel",
            Tag.RESPONSES,
            "Stop a response",
            description="One that has ended stays as it is.",
            parameters=(_RESPONSE,),
            answers=(
                Answer(
                    200,
                    "Where it stands now. It may end a moment later.",
                    ResponseObject,
                    headers=(CALL_ID,),
                ),
            ),
            failures=OF_A_CALL,
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, when the call has ended or after two seconds."""
        record = await _find(self._door, scope)
        if record.outcome is None:
            await self._door.client.cancel(record.call)
            await self._wait(record, receive)
            record = await read_answered(self._door.connection, record.call.id)
        await _send_record(send, record)

    async def _wait(self, record: CallRecord, receive: Receive) -> None:
        async with follow_call(self._door.connection, record.call) as call:
            with self._door.waiting(receive) as over:
                try:
                    async with asyncio.timeout(CANCEL_PATIENCE_S):
                        await beside(over, call.result())
                except (TimeoutError, MeshError):
                    pass  # The record tells what became of it.


def _watched(terms: Terms) -> Terms:
    """Return the terms of a background call whose client looks on: it is stored as a keyed one."""
    key = terms.key or os.urandom(16).hex()
    return replace(terms, is_background=False, key=key, on_leave=OnLeave.DETACH)


async def _deltas(call: Call, silence_s: float) -> AsyncGenerator[ChatDelta, None]:
    """Yield the parts of an answer; an empty one first, when the agent is silent for so long."""
    async with aclosing(_said(call)) as said:
        first = asyncio.ensure_future(anext(said, ChatDelta()))
        try:
            await asyncio.wait({first}, timeout=silence_s)
            if not first.done():
                yield ChatDelta()
            yield await first
        finally:
            # The generator cannot be closed while it runs.
            first.cancel()
            await asyncio.wait({first})
            if not first.cancelled():
                first.exception()  # It may have failed while its client left.
        async for delta in said:
            yield delta


async def _said(call: Call) -> AsyncGenerator[ChatDelta, None]:
    """Yield the parts of an answer that say something: before them a failure is an early one."""
    async with aclosing(chunk_bodies(call, include_usage=False)) as bodies:
        async for body in bodies:
            delta = read_delta(body)
            if delta.content or delta.tool_calls or delta.finish_reason:
                yield delta


async def _find(door: Door, scope: Scope) -> CallRecord:
    call_id = scope["path_params"]["id"].removeprefix(PREFIX)
    record = await read_answered(door.connection, call_id)
    require_agent(scope, record.call.agent)
    return record


async def _send_record(send: Send, record: CallRecord) -> None:
    body = codec.encode(looked_up(record))
    await send_json(send, OK, body, {CALL_ID: record.call.id})
