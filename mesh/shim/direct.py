"""`POST /api/agent/{id}/chat`: one message to one agent, and its answer in the same exchange.

The guide's direct method. What travels is an OpenAI chat request, as from every other door.
"""

from collections.abc import AsyncGenerator
from typing import Final

from starlette.types import Receive, Scope, Send

from mesh import codec
from mesh.callers import known_source
from mesh.calls import Call, StoredCall
from mesh.completions import read_reply
from mesh.errors import InvalidInputError
from mesh.frames import Frame
from mesh.questions import encode_question
from mesh.shim.door import Door
from mesh.shim.exchange import LOCATION, Asked, Exchange
from mesh.shim.failures import ASKING
from mesh.shim.guard import owner_of, require_agent
from mesh.shim.http import CALL_ID, read_body, read_headers
from mesh.shim.openai import accepted_view, require_choices
from mesh.shim.operations import Answer, Events, Operation, Tag
from mesh.shim.sse import event
from mesh.shim.status import ACCEPTED, Failure
from mesh.shim.target import (
    AGENT_IN_PATH,
    PLACE_PARAMETERS,
    read_source,
    read_target,
)
from mesh.shim.terms import TERMS_PARAMETERS, read_terms
from schemas.call import CallView
from schemas.chat import ChatMessage, ChatRequest
from schemas.direct import (
    DirectDelta,
    DirectEnd,
    DirectQuestion,
    DirectReply,
    DirectRequest,
)
from schemas.terms import MESH_FIELDS


class DirectChat:
    """The endpoint."""

    operations = (
        Operation(
            "askAgent",
            "POST",
            "/api/agent/{id}/chat",
            Tag.CHAT,
            "Send one message to an agent",
            description="The simplest way: a text, and the answer as a text. With the header "
            "`Accept: text/event-stream`, or with `stream`, it comes part by part.",
            parameters=(AGENT_IN_PATH, *PLACE_PARAMETERS, *TERMS_PARAMETERS),
            request=DirectQuestion,
            examples={
                "plain": {"message": "Hello!"},
                "streamed": {"message": "Hello!", "stream": True},
            },
            answers=(
                Answer(
                    200,
                    "The whole answer, or with `stream` its parts as they come.",
                    DirectReply,
                    events=Events((DirectDelta, DirectEnd)),
                    headers=(CALL_ID,),
                ),
                Answer(
                    202,
                    "With `background`: the call is stored.",
                    CallView,
                    headers=(CALL_ID, LOCATION),
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
        request = codec.validate(DirectRequest, codec.loads(body))
        headers = read_headers(scope)
        fields = request.model_extra or {}
        target = read_target("", fields, headers, path=scope["path_params"]["id"])
        require_agent(scope, target.agent)
        source = read_source(fields, headers)
        is_streamed = request.stream or "text/event-stream" in headers.get("accept", "")
        asked = Asked(
            target=target,
            body=_question(target.agent, request, is_streamed=is_streamed),
            is_streamed=is_streamed,
            source=known_source(source.agent, source.node, self._door.caller),
            terms=read_terms(fields, headers),
            owner=owner_of(scope),
        )
        await self._exchange.run(asked, DirectDialect(), receive, send)


class DirectDialect:
    """Answers as plain text in a small object."""

    accepted_status: Final = ACCEPTED

    def answer(self, call: Call, frame: Frame) -> bytes:
        """Return a final frame as a `DirectReply`."""
        return codec.encode(_reply(DirectReply, call, frame))

    async def events(self, call: Call) -> AsyncGenerator[bytes, None]:
        """Yield the parts of the text, and then all of it."""
        async for text in call.text():
            yield event(codec.encode(DirectDelta(delta=text)))
        yield event(codec.encode(_reply(DirectEnd, call, await call.result())))

    def failed_event(self, call: Call, told: Failure) -> bytes:
        """Return the error as the last event."""
        return event(told.body)

    def accepted(self, call: StoredCall) -> bytes:
        """Return the call as a resource."""
        return codec.encode(accepted_view(call))


def _question(agent: str, request: DirectRequest, *, is_streamed: bool) -> bytes:
    """Encode the chat request that says the same; what nobody here knows reaches the agent."""
    if (request.messages is None) == (not request.message.strip()):
        raise InvalidInputError(
            'message: say something, as {"message": "hello"}, or give `messages` instead',
            field="message",
        )
    said = request.messages or [ChatMessage(role="user", content=request.message)]
    extra = request.model_extra or {}
    question = {
        **{name: extra[name] for name in extra if name not in MESH_FIELDS},
        "messages": [one.model_dump(mode="json", exclude_unset=True) for one in said],
    }
    require_choices(codec.validate(ChatRequest, question), 1)
    return encode_question(agent, question, stream=is_streamed)


def _reply(kind: type[DirectReply], call: Call, frame: Frame) -> DirectReply:
    found = read_reply(frame)
    return kind(
        agent_id=call.agent,
        node=frame.node,
        response=found.text,
        call_id=call.id,
        model=call.agent,
        finish_reason=found.finish_reason,
        tool_calls=found.tool_calls,
        usage=found.usage,
    )
