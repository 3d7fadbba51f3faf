"""Chat completions as OpenAI clients see them: the whole body that they send, and what comes back.

`schemas.chat` has what the mesh reads of a request; here stand also the fields that only the HTTP
door reads, and those that it carries to the agent as they are. No message is validated with these
models: they are the documentation of `POST /v1/chat/completions`. Source of the shapes: the OpenAI
API reference, "Chat".
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.chat import ChatRequest, FinishReason, Usage
from schemas.terms import TargetFields


class ChatCompletionRequest(TargetFields, ChatRequest):
    """A question to an agent, who gets all of it as it is.

    The fields up to `agent_id` say something to the mesh. Those below are for the agent, as are any
    others that are not listed.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None


class _Written(BaseModel):
    """What an agent has written: fields that are not listed pass too."""

    model_config = ConfigDict(frozen=True, extra="allow")


class AnswerMessage(_Written):
    """The answer itself."""

    role: Literal["assistant"]
    content: str | None = None
    """Null beside tool calls, and where the agent refuses."""
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Choice(_Written):
    """An answer, and why it ends where it ends."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason | None
    logprobs: dict[str, Any] | None = None


class CallPlace(_Written):
    """Who answered, and where."""

    agent_id: str
    node: str
    call_id: str


class ChatCompletion(_Written):
    """A whole answer, as the agent wrote it."""

    id: str
    object: Literal["chat.completion"]
    created: int
    """In seconds since 1970."""
    model: str
    """The agent."""
    choices: list[Choice] = Field(min_length=1)
    """One."""
    usage: Usage | None = None
    mesh: CallPlace | None = None


class ChunkDelta(_Written):
    """What a chunk adds to the answer."""

    role: str | None = None
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChunkChoice(_Written):
    """A part of the answer."""

    index: int
    delta: ChunkDelta
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(_Written):
    """A part of a streamed answer, as the agent wrote it."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    """In seconds since 1970."""
    model: str
    """The agent."""
    choices: list[ChunkChoice]
    """One, or none beside `usage`."""
    usage: Usage | None = None
