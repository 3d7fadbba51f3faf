"""The shapes of the OpenAI Responses API, as far as the HTTP door acts on them.

What a client sends keeps the fields that no model here knows, and has the types that OpenAI
demands. None of it travels on NATS: `mesh.shim.response_input` makes a chat request of it, and
`mesh.shim.response_output` a response of the answer. Source of the shapes: the OpenAI API
reference, "Responses".
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class _Given(BaseModel):
    """What a client sends: frozen, and exact about types."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


class FormatOptions(_Given):
    """The form that the text of an answer is to have; a JSON Schema has its fields beside it."""

    type: Literal["text", "json_object", "json_schema"]


class SchemaFormat(_Given):
    """A form by JSON Schema."""

    type: Literal["json_schema"]
    name: str
    json_schema: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextOptions(_Given):
    """How the text of an answer is to be."""

    format: FormatOptions | None = None
    verbosity: str | None = None


class ReasoningOptions(_Given):
    """How long a model is to think."""

    effort: str | None = None


class ResponseRequest(_Given):
    """Body of `POST /v1/responses`."""

    model: str = ""
    """The agent, or `agent@node`."""
    input: str | list[Any]
    """The whole conversation: text, or items."""
    instructions: str | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    """Functions of the client. The tools that OpenAI runs itself are not served."""
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    """Not served, like the two that follow: nothing is remembered here."""
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    n: int | None = None
    """A response has one answer, and OpenAI's no such field; clients of chat have."""
    store: bool | None = None
    """Taken note of, like all that follow: an answer is kept as long as any other."""
    include: list[str] | None = None
    truncation: str | None = None
    max_tool_calls: int | None = None
    context_management: list[dict[str, Any]] | None = None
    stream_options: dict[str, Any] | None = None


class MessageItem(_Given):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, Any]]


class FunctionCallItem(_Given):
    """A function that the agent wanted to be called."""

    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: str


class FunctionOutputItem(_Given):
    """What a function has returned."""

    call_id: str = Field(min_length=1)
    output: str | list[dict[str, Any]]


class TextPart(_Given):
    """Text, of whomever."""

    text: str


class RefusalPart(_Given):
    """What an agent said instead of an answer."""

    refusal: str


class ImagePart(_Given):
    """A picture, by its URL or as a `data:` URL."""

    image_url: str
    detail: str | None = None


class FilePart(_Given):
    """A file, as a `data:` URL or by the id that the agent knows it by."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class AudioPart(_Given):
    """Sound, in base64."""

    input_audio: dict[str, Any]


class FunctionTool(_Given):
    """A function of the client. Fields that are not known here reach the agent too."""

    type: Literal["function"]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(_Given):
    """The one function that the agent must call."""

    type: Literal["function"]
    name: str = Field(min_length=1)


class AllowedTools(_Given):
    """The functions that the agent may choose from."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class _Made(BaseModel):
    """What the door writes."""

    model_config = ConfigDict(frozen=True)


class OutputText(_Made):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: tuple[dict[str, Any], ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()


class OutputMessage(_Made):
    """An item of an answer: what the agent said."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: tuple[OutputText, ...]


class OutputCall(_Made):
    """An item of an answer: a function that the client is to call."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: ItemStatus
    call_id: str
    name: str
    arguments: str
    """JSON, as text."""


OutputItem = OutputMessage | OutputCall


class InputDetails(_Made):
    """Of the tokens of a request."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(_Made):
    """Of the tokens of an answer."""

    reasoning_tokens: int = 0


class ResponseUsage(_Made):
    """Token counts. Zero where the agent does not count."""

    input_tokens: int = 0
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int = 0
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int = 0


class ResponseFailure(_Made):
    """Why there is no answer; the words of an error answer."""

    code: str
    message: str
    type: str | None = None
    param: str | None = None


class IncompleteDetails(_Made):
    """Why an answer ends too early."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponsePlace(_Made):
    """Who answers, and where."""

    agent_id: str
    node: str = ""
    call_id: str


class ResponseObject(_Made):
    """A response: what has become of a request. One that is looked up does not repeat it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    """In seconds since 1970."""
    status: ResponseStatus
    background: bool = False
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    model: str
    """The agent."""
    output: tuple[OutputItem, ...] = ()
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    reasoning: dict[str, Any] = Field(default_factory=lambda: {"effort": None, "summary": None})
    store: bool = False
    temperature: float | None = None
    text: dict[str, Any] = Field(default_factory=lambda: {"format": {"type": "text"}})
    tool_choice: str | dict[str, Any] = "auto"
    tools: tuple[dict[str, Any], ...] = ()
    top_p: float | None = None
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    """Null as long as the answer is not whole."""
    mesh: ResponsePlace
