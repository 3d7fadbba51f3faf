"""The OpenAI chat shapes, as far as the mesh acts on them.

Requests accept every field and keep the ones they do not know, so that tools, sampling options
and vendor extensions reach the agent untouched. Source of the shapes: the OpenAI API reference,
`POST /v1/chat/completions`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]

# OpenAI lets a client write null for an option that it does not set.
_Flag = Annotated[
    bool,
    BeforeValidator(
        lambda given: False if given is None else given, json_schema_input_type=bool | None
    ),
]
_Count = Annotated[
    int,
    BeforeValidator(lambda given: 1 if given is None else given, json_schema_input_type=int | None),
]


class _Open(BaseModel):
    """Frozen, and keeps unknown fields: what a client sends passes through whole."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ChatMessage(_Open):
    """One message. `content` is text, a list of parts, or null beside tool calls."""

    role: str = Field(min_length=1)
    """Such as `system`, `user`, `assistant` and `tool`."""
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """The text of the message: its text parts joined, empty when it has none."""
        if isinstance(self.content, str):
            return self.content
        parts = self.content or []
        return "".join(str(part.get("text") or "") for part in parts if part.get("type") == "text")


class StreamOptions(_Open):
    """Options of a streamed answer."""

    include_usage: _Flag = False
    """Whether the last part tells how many tokens there were."""


class ChatRequest(_Open):
    """A question to an agent: the body of a request, at the door and on the wire."""

    messages: list[ChatMessage] = Field(min_length=1)
    """The conversation so far, the newest message last."""
    model: str = ""
    """The agent, or the agent and the node: `solarius@node2`."""
    stream: _Flag = False
    """Whether to answer part by part."""
    stream_options: StreamOptions | None = None
    n: _Count = Field(default=1, ge=1)
    """How many answers to give. Most agents give one."""

    @property
    def last_text(self) -> str:
        """The text of the last message."""
        return self.messages[-1].text

    @property
    def include_usage(self) -> bool:
        """Whether a streamed answer must end with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @classmethod
    def from_text(cls, text: str) -> "ChatRequest":
        """Make a request of one user message."""
        return cls(messages=[ChatMessage(role="user", content=text)])


class Usage(_Open):
    """Token counts. Zero where the agent does not count."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


def _reason(fields: dict[str, Any]) -> FinishReason:
    return "tool_calls" if fields.get("tool_calls") else "stop"


class ChatReply(_Open):
    """A whole answer, as an agent's handler gives it and as a caller gets it.

    A tool call needs no more than `{"function": {"name": ..., "arguments": ...}}`: the mesh gives
    it an id and a type, and the answer its finish reason.
    """

    content: str | None = ""
    tool_calls: list[dict[str, Any]] | None = None
    finish_reason: FinishReason = Field(default_factory=_reason)
    usage: Usage = Usage()
    file: Any = Field(default=None, exclude=True, repr=False)
    """The file that comes with the answer, which does not travel in it: at a caller a
    `mesh.Attachment`, from a handler whatever `CallContext.attach` takes."""

    @property
    def text(self) -> str:
        """The answer's text, empty when there is none."""
        return self.content or ""


class ChatDelta(_Open):
    """A part of a streamed answer, where a plain string is not enough.

    `tool_calls` are pieces as OpenAI streams them: the first of an index has the function's name,
    later ones add to its `arguments`. A whole call in one piece needs no index. What clients insist
    on and a piece lacks is added on the way: the index, counted from 0, and on a call's first
    piece, only there, its id and type.
    """

    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
