"""The HTTP door and clients that take their time: each is cut, and no other waits for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx2
import pytest

from mesh import Agent, ChatRequest
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.shim.protocol import SURPLUS, Patience
from tests.conftest import Running, until
from tests.rawhttp import RawClient, address, raw, raw_socket, request
from tests.shim import CHAT, ask, online, replier, serving

AGENT = "patient-agent"
PATIENCE = Patience(headers_s=0.5, body_s=0.5, write_s=0.5)
SOON_S = 5.0
"""Longer than our patience, and much shorter than any other clock of the server."""
GET = request("GET", "/health/live")
BODY = httpx2.Request("POST", "http://x", json=ask(AGENT)).content
POST = request("POST", CHAT, BODY)
JSON = "content-type: application/json"
CHUNK = "x" * 65_536


@pytest.fixture(scope="module")
async def url(connection: Connection, directory: Directory, running: Running) -> AsyncIterator[str]:
    """A door without much patience."""
    async with (
        online(running, directory, replier(AGENT)),
        serving(connection, directory, patience=PATIENCE) as base,
    ):
        yield base


def answering() -> list[str]:
    """Return the tasks that work on somebody's answer."""
    names = [getattr(one.get_coro(), "__qualname__", "") for one in asyncio.all_tasks()]
    return [one for one in names if one.startswith(("RequestResponseCycle", "EventStream", "_wa"))]


@pytest.fixture
async def client(url: str, connection: Connection) -> AsyncIterator[RawClient]:
    """One connection. When its test is over, nothing of it is left, and the door is as good."""
    async with raw(url) as opened:
        yield opened
    await until(lambda: not answering())
    assert connection.client.is_connected
    async with raw(url) as other:
        await other.send(POST)
        assert (await other.answer()).status == 200


async def drip(client: RawClient, data: bytes, pause_s: float = 0.05) -> None:
    """Send bytes one by one."""
    for byte in data:
        await client.send(bytes([byte]))
        await asyncio.sleep(pause_s)


async def test_who_says_nothing_is_cut(client: RawClient) -> None:
    """An open connection is not for nothing."""
    assert await client.is_closed(SOON_S)


async def test_headers_drop_by_drop_are_cut(client: RawClient) -> None:
    """Bytes that come in time do not make a request in time."""
    dripping = asyncio.create_task(drip(client, request("GET", "/health/live", b"", "x: " + CHUNK)))
    assert await client.is_closed(SOON_S)
    dripping.cancel()


async def test_a_second_request_must_be_as_quick(client: RawClient) -> None:
    """uvicorn's own clock for idle connections stops at the first byte."""
    await client.send(GET)
    assert (await client.answer()).status == 200
    await client.send(GET[:20])
    assert await client.is_closed(SOON_S)


async def test_who_has_nothing_to_say_for_a_while_is_not_cut(client: RawClient) -> None:
    """Between two requests a client may keep its connection."""
    for _ in range(3):
        await client.send(GET)
        assert (await client.answer()).status == 200
        await asyncio.sleep(PATIENCE.headers_s * 2)


@pytest.mark.parametrize(
    "head",
    [
        request("POST", CHAT, b"", "content-length: 60", "content-type: application/json"),
        request("POST", CHAT, b"", "transfer-encoding: chunked", "content-type: application/json"),
    ],
)
async def test_a_slow_body_is_told(client: RawClient, head: bytes) -> None:
    """408 in the envelope, which clients try again; and nobody is called."""
    await client.send(head)
    await drip(client, b"5\r\n", 0.02)
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert answer.headers["connection"] == "close"
    assert await client.is_closed()


async def test_a_body_that_is_read_by_nobody_must_end_too(client: RawClient) -> None:
    """After the answer there is nothing to tell: the connection ends."""
    await client.send(request("POST", "/nowhere", b"", "content-length: 999999", JSON))
    assert (await client.answer()).status == 404
    assert await client.is_closed(SOON_S)


async def test_a_body_in_two_parts_is_in_time(client: RawClient) -> None:
    """As long as the whole comes in time."""
    await client.send(POST[:-10])
    await asyncio.sleep(0.2)
    await client.send(POST[-10:])
    assert (await client.answer()).status == 200


async def test_a_slow_agent_is_no_slow_client(
    client: RawClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Who has asked may wait for the answer, plain or streamed."""
    agent = Agent(agent_id)

    @agent.chat
    async def think(request: ChatRequest) -> str:
        await asyncio.sleep(PATIENCE.headers_s * 3)
        return "done"

    async with online(running, directory, agent):
        body = httpx2.Request("POST", "http://x", json=ask(agent_id)).content
        await client.send(request("POST", CHAT, body))
        assert b'"done"' in (await client.answer()).body


def flood(agent_id: str, ended: asyncio.Event, chunks: int) -> Agent:
    """An agent that streams more than all buffers between it and a client take."""
    agent = Agent(agent_id)

    @agent.chat
    async def speak(request: ChatRequest) -> AsyncIterator[str]:
        for _ in range(chunks):
            yield CHUNK
        ended.set()

    return agent


async def test_who_does_not_read_is_cut(
    url: str, client: RawClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """A stream that nobody reads keeps neither the connection nor a task of ours."""
    ended = asyncio.Event()
    body = httpx2.Request("POST", "http://x", json=ask(agent_id, stream=True)).content
    async with (
        online(running, directory, flood(agent_id, ended, 200)),
        raw(url, receive_buffer=4_096) as deaf,
    ):
        await deaf.send(request("POST", CHAT, body))
        await ended.wait()
        assert answering()
        await until(lambda: not answering())
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await deaf.reader.readexactly(200 * len(CHUNK))


async def test_who_reads_slowly_is_not_cut(
    url: str, client: RawClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """As long as it reads something. The kernel holds so much that our own buffer stands still."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    body = httpx2.Request("POST", "http://x", json=ask(agent_id, stream=True)).content
    async with online(running, directory, flood(agent_id, ended, 250)):
        # No stream of asyncio: it would read ahead.
        with raw_socket(receive_buffer=65_536) as slow:
            await loop.sock_connect(slow, address(url))
            await loop.sock_sendall(slow, request("POST", CHAT, body))
            await ended.wait()
            slow_until = loop.time() + PATIENCE.write_s * 6
            while loop.time() < slow_until:
                # Less at a time would not open TCP's window before our patience is over.
                assert await loop.sock_recv(slow, 30_000)
                await asyncio.sleep(0.05)
            assert answering()
            received = b""
            while not received.endswith(b"\r\n0\r\n\r\n"):
                part = await loop.sock_recv(slow, 1_000_000)
                assert part, "cut"
                received = received[-10:] + part


async def test_many_slow_clients_hinder_nobody(url: str, client: RawClient) -> None:
    """While they are waited for others are served, and then they are gone."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(raw(url)) for _ in range(150)]
        for number, one in enumerate(slow):
            await one.send((b"", GET[:30], POST[:-5])[number % 3])
        asked_at = loop.time()
        await client.send(POST)
        assert (await client.answer()).status == 200
        assert loop.time() - asked_at < 2
        ends = await asyncio.gather(*(one.reader.read() for one in slow), return_exceptions=True)
        assert len(ends) == 150


async def test_too_many_connections_are_told(connection: Connection, directory: Directory) -> None:
    """503 with a time to come again; who has left makes room."""
    async with (
        serving(connection, directory, max_connections=3) as base,
        AsyncExitStack() as stack,
    ):
        first = [await stack.enter_async_context(raw(base)) for _ in range(3)]
        for one in first:
            await one.send(GET)
            assert (await one.answer()).status == 200
        async with raw(base) as surplus:
            await surplus.send(GET)
            answer = await surplus.answer()
            assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
            assert (answer.headers["retry-after"], answer.headers["connection"]) == ("2", "close")
            assert await surplus.is_closed()
        await first[0].send(GET)
        assert (await first[0].answer()).status == 200
        first[1].writer.close()

        async def has_room() -> bool:
            async with raw(base) as late:
                await late.send(GET)
                return (await late.answer()).status == 200

        await until(has_room)


async def test_far_too_many_connections_are_cut(
    connection: Connection, directory: Directory
) -> None:
    """Without a word: a flood must not take the files that the broker's connection needs."""
    async with (
        serving(connection, directory, max_connections=3) as base,
        AsyncExitStack() as stack,
    ):
        opened = [await stack.enter_async_context(raw(base)) for _ in range(3 + SURPLUS + 5)]
        assert all([await one.is_closed() for one in opened[-5:]])
        await opened[0].send(GET)
        assert (await opened[0].answer()).status == 200
        await opened[10].send(GET)
        assert (await opened[10].answer()).status == 503
        assert connection.client.is_connected
