"""Answers as response objects, and as their events."""

from collections.abc import Iterable
from typing import Any

import orjson
import pytest

from mesh.calls import CallState, StoredCall
from mesh.completions import completion
from mesh.errors import (
    AgentFailedError,
    CallCancelledError,
    CallTimeoutError,
    MeshError,
    ProtocolError,
)
from mesh.frames import Frame
from mesh.ledger import CallRecord
from mesh.shim.response_events import ResponseEvents
from mesh.shim.response_output import Draft, looked_up
from mesh.shim.status import failure
from schemas.chat import ChatDelta, ChatReply, Usage
from schemas.frame import FrameKind, StoredBody

DRAFT = Draft("c1", "solarius", 1790000000, {"temperature": 0.5})
TOOL = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
TEXT = {"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}
MESSAGE = {
    "id": "msg_c1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [TEXT],
}
CALLED = {
    "id": "fc_c1_0",
    "type": "function_call",
    "status": "completed",
    "call_id": "t1",
    "name": "look",
    "arguments": '{"a":1}',
}
NO_USAGE = Usage()


def final(body: bytes, content_type: str = "application/json") -> Frame:
    return Frame(FrameKind.FINAL, "c1", body, content_type, node="node2")


def answered(**fields: Any) -> Any:
    frame = final(completion("c1", "solarius", "node2", ChatReply(**fields)))
    return DRAFT.answered(frame).model_dump(mode="json")


def test_a_whole_answer() -> None:
    """With everything that OpenAI's clients look for."""
    usage = Usage(
        prompt_tokens=3,
        completion_tokens=2,
        total_tokens=5,
        prompt_tokens_details={"cached_tokens": 1},
        completion_tokens_details={"reasoning_tokens": 2},
    )
    assert answered(content="hi", usage=usage) == {
        "id": "resp_c1",
        "object": "response",
        "created_at": 1790000000,
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "model": "solarius",
        "output": [MESSAGE],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 5,
        },
        "mesh": {"agent_id": "solarius", "node": "node2", "call_id": "c1"},
    }


@pytest.mark.parametrize(
    ("reply", "output"),
    [
        ({"content": "hi"}, [MESSAGE]),
        ({"content": "hi", "tool_calls": [TOOL]}, [MESSAGE, CALLED]),
        ({"content": None, "tool_calls": [TOOL]}, [CALLED]),
        ({"content": "", "tool_calls": [TOOL]}, [CALLED]),
        ({"content": ""}, [{**MESSAGE, "content": [{**TEXT, "text": ""}]}]),
        (
            {"content": None, "tool_calls": [TOOL, {"id": "t1", "function": {"name": "ask"}}]},
            [CALLED, {**CALLED, "id": "fc_c1_1", "name": "ask", "arguments": "{}"}],
        ),
    ],
)
def test_what_is_said_and_called(reply: dict[str, Any], output: list[Any]) -> None:
    """A message, and an item for each function that is to be called."""
    assert answered(**reply)["output"] == output


@pytest.mark.parametrize(
    ("reason", "status", "details"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
    ],
)
def test_why_an_answer_ends(reason: str, status: str, details: Any) -> None:
    """One that was cut short is incomplete, and so is its message."""
    found = answered(content="hi", finish_reason=reason)
    assert (found["status"], found["incomplete_details"]) == (status, details)
    assert found["output"][0]["status"] == status


@pytest.mark.parametrize("body", [b"plain", b'"plain"'])
def test_any_other_answer_is_text(body: bytes) -> None:
    """A FastStream agent returns what it likes."""
    kind = "application/json" if body.startswith(b'"') else "text/plain"
    [item] = DRAFT.answered(final(body, kind)).model_dump()["output"]
    assert item["content"][0]["text"] == "plain"


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{"id": "t1"}]},
        {"tool_calls": [{"function": {"name": 7}}]},
        {"tool_calls": [{"id": 7, "function": {"name": "look"}}]},
        {"tool_calls": [7]},
        None,
    ],
)
def test_an_answer_that_is_none(message: Any) -> None:
    """Nobody could call what has no name."""
    frame = final(orjson.dumps({"choices": [{"message": message}]}))
    with pytest.raises(ProtocolError):
        DRAFT.answered(frame)


STORED = StoredBody(agent="solarius", sequence=7, timeout_ms=1000)


def record(state: CallState, outcome: Frame | MeshError | None = None) -> CallRecord:
    call = StoredCall("c1", "solarius", "agent.http.reply.i.c1.solarius", 7, state)
    return CallRecord(call, "2026-11-22T20:00:00.123456789Z", STORED, outcome, node="node2")


@pytest.mark.parametrize(
    ("state", "outcome", "status", "code"),
    [
        (CallState.STORED, None, "queued", None),
        (CallState.WORKING, None, "in_progress", None),
        (CallState.ANSWERED, final(b'"hi"'), "completed", None),
        (CallState.FAILED, AgentFailedError("x"), "failed", "agent_error"),
        (CallState.EXPIRED, CallTimeoutError("x"), "failed", "agent_timeout"),
        (CallState.CANCELLED, CallCancelledError("x"), "cancelled", None),
    ],
)
def test_a_call_on_record(state: CallState, outcome: Any, status: str, code: str | None) -> None:
    """Where it stands, in the words of this API."""
    found = looked_up(record(state, outcome)).model_dump(mode="json")
    assert (found["status"], found["error"] and found["error"]["code"]) == (status, code)
    assert (found["created_at"], found["background"]) == (1795377600, True)
    assert found["mesh"]["node"] == "node2"


def read(encoded: Iterable[bytes]) -> list[Any]:
    """Return what events hold, and check what is true of each."""
    found = []
    for one in encoded:
        name, data, *rest = one.decode().split("\n")
        body = orjson.loads(data.removeprefix("data: "))
        assert (name, rest) == (f"event: {body['type']}", ["", ""])
        found.append(body)
    return found


def streamed(*deltas: ChatDelta, reason: Any = "stop") -> list[Any]:
    events = ResponseEvents(DRAFT)
    encoded = [one for delta in deltas for one in events.add(delta)]
    found = read([*encoded, *events.end(reason, NO_USAGE, "node2")])
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    return found


def kinds(events: list[Any]) -> list[str]:
    return [one["type"].removeprefix("response.") for one in events]


def piece(**fields: Any) -> ChatDelta:
    return ChatDelta(tool_calls=[fields])


BEGUN = ["created", "in_progress"]
MESSAGE_BEGUN = ["output_item.added", "content_part.added"]
MESSAGE_DONE = ["output_text.done", "content_part.done", "output_item.done"]
CALL_DONE = ["function_call_arguments.done", "output_item.done"]


def test_the_events_of_a_text() -> None:
    """An item and a part are opened, grow, and are closed again."""
    events = streamed(ChatDelta(content=""), ChatDelta(content="h"), ChatDelta(content="i"))
    assert kinds(events) == [
        *(*BEGUN, *MESSAGE_BEGUN, "output_text.delta", "output_text.delta"),
        *(*MESSAGE_DONE, "completed"),
    ]
    assert [one["delta"] for one in events[4:6]] == ["h", "i"]
    assert events[-2]["item"] == MESSAGE
    assert events[-1]["response"]["output"] == [MESSAGE]
    assert events[-1]["response"]["mesh"]["node"] == "node2"
    assert events[0]["response"]["status"] == events[1]["response"]["status"] == "in_progress"


def test_the_events_of_calls() -> None:
    """They may come in turns, and after words."""
    events = streamed(
        ChatDelta(content="hi"),
        piece(index=0, id="t1", function={"name": "look", "arguments": '{"a"'}),
        piece(index=1, id="t2", function={"name": "ask"}),
        piece(index=0, function={"arguments": ":1}"}),
        reason="tool_calls",
    )
    assert kinds(events) == [
        *(*BEGUN, *MESSAGE_BEGUN, "output_text.delta"),
        *("output_item.added", "function_call_arguments.delta", "output_item.added"),
        *("function_call_arguments.delta", *MESSAGE_DONE, *CALL_DONE),
        *("function_call_arguments.delta", *CALL_DONE, "completed"),
    ]
    other = {**CALLED, "id": "fc_c1_1", "call_id": "t2", "name": "ask", "arguments": "{}"}
    assert events[-1]["response"]["output"] == [MESSAGE, CALLED, other]
    added = [one for one in events if one["type"] == "response.output_item.added"]
    assert [one["output_index"] for one in added] == [0, 1, 2]
    assert added[1]["item"] == {**CALLED, "status": "in_progress", "arguments": ""}


def test_pieces_without_an_index() -> None:
    """A name begins a call, and the rest goes on with it."""
    events = streamed(
        piece(function={"name": "look", "arguments": "{"}),
        piece(function={"arguments": "}"}),
        piece(function={"name": "ask"}),
    )
    output = events[-1]["response"]["output"]
    assert [(one["name"], one["arguments"]) for one in output] == [("look", "{}"), ("ask", "{}")]


@pytest.mark.parametrize(
    "fields",
    [
        {"index": 0, "function": {"arguments": "{}"}},
        {"index": [], "function": {"name": "look"}},
        {"function": {"arguments": "{}"}},
        {"function": {"name": 7}},
        {"id": 7, "function": {"name": "look"}},
        {"type": "custom", "custom": {"name": "look"}},
        {"function": "look"},
        {},
    ],
)
def test_a_piece_that_is_none(fields: dict[str, Any]) -> None:
    """What an agent writes cannot break the stream."""
    with pytest.raises(ProtocolError):
        streamed(piece(**fields))


def test_an_answer_without_words() -> None:
    """It still has a message, and empty text."""
    events = streamed()
    assert kinds(events) == [*BEGUN, *MESSAGE_BEGUN, *MESSAGE_DONE, "completed"]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_an_answer_that_was_cut_short() -> None:
    """Another last event, with the reason."""
    *_, item, last = streamed(ChatDelta(content="hi"), reason="length")
    assert item["item"]["status"] == "incomplete"
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize("said", [(), ("hi",)])
def test_the_events_of_a_failure(said: tuple[str, ...]) -> None:
    """What was said stays, and openai-python finds the `error` that it raises for."""
    events = ResponseEvents(DRAFT)
    encoded = [one for text in said for one in events.add(ChatDelta(content=text))]
    told = failure(AgentFailedError("no sun today"), sent_to="solarius")
    found = read([*encoded, *events.fail(told)])
    begun = [*BEGUN, *MESSAGE_BEGUN, "output_text.delta"] if said else BEGUN
    assert kinds(found) == [*begun, "failed", "error"]
    failed, error = found[-2:]
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == error["code"] == "agent_error"
    assert failed["response"]["error"]["message"] == error["message"] == "no sun today"
    assert error["error"]["type"] == "server_error"
    assert [one["status"] for one in failed["response"]["output"]] == ["incomplete"] * len(said)
