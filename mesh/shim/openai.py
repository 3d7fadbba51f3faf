"""The OpenAI endpoints: chat completions and models. Translation, and no logic of its own.

Validates a request and forwards the bytes it got; passes on the bytes that the agent wrote. Only
answers that are text, or no completion, are wrapped here. Source of the shapes: the OpenAI API
reference, "Create chat completion" and "Models".
"""

from collections.abc import AsyncGenerator, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

import orjson
from starlette.types import Receive, Scope, Send

from mesh import codec
from mesh.callers import known_source
from mesh.calls import Call, StoredCall
from mesh.completions import ChunkWriter, completion, read_reply
from mesh.errors import AgentNotFoundError, InvalidIdError, InvalidInputError
from mesh.frames import Frame
from mesh.shim.door import Door
from mesh.shim.exchange import Asked, Exchange
from mesh.shim.http import read_body, read_headers, send_json
from mesh.shim.sse import DONE, event
from mesh.shim.status import UNSUPPORTED_PARAMETER, Failure
from mesh.shim.target import read_source, read_target, split_model
from mesh.shim.terms import read_terms
from schemas.call import CallView
from schemas.chat import ChatDelta, ChatRequest
from schemas.registry import AgentView, State


class ChatCompletions:
    """`POST /v1/chat/completions`: one call, plain or streamed."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._exchange = Exchange(door)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What fails before the call is sent is raised as a `MeshError`."""
        body = await read_body(scope, receive, self._door.limit_bytes)
        request = read_request(body)
        headers = read_headers(scope)
        target = read_target(request, headers)
        source = read_source(request, headers)
        asked = Asked(
            target=target,
            body=body,
            is_streamed=request.stream,
            source=known_source(source.agent, source.node, self._door.caller),
            terms=read_terms(request.model_extra or {}, headers),
        )
        dialect = ChatDialect(include_usage=request.include_usage)
        await self._exchange.run(asked, dialect, receive, send)


class ChatDialect:
    """Answers as chat completions and their chunks."""

    def __init__(self, *, include_usage: bool) -> None:
        self._include_usage = include_usage

    def answer(self, call: Call, frame: Frame) -> bytes:
        """Return a final frame as a `chat.completion`."""
        return completion_body(call.id, call.agent, frame)

    async def events(self, call: Call) -> AsyncGenerator[bytes, None]:
        """Yield the chunks, and `[DONE]`."""
        async for body in chunk_bodies(call, include_usage=self._include_usage):
            yield event(body)
        yield event(DONE)

    def failed_event(self, call: Call, told: Failure) -> bytes:
        """Return the error as an event: without `[DONE]`, a client knows that this is no end."""
        return event(told.body)

    def accepted(self, call: StoredCall) -> bytes:
        """Return the call as a resource."""
        return codec.encode(accepted_view(call))


class Models:
    """`GET /v1/models`: who can be called now; with `?all=1`, everybody who is known."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, from memory."""
        shows_all = parse_qs(scope["query_string"]).get(b"all") == [b"1"]
        found = [
            model_object(view, view.card.id)
            for view in self._door.client.agents()
            if shows_all or view.state is not State.OFFLINE
        ]
        await send_json(send, 200, codec.dumps({"object": "list", "data": found}))


class Model:
    """`GET /v1/models/{id}`: one agent, or one on one node."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, from memory."""
        name = scope["path_params"]["id"]
        directory = self._door.client.directory
        agent, node = split_model(name)
        try:
            directory.require_target(agent, node)
        except InvalidIdError as error:
            # Clients probe for the models they know by heart, such as gpt-3.5-turbo.
            raise AgentNotFoundError(f"no agent: {error.message}", agent=name) from None
        await send_json(send, 200, codec.dumps(model_object(directory.agent(agent), name)))


def accepted_view(call: StoredCall) -> CallView:
    """Return a call that nobody waits for, as the resource it is from now on."""
    return CallView(
        id=call.id, state=call.state.value, agent=call.agent, events=f"/v1/calls/{call.id}/events"
    )


def read_request(body: bytes) -> ChatRequest:
    """Read the body of a chat request.

    Raises:
        InvalidInputError: it is no JSON, no chat request, or asks for several answers.
    """
    request = codec.validate(ChatRequest, codec.loads(body))
    if request.n > 1:
        raise InvalidInputError(
            "n: an agent gives one answer; ask several times instead",
            field="n",
            reason=UNSUPPORTED_PARAMETER,
        )
    return request


def completion_body(call_id: str, agent: str, frame: Frame) -> bytes:
    """Return a final frame as a `chat.completion`: as it is, if it is one.

    Raises:
        ProtocolError: it is a completion without an answer in it.
    """
    if not frame.is_text and _is_completion(frame.body):
        return frame.body
    return completion(call_id, agent, frame.node, read_reply(frame))


async def chunk_bodies(call: Call, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of an answer, also of an agent that does not stream.

    Raises:
        MeshError: the call failed.
    """
    is_streamed = False
    async for frame in call.chunks():
        is_streamed = True
        yield frame.body
    if not is_streamed:
        for body in _as_chunks(call, await call.result(), include_usage=include_usage):
            yield body


def model_object(view: AgentView, name: str) -> dict[str, Any]:
    """Return an agent as a model called `name`."""
    return {
        "id": name,
        "object": "model",
        "created": _created(view),
        "owned_by": "mesh",
        "name": f"{name} ({', '.join(view.nodes)})" if view.nodes else name,
    }


def _is_completion(body: bytes) -> bool:
    try:
        choices = orjson.loads(body)["choices"]
        return isinstance(choices[0]["message"], dict)
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError):
        return False


def _as_chunks(call: Call, frame: Frame, *, include_usage: bool) -> Iterator[bytes]:
    reply = read_reply(frame)
    chunks = ChunkWriter(call.id, call.agent, include_usage=include_usage)
    tools = [{"index": place, **tool} for place, tool in enumerate(reply.tool_calls or ())]
    yield chunks.role()
    if reply.content or tools:
        yield chunks.delta(ChatDelta(content=reply.content, tool_calls=tools or None))
    yield chunks.finish(reply.finish_reason)
    if include_usage:
        yield chunks.usage(reply.usage)


def _created(view: AgentView) -> int:
    try:
        return int(datetime.fromisoformat(view.registered_at).timestamp())
    except ValueError:
        return 0
