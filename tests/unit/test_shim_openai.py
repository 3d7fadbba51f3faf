"""The translation between calls and OpenAI bodies."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import orjson
import pytest
from nats.aio.client import Client

from mesh.callers import Caller
from mesh.calls import Call
from mesh.client import MeshClient
from mesh.completions import completion, completion_body
from mesh.connection import Connection
from mesh.errors import InvalidInputError, ProtocolError
from mesh.frames import Frame
from mesh.shim.app import create_app
from mesh.shim.door import Door
from mesh.shim.openai import chunk_bodies, read_request
from schemas.chat import ChatReply, Usage
from schemas.frame import FrameKind

TOOL = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def final(body: bytes, content_type: str = "application/json") -> Frame:
    return Frame(FrameKind.FINAL, "c1", body, content_type, node="node2")


async def call_with(*frames: Frame) -> Call:
    call = Call("c1", "solarius", "agent.http.reply.i.c1", 10.0)
    for frame in frames:
        call.receive(frame)
    return call


async def bodies(call: Call, *, include_usage: bool = False) -> list[dict[str, Any]]:
    return [orjson.loads(one) async for one in chunk_bodies(call, include_usage=include_usage)]


async def test_a_completion_passes_byte_by_byte() -> None:
    """What the agent wrote is what the client reads, if nothing is missing in it."""
    body = (
        b'{ "id": "x", "object": "chat.completion", "created": 1, "model": "m", "odd": 1,'
        b' "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}, "choices":'
        b' [{"index": 0, "message": {"role": "assistant", "content": "hi"}, '
        b'"finish_reason": "length"}] }'
    )
    assert completion_body("c1", "solarius", final(body)) == body


@pytest.mark.parametrize("reason", [None, "", "eos_token", [], 7])
async def test_what_a_completion_lacks_is_filled_in(reason: Any) -> None:
    """Clients demand more than agents write; what these did write stays."""
    message = {"content": "hi", "annotations": []}
    given = {"choices": [{"message": message, "finish_reason": reason}], "odd": 1, "usage": None}
    body = orjson.loads(completion_body("c1", "solarius", final(orjson.dumps(given))))
    assert (body["id"], body["model"], body["odd"]) == ("chatcmpl-c1", "solarius", 1)
    assert body["object"] == "chat.completion"
    assert body["created"] > 1_700_000_000
    assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "refusal": None, **message},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


@pytest.mark.parametrize(
    ("frame", "content"),
    [
        (final("привіт".encode(), "text/plain"), "привіт"),
        (final(b'"quoted"'), "quoted"),
        (final(b'{"answer": 42}'), '{"answer": 42}'),
        (final(b"[1, 2]"), "[1, 2]"),
    ],
)
async def test_any_other_answer_is_wrapped(frame: Frame, content: str) -> None:
    """A FastStream agent returns what it likes; the client gets a completion of it."""
    body = orjson.loads(completion_body("c1", "solarius", frame))
    assert body["object"] == "chat.completion"
    assert body["model"] == "solarius"
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": content,
        "refusal": None,
    }
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == 0
    assert body["mesh"] == {"agent_id": "solarius", "node": "node2", "call_id": "c1"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": []}]}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": [{"message": {"tool_calls": ["look"]}}]}',
        b'{"choices": [{"message": {"tool_calls": [{"function": "look"}]}}]}',
        b"{",
        b"",
    ],
)
async def test_a_completion_without_an_answer_is_an_error(body: bytes) -> None:
    """Clients index into `choices` without looking."""
    with pytest.raises(ProtocolError):
        completion_body("c1", "solarius", final(body))


async def test_an_agent_that_does_not_stream_is_made_to() -> None:
    """Role, content, finish: one id and time in all."""
    reply = ChatReply(content="hello", finish_reason="length")
    chunks = await bodies(await call_with(final(completion("c1", "solarius", "node2", reply))))
    assert [one["choices"][0]["delta"] for one in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "hello"},
        {},
    ]
    assert [one["choices"][0]["finish_reason"] for one in chunks] == [None, None, "length"]
    assert {(one["id"], one["created"], one["object"]) for one in chunks} == {
        ("chatcmpl-c1", chunks[0]["created"], "chat.completion.chunk")
    }
    assert all("usage" not in one for one in chunks)


async def test_usage_comes_on_demand() -> None:
    """A last chunk without choices, and null in those before."""
    reply = ChatReply(content="x", usage=Usage(prompt_tokens=1, total_tokens=1))
    call = await call_with(final(completion("c1", "solarius", "node2", reply)))
    *others, last = await bodies(call, include_usage=True)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 1}
    assert all(one["usage"] is None for one in others)


async def test_tool_calls_are_numbered_in_a_stream() -> None:
    """A streamed tool call needs the index that a whole one does not have."""
    reply = ChatReply(content=None, tool_calls=[TOOL], finish_reason="tool_calls")
    chunks = await bodies(await call_with(final(completion("c1", "solarius", "node2", reply))))
    assert chunks[1]["choices"][0]["delta"] == {"tool_calls": [{"index": 0, **TOOL}]}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_chunks_pass_byte_by_byte() -> None:
    """The runtime writes chunks; nobody rewrites them."""
    odd = b'{"choices":[ ],  "odd":1}'
    call = await call_with(
        Frame(FrameKind.CHUNK, "c1", odd, seq=0),
        Frame(FrameKind.FINAL, "c1", b"{}", seq=1),
    )
    assert [one async for one in chunk_bodies(call, include_usage=False)] == [odd]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"\xff", "body"),
        (b'{"n": NaN}', "body"),
        (b"[]", "body"),
        (b'"hi"', "body"),
        (b"null", "body"),
        (b"[" * 5000, "body"),
        (b"{}", "messages"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": "hi"}', "messages"),
        (b'{"messages": [{"content": "hi"}]}', "messages.0.role"),
        (b'{"messages": [{"role": "user", "content": 7}]}', "messages.0.content"),
        (b'{"messages": [{"role": "user"}], "model": 7}', "model"),
        (b'{"messages": [{"role": "user"}], "stream": "maybe"}', "stream"),
        (b'{"messages": [{"role": "user"}], "n": 0}', "n"),
        (b'{"messages": [{"role": "user"}], "n": ""}', "n"),
        (b'{"messages": [{"role": "user"}], "stream": ""}', "stream"),
    ],
)
def test_what_is_no_request_is_blamed(body: bytes, field: str) -> None:
    """The field that is wrong is named."""
    with pytest.raises(InvalidInputError) as caught:
        read_request(body)
    assert caught.value.field == field


class Quick:
    """Stands for a client whose call has ended when it is handed out."""

    async def start(self, *_: object, **__: object) -> Call:
        return await call_with(final(b"quick", "text/plain"))


async def test_an_answer_that_was_faster_than_we_is_not_waited_for() -> None:
    """The frame may come in while the request is still being written."""
    connection = SimpleNamespace(
        client=Client(), credentials=None, body_max_bytes=10_000, publisher=None
    )
    caller = Caller("http", "node1", "instance")
    door = Door(cast(MeshClient, Quick()), cast(Connection, connection), caller)
    transport = httpx2.ASGITransport(create_app(door))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        body = {"model": "solarius", "messages": [{"role": "user", "content": "hi"}]}
        answer = await asyncio.wait_for(client.post("/v1/chat/completions", json=body), 30)
    assert answer.json()["choices"][0]["message"]["content"] == "quick"
