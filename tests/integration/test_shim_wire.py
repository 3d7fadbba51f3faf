"""The HTTP door, byte by byte: streams, paths, headers, foreign agents."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import orjson
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh import Agent, ChatRequest, registry
from mesh.connection import Connection, open_connection
from mesh.directory import Directory
from mesh.runtime import describe_process
from mesh.settings import Settings
from mesh.version import VERSION
from schemas.card import AgentCard
from schemas.registry import Announcement, Role, State
from tests.conftest import Running, until
from tests.shim import CHAT, ask, chunks, online, replier, serving, speaker


@pytest.fixture(scope="module")
async def http(connection: Connection, directory: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the door of these tests, which follows no redirects."""
    async with (
        serving(connection, directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
    ):
        yield client


@pytest.mark.parametrize("make", [speaker, replier])
async def test_a_stream_is_data_lines(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory, make: Any
) -> None:
    """Role first, words, finish, [DONE]: and no chunk without choices, which nobody asked for."""
    async with online(running, directory, make(agent_id)):
        answer = await http.post(CHAT, json=ask(agent_id, stream=True))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert len(answer.headers["mesh-call-id"]) == 32
    role, *words, finish, done = chunks(answer.text)
    assert done == "[DONE]"
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(one["choices"][0]["delta"].keys() == {"content"} for one in words)
    assert finish["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert all("usage" not in one for one in (role, *words, finish))


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
    assert answer.json()["object"] == "list"


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere", CHAT])
async def test_every_answer_has_a_request_id(http: httpx2.AsyncClient, path: str) -> None:
    """The client's own if it is usable, one of ours if not."""
    named = await http.get(path, headers={"x-request-id": "my-request-1"})
    unnamed = await http.get(path)
    assert named.headers["x-request-id"] == "my-request-1"
    assert unnamed.headers["x-request-id"].startswith("req_")


async def test_health(http: httpx2.AsyncClient, running: Running, directory: Directory) -> None:
    """Ready, where, and how many agents there are."""
    async with online(running, directory, replier("healthy-agent")):
        answer = await http.get("/health")
        online_now = sum(one.state is State.ONLINE for one in directory.agents())
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "node": "node1",
        "broker": "connected",
        "agents_online": online_now,
        "version": VERSION,
    }
    assert online_now >= 1
    assert (await http.get("/health/live")).json() == {"status": "ok"}


async def test_health_without_a_broker(settings: Settings, directory: Directory) -> None:
    """Not ready, but alive."""
    async with (
        open_connection(settings.nats_url, name="test lost") as lost,
        serving(lost, directory) as base,
        httpx2.AsyncClient(base_url=base) as client,
    ):
        await lost.client.close()
        ready = await client.get("/health")
        live = await client.get("/health/live")
    assert ready.status_code == 503
    assert ready.headers["retry-after"] == "2"
    assert (ready.json()["status"], ready.json()["broker"]) == ("unavailable", "disconnected")
    assert ready.json()["error"]["code"] == "broker_unavailable"
    assert live.status_code == 200


Reply = Callable[[bytes, dict[str, str]], Awaitable[None]]
Script = Callable[[Reply], Awaitable[None]]


@asynccontextmanager
async def foreign_agent(
    agent_id: str, connection: Connection, directory: Directory, bare: Client, script: Script
) -> AsyncIterator[None]:
    """An agent by hand: announced, and answering one request by a script."""
    instance = describe_process("node1", Role.HOST, [agent_id])
    await registry.announce(
        connection, Announcement(card=AgentCard(id=agent_id), instance=instance)
    )
    await until(lambda: directory.agent(agent_id).state is State.ONLINE)
    stream = bare.jetstream()
    inbox = await stream.pull_subscribe_bind(consumer=agent_id, stream="INBOX")

    async def answer() -> None:
        [message] = await inbox.fetch(1, timeout=10)
        await script(lambda body, headers: publish(message, body, headers))
        await message.ack()

    async def publish(request: Msg, body: bytes, headers: dict[str, str]) -> None:
        asked = request.headers or {}
        named = {"correlation_id": asked["correlation_id"], **headers}
        await stream.publish(asked["reply_to"], body, headers=named)

    task = asyncio.create_task(answer())
    try:
        yield
    finally:
        await task
        await inbox.unsubscribe()


@pytest.mark.parametrize(
    ("body", "headers", "content"),
    [
        (b"plain words", {}, "plain words"),
        (b'{"answer": 42}', {"content-type": "application/json"}, '{"answer": 42}'),
    ],
)
async def test_a_foreign_answer_is_wrapped(
    *,
    http: httpx2.AsyncClient,
    agent_id: str,
    connection: Connection,
    directory: Directory,
    bare: Client,
    body: bytes,
    headers: dict[str, str],
    content: str,
) -> None:
    """What a plain NATS agent returns becomes a completion."""

    async def script(reply: Reply) -> None:
        await reply(body, headers)

    async with foreign_agent(agent_id, connection, directory, bare, script):
        answer = await http.post(CHAT, json=ask(agent_id))
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == content


async def test_an_agent_that_died_half_way_ends_the_stream_with_an_error(
    http: httpx2.AsyncClient,
    agent_id: str,
    connection: Connection,
    directory: Directory,
    bare: Client,
) -> None:
    """The second attempt is not glued to the first, and the end does not look like success."""
    head = {"content-type": "application/json", "mesh-kind": "chunk", "mesh-seq": "0"}
    chunk = orjson.dumps({"choices": [{"index": 0, "delta": {"content": "half"}}]})

    async def script(reply: Reply) -> None:
        await reply(chunk, {**head, "mesh-attempt": "1"})
        await reply(chunk, {**head, "mesh-attempt": "2"})

    async with foreign_agent(agent_id, connection, directory, bare, script):
        answer = await http.post(CHAT, json=ask(agent_id, stream=True))
    first, last = chunks(answer.text)
    assert first["choices"][0]["delta"]["content"] == "half"
    assert last["error"]["code"] == "stream_restarted"


async def test_a_chunk_cannot_forge_lines(
    http: httpx2.AsyncClient,
    agent_id: str,
    connection: Connection,
    directory: Directory,
    bare: Client,
) -> None:
    """Line breaks in what an agent writes do not become lines of the stream."""
    head = {"content-type": "application/json", "mesh-kind": "chunk", "mesh-seq": "0"}

    async def script(reply: Reply) -> None:
        await reply(b'{"choices": []}\n\ndata: [DONE]', head)

    async with foreign_agent(agent_id, connection, directory, bare, script):
        answer = await http.post(CHAT, json=ask(agent_id, stream=True))
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "bad_answer"
