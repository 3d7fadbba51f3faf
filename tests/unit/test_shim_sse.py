"""Event streams, byte by byte."""

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import pytest

from mesh.errors import AgentFailedError, ProtocolError
from mesh.shim.sse import EventStream, Pace, event
from tests.conftest import until


class Client:
    """The far end of an ASGI answer."""

    def __init__(self) -> None:
        self.starts: list[MutableMapping[str, Any]] = []
        self.body = b""
        self.has_ended = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not self.body
            self.starts.append(message)
            return
        assert self.starts, "a body came before the status line"
        assert not self.has_ended
        self.body += message["body"]
        self.has_ended = not message["more_body"]


async def events(*given: bytes, then: Any = None) -> AsyncGenerator[bytes, None]:
    for one in given:
        yield event(one)
    if then is not None:
        await then


async def test_an_answer_is_data_lines() -> None:
    """Events go out as they are."""
    client = Client()
    await EventStream(client.send, {"mesh-call-id": "c1"}).relay(events(b'{"a":1}', b'{"b":2}'))
    assert client.body == b'data: {"a":1}\n\ndata: {"b":2}\n\n'
    assert client.has_ended
    [start] = client.starts
    headers = dict(start["headers"])
    assert start["status"] == 200
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-accel-buffering"] == b"no"
    assert headers[b"mesh-call-id"] == b"c1"


async def test_silence_is_filled_with_comments() -> None:
    """Proxies see life; clients see nothing."""
    client = Client()
    go_on = asyncio.Event()
    stream = EventStream(client.send, {}, pace=Pace(0.01, 0.02))
    task = asyncio.create_task(stream.relay(events(b"{}", then=go_on.wait())))
    await until(lambda: client.body.count(b": keep-alive\n\n") >= 2)
    go_on.set()
    await task
    assert client.body.startswith(b"data: {}\n\n: keep-alive\n\n")
    assert client.has_ended


async def test_a_slow_answer_begins_without_its_first_event() -> None:
    """Clients get their headers in time, and no body before there is one."""
    client = Client()
    go_on = asyncio.Event()
    stream = EventStream(client.send, {}, pace=Pace(0.01))

    async def late() -> AsyncGenerator[bytes, None]:
        await go_on.wait()
        yield event(b"{}")

    task = asyncio.create_task(stream.relay(late()))
    await until(lambda: stream.has_begun)
    assert client.starts
    assert client.body == b""
    go_on.set()
    await task
    assert client.body == b"data: {}\n\n"


async def failing(*before: bytes) -> AsyncGenerator[bytes, None]:
    for one in before:
        yield event(one)
    raise AgentFailedError("it broke")


async def test_an_early_failure_sends_nothing() -> None:
    """It can still get its own HTTP status."""
    client = Client()
    stream = EventStream(client.send, {})
    with pytest.raises(AgentFailedError):
        await stream.relay(failing())
    assert not stream.has_begun
    assert client.starts == []


async def test_a_late_failure_is_the_last_event() -> None:
    """Without [DONE]: a client that looks for it must not see success."""
    client = Client()
    stream = EventStream(client.send, {})
    with pytest.raises(AgentFailedError):
        await stream.relay(failing(b"{}"))
    assert stream.has_begun
    await stream.fail(event(b'{"error":{}}'))
    assert client.body == b'data: {}\n\ndata: {"error":{}}\n\n'
    assert client.has_ended


async def test_nothing_is_left_behind() -> None:
    """A relay that is cancelled takes its keep-alive and its source along."""
    client = Client()
    is_closed = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            yield event(b"{}")
            await asyncio.Event().wait()
        finally:
            is_closed.set()

    before = len(asyncio.all_tasks())
    task = asyncio.create_task(EventStream(client.send, {}).relay(endless()))
    await until(lambda: bool(client.body))
    task.cancel()
    await asyncio.wait({task})
    assert is_closed.is_set()
    assert len(asyncio.all_tasks()) == before


def test_line_breaks_cannot_make_other_lines() -> None:
    """Pretty-printed JSON of a foreign agent becomes one line."""
    assert event(b'{\r\n "a": 1\n}') == b'data: {"a":1}\n\n'


@pytest.mark.parametrize("bad", [b"", b"x\n\nevent: ping", b"{}\n\ndata: {}"])
def test_a_payload_that_is_no_event_is_refused(bad: bytes) -> None:
    """What an agent writes cannot become lines of the stream."""
    with pytest.raises(ProtocolError):
        event(bad)
