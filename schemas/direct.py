"""The direct method: `POST /api/agent/{id}/chat`, as the guide has it.

A message in, its answer out; `mesh.shim.direct` makes a chat request of the one and this of the
other. None of it travels on NATS.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from schemas.base import Id, WireModel
from schemas.chat import ChatMessage, FinishReason, Usage


class DirectRequest(BaseModel):
    """A message to the agent of the path. Fields that are not known here reach the agent."""

    model_config = ConfigDict(frozen=True, extra="allow")

    message: str | None = Field(default=None, min_length=1)
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    """A whole conversation, instead of one message."""
    model: str = ""
    """For the agent: whom the message is for stands in the path."""
    stream: bool | None = None
    """Whether the answer comes part by part; by default as the `Accept` header says."""


class DirectReply(WireModel):
    """The answer, and who gave it. As the last event of a stream it has `"done": true` too."""

    agent_id: Id
    node: str
    response: str
    """The text of the answer; empty beside tool calls."""
    call_id: str
    model: str
    """What answers behind the agent, as its card says; the agent's id where it says nothing."""
    usage: Usage
    finish_reason: FinishReason
    tool_calls: list[dict[str, Any]] | None = None
    """What the client is to call, when there is something."""


class DirectDelta(WireModel):
    """An event of a streamed answer: the next part of the text."""

    delta: str
