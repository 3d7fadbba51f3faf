"""The direct method: a message to one agent by its own address, and the answer as plain text.

`POST /api/agent/{id}/chat` with `{"message": "…"}`. A streamed answer is `data: {"delta": "…"}`
for each part, and at last `data: {"done": true, …}` with the whole; one that fails ends with
`data: {"error": …}`. What travels is a chat request, as from any other door.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from mesh import codec
from mesh.callers import known_source
from mesh.calls import Call, StoredCall
from mesh.completions import read_reply
from mesh.errors import InvalidInputError
from mesh.frames import Frame
from mesh.shim.door import Door
from mesh.shim.exchange import Asked, Exchange
from mesh.shim.guard import owner_of, require_agent
from mesh.shim.http import read_body, read_headers
from mesh.shim.openai import accepted_view, require_choices
from mesh.shim.sse import event
from mesh.shim.status import Failure
from mesh.shim.target import TARGET_FIELDS, read_path_target, read_source
from mesh.shim.terms import TERM_FIELDS, read_terms
from schemas.chat import ChatRequest
from schemas.direct import DirectDelta, DirectReply, DirectRequest

EVENTS: Final = "text/event-stream"


class DirectChat:
    """`POST /api/agent/{id}/chat`: one call, plain, streamed or in the background."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._exchange = Exchange(door)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What fails before the call is sent is raised as a `MeshError`."""
        request = read_request(await read_body(scope, receive, self._door.limit_bytes))
        headers = read_headers(scope)
        target = read_path_target(scope["path_params"]["id"], request, headers)
        require_agent(scope, target.agent)
        source = read_source(request, headers)
        is_streamed = _wants_stream(request, headers)
        asked = Asked(
            target=target,
            body=chat_body(request, target.agent, stream=is_streamed),
            is_streamed=is_streamed,
            source=known_source(source.agent, source.node, self._door.caller),
            terms=read_terms(request.model_extra or {}, headers),
            owner=owner_of(scope),
        )
        dialect = DirectDialect(self._model(target.agent))
        await self._exchange.run(asked, dialect, receive, send)

    def _model(self, agent: str) -> str:
        record = self._door.client.directory.agent_record(agent)
        return record.card.model if record is not None else ""


class DirectDialect:
    """Answers as text, with who gave it."""

    accepted_status: Final = 202

    def __init__(self, model: str) -> None:
        self._model = model

    def answer(self, call: Call, frame: Frame) -> bytes:
        """Return a final frame as a `DirectReply`."""
        return codec.dumps(self._reply(call, frame))

    async def events(self, call: Call) -> AsyncGenerator[bytes, None]:
        """Yield the parts of the text, and the whole at last."""
        async for text in call.text():
            if text:
                yield event(codec.encode(DirectDelta(delta=text)))
        yield event(codec.dumps({"done": True, **self._reply(call, await call.result())}))

    def failed_event(self, call: Call, told: Failure) -> bytes:
        """Return the error as an event."""
        return event(told.body)

    def accepted(self, call: StoredCall) -> bytes:
        """Return the call as a resource."""
        return codec.encode(accepted_view(call))

    def _reply(self, call: Call, frame: Frame) -> dict[str, Any]:
        """Return a `DirectReply` as JSON, with `tool_calls` only where there are some."""
        said = read_reply(frame)
        reply = DirectReply(
            agent_id=call.agent,
            node=frame.node,
            response=said.text,
            call_id=call.id,
            model=self._model or call.agent,
            usage=said.usage,
            finish_reason=said.finish_reason,
            tool_calls=said.tool_calls,
        )
        return reply.model_dump(mode="json", exclude=None if said.tool_calls else {"tool_calls"})


def read_request(body: bytes) -> DirectRequest:
    """Read the body of a direct request.

    Raises:
        InvalidInputError: it is none, or has not just one of `message` and `messages`.
    """
    request = codec.validate(DirectRequest, codec.loads(body))
    if (request.message is None) == (request.messages is None):
        raise InvalidInputError(
            'message: say something, as {"message": "hello"}; or give `messages` instead',
            field="message",
        )
    return request


def chat_body(request: DirectRequest, agent: str, *, stream: bool) -> bytes:
    """Encode the chat request that says to `agent` what a direct request says.

    Raises:
        InvalidInputError: a field that chat knows is wrong.
    """
    ours = TARGET_FIELDS | TERM_FIELDS
    extra = request.model_extra or {}
    messages: list[dict[str, Any]] = [{"role": "user", "content": request.message}]
    if request.messages is not None:
        messages = [one.model_dump(mode="json", exclude_unset=True) for one in request.messages]
    body = {name: extra[name] for name in extra if name not in ours}
    body |= {"messages": messages, "model": request.model or agent, "stream": stream}
    require_choices(codec.validate(ChatRequest, body), 1)
    return codec.dumps(body)


def _wants_stream(request: DirectRequest, headers: Mapping[str, str]) -> bool:
    if request.stream is not None:
        return request.stream
    accepted = headers.get("accept", "").lower().split(",")
    return any(one.partition(";")[0].strip() == EVENTS for one in accepted)
