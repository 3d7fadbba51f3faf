"""A Responses request as the chat request that travels."""

from typing import Any, get_args

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh import codec
from mesh.errors import InvalidInputError
from mesh.shim.response_options import chat_body, echo, read_request
from mesh.shim.status import failure
from schemas.chat import ChatRequest
from schemas.responses import MessageItem, ResponseRequest

CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
OTHER = {**CALL, "call_id": "c2", "name": "ask", "id": "fc_2", "status": "completed"}
RETURNED = {"type": "function_call_output", "call_id": "c1", "output": "16 h"}
LOOK = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
ASK = {"id": "c2", "type": "function", "function": {"name": "ask", "arguments": "{}"}}
USER = {"role": "user", "content": "hi"}


def part(kind: str, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": kind, **fields}]}


def read(**fields: Any) -> ResponseRequest:
    return read_request(orjson.dumps({"input": "hi", **fields}))


def translated(**fields: Any) -> Any:
    body = orjson.loads(chat_body(read(**fields), "solarius"))
    codec.validate(ChatRequest, body)
    return body


@pytest.mark.parametrize(
    ("said", "messages"),
    [
        ("hi", [USER]),
        ("", [{"role": "user", "content": ""}]),
        ([USER], [USER]),
        ([{**USER, "type": "message", "id": "msg_1", "status": "completed"}], [USER]),
        ([{**USER, "type": None}], [USER]),
        *(
            ([{"role": role, "content": "x"}], [{"role": role, "content": "x"}])
            for role in get_args(MessageItem.model_fields["role"].annotation)
        ),
        ([part("input_text", text="a")], [{"role": "user", "content": "a"}]),
        ([part("output_text", text="a", annotations=[])], [{"role": "user", "content": "a"}]),
        ([{"role": "user", "content": []}], [{"role": "user", "content": []}]),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": one} for one in "ab"]}],
            [{"role": "user", "content": [{"type": "text", "text": one} for one in "ab"]}],
        ),
        (
            [part("input_image", image_url="data:x", detail="low")],
            [part("image_url", image_url={"url": "data:x", "detail": "low"})],
        ),
        (
            [part("input_image", image_url="http://x", file_id=None)],
            [part("image_url", image_url={"url": "http://x"})],
        ),
        (
            [part("input_file", file_data="data:x", filename="a.pdf", file_url=None)],
            [part("file", file={"file_data": "data:x", "filename": "a.pdf"})],
        ),
        ([part("input_file", file_id="f1")], [part("file", file={"file_id": "f1"})]),
        (
            [part("input_audio", input_audio={"data": "x", "format": "wav"})],
            [part("input_audio", input_audio={"data": "x", "format": "wav"})],
        ),
        ([part("refusal", refusal="no")], [part("refusal", refusal="no")]),
        (
            [USER, CALL, RETURNED],
            [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [LOOK]},
                {"role": "tool", "tool_call_id": "c1", "content": "16 h"},
            ],
        ),
        (
            [{"role": "assistant", "content": "I look"}, CALL, OTHER],
            [{"role": "assistant", "content": "I look", "tool_calls": [LOOK, ASK]}],
        ),
        (
            [CALL, RETURNED, OTHER],
            [
                {"role": "assistant", "content": None, "tool_calls": [LOOK]},
                {"role": "tool", "tool_call_id": "c1", "content": "16 h"},
                {"role": "assistant", "content": None, "tool_calls": [ASK]},
            ],
        ),
        (
            [{**RETURNED, "output": [{"type": "input_text", "text": "16 h"}]}],
            [{"role": "tool", "tool_call_id": "c1", "content": "16 h"}],
        ),
        ([{"type": "reasoning", "id": "rs_1", "summary": []}, USER], [USER]),
    ],
)
def test_items_become_messages(said: Any, messages: list[Any]) -> None:
    """Messages with their parts, calls of functions and what those returned."""
    assert translated(input=said)["messages"] == messages


def test_instructions_come_first() -> None:
    """As the message of the system."""
    messages = translated(instructions="Be brief.")["messages"]
    assert messages == [{"role": "system", "content": "Be brief."}, USER]


@pytest.mark.parametrize(
    ("fields", "chat"),
    [
        ({}, {}),
        ({"temperature": 0.5, "top_p": 1}, {"temperature": 0.5, "top_p": 1.0}),
        ({"max_output_tokens": 7}, {"max_completion_tokens": 7}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "text"}}}, {"response_format": {"type": "text"}}),
        (
            {"text": {"format": {"type": "json_object"}}},
            {"response_format": {"type": "json_object"}},
        ),
        (
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "day",
                        "schema": {"default": None},
                        "strict": True,
                        "description": None,
                    }
                }
            },
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "day", "schema": {"default": None}, "strict": True},
                }
            },
        ),
        ({"metadata": {"a": "b"}}, {"metadata": {"a": "b"}}),
        ({"user": "u", "service_tier": "flex"}, {"user": "u", "service_tier": "flex"}),
        ({"vendor": {"x": [1, None]}}, {"vendor": {"x": [1, None]}}),
        # Those need no agent, or have no word in chat.
        ({"store": True, "include": [], "truncation": "auto", "max_tool_calls": 3}, {}),
        ({"context_management": [], "stream_options": {"include_obfuscation": False}}, {}),
        ({"agent_id": "a", "target_node": "n", "source_agent": "s", "source_node": "m"}, {}),
        ({"timeout": 5, "wait": True, "background": True}, {}),
        ({"n": 1}, {}),
        # Chat models refuse a choice without tools.
        ({"tool_choice": "auto", "parallel_tool_calls": False}, {}),
    ],
)
def test_options_have_other_names(fields: dict[str, Any], chat: dict[str, Any]) -> None:
    """What chat has a word for is under it, what nobody knows is passed on."""
    ours = {"messages": [USER], "model": "solarius", "stream": False}
    assert translated(**fields) == {**ours, **chat}


TOOL = {"type": "function", "name": "look", "parameters": {"default": None}, "strict": True}


@pytest.mark.parametrize(
    ("choice", "chat"),
    [
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "look"}, {"type": "function", "function": {"name": "look"}}),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "look"}],
            },
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "look"}}],
                },
            },
        ),
    ],
)
def test_tools_are_nested(choice: Any, chat: Any) -> None:
    """Flat here, an object in chat; fields that are not known are kept, nulls are not."""
    tool = {**TOOL, "description": None, "vendor": 1}
    body = translated(tools=[tool], tool_choice=choice, parallel_tool_calls=False)
    function = {
        "name": "look",
        "parameters": {"default": None},
        "strict": True,
        "vendor": 1,
    }
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == chat
    assert body["parallel_tool_calls"] is False


@pytest.mark.parametrize("name", sorted(ResponseRequest.model_fields.keys() - {"input", "model"}))
def test_null_is_nothing(name: str) -> None:
    """Clients write null for what they do not set."""
    assert translated(**{name: None}) == translated()


def test_the_model_is_passed_on() -> None:
    """What the client calls it, or the agent where it says nothing."""
    assert translated(model="gpt-4o")["model"] == "gpt-4o"
    assert translated()["model"] == "solarius"


def test_a_retry_has_the_same_bytes() -> None:
    """By them it is known."""
    request = read(tools=[TOOL], vendor={"b": 1, "a": 2}, metadata={"x": "y"})
    assert chat_body(request, "solarius") == chat_body(request, "solarius")


def test_a_response_repeats_its_request() -> None:
    """As far as the request says anything, and in its own form."""
    form = {"type": "json_schema", "name": "day", "schema": {}}
    request = read(tools=[TOOL], text={"format": form}, reasoning={"effort": "low"}, top_p=None)
    assert echo(request) == {
        "tools": [TOOL],
        "text": {"format": form},
        "reasoning": {"effort": "low", "summary": None},
    }


WRONG: dict[str, tuple[Any, ...]] = {
    "model": (7, None, True, [], {}),
    "input": (7, None, True, {}, []),
    "instructions": (7, True, [], {}),
    "stream": (7, "true", [], {}),
    "tools": (7, "x", True, {}),
    "tool_choice": (7, True, [], "any"),
    "parallel_tool_calls": (7, "x", [], {}),
    "temperature": ("x", True, [], {}),
    "top_p": ("x", True, [], {}),
    "max_output_tokens": ("x", True, 0, -1, 1.5, [], {}),
    "reasoning": (7, "x", True, []),
    "text": (7, "x", True, []),
    "metadata": (7, "x", True, []),
    "previous_response_id": (7, True, [], {}),
    "conversation": (7, True, []),
    "prompt": (7, "x", True, []),
    "n": ("x", True, 0, 2, [], {}),
    "store": (7, "x", [], {}),
    "include": (7, "x", True, {}),
    "truncation": (7, True, [], {}),
    "max_tool_calls": ("x", True, [], {}),
    "context_management": (7, "x", True, {}),
    "stream_options": (7, "x", True, []),
}


@pytest.mark.parametrize("name", ResponseRequest.model_fields)
def test_every_field_has_its_type(name: str) -> None:
    """Another type is blamed on the field."""
    for value in WRONG[name]:
        with pytest.raises(InvalidInputError) as caught:
            translated(**{name: value})
        assert caught.value.field == name, value


UNSERVED = "unsupported_parameter"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "previous_response_not_found"),
        ({"conversation": "conv_1"}, "conversation", UNSERVED),
        ({"conversation": {"id": "conv_1"}}, "conversation", UNSERVED),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", UNSERVED),
        ({"n": 2}, "n", UNSERVED),
        ({"messages": [USER]}, "messages", "invalid_value"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", UNSERVED),
        ({"tools": [TOOL, {"type": "mcp"}]}, "tools.1.type", UNSERVED),
        ({"tools": [{"name": "look"}]}, "tools.0.type", UNSERVED),
        ({"tools": [{"type": "function"}]}, "tools.0.name", "invalid_value"),
        ({"tools": [{**TOOL, "parameters": 7}]}, "tools.0.parameters", "invalid_value"),
        ({"tools": [7]}, "tools.0", "invalid_value"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type", UNSERVED),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name", "invalid_value"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [7]}},
            "tool_choice.tools.0",
            "invalid_value",
        ),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type", "invalid_value"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", "invalid_value"),
        ({"reasoning": {"effort": 7}}, "reasoning.effort", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_value"),
        ({"input": [7]}, "input.0", "invalid_value"),
        ({"input": [{}]}, "input.0", UNSERVED),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0", UNSERVED),
        ({"input": [USER, {"type": "web_search_call"}]}, "input.1.type", UNSERVED),
        ({"input": [{"type": 7}]}, "input.0.type", UNSERVED),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input.0.content", "invalid_value"),
        ({"input": [{"role": "user", "content": 7}]}, "input.0.content", "invalid_value"),
        ({"input": [{"role": "user", "content": [7]}]}, "input.0.content", "invalid_value"),
        ({"input": [part("video")]}, "input.0.content.0.type", UNSERVED),
        ({"input": [part("input_text")]}, "input.0.content.0.text", "invalid_value"),
        ({"input": [part("input_image")]}, "input.0.content.0.image_url", "invalid_value"),
        ({"input": [part("input_image", file_id="f")]}, "input.0.content.0.file_id", UNSERVED),
        ({"input": [part("input_file")]}, "input.0.content.0.file_data", "invalid_value"),
        ({"input": [part("input_file", file_url="u")]}, "input.0.content.0.file_url", UNSERVED),
        ({"input": [{**CALL, "arguments": {}}]}, "input.0.arguments", "invalid_value"),
        ({"input": [{**CALL, "call_id": ""}]}, "input.0.call_id", "invalid_value"),
        ({"input": [{**RETURNED, "call_id": None}]}, "input.0.call_id", "invalid_value"),
        ({"input": [{**RETURNED, "output": 7}]}, "input.0.output", "invalid_value"),
        ({"input": [{"type": "reasoning"}]}, "input", "invalid_value"),
    ],
)
def test_what_is_not_served_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    """The place, and whether it is wrong or only not to be had here."""
    with pytest.raises(InvalidInputError) as caught:
        translated(**fields)
    told = failure(caught.value)
    error = orjson.loads(told.body)["error"]
    assert (told.status, error["param"], error["code"]) == (400, param, code)


def test_a_tool_of_openai_is_refused_by_name() -> None:
    """A person must see which one."""
    with pytest.raises(InvalidInputError, match="web_search"):
        translated(tools=[{"type": "web_search"}])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"hi"', b"\xff", b"{}"])
def test_what_is_no_request_is_blamed(body: bytes) -> None:
    """As in every other API of this door."""
    with pytest.raises(InvalidInputError):
        read_request(body)


_names = st.sampled_from(
    ("type", "role", "content", "text", "name", "call_id", "arguments", "output", "id", "format")
)
_anything = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text("ab{"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=8,
)
_kinds = st.sampled_from(("message", "function_call", "function", "input_text", "input_image"))
_items = st.lists(st.fixed_dictionaries({"type": _kinds | _anything, "content": _anything}))


@settings(max_examples=400)
@given(
    name=st.sampled_from((*ResponseRequest.model_fields, "messages", "vendor")),
    value=_anything | _items,
)
def test_whatever_a_client_sends(name: str, value: Any) -> None:
    """It is a chat request in the end, or a field is to blame."""
    try:
        blamed = translated(**{name: value})["messages"]
    except InvalidInputError as error:
        blamed = error.field
    assert blamed
