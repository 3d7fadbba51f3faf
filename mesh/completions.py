"""OpenAI completions and chunks: build them from a reply, and read a reply from them.

Pure translation. The runtime writes these bytes once; the shim passes them through.
Source of the shapes: the OpenAI API reference, "The chat completion object" and "chunk object".
"""

import time
from collections.abc import Sequence
from typing import Any, Final, get_args

import orjson

from mesh import codec
from mesh.errors import InvalidInputError, ProtocolError
from mesh.frames import Frame
from mesh.tool_calls import whole_call
from schemas.chat import ChatDelta, ChatReply, FinishReason, Usage

NO_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_REASONS: Final[dict[Any, FinishReason]] = {one: one for one in get_args(FinishReason)}
_FIELDS: Final = frozenset({"id", "object", "created", "model", "usage"})
_MESSAGE_FIELDS: Final = frozenset({"role", "content"})
"""What clients look for in every completion and message."""


def completion(call_id: str, agent: str, node: str, reply: ChatReply) -> bytes:
    """Encode a whole answer as a `chat.completion` of model `agent`.

    Raises:
        TypeError: a tool call holds what no JSON can.
    """
    message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.tool_calls:
        message["content"] = reply.content or None
        message["tool_calls"] = [whole_call(one) for one in reply.tool_calls]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": reply.finish_reason,
    }
    body = {
        "id": f"chatcmpl-{call_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": agent,
        "choices": [choice],
        "usage": reply.usage.model_dump() if reply.usage is not _DEFAULT_USAGE else NO_USAGE,
        "mesh": {"agent_id": agent, "node": node, "call_id": call_id},
    }
    return orjson.dumps(body)


_DEFAULT_USAGE: Final = ChatReply.model_fields["usage"].default


def completion_body(call_id: str, agent: str, frame: Frame) -> bytes:
    """Return a final frame as a `chat.completion`: byte by byte, if it is a whole one.

    What clients insist on and a foreign agent left out is filled in; other answers are wrapped.

    Raises:
        ProtocolError: it is a completion without an answer in it.
    """
    made = None if frame.is_text else _read_completion(frame.body)
    if made is not None and _is_whole(made):
        return frame.body
    whole = [completion(call_id, agent, frame.node, one) for one in read_replies(frame)]
    return whole[0] if made is None else orjson.dumps(_filled(made, whole))


def _read_completion(body: bytes) -> dict[str, Any] | None:
    """Return a body that is a completion with answers in it."""
    try:
        made: dict[str, Any] = orjson.loads(body)
        are_answers = all(isinstance(one["message"], dict) for one in made["choices"])
        return made if made["choices"] and are_answers else None
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError):
        return None


def _is_whole(made: dict[str, Any]) -> bool:
    return made.keys() >= _FIELDS and bool(made["usage"]) and all(map(_is_answer, made["choices"]))


def _is_answer(choice: dict[str, Any]) -> bool:
    has_reason = "index" in choice and bool(_reason(choice))
    return has_reason and choice["message"].keys() >= _MESSAGE_FIELDS


def _filled(made: dict[str, Any], whole: Sequence[bytes]) -> dict[str, Any]:
    """Return a foreign agent's completion, with a whole one behind each of its answers."""
    templates = [orjson.loads(one) for one in whole]
    choices = [
        _filled_choice(given, {**template["choices"][0], "index": place})
        for place, (given, template) in enumerate(zip(made["choices"], templates, strict=True))
    ]
    usage = made.get("usage") or templates[0]["usage"]
    return {**templates[0], **made, "choices": choices, "usage": usage}


def _filled_choice(given: dict[str, Any], template: dict[str, Any]) -> dict[str, Any]:
    message = {**template["message"], **given["message"]}
    reason = _reason(given) or template["finish_reason"]
    return {**template, **given, "message": message, "finish_reason": reason}


def _reason(choice: dict[str, Any]) -> FinishReason | None:
    """Return why an answer ended, if it says so in a word that clients know."""
    reason = choice.get("finish_reason")
    return _REASONS.get(reason) if isinstance(reason, str) else None


class ChunkWriter:
    """Encodes the chunks of one streamed answer: same id and time in all, role first."""

    def __init__(self, call_id: str, agent: str, *, include_usage: bool = False) -> None:
        self._head = {
            "id": f"chatcmpl-{call_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": agent,
        }
        self._include_usage = include_usage
        self.choice = 0
        """Of several answers to one question, the one that chunks are written of."""

    def role(self) -> bytes:
        """Encode the first chunk, which names the role and carries no text."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def delta(self, delta: ChatDelta) -> bytes:
        """Encode one part of the answer."""
        fields: dict[str, Any] = {}
        if delta.content is not None:
            fields["content"] = delta.content
        if delta.tool_calls:
            fields["tool_calls"] = delta.tool_calls
        return self._chunk(fields, None)

    def finish(self, reason: str) -> bytes:
        """Encode the chunk that says why the answer ends."""
        return self._chunk({}, reason)

    def usage(self, usage: Usage) -> bytes:
        """Encode the chunk without choices that clients get who asked for usage."""
        return orjson.dumps({**self._head, "choices": [], "usage": usage.model_dump()})

    def _chunk(self, delta: dict[str, Any], reason: str | None) -> bytes:
        choice = {"index": self.choice, "delta": delta, "logprobs": None, "finish_reason": reason}
        body: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._include_usage:
            body["usage"] = None
        return orjson.dumps(body)


def read_reply(frame: Frame) -> ChatReply:
    """Read the answer of a final frame, be it a completion, other JSON, or text.

    JSON that is no completion is the text of the answer: a FastStream agent may return any. Of
    several answers to one question this is the first.

    Raises:
        ProtocolError: a completion whose message breaks the shape.
    """
    return read_replies(frame)[0]


def read_replies(frame: Frame) -> list[ChatReply]:
    """Read the answers of a final frame: one, unless the request asked for several by `n`.

    All have the usage of the whole. Raises what `read_reply` raises.
    """
    text = frame.body.decode(errors="replace")
    if frame.is_text:
        return [ChatReply(content=text)]
    value = _loads(frame.body)
    if not isinstance(value, dict) or "choices" not in value:
        return [ChatReply(content=value if isinstance(value, str) else text)]
    try:
        usage = Usage.model_validate(value.get("usage") or {})
        found = [_read_choice(choice, usage) for choice in value["choices"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"the answer is not a chat.completion: {error}") from None
    if not found:
        raise ProtocolError("the answer is not a chat.completion: it has no choices")
    return found


def _read_choice(choice: Any, usage: Usage) -> ChatReply:
    message = choice["message"]
    reason = _reason(choice)
    named: dict[str, Any] = {"finish_reason": reason} if reason else {}
    tool_calls = [whole_call(one) for one in message.get("tool_calls") or ()]
    return ChatReply(
        content=message.get("content"), tool_calls=tool_calls or None, usage=usage, **named
    )


def read_delta(body: bytes) -> ChatDelta:
    """Read one chunk. A chunk without choices has only usage.

    Raises:
        ProtocolError: it is no `chat.completion.chunk`.
    """
    value = _loads(body)
    try:
        usage = value.get("usage")
        choice = value["choices"][0] if value["choices"] else {"delta": {}}
        delta = choice["delta"]
        return ChatDelta(
            content=delta.get("content"),
            tool_calls=delta.get("tool_calls"),
            finish_reason=choice.get("finish_reason"),
            usage=Usage.model_validate(usage) if usage else None,
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"not a chat.completion.chunk: {error}") from None


def _loads(body: bytes) -> Any:
    try:
        return codec.loads(body)
    except InvalidInputError as error:
        raise ProtocolError(error.message) from None
