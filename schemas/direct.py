"""The direct way to an agent over HTTP: one message, one answer. `POST /api/agent/{id}/chat`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.base import Id, WireModel
from schemas.chat import ChatMessage, Usage


class DirectRequest(BaseModel):
    """A message to the agent that the path names. Other fields are those of a chat request."""

    model_config = ConfigDict(frozen=True, extra="allow")

    message: str = ""
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    """A whole conversation, instead of one message."""
    stream: bool = False


class DirectReply(WireModel):
    """What the agent answered."""

    agent_id: Id
    node: str = ""
    """Where the agent ran."""
    response: str
    call_id: str
    model: str = ""
    finish_reason: str = "stop"
    tool_calls: list[dict[str, Any]] | None = None
    usage: Usage = Usage()


class DirectDelta(WireModel):
    """One event of a streamed answer: a part of its text."""

    delta: str


class DirectEnd(DirectReply):
    """The last event of a streamed answer: all of it."""

    done: Literal[True] = True
