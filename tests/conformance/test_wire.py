"""The door byte by byte, as no client shows it: streams, answers, paths, patience."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import openai
import orjson
import pytest

from mesh import Agent, ChatDelta, ChatRequest
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.shim.sse import Pace
from tests.conformance.models import recorder, tool_user
from tests.conftest import Running, until
from tests.rawhttp import RawClient, raw, request
from tests.shim import CHAT, HELLO, ask, chunks, online, replier, serving, speaker

HEAD = (
    '{"id":"chatcmpl-<call>","object":"chat.completion.chunk",'
    '"created":<seconds>,"model":"<agent>",'
)
DONE = "data: [DONE]\n\n"


@pytest.fixture
async def wire(door: str) -> AsyncIterator[RawClient]:
    """A connection to the door of these tests."""
    async with raw(door) as opened:
        yield opened


@pytest.fixture(scope="module")
async def http(door: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the door that follows no redirects."""
    async with httpx2.AsyncClient(base_url=door, timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
async def nervous(connection: Connection, directory: Directory) -> AsyncIterator[str]:
    """A door that cannot stand silence."""
    async with serving(connection, directory, pace=Pace(0.02, 0.05)) as base:
        yield base


async def post(wire: RawClient, body: Any, *headers: str) -> tuple[int, dict[str, str]]:
    """Ask, and read the beginning of the answer."""
    await wire.send(request("POST", CHAT, orjson.dumps(body), *headers))
    return await wire.head()


def golden(body: bytes, agent_id: str) -> str:
    """Return a body with what differs from call to call replaced."""
    text = body.decode().replace(agent_id, "<agent>")
    text = re.sub(r"chatcmpl-[0-9a-f]{32}", "chatcmpl-<call>", text)
    text = re.sub(r'"call_id":"[0-9a-f]{32}"', '"call_id":"<call>"', text)
    return re.sub(r'"created":\d{10},', '"created":<seconds>,', text)


def chunk(delta: str, reason: str = "null", usage: str = "") -> str:
    """Return the golden bytes of one event."""
    choice = f'{{"index":0,"delta":{{{delta}}},"logprobs":null,"finish_reason":{reason}}}'
    return f'data: {HEAD}"choices":[{choice}]{usage}}}\n\n'


async def test_the_bytes_of_a_stream(
    wire: RawClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Role, words, finish, [DONE]: data lines, and nothing about usage, which nobody asked for."""
    async with online(running, directory, speaker(agent_id)):
        status, headers = await post(wire, ask(agent_id, stream=True), "accept-encoding: gzip, br")
        body = await wire.parts()
    assert golden(body, agent_id) == (
        chunk('"role":"assistant","content":""')
        + chunk('"content":"hel"')
        + chunk('"content":"lo"')
        + chunk("", '"stop"')
        + DONE
    )
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["transfer-encoding"] == "chunked"
    assert headers["x-request-id"].startswith("req_")
    assert headers["mesh-call-id"] in body.decode()
    assert not headers.keys() & {"content-encoding", "content-length", "location"}


@pytest.mark.parametrize(
    ("make", "words", "usage"),
    [
        (speaker, ["hel", "lo"], (3, 2, 5)),
        (replier, ["You said: hello"], (3, 2, 5)),
    ],
)
async def test_the_bytes_of_a_stream_with_usage(
    *,
    wire: RawClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    make: Callable[[str], Agent],
    words: list[str],
    usage: tuple[int, int, int],
) -> None:
    """Null in each chunk, and one more chunk without choices; also of an agent that streams not."""
    none = ',"usage":null'
    async with online(running, directory, make(agent_id)):
        asked = ask(agent_id, stream=True, stream_options={"include_usage": True})
        await post(wire, asked)
        body = await wire.parts()
    counted = '"prompt_tokens":{},"completion_tokens":{},"total_tokens":{}'.format(*usage)
    assert golden(body, agent_id) == (
        chunk('"role":"assistant","content":""', usage=none)
        + "".join(chunk(f'"content":"{word}"', usage=none) for word in words)
        + chunk("", '"stop"', none)
        + f'data: {HEAD}"choices":[],"usage":{{{counted}}}}}\n\n'
        + DONE
    )


async def test_the_bytes_of_a_streamed_tool_call(
    wire: RawClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """The first piece names the call, later ones have nothing but arguments."""
    tools = [{"type": "function", "function": {"name": "look"}}]
    async with online(running, directory, tool_user(agent_id, {"look": '{"at": "sun"}'})):
        await post(wire, ask(agent_id, stream=True, tools=tools))
        body = await wire.parts()
    assert golden(body, agent_id) == (
        chunk('"role":"assistant","content":""')
        + chunk(
            '"tool_calls":[{"index":0,"id":"call_look","type":"function",'
            '"function":{"name":"look","arguments":""}}]'
        )
        + chunk(r'"tool_calls":[{"index":0,"function":{"arguments":"{\"at\""}}]')
        + chunk(r'"tool_calls":[{"index":0,"function":{"arguments":": \"sun\"}"}}]')
        + chunk("", '"tool_calls"')
        + DONE
    )


async def test_tool_calls_of_an_agent_that_is_short_of_words(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Names and arguments are enough: index, id, type and finish reason are added."""
    agent = Agent(agent_id)

    @agent.chat
    async def call(request: ChatRequest) -> AsyncIterator[ChatDelta]:
        yield ChatDelta(tool_calls=[{"function": {"name": "look", "arguments": {"at": "sun"}}}])
        yield ChatDelta(tool_calls=[{"function": {"name": "now"}}])

    async with online(running, directory, agent):
        streamed = await http.post(CHAT, json=ask(agent_id, stream=True))
        plain = await http.post(CHAT, json=ask(agent_id))
    _, one, two, finish, _ = chunks(streamed.text)
    [look], [now] = (each["choices"][0]["delta"]["tool_calls"] for each in (one, two))
    assert (look["index"], look["type"], now["index"], now["type"]) == (
        0,
        "function",
        1,
        "function",
    )
    assert look["function"] == {"name": "look", "arguments": '{"at":"sun"}'}
    assert look["id"] != now["id"]
    assert finish["choices"][0]["finish_reason"] == "tool_calls"
    [choice] = plain.json()["choices"]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    assert [each["function"] for each in choice["message"]["tool_calls"]] == [
        {"name": "look", "arguments": '{"at":"sun"}'},
        {"name": "now", "arguments": "{}"},
    ]
    assert all(each["id"].startswith("call_") for each in choice["message"]["tool_calls"])


async def test_the_bytes_of_an_answer(
    wire: RawClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Usage is there, in zeros, when the agent does not count; and it says who answered."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return "Добрий день"

    async with online(running, directory, agent):
        status, headers = await post(wire, ask(agent_id), "accept-encoding: gzip, br")
        body = await wire.reader.readexactly(int(headers["content-length"]))
    assert golden(body, agent_id) == (
        '{"id":"chatcmpl-<call>","object":"chat.completion","created":<seconds>,'
        '"model":"<agent>","choices":[{"index":0,"message":{"role":"assistant",'
        '"content":"Добрий день","refusal":null},"logprobs":null,"finish_reason":"stop"}],'
        '"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0},'
        '"mesh":{"agent_id":"<agent>","node":"node1","call_id":"<call>"}}'
    )
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("req_")
    assert headers["mesh-call-id"] in body.decode()
    assert not headers.keys() & {"content-encoding", "transfer-encoding"}


async def test_the_bytes_of_a_stream_that_fails(
    wire: RawClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """An error event, and no [DONE]: what is only cut looks like success to most clients."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> AsyncIterator[str]:
        yield "half"
        raise ValueError("no sun\n\ndata: [DONE]")

    async with online(running, directory, agent):
        status, _ = await post(wire, ask(agent_id, stream=True))
        body = await wire.parts()
    assert status == 200
    assert golden(body, agent_id) == (
        chunk('"role":"assistant","content":""')
        + chunk('"content":"half"')
        + r'data: {"error":{"message":"ValueError: no sun\n\ndata: [DONE]",'
        + '"type":"server_error","param":null,"code":"agent_error"}}\n\n'
    )


async def test_silence_is_filled_with_comments(
    nervous: str, agent_id: str, running: Running, directory: Directory
) -> None:
    """Nothing else is sent while an agent thinks, and its answer is not touched by it."""
    go_on = asyncio.Event()
    agent = Agent(agent_id)

    @agent.chat
    async def think(request: ChatRequest) -> str:
        await go_on.wait()
        return "done"

    async with online(running, directory, agent), raw(nervous) as wire:
        await post(wire, ask(agent_id, stream=True))
        assert [await wire.part() for _ in range(3)] == [b": keep-alive\n\n"] * 3
        go_on.set()
        rest = (await wire.parts()).replace(b": keep-alive\n\n", b"")
    assert golden(rest, agent_id) == (
        chunk('"role":"assistant","content":""')
        + chunk('"content":"done"')
        + chunk("", '"stop"')
        + DONE
    )


async def test_clients_do_not_see_the_comments(
    nervous: str, agent_id: str, running: Running, directory: Directory
) -> None:
    """openai-python reads on, before the first token and between two."""
    go_on = asyncio.Event()
    agent = Agent(agent_id)

    @agent.chat
    async def think(request: ChatRequest) -> AsyncIterator[str]:
        yield "hel"
        await go_on.wait()
        yield "lo"

    async with (
        online(running, directory, agent),
        openai.AsyncOpenAI(base_url=nervous, api_key="any", max_retries=0) as ai,
        raw(nervous) as wire,
    ):
        stream = await ai.chat.completions.create(model=agent_id, messages=HELLO, stream=True)
        # What comes here came there as well.
        await post(wire, ask(agent_id, stream=True))
        while b": keep-alive" not in await wire.part():
            pass
        go_on.set()
        shown = [part.choices[0].delta.content async for part in stream]
    assert shown == ["", "hel", "lo", None]


async def test_tokens_are_passed_on_at_once(
    wire: RawClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """The role before the agent has said a word, and each word before it says the next."""
    was_read = asyncio.Semaphore(0)
    agent = Agent(agent_id)

    @agent.chat
    async def speak(request: ChatRequest) -> AsyncIterator[str]:
        for word in ("one", "two", "three"):
            await was_read.acquire()
            yield word

    async with online(running, directory, agent):
        await post(wire, ask(agent_id, stream=True))
        for seen in ('"role"', "one", "two", "three"):
            assert seen in (await asyncio.wait_for(wire.part(), 30)).decode()
            was_read.release()
        assert (await wire.parts()).endswith(b"data: [DONE]\n\n")


async def test_a_client_that_reads_slowly(
    connection: Connection, agent_id: str, running: Running, directory: Directory
) -> None:
    """It gets everything, in order, also when the deadline is over; nobody else waits for it."""
    words, has_ended = 90, asyncio.Event()
    agent = Agent(agent_id)

    @agent.chat
    async def speak(request: ChatRequest) -> AsyncIterator[str]:
        for number in range(words):
            yield f"{number} " * 3000
        has_ended.set()

    loop = asyncio.get_running_loop()
    async with (
        online(running, directory, agent, replier(f"{agent_id}-other")),
        serving(connection, directory, send_buffer_bytes=2**12) as door,
        raw(door, receive_buffer=2**12) as wire,
        httpx2.AsyncClient(base_url=door, timeout=30) as http,
    ):
        deadline = loop.time() + 1
        await post(wire, ask(agent_id, stream=True), "x-mesh-timeout: 1")
        await asyncio.wait_for(has_ended.wait(), 30)
        other = await http.post(CHAT, json=ask(f"{agent_id}-other"))
        await until(lambda: loop.time() > deadline + 0.1)
        assert is_relaying(), "the whole answer fitted into the buffers"
        read = chunks((await wire.parts()).decode())
    assert other.status_code == 200
    assert read[-1] == "[DONE]"
    told = [one["choices"][0]["delta"].get("content") for one in read[1:-2]]
    assert told == [f"{number} " * 3000 for number in range(words)]


def is_relaying() -> bool:
    """Tell whether the door, in this process, has a stream to send still."""
    coroutines = (task.get_coro() for task in asyncio.all_tasks())
    return any(getattr(one, "__qualname__", "") == "EventStream.relay" for one in coroutines)


async def test_a_connection_is_used_again(
    wire: RawClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """A stream has an end on the wire, also one that failed: the next request comes after it."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> AsyncIterator[str]:
        yield "half"
        raise ValueError("no sun today")

    async with online(running, directory, speaker(f"{agent_id}-good"), agent):
        for target in (f"{agent_id}-good", agent_id):
            assert (await post(wire, ask(target, stream=True)))[0] == 200
            assert await wire.parts()
        await wire.send(request("GET", "/health/live"))
        assert (await wire.answer()).status == 200


@pytest.mark.parametrize("path", [CHAT, "/chat/completions", f"{CHAT}/", "/chat/completions/"])
async def test_the_paths_of_chat(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory, path: str
) -> None:
    """With `/v1` and without, with a slash at the end and without, and never a redirect."""
    async with online(running, directory, replier(agent_id)):
        answer = await http.post(path, json=ask(agent_id))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["mesh-call-id"] in answer.json()["id"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/models", "/models/"])
async def test_the_paths_of_models(http: httpx2.AsyncClient, path: str) -> None:
    """The same list everywhere."""
    answer = await http.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["object"] == "list"


@pytest.mark.parametrize(("path", "status"), [("/v1/models", 200), (CHAT, 405), ("/nowhere", 404)])
async def test_head_has_no_body(wire: RawClient, path: str, status: int) -> None:
    """What follows the headers would be read as the next answer."""
    await wire.send(request("HEAD", path))
    told, headers = await wire.head()
    await wire.send(request("GET", "/health/live"))
    assert (await wire.answer()).status == 200
    assert told == status
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere", CHAT])
async def test_every_answer_has_a_request_id(http: httpx2.AsyncClient, path: str) -> None:
    """The client's own if it is usable, one of ours if not."""
    named = await http.get(path, headers={"x-request-id": "my-request-1"})
    unnamed = await http.get(path)
    assert named.headers["x-request-id"] == "my-request-1"
    assert unnamed.headers["x-request-id"].startswith("req_")


async def test_null_is_what_was_not_said(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """OpenAI lets a client write null for an option; and nobody minds what he does not know."""
    nulls = dict.fromkeys(("stream", "stream_options", "n", "tools", "temperature", "user", "odd"))
    agent, asked = recorder(agent_id)
    async with online(running, directory, agent):
        plain = await http.post(CHAT, json=ask(agent_id, **nulls))
        streamed = await http.post(
            CHAT, json=ask(agent_id, stream=True, stream_options={"include_usage": None})
        )
    assert plain.json()["choices"][0]["message"]["content"] == "seen"
    assert chunks(streamed.text)[-1] == "[DONE]"
    assert (asked[0].stream, asked[0].n, asked[1].include_usage) == (False, 1, False)


async def test_a_slow_stream_shows_its_headers(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """They come after a second, before the agent has said anything."""
    go_on = asyncio.Event()
    agent = Agent(agent_id)

    @agent.chat
    async def think(request: ChatRequest) -> str:
        await go_on.wait()
        return "done"

    async with (
        online(running, directory, agent),
        http.stream("POST", CHAT, json=ask(agent_id, stream=True)) as answer,
    ):
        assert answer.status_code == 200
        assert not go_on.is_set()
        go_on.set()
        text = (await answer.aread()).decode()
    assert chunks(text)[1]["choices"][0]["delta"] == {"content": "done"}
