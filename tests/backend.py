"""An OpenAI-compatible backend that misbehaves on demand, and calls to a relay in front of one.

A real HTTP server, so that what is cut, late or malformed is so on a socket.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mesh.agent import Agent
from mesh.context import CallContext
from mesh.errors import AgentFailedError
from schemas.chat import ChatDelta, ChatRequest
from tests.conftest import until

TRACEPARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"

DONE = b"data: [DONE]\n\n"


def chunk(delta: dict[str, Any], reason: str | None = None, **fields: Any) -> bytes:
    """Return one event of a streamed answer."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: " + orjson.dumps({"choices": [choice], **fields}) + b"\n\n"


def sse(*parts: bytes, then: Callable[[], Any] | None = None) -> Response:
    """Return a streamed answer that sends `parts` one by one, and awaits `then` at its end."""

    async def body() -> AsyncIterator[bytes]:
        for part in parts:
            yield part
        if then:
            await then()

    return StreamingResponse(body(), media_type="text/event-stream")


class Backend:
    """An ASGI application that answers as it is told, and remembers what it was asked."""

    url = ""

    def reset(self) -> None:
        self.answer: Callable[[], Response] = lambda: sse(chunk({"content": "hi"}, "stop"), DONE)
        self.asked: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.is_left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.asked = orjson.loads(await request.body())
        self.headers = dict(request.headers)
        assert request.url.path == "/v1/chat/completions"
        try:
            await self.answer()(scope, receive, send)
        finally:
            self.is_left.set()


@asynccontextmanager
async def running_backend() -> AsyncIterator[Backend]:
    """Serve a backend on a free port."""
    app = Backend()
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    app.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    yield app
    server.should_exit = True
    await task


async def deltas(agent: Agent, request: ChatRequest | None = None) -> list[ChatDelta]:
    """Call the agent's handler directly."""
    return [delta async for delta in answering(agent, request)]


def answering(agent: Agent, request: ChatRequest | None = None) -> AsyncGenerator[ChatDelta, None]:
    """Begin the agent's answer; the call is of the trace `TRACEPARENT`."""

    async def nobody(_: str) -> Any:
        raise AssertionError("a relay asks no other agent")

    call = CallContext(
        id="c1",
        agent=agent.id,
        source_agent="tester",
        source_node="node1",
        is_proven=False,
        attempt=1,
        hops=(),
        traceparent=TRACEPARENT,
        open_client=nobody,
    )
    assert agent.handler
    answer: AsyncGenerator[ChatDelta, None] = agent.handler.function(
        request or ChatRequest.from_text("hello"), call
    )
    return answer


async def text(agent: Agent) -> str:
    """Return the whole text of the agent's answer."""
    return "".join(delta.content or "" for delta in await deltas(agent))


async def failure(agent: Agent) -> AgentFailedError:
    """Return the error that the agent fails with."""
    with pytest.raises(AgentFailedError) as caught:
        await deltas(agent)
    return caught.value
