"""The HTTP door: its health, and agents that are not ours. Its own bytes: see tests/conformance."""

from collections.abc import AsyncIterator

import httpx2
import orjson
import pytest
from nats.aio.client import Client

from mesh.connection import Connection, open_connection
from mesh.directory import Directory
from mesh.settings import Settings
from mesh.version import VERSION
from schemas.registry import State
from tests.conftest import Running
from tests.foreign import Reply, foreign_agent
from tests.shim import CHAT, ask, chunks, online, replier, serving


@pytest.fixture(scope="module")
async def http(connection: Connection, directory: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the door of these tests, which follows no redirects."""
    async with (
        serving(connection, directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
    ):
        yield client


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
        httpx2.AsyncClient(base_url=base, timeout=30) as client,
    ):
        await lost.client.close()
        ready = await client.get("/health")
        live = await client.get("/health/live")
    assert ready.status_code == 503
    assert ready.headers["retry-after"] == "2"
    assert (ready.json()["status"], ready.json()["broker"]) == ("unavailable", "disconnected")
    assert ready.json()["error"]["code"] == "broker_unavailable"
    assert live.status_code == 200


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
