"""Calls as resources: look at one, read its answer again, stop it.

Everything comes from JetStream, so any replica of the shim can answer, also after a restart of all
of them. Whoever knows a call's id may: it is 128 random bits.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

import orjson
from starlette.types import Receive, Scope, Send

from mesh import codec
from mesh.calls import Call
from mesh.completions import completion_body
from mesh.errors import InvalidInputError, MeshError
from mesh.followers import follow_call
from mesh.frames import Frame
from mesh.ledger import CallRecord, read_answered
from mesh.shim.door import Door
from mesh.shim.failures import ENDING, OF_A_CALL
from mesh.shim.guard import require_agent
from mesh.shim.http import CALL_ID, read_headers, read_query, send_json
from mesh.shim.openai import as_chunks, chunk_bodies
from mesh.shim.operations import Answer, Events, Operation, Parameter, Tag
from mesh.shim.sse import DONE, EventStream, event
from mesh.shim.status import failure
from mesh.shim.waiting import beside
from mesh.subjects import CALL_PATTERN
from schemas.call import CallView
from schemas.completion import ChatCompletionChunk

MAX_WAIT_S: Final = 300.0
CANCEL_PATIENCE_S: Final = 2.0
"""How long a cancel is waited for; then the answer is 202: it is on its way."""


_COUNT: Final = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
_CALL: Final = Parameter(
    "id", "path", "The call's id.", {"type": "string", "pattern": f"^{CALL_PATTERN.pattern}$"}
)


class CallResource:
    """`GET /v1/calls/{id}` looks, and waits with `?wait=SECONDS`; `DELETE` stops the call."""

    operations = (
        Operation(
            "getCall",
            "GET",
            "/v1/calls/{id}",
            Tag.CALLS,
            "Look at a call",
            parameters=(
                _CALL,
                Parameter(
                    "wait",
                    "query",
                    "How many seconds to wait at most for its end.",
                    {"type": "integer", "minimum": 0, "maximum": int(MAX_WAIT_S)},
                    example="10",
                ),
            ),
            answers=(Answer(200, "Where it stands.", CallView, headers=(CALL_ID,)),),
            failures=OF_A_CALL,
        ),
        Operation(
            "cancelCall",
            "DELETE",
            "/v1/calls/{id}",
            Tag.CALLS,
            "Stop a call",
            description="A call that has ended stays as it is.",
            parameters=(_CALL,),
            answers=(
                Answer(200, "It has ended.", CallView, headers=(CALL_ID,)),
                Answer(202, "It will end in a moment.", CallView, headers=(CALL_ID,)),
            ),
            failures=OF_A_CALL,
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        record = await _find(self._door, scope)
        wait_s = _read_wait(scope)
        is_delete = scope["method"] == "DELETE"
        if is_delete and record.outcome is None:
            await self._door.client.cancel(record.call)
            wait_s = CANCEL_PATIENCE_S
        if record.outcome is None and wait_s:
            record = await self._wait(record, wait_s, receive)
        status = 202 if is_delete and record.outcome is None else 200
        await send_json(send, status, codec.dumps(view_of(record)), {CALL_ID: record.call.id})

    async def _wait(self, record: CallRecord, wait_s: float, receive: Receive) -> CallRecord:
        """Return the record as it is when the call has ended, or when `wait_s` is over."""
        async with follow_call(self._door.connection, record.call) as call:
            with self._door.waiting(receive) as over:
                try:
                    async with asyncio.timeout(wait_s):
                        await beside(over, call.result())
                except (TimeoutError, MeshError):
                    pass  # The record tells what became of it, also when this door closes.
        return await read_answered(self._door.connection, record.call.id)


class CallEvents:
    """`GET /v1/calls/{id}/events?after=N`: the answer as a stream, from its Nth event on.

    The events are those of a streamed chat completion; N is how many of them the client has.
    They carry ids, so that a browser's EventSource goes on by itself.
    """

    operations = (
        Operation(
            "streamCall",
            "GET",
            "/v1/calls/{id}/events",
            Tag.CALLS,
            "Read the answer of a call again, as a stream",
            description="From the beginning, or from where you were. What is not there yet comes "
            "as the agent writes it.",
            parameters=(
                _CALL,
                Parameter("after", "query", "How many events you have.", _COUNT, example="0"),
                Parameter(
                    "Last-Event-ID", "header", "The same, as browsers say it by themselves.", _COUNT
                ),
            ),
            answers=(
                Answer(
                    200,
                    "The events of a streamed chat completion, numbered.",
                    events=Events((ChatCompletionChunk,), ends_with_done=True),
                    headers=(CALL_ID,),
                ),
                Answer(204, "The call has ended, and you have all of it.", headers=(CALL_ID,)),
            ),
            failures=(*OF_A_CALL, *ENDING),
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        after = _read_after(scope)
        record = await _find(self._door, scope)
        async with follow_call(
            self._door.connection, record.call, has_seen_chunks=after > 0
        ) as call:
            if after and isinstance(record.outcome, Frame) and not await _has_more(call, after):
                # An EventSource that is answered 200 comes again and again.
                named = [(CALL_ID.encode(), call.id.encode())]
                await send({"type": "http.response.start", "status": 204, "headers": named})
                await send({"type": "http.response.body"})
            else:
                await self._relay(call, after, receive, send)

    async def _relay(self, call: Call, after: int, receive: Receive, send: Send) -> None:
        stream = EventStream(
            send, {CALL_ID: call.id}, pace=self._door.pace, comment=b": keep-alive\n"
        )
        try:
            with self._door.waiting(receive) as over:
                await beside(over, stream.relay(_numbered(call, after)))
        except MeshError as error:
            told = failure(error, sent_to=call.agent)
            if stream.has_begun:
                await stream.fail(event(told.body))
            else:
                headers = {CALL_ID: call.id, **told.headers}
                await send_json(send, told.status, told.body, headers)


async def _has_more(call: Call, after: int) -> bool:
    """Tell whether an answer that is complete has an event behind those."""
    final = await call.result()
    if final.seq:
        return after < final.seq
    return after < len(list(as_chunks(call, final, include_usage=False)))


async def _numbered(call: Call, after: int) -> AsyncGenerator[bytes, None]:
    number = 0
    async for body in chunk_bodies(call, include_usage=False):
        number += 1
        if number > after:
            yield b"id: %d\n%b" % (number, event(body))
    yield event(DONE)


async def _find(door: Door, scope: Scope) -> CallRecord:
    record = await read_answered(door.connection, scope["path_params"]["id"])
    require_agent(scope, record.call.agent)
    return record


def view_of(record: CallRecord) -> dict[str, Any]:
    """Return a record as a `CallView`, with the answer as the bytes that the agent wrote."""
    view = CallView.model_validate(
        {
            "id": record.call.id,
            "state": record.state.value,
            "agent": record.call.agent,
            "node": record.node,
            "attempt": record.attempt,
            "chunks": record.chunks,
            "created_at": record.created_at,
            "timeout_ms": record.stored.timeout_ms if record.stored else None,
            "events": f"/v1/calls/{record.call.id}/events",
        }
    ).model_dump(mode="json")
    if isinstance(record.outcome, Frame):
        body = completion_body(record.call.id, record.call.agent, record.outcome)
        view["result"] = orjson.Fragment(body)
    elif record.outcome is not None:
        told = failure(record.outcome, sent_to=record.call.agent)
        view["error"] = codec.loads(told.body)["error"]
    return view


def _read_wait(scope: Scope) -> float:
    text = read_query(scope).get("wait")
    if not text:
        return 0.0
    seconds = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else -1
    if not 0 <= seconds <= MAX_WAIT_S:
        raise InvalidInputError(f"wait: give whole seconds, at most {MAX_WAIT_S:g}", field="wait")
    return float(seconds)


def _read_after(scope: Scope) -> int:
    """Return how many events the client has: what it says, or what its EventSource remembers."""
    text = read_query(scope).get("after") or read_headers(scope).get("last-event-id", "")
    if not text:
        return 0
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    raise InvalidInputError("after: give the number of events that you have", field="after")
