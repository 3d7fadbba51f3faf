"""A Responses request as the chat request that travels: its options under their chat names.

The agent always sees chat. Fields that nobody here knows are passed on as they are; those that
promise what the mesh does not do are refused. The conversation is translated by
`mesh.shim.response_input`. Source of the names: the OpenAI API reference, "Create a model
response" and "Create chat completion".
"""

from typing import Any, Final

from mesh import codec
from mesh.errors import InvalidInputError
from mesh.shim.response_input import SEND_WHOLE, chat_messages, checked, unsupported
from mesh.shim.status import UNKNOWN_RESPONSE
from schemas.responses import (
    AllowedTools,
    FormatOptions,
    FunctionChoice,
    FunctionTool,
    ResponseRequest,
    SchemaFormat,
)
from schemas.terms import MESH_FIELDS

OURS: Final = MESH_FIELDS

_ECHOED: Final = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "store",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
    "truncation",
)
"""What a response repeats of its request under the same name."""


def read_request(body: bytes) -> ResponseRequest:
    """Read the body of a Responses request.

    Raises:
        InvalidInputError: it is none, or relies on what was said in an earlier one.
    """
    value = codec.loads(body)
    if isinstance(value, dict) and "messages" in value:
        raise InvalidInputError(
            "messages: is for /v1/chat/completions; here the conversation is `input`",
            field="messages",
        )
    request = codec.validate(ResponseRequest, value)
    _require_whole(request)
    if request.n not in (None, 1):
        raise unsupported("n", "a response has one answer; ask several times instead")
    return request


def chat_body(request: ResponseRequest, agent: str) -> bytes:
    """Encode the chat request that says to `agent` what a Responses request says.

    The same request gives the same bytes: a retry is known by them.

    Raises:
        InvalidInputError: something in it is not served; `field` is its place.
    """
    extra = request.model_extra or {}
    body: dict[str, Any] = {name: extra[name] for name in extra if name not in OURS}
    body |= _options(request)
    body["messages"] = chat_messages(request)
    body["model"] = request.model or agent
    body["stream"] = bool(request.stream)
    return codec.dumps(body)


def echo(request: ResponseRequest) -> dict[str, Any]:
    """Return what every object of the response repeats of its request."""
    found = {name: getattr(request, name) for name in _ECHOED}
    if request.text is not None:
        plain = {"format": {"type": "text"}}
        found["text"] = plain | request.text.model_dump(exclude_none=True)
    if request.reasoning is not None:
        nothing = {"effort": None, "summary": None}
        found["reasoning"] = nothing | request.reasoning.model_dump()
    return {name: value for name, value in found.items() if value is not None}


def _require_whole(request: ResponseRequest) -> None:
    if request.previous_response_id is not None:
        raise InvalidInputError(
            f"previous_response_id: {SEND_WHOLE}",
            field="previous_response_id",
            reason=UNKNOWN_RESPONSE,
        )
    if request.conversation is not None:
        raise unsupported("conversation", SEND_WHOLE)
    if request.prompt is not None:
        raise unsupported("prompt", "no templates are kept here: send `instructions` and `input`")


def _options(request: ResponseRequest) -> dict[str, Any]:
    tools = [_tool(tool, f"tools.{number}") for number, tool in enumerate(request.tools or ())]
    choice = _tool_choice(request.tool_choice)
    text, reasoning = request.text, request.reasoning
    found = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_completion_tokens": request.max_output_tokens,
        "reasoning_effort": reasoning and reasoning.effort,
        "response_format": text and text.format and _format(text.format),
        "verbosity": text and text.verbosity,
        "metadata": request.metadata,
        "tools": tools or None,
        # Chat models refuse both where there is nothing to choose from.
        "tool_choice": choice if tools else None,
        "parallel_tool_calls": request.parallel_tool_calls if tools else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _tool(tool: dict[str, Any], place: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        raise unsupported(
            f"{place}.type",
            f"the tool {kind!r:.80} is not served here: an agent calls functions of yours, and "
            "whatever it has itself",
        )
    function = checked(FunctionTool, tool, place).model_dump(exclude_none=True, exclude={"type"})
    return {"type": "function", "function": function}


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(choice, str):
        if choice in ("none", "auto", "required"):
            return choice
        raise InvalidInputError(
            "tool_choice: say none, auto or required, or name a function", field="tool_choice"
        )
    if choice is None:
        return None
    match choice.get("type"):
        case "function":
            return _function(checked(FunctionChoice, choice, "tool_choice").name)
        case "allowed_tools":
            allowed = checked(AllowedTools, choice, "tool_choice")
            tools = [
                _function(checked(FunctionChoice, one, f"tool_choice.tools.{number}").name)
                for number, one in enumerate(allowed.tools)
            ]
            return {
                "type": "allowed_tools",
                "allowed_tools": {"mode": allowed.mode, "tools": tools},
            }
        case kind:
            raise unsupported("tool_choice.type", f"the tool {kind!r:.80} is not served here")


def _function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _format(form: FormatOptions) -> dict[str, Any]:
    if form.type != "json_schema":
        return {"type": form.type}
    given = checked(SchemaFormat, form.model_dump(), "text.format")
    named = given.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
    return {"type": "json_schema", "json_schema": named}
