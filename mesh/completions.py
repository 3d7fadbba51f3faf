"""OpenAI completions and chunks: build them from a reply, and read a reply from them.

Pure translation. The runtime writes these bytes once; the shim passes them through.
Source of the shapes: the OpenAI API reference, "The chat completion object" and "chunk object".
"""

import time
from typing import Any, Final

import orjson

from mesh import codec
from mesh.errors import InvalidInputError, ProtocolError
from mesh.frames import Frame
from schemas.chat import ChatDelta, ChatReply, Usage

NO_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def completion(call_id: str, agent: str, node: str, reply: ChatReply) -> bytes:
    """Encode a whole answer as a `chat.completion` of model `agent`."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.tool_calls:
        message["tool_calls"] = reply.tool_calls
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
    return ChatReply(
        content=message.get("content"),
        tool_calls=message.get("tool_calls"),
        finish_reason=choice.get("finish_reason") or "stop",
        usage=usage,
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
