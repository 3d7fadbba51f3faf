"""The OpenAI endpoint: chat completions. Translation, and no logic of its own.

Validates a request and forwards the bytes it got; passes on the bytes that the agent wrote. Only
an answer that was not streamed is cut into chunks here, for a client that wants them. Source of
the shapes: the OpenAI API reference, "Create chat completion".
"""

from collections.abc import AsyncGenerator, Iterator
from typing import Final

from starlette.types import Receive, Scope, Send

from mesh import codec
from mesh.callers import known_source
from mesh.calls import Call, StoredCall
from mesh.completions import ChunkWriter, completion_body, read_replies
from mesh.errors import InvalidInputError
from mesh.frames import Frame
from mesh.shim.door import Door
from mesh.shim.exchange import LOCATION, Asked, Exchange
from mesh.shim.failures import ASKING
from mesh.shim.guard import owner_of, require_agent
from mesh.shim.http import CALL_ID, read_body, read_headers
from mesh.shim.operations import EXAMPLE_AGENT, Answer, Events, Link, Operation, Tag
from mesh.shim.sse import DONE, event
from mesh.shim.status import ACCEPTED, UNSUPPORTED_PARAMETER, Failure
from mesh.shim.target import TARGET_PARAMETERS, read_source, read_target
from mesh.shim.terms import TERMS_PARAMETERS, read_terms
from mesh.tool_calls import ToolCallParts
from schemas.call import CallView
from schemas.chat import ChatDelta, ChatRequest
from schemas.completion import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest

_QUESTION: Final = {
    "model": EXAMPLE_AGENT,
    "messages": [{"role": "user", "content": "Hello!"}],
}


class ChatCompletions:
    """`POST /v1/chat/completions`: one call, plain or streamed."""

    operations = (
        Operation(
            "createChatCompletion",
            "POST",
            "/v1/chat/completions",
            Tag.CHAT,
            "Ask an agent",
            description="`model` names the agent, such as `solarius`, or `solarius@node2` for the "
            "instance on one node. The body goes to the agent as it is, and the answer comes as "
            "the agent wrote it.\n\nAn agent that is not running is an error 503, unless you "
            "`wait` for it or ask in the `background`.",
            parameters=(*TARGET_PARAMETERS, *TERMS_PARAMETERS),
            request=ChatCompletionRequest,
            examples={
                "plain": _QUESTION,
                "streamed": {**_QUESTION, "stream": True},
                "background": {**_QUESTION, "background": True},
            },
            answers=(
                Answer(
                    200,
                    "The whole answer, or with `stream` its parts as they come.",
                    ChatCompletion,
                    events=Events((ChatCompletionChunk,), ends_with_done=True),
                    headers=(CALL_ID,),
                ),
                Answer(
                    202,
                    "With `background`: the call is stored.",
                    CallView,
                    headers=(CALL_ID, LOCATION),
                    links=tuple(
                        Link(to, example="background")
                        for to in ("getCall", "cancelCall", "streamCall")
                    ),
                ),
            ),
            failures=ASKING,
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door
        self._exchange = Exchange(door)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What fails before the call is sent is raised as a `MeshError`."""
        body = await read_body(scope, receive, self._door.limit_bytes, self._door.body_room)
        request = read_request(body)
        headers = read_headers(scope)
        fields = request.model_extra or {}
        target = read_target(request.model, fields, headers)
        require_agent(scope, target.agent)
        if request.n > 1:
            require_choices(request, self._choices_of(target.agent))
        source = read_source(fields, headers)
        asked = Asked(
            target=target,
            body=body,
            is_streamed=request.stream,
            source=known_source(source.agent, source.node, self._door.caller),
            terms=read_terms(fields, headers),
            owner=owner_of(scope),
        )
        dialect = ChatDialect(include_usage=request.include_usage)
        await self._exchange.run(asked, dialect, receive, send)

    def _choices_of(self, agent: str) -> int:
        record = self._door.client.directory.agent_record(agent)
        return record.card.max_choices if record is not None else 1


class ChatDialect:
    """Answers as chat completions and their chunks."""

    accepted_status: Final = ACCEPTED

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


def accepted_view(call: StoredCall) -> CallView:
    """Return a call that nobody waits for, as the resource it is from now on."""
    return CallView(
        id=call.id, state=call.state.value, agent=call.agent, events=f"/v1/calls/{call.id}/events"
    )


def read_request(body: bytes) -> ChatRequest:
    """Read the body of a chat request.

    Raises:
        InvalidInputError: it is no JSON, or no chat request.
    """
    return codec.validate(ChatRequest, codec.loads(body))


def require_choices(request: ChatRequest, served: int) -> None:
    """Check that a request asks for no more answers at once than are `served`.

    Raises:
        InvalidInputError: it does.
    """
    if request.n > served:
        most = "one answer" if served == 1 else f"{served} answers at most"
        raise InvalidInputError(
            f"n: this gives {most}; ask several times instead",
            field="n",
            reason=UNSUPPORTED_PARAMETER,
        )


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
        for body in as_chunks(call, await call.result(), include_usage=include_usage):
            yield body


def as_chunks(call: Call, frame: Frame, *, include_usage: bool) -> Iterator[bytes]:
    """Cut a whole answer into the chunks of a streamed one."""
    chunks = ChunkWriter(call.id, call.agent, include_usage=include_usage)
    replies = read_replies(frame)
    for choice, reply in enumerate(replies):
        chunks.choice = choice
        called = ToolCallParts()
        tools = [called.add(one) for one in reply.tool_calls or ()]
        yield chunks.role()
        if reply.content or tools:
            yield chunks.delta(ChatDelta(content=reply.content or None, tool_calls=tools or None))
        yield chunks.finish(reply.finish_reason)
    if include_usage:
        yield chunks.usage(replies[0].usage)
