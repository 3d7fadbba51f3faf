"""Tool calls as clients read them, whatever an agent or its backend says."""

from typing import Any

import pytest

from mesh.tool_calls import ToolCallParts, whole_call
from schemas.chat import ChatDelta, ChatReply

LOOK = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
NOW = {"id": "c2", "type": "function", "function": {"name": "now", "arguments": "{}"}}


def piece(index: int | None, arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = {} if index is None else {"index": index}
    return {**found, **fields, "function": {} if arguments is None else {"arguments": arguments}}


def begin(index: int | None, name: str, arguments: str = "", **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = {} if index is None else {"index": index}
    return {**found, **fields, "function": {"name": name, "arguments": arguments}}


def test_pieces_as_openai_sends_them_stay_as_they_are() -> None:
    """And are put together."""
    said = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "a", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x"'}},
        {"index": 1, "id": "c2", "type": "function", "function": {"name": "b", "arguments": ""}},
        {"index": 0, "function": {"arguments": ":1}"}},
        {"index": 1, "function": {"arguments": "{}"}},
    ]
    calls = ToolCallParts()
    assert [calls.add(one) for one in said] == said
    assert calls.whole() == [
        {"id": "c1", "type": "function", "function": {"name": "a", "arguments": '{"x":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "b", "arguments": "{}"}},
    ]


@pytest.mark.parametrize(
    ("said", "places", "whole"),
    [
        # Bridges that count the text before the calls begin with 1.
        (
            [begin(1, "a", id="c1"), piece(1, "{}"), begin(2, "b", "[]", id="c2")],
            [0, 0, 1],
            [("a", "{}"), ("b", "[]")],
        ),
        # Whole calls of an agent that does not count.
        ([begin(None, "a", "{}"), begin(None, "a", "[]")], [0, 1], [("a", "{}"), ("a", "[]")]),
        # No index, and the id each time, or only once.
        (
            [begin(None, "a", id="c1"), piece(None, "{", id="c1"), piece(None, "}")],
            [0, 0, 0],
            [("a", "{}")],
        ),
        # The name comes late.
        ([piece(0, id="c1"), begin(0, "a"), piece(0, "{}")], [0, 0, 0], [("a", "{}")]),
        # Arguments without a call.
        ([piece(None, "{}")], [0], [("", "{}")]),
    ],
)
def test_pieces_find_their_call(
    said: list[dict[str, Any]], places: list[int], whole: list[tuple[str, str]]
) -> None:
    """Each call has its place, counted from 0."""
    calls = ToolCallParts()
    told = [calls.add(one) for one in said]
    assert [one["index"] for one in told] == places
    assert [tuple(one["function"].values()) for one in calls.whole()] == whole


def test_only_the_first_piece_names_the_call() -> None:
    """Clients put texts together: an id that comes twice would be twice as long."""
    calls = ToolCallParts()
    first = calls.add(begin(0, "look"))
    later = calls.add({"index": 0, "id": "", "type": "function", "function": {"name": "look"}})
    assert first["id"].startswith("call_")
    assert first["type"] == "function"
    assert later == {"index": 0, "function": {"arguments": ""}}
    assert calls.whole()[0]["id"] == first["id"]


def test_what_a_vendor_adds_is_kept() -> None:
    """Some want it back with the tool's result."""
    calls = ToolCallParts()
    signed = {"google": {"thought_signature": "s"}}
    assert calls.add(begin(0, "look", id="c1", extra_content=signed))["extra_content"] == signed
    assert calls.whole()[0]["extra_content"] == signed
    assert whole_call({**LOOK, "extra_content": signed})["extra_content"] == signed
    custom = {"id": "c1", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}
    assert whole_call(custom) == custom
    assert ToolCallParts().add(custom) == {"index": 0, **custom}


def test_a_whole_call_is_made_whole() -> None:
    """The function's name is enough."""
    assert whole_call(LOOK) == LOOK
    made = whole_call({"index": 3, "function": {"name": "look"}})
    assert made.pop("id").startswith("call_")
    assert made == {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    assert whole_call(begin(None, "look") | {"id": "c1"}) == LOOK
    given = {"id": "c1", "function": {"name": "look", "arguments": {"at": ["sun"]}}}
    assert whole_call(given)["function"]["arguments"] == '{"at":["sun"]}'


@pytest.mark.parametrize("bad", [{"function": "look"}, {"function": {"arguments": object()}}])
def test_what_is_no_call_is_refused(bad: dict[str, Any]) -> None:
    """The agent's author reads what is wrong."""
    with pytest.raises(TypeError):
        whole_call(bad)
    with pytest.raises(TypeError):
        ToolCallParts().add(bad)


def test_an_answer_with_tool_calls_ends_for_them() -> None:
    """Clients look at the finish reason to know that they must run something."""
    assert ChatReply(tool_calls=[NOW]).finish_reason == "tool_calls"
    assert ChatReply(tool_calls=[NOW], finish_reason="stop").finish_reason == "stop"
    assert ChatReply(content="x").finish_reason == ChatReply(tool_calls=[]).finish_reason == "stop"
    assert ChatDelta(tool_calls=[NOW]).finish_reason is None
