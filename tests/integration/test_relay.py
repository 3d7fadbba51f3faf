"""The relay agent against real HTTP servers that stream, refuse and misbehave."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from handlers.relay import relay_agent
from mesh import tracing
from mesh.agent import Agent
from mesh.client import MeshClient
from mesh.errors import AgentFailedError, InvalidInputError
from schemas.chat import ChatRequest
from tests.backend import (
    DONE,
    TRACEPARENT,
    Backend,
    answering,
    chunk,
    deltas,
    failure,
    running_backend,
    sse,
    text,
)
from tests.conftest import Running, until

KEY = "sk-relay-secret-0123456789"


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Backend]:
    """A backend on a free port."""
    async with running_backend() as backend:
        yield backend


@pytest.fixture
def backend(server: Backend) -> Backend:
    """A backend that has been asked nothing yet."""
    server.reset()
    return server


def relay_to(backend: Backend, **options: Any) -> Agent:
    """Make a relay in front of the backend."""
    return relay_agent("relay", base_url=backend.url, model="big-model", api_key=KEY, **options)


async def test_a_request_goes_to_the_backend_whole(backend: Backend) -> None:
    """Everything but routing reaches the backend, under its own model name and with the key."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    passed = {"messages": messages, "tools": tools, "temperature": 0.5, "vendor": {"a": [1]}}
    routing: dict[str, Any] = {"agent_id": "relay", "target_node": "n", "source_agent": "a"}
    routing |= {"source_node": "m", "timeout": 5, "wait": True, "background": False}
    options = {"include_usage": False, "vendor": 1}
    request = {**passed, **routing, "model": "relay@n", "stream": False, "stream_options": options}

    await deltas(relay_to(backend), ChatRequest.model_validate(request))

    assert backend.asked == {
        **passed,
        "model": "big-model",
        "stream": True,
        "stream_options": {"include_usage": True, "vendor": 1},
    }
    assert backend.headers["authorization"] == f"Bearer {KEY}"
    assert backend.headers["accept-encoding"] == "identity"  # Compressed, tokens come in lumps.


async def test_the_backend_is_told_of_the_trace(backend: Backend) -> None:
    """Of the call's own span where nobody collects ours, else of the request to the backend."""
    await deltas(relay_to(backend))
    assert backend.headers["traceparent"] == TRACEPARENT
    spans: list[Any] = []
    tracing.collect_with(spans.append)
    try:
        with tracing.inside(tracing.SpanContext("c" * 32, "d" * 16)):
            await deltas(relay_to(backend))
    finally:
        tracing.collect_with(None)
    ((_, name, _, trace_id, span_id, parent_id, *_rest),) = spans
    assert backend.headers["traceparent"] == f"00-{trace_id}-{span_id}-01"
    assert (trace_id, parent_id) == ("c" * 32, "d" * 16)
    assert name == f"POST {backend.url}"


async def test_without_a_key_none_is_sent(backend: Backend) -> None:
    """A backend that needs no key gets no `authorization` header."""
    await deltas(relay_agent("relay", base_url=backend.url + "/", model="m"))
    assert "authorization" not in backend.headers


async def test_tokens_are_passed_on_as_they_come(backend: Backend) -> None:
    """The first token is there while the backend still works on the second."""
    gate = asyncio.Event()
    backend.answer = lambda: sse(chunk({"content": "first"}), then=gate.wait)
    answer = answering(relay_to(backend))
    assert (await anext(answer)).content == "first"
    assert not backend.is_left.is_set()
    gate.set()
    await answer.aclose()


async def test_a_cancelled_call_hangs_up(backend: Backend) -> None:
    """A call that is stopped closes its connection, so that the backend stops too."""
    backend.answer = lambda: sse(chunk({"content": "first"}), then=asyncio.Event().wait)
    call = asyncio.create_task(deltas(relay_to(backend)))
    await until(lambda: bool(backend.asked))
    call.cancel()
    await until(backend.is_left.is_set)


PARTS = (chunk({"role": "assistant", "content": ""}), chunk({"content": "Добрий "}))
END = (chunk({"content": "день ☀"}), chunk({}, "stop"), DONE)


@pytest.mark.parametrize(
    "parts",
    [
        [*PARTS, *END],
        [*PARTS, b": ping\n\n", b":\n", *END],
        [*PARTS, b"\n\n", b"data:\n\n", b"retry: 10\n\n", b"event: ping\n\n", b"id: 7\n\n", *END],
        [part.replace(b"\n", b"\r\n") for part in (*PARTS, *END)],
        [part.replace(b"data: ", b"data:") for part in (*PARTS, *END)],
        [bytes([byte]) for part in (*PARTS, *END) for byte in part],
        [b"".join((*PARTS, *END))],
        [*PARTS, *END[:2]],
        [*PARTS, END[0], DONE],
        [*PARTS, chunk({}, error=None), chunk({}, usage=None), b'data: {"choices":[]}\n\n', *END],
    ],
    ids=["plain", "comments", "empty", "crlf", "tight", "bytes", "one", "no-done", "done", "nulls"],
)
async def test_every_dialect_of_a_stream_is_read(backend: Backend, parts: list[bytes]) -> None:
    """Comments, line ends, split letters and missing ends do not change the answer."""
    backend.answer = lambda: sse(*parts)
    assert await text(relay_to(backend)) == "Добрий день ☀"


async def test_tool_calls_finish_reason_and_usage_are_passed_on(backend: Backend) -> None:
    """What is no text travels in the deltas too."""
    tool = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": "{}"}}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    backend.answer = lambda: sse(
        chunk({"role": "assistant"}),
        chunk({"tool_calls": [tool]}),
        chunk({}, "tool_calls"),
        chunk({}, usage={**usage, "cost": None}),
        DONE,
    )
    called, finished, counted = await deltas(relay_to(backend))
    assert called.tool_calls == [tool]
    assert finished.finish_reason == "tool_calls"
    assert counted.usage
    assert counted.usage.model_dump() == usage


async def test_a_refusal_of_the_model_is_its_answer(backend: Backend) -> None:
    """The words with which a model declines are shown, not lost."""
    backend.answer = lambda: sse(chunk({"refusal": "I cannot."}), DONE)
    assert await text(relay_to(backend)) == "I cannot."


async def test_only_the_first_choice_is_read(backend: Backend) -> None:
    """A second choice that nobody asked for is not mixed into the first."""
    second = b'data: {"choices": [{"index": 1, "delta": {"content": "no"}}]}\n\n'
    backend.answer = lambda: sse(second, chunk({"content": "yes"}, "stop"))
    assert await text(relay_to(backend)) == "yes"


async def test_an_unknown_finish_reason_is_a_stop(backend: Backend) -> None:
    """Backends have reasons of their own; OpenAI clients know five."""
    backend.answer = lambda: sse(chunk({"content": "hi"}, "eos_token"))
    assert [delta.finish_reason for delta in await deltas(relay_to(backend))] == ["stop"]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {"error": {"message": "bad key"}}, ["bad key", "check the relay's key"]),
        (403, {"detail": "not yours"}, ["not yours", "check the relay's key"]),
        (404, {"error": "model 'x' not found"}, ["model 'x' not found", "model and base URL"]),
        (429, {"message": "slow down"}, ["slow down", "try again later"]),
        (400, ["odd"], ['["odd"]']),
        (500, {}, ["backend's log"]),
        (307, {}, ["307"]),
    ],
)
async def test_a_refusal_is_a_typed_error(
    backend: Backend, status: int, body: Any, words: list[str]
) -> None:
    """A status becomes an error with the number, the backend's words, and what to do."""
    backend.answer = lambda: JSONResponse(body, status)
    error = await failure(relay_to(backend))
    assert error.status == status
    for word in words:
        assert word in error.message
    assert len(body) != 1 or "{" not in error.message


async def page_without_end() -> AsyncIterator[bytes]:
    while True:
        yield b"<p>\n" * 1_000
        await asyncio.sleep(0)  # Where the server notices that the reader has left.


async def test_a_long_error_page_is_cut(backend: Backend) -> None:
    """An error page without end is neither read to its end nor sent through the mesh."""
    backend.answer = lambda: StreamingResponse(page_without_end(), 502)
    error = await failure(relay_to(backend))
    assert error.status == 502
    assert len(error.message) < 400


async def test_a_backend_that_is_down_is_a_typed_error() -> None:
    """A refused connection says so, and does not tell callers the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        error = await failure(relay_agent("relay", base_url=url, model="m"))
    assert "cannot be reached" in error.message
    assert "127.0.0.1" not in error.message


async def break_off() -> None:
    raise ConnectionResetError("the server dies here")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: sse(*PARTS), "cut before its end"),
        (sse, "cut before its end"),
        (lambda: sse(*PARTS, then=break_off), "connection to the backend broke"),
        (lambda: sse(*PARTS, b'data: {"error": {"message": "overload", "code": 503}}\n\n'), "over"),
        (lambda: sse(*PARTS, b'event: error\ndata: {"message": "overload"}\n\n'), "overload"),
        (lambda: sse(*PARTS, b"data: {half\n\n"), "no chunk: {half"),
        (lambda: sse(b"data: [1]\n\n"), "no chunk"),
        (lambda: sse(chunk({"content": 7}), DONE), "no chunk"),
        (lambda: JSONResponse({"choices": []}), "sent application/json, no stream"),
        (lambda: PlainTextResponse("welcome"), "no stream: welcome"),
    ],
    ids=range(10),
)
async def test_a_broken_answer_is_a_typed_error(
    backend: Backend, answer: Callable[[], Response], words: str
) -> None:
    """No failure of a stream looks like its end."""
    backend.answer = answer
    assert words in (await failure(relay_to(backend))).message


async def test_an_error_half_way_keeps_its_status(backend: Backend) -> None:
    """The number in a mid-stream error is the error's status, as text or as a number."""
    backend.answer = lambda: sse(b'data: {"error": {"message": "m", "code": "429"}}\n\n')
    assert (await failure(relay_to(backend))).status == 429


async def test_a_silent_backend_is_a_typed_error(backend: Backend) -> None:
    """A backend that says nothing for too long is given up."""
    backend.answer = lambda: sse(*PARTS, then=asyncio.Event().wait)
    async with httpx2.AsyncClient(timeout=0.2) as client:
        assert "silent" in (await failure(relay_to(backend, client=client))).message
        assert not client.is_closed


async def test_the_key_is_shown_to_nobody(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the log nor an error holds the key, even when the backend repeats it."""
    caplog.set_level(logging.DEBUG)
    backend.answer = lambda: JSONResponse({"error": "x" * 290 + KEY}, 401)
    refused = await failure(relay_to(backend))
    backend.answer = lambda: sse(f'data: {{"error": "wrong key {KEY}"}}\n\n'.encode())
    broken = await failure(relay_to(backend))
    assert backend.headers["authorization"] == f"Bearer {KEY}"
    for shown in (refused.message, broken.message, caplog.text):
        assert "sk-relay" not in shown


async def test_several_answers_are_refused(backend: Backend) -> None:
    """`n` above one would be paid for and thrown away."""
    with pytest.raises(InvalidInputError) as caught:
        await deltas(relay_to(backend), ChatRequest(messages=[{"role": "user"}], n=2))
    assert caught.value.field == "n"
    assert not backend.asked


async def test_a_relay_answers_and_fails_through_the_mesh(
    backend: Backend, agent_id: str, running: Running, client: MeshClient
) -> None:
    """A caller gets the tokens one by one, and a failure half-way as the error it is."""
    agent = relay_agent(agent_id, base_url=backend.url, model="big-model")
    async with running(agent):
        backend.answer = lambda: sse(*PARTS, *END)
        parts = [part async for part in client.stream(agent_id, "hello")]
        backend.answer = lambda: sse(*PARTS, b'data: {"error": {"code": 503}}\n\n')
        with pytest.raises(AgentFailedError, match="half-way") as caught:
            await client.ask(agent_id, "hello")
    assert parts == ["Добрий ", "день ☀"]
    assert caught.value.status == 503
