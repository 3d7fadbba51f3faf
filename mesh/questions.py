"""What a caller asks, in whatever form it has it, as the OpenAI body that travels."""

from collections.abc import Mapping
from typing import Any

from mesh import codec
from mesh.errors import InvalidInputError
from schemas.chat import ChatRequest

Question = str | ChatRequest | Mapping[str, Any]


def encode_question(agent: str, question: Question, *, stream: bool) -> bytes:
    """Encode a question as the OpenAI body that travels.

    Raises:
        InvalidInputError: it is empty, or no chat request.
    """
    if isinstance(question, str):
        if not question.strip():
            raise InvalidInputError("the message is empty", field="messages")
        value: dict[str, Any] = {"messages": [{"role": "user", "content": question}]}
    elif isinstance(question, ChatRequest):
        value = question.model_dump(mode="json", exclude_unset=True)
    else:
        codec.validate(ChatRequest, question)
        value = dict(question)
    value.setdefault("model", agent)
    value["stream"] = stream
    return codec.dumps(value)
