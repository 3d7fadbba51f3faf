"""Responses as objects: made of an agent's answer, or of what JetStream has of a call.

Pure translation of whole answers; how one is streamed is told by `mesh.shim.response_events`.
Source of the shapes: the OpenAI API reference, "The response object".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from mesh import codec
from mesh.calls import CallState
from mesh.completions import read_reply
from mesh.errors import MeshError, ProtocolError
from mesh.frames import Frame
from mesh.ledger import CallRecord
from mesh.shim.status import Failure, failure
from mesh.tool_calls import whole_call
from schemas.chat import ChatReply, FinishReason, Usage
from schemas.responses import (
    IncompleteDetails,
    InputDetails,
    ItemStatus,
    OutputCall,
    OutputDetails,
    OutputItem,
    OutputMessage,
    OutputText,
    ResponseFailure,
    ResponseObject,
    ResponsePlace,
    ResponseStatus,
    ResponseUsage,
)

PREFIX: Final = "resp_"

_INCOMPLETE: Final[Mapping[FinishReason, IncompleteDetails]] = {
    "length": IncompleteDetails(reason="max_output_tokens"),
    "content_filter": IncompleteDetails(reason="content_filter"),
}
_STATES: Final[Mapping[CallState, ResponseStatus]] = {
    CallState.SENT: "queued",
    CallState.STORED: "queued",
    CallState.WORKING: "in_progress",
    CallState.CANCELLED: "cancelled",
    CallState.FAILED: "failed",
    CallState.EXPIRED: "failed",
    CallState.DEAD: "failed",
}


@dataclass(frozen=True, slots=True)
class Draft:
    """What all objects of one response have in common."""

    call_id: str
    agent: str
    created_at: int
    echo: Mapping[str, Any] = field(default_factory=dict)
    """What is repeated of the request."""

    def response(
        self,
        status: ResponseStatus,
        output: Sequence[OutputItem] = (),
        *,
        node: str = "",
        **fields: Any,
    ) -> ResponseObject:
        """Make the object as it stands at a moment."""
        place = ResponsePlace(agent_id=self.agent, node=node, call_id=self.call_id)
        given = {**self.echo, "model": self.agent, "mesh": place, **fields}
        return ResponseObject(
            id=f"{PREFIX}{self.call_id}",
            created_at=self.created_at,
            status=status,
            output=tuple(output),
            **given,
        )

    def ended(
        self, output: Sequence[OutputItem], reason: FinishReason, usage: Usage, node: str
    ) -> ResponseObject:
        """Make the object of a whole answer, or of one that was cut short."""
        incomplete = _INCOMPLETE.get(reason)
        return self.response(
            "incomplete" if incomplete else "completed",
            output,
            node=node,
            usage=usage_of(usage),
            incomplete_details=incomplete,
        )

    def answered(self, frame: Frame) -> ResponseObject:
        """Make the object of a final frame.

        Raises:
            ProtocolError: there is no answer in it.
        """
        reply = read_reply(frame)
        output = output_items(self.call_id, reply)
        return self.ended(output, reply.finish_reason, reply.usage, frame.node)

    def failed(self, told: Failure, output: Sequence[OutputItem] = ()) -> ResponseObject:
        """Make the object of a call that failed, with what came before."""
        return self.response("failed", output, error=error_of(told))


def looked_up(record: CallRecord) -> ResponseObject:
    """Return a call on record as a response.

    Raises:
        ProtocolError: it was answered, and there is no answer in the final frame.
    """
    call = record.call
    # On record means that it does not need its client.
    echo = {"background": record.stored is not None}
    draft = Draft(call.id, call.agent, _seconds(record.created_at), echo)
    if isinstance(record.outcome, Frame):
        return draft.answered(record.outcome)
    error = None
    if isinstance(record.outcome, MeshError) and record.state is not CallState.CANCELLED:
        error = error_of(failure(record.outcome, sent_to=call.agent))
    return draft.response(_STATES[record.state], node=record.node, error=error)


def output_items(call_id: str, reply: ChatReply) -> list[OutputItem]:
    """Return the items of an answer: what was said, then what is to be called.

    Raises:
        ProtocolError: a tool call is none.
    """
    status = item_status(reply.finish_reason)
    calls = [
        _call_item(call_id, number, one, status)
        for number, one in enumerate(reply.tool_calls or ())
    ]
    if not reply.text and calls:
        return list(calls)
    return [message_item(call_id, reply.text, status), *calls]


def item_status(reason: FinishReason) -> ItemStatus:
    """Return whether the items of an answer that ended so are whole."""
    return "incomplete" if reason in _INCOMPLETE else "completed"


def message_item(call_id: str, text: str, status: ItemStatus) -> OutputMessage:
    """Make the item of what an agent said."""
    return OutputMessage(id=f"msg_{call_id}", status=status, content=(OutputText(text=text),))


def call_item(
    call_id: str, number: int, *, named: str, name: str, arguments: str, status: ItemStatus
) -> OutputCall:
    """Make the item of a function to be called; `named` is the id that the agent gave the call."""
    return OutputCall(
        id=call_item_id(call_id, number),
        status=status,
        call_id=named,
        name=name,
        arguments=arguments,
    )


def call_item_id(call_id: str, number: int) -> str:
    """Return the id of the item of a function to be called."""
    return f"fc_{call_id}_{number}"


def require_function(named: Any, name: Any) -> None:
    """Check that a tool call, which an agent has `named`, is of a function with a `name`.

    Raises:
        ProtocolError: it is not, and no client could make anything of it.
    """
    if not (isinstance(named, str) and isinstance(name, str) and name):
        raise ProtocolError("the agent calls a tool, and names no function")


def usage_of(usage: Usage) -> ResponseUsage:
    """Return token counts under the names of this API."""
    extra = usage.model_extra or {}
    asked, answered = extra.get("prompt_tokens_details"), extra.get("completion_tokens_details")
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(
            cached_tokens=_count(asked, "cached_tokens"),
            cache_write_tokens=_count(asked, "cache_write_tokens"),
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(reasoning_tokens=_count(answered, "reasoning_tokens")),
        total_tokens=usage.total_tokens,
    )


def error_of(told: Failure) -> ResponseFailure:
    """Return what a client is told of a failure, as a part of a response."""
    return ResponseFailure.model_validate(codec.loads(told.body)["error"])


def _call_item(call_id: str, number: int, call: Any, status: ItemStatus) -> OutputCall:
    try:
        whole = whole_call(call)
    except TypeError as error:
        raise ProtocolError(f"the agent calls a tool in a form that is none: {error}") from None
    function = whole.get("function", {})
    require_function(whole["id"], function.get("name"))
    return call_item(
        call_id,
        number,
        named=whole["id"],
        name=function["name"],
        arguments=function["arguments"],
        status=status,
    )


def _count(details: Any, name: str) -> int:
    found = details.get(name) if isinstance(details, dict) else None
    return found if isinstance(found, int) else 0


def _seconds(time: str) -> int:
    try:
        return int(datetime.fromisoformat(time).timestamp())
    except ValueError:
        return 0
