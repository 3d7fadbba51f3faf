"""A streamed response as events: what OpenAI's clients put an answer together from.

Each event has its name, its type and the next number; none is `[DONE]`. Items stay open until the
answer ends, as an agent may come back to any of them. Source of the shapes: the OpenAI API
reference, "Streaming events".
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from mesh import codec
from mesh.errors import ProtocolError
from mesh.shim.response_output import (
    Draft,
    call_item,
    call_item_id,
    item_status,
    message_item,
    require_function,
)
from mesh.shim.sse import event
from mesh.shim.status import Failure
from mesh.tool_calls import ToolCallParts
from schemas.chat import ChatDelta, FinishReason, Usage
from schemas.responses import ItemStatus, OutputItem, OutputMessage, ResponseObject

_MESSAGE: Final = -1
"""Stands for the message where tool calls have their index."""


@dataclass(slots=True)
class _Open:
    """An item that still grows."""

    place: int
    """Among the items of the response."""
    number: int
    """Among the calls; of a message `_MESSAGE`."""
    id: str
    named: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)


class ResponseEvents:
    """Writes the events of one response."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._sequence = 0
        self._items: dict[int, _Open] = {}
        """By the index of the tool call, in the order of their places."""
        self._calls = ToolCallParts()

    @property
    def has_begun(self) -> bool:
        """Whether the events that come first are written."""
        return self._sequence > 0

    def begin(self) -> Iterator[bytes]:
        """Yield the events that say that the agent is asked; only once."""
        if self.has_begun:
            return
        response = self._draft.response("in_progress").model_dump(mode="json")
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def add(self, delta: ChatDelta) -> Iterator[bytes]:
        """Yield the events of a part of the answer.

        Raises:
            ProtocolError: a tool call in it is none.
        """
        yield from self.begin()
        if delta.content:
            yield from self._add_text(delta.content)
        for piece in delta.tool_calls or ():
            yield from self._add_piece(piece)

    def end(self, reason: FinishReason, usage: Usage, node: str) -> Iterator[bytes]:
        """Yield the events that close all items, and the response."""
        yield from self.begin()
        if not self._items:
            yield from self._open_message()
        status = item_status(reason)
        for one in self._items.values():
            yield from self._close(one, status)
        response = self._draft.ended(self._output(status), reason, usage, node)
        yield self._response_event(f"response.{response.status}", response)

    def fail(self, told: Failure) -> Iterator[bytes]:
        """Yield the events of a failure.

        openai-python raises for none but the last, and most others for the one before.
        """
        yield from self.begin()
        response = self._draft.failed(told, self._output("incomplete"))
        yield self._response_event("response.failed", response)
        error = codec.loads(told.body)["error"]
        flat = {name: error[name] for name in ("code", "message", "param")}
        yield self._event("error", **flat, error=error)

    def _add_text(self, text: str) -> Iterator[bytes]:
        if _MESSAGE not in self._items:
            yield from self._open_message()
        one = self._items[_MESSAGE]
        one.parts.append(text)
        place = self._place(one, is_part=True)
        yield self._event("response.output_text.delta", **place, delta=text, logprobs=[])

    def _add_piece(self, given: dict[str, Any]) -> Iterator[bytes]:
        try:
            piece = self._calls.add(given)
        except TypeError as error:
            raise ProtocolError(
                f"the agent sent a piece of a tool call that is none: {error}"
            ) from None
        function = piece.get("function", {})
        number, arguments = piece["index"], function.get("arguments", "")
        one = self._items.get(number)
        if one is None:
            one = self._open_call(number, piece["id"], function.get("name"))
            item = self._item(one, "in_progress")
            yield self._item_event("response.output_item.added", one, item)
        if arguments:
            one.parts.append(arguments)
            yield self._arguments_event(one, arguments)

    def _open_call(self, number: int, named: Any, name: Any) -> _Open:
        require_function(named, name)
        item_id = call_item_id(self._draft.call_id, number)
        one = _Open(len(self._items), number, item_id, named, name)
        self._items[number] = one
        return one

    def _open_message(self) -> Iterator[bytes]:
        one = _Open(len(self._items), _MESSAGE, f"msg_{self._draft.call_id}")
        self._items[_MESSAGE] = one
        item = OutputMessage(id=one.id, status="in_progress", content=())
        yield self._item_event("response.output_item.added", one, item)
        place = self._place(one, is_part=True)
        yield self._event("response.content_part.added", **place, part=_text_part(""))

    def _close(self, one: _Open, status: ItemStatus) -> Iterator[bytes]:
        if one.number == _MESSAGE:
            text, place = "".join(one.parts), self._place(one, is_part=True)
            yield self._event("response.output_text.done", **place, text=text, logprobs=[])
            yield self._event("response.content_part.done", **place, part=_text_part(text))
        else:
            if not one.parts:
                # Clients parse arguments without looking.
                one.parts.append("{}")
                yield self._arguments_event(one, "{}")
            said = "".join(one.parts)
            kind = "response.function_call_arguments.done"
            yield self._event(kind, **self._place(one), arguments=said)
        yield self._item_event("response.output_item.done", one, self._item(one, status))

    def _output(self, status: ItemStatus) -> list[OutputItem]:
        return [self._item(one, status) for one in self._items.values()]

    def _item(self, one: _Open, status: ItemStatus) -> OutputItem:
        call_id, said = self._draft.call_id, "".join(one.parts)
        if one.number == _MESSAGE:
            return message_item(call_id, said, status)
        return call_item(
            call_id, one.number, named=one.named, name=one.name, arguments=said, status=status
        )

    def _place(self, one: _Open, *, is_part: bool = False) -> dict[str, Any]:
        place: dict[str, Any] = {"item_id": one.id, "output_index": one.place}
        return {**place, "content_index": 0} if is_part else place

    def _arguments_event(self, one: _Open, arguments: str) -> bytes:
        kind = "response.function_call_arguments.delta"
        return self._event(kind, **self._place(one), delta=arguments)

    def _item_event(self, kind: str, one: _Open, item: OutputItem) -> bytes:
        return self._event(kind, output_index=one.place, item=item.model_dump(mode="json"))

    def _response_event(self, kind: str, response: ResponseObject) -> bytes:
        return self._event(kind, response=response.model_dump(mode="json"))

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = codec.dumps({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return b"event: " + kind.encode() + b"\n" + event(body)


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
