"""What the tests of the HTTP door share: a door, agents behind it, and readers of its answers."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import orjson

from mesh import Agent, ChatDelta, ChatReply, ChatRequest, Usage
from mesh.callers import Caller, new_instance_id
from mesh.client import open_client
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.presence import People
from mesh.runtime import AgentHost
from mesh.settings import DEFAULT_HTTP_BODY_MAX_BYTES
from mesh.shim.app import create_app
from mesh.shim.door import Door
from mesh.shim.listener import HttpServer
from mesh.shim.matrix import MatrixBridge
from mesh.shim.protocol import MAX_CONNECTIONS, Patience
from mesh.shim.rules import LOOPBACK_RULES, Rules
from mesh.shim.sse import PACE, Pace
from schemas.registry import State
from tests.conftest import Running, until

CHAT = "/v1/chat/completions"
HELLO: Any = [{"role": "user", "content": "hello"}]
USAGE = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)


@asynccontextmanager
async def serving(
    connection: Connection,
    directory: Directory,
    rules: Rules = LOOPBACK_RULES,
    *,
    patience: Patience | None = None,
    max_connections: int = MAX_CONNECTIONS,
    monitor_url: str = "",
    pace: Pace = PACE,
    send_buffer_bytes: int | None = None,
    people: People | None = None,
    matrix: MatrixBridge | None = None,
    public_url: str = "",
    body_max_bytes: int = DEFAULT_HTTP_BODY_MAX_BYTES,
) -> AsyncIterator[str]:
    """Answer HTTP on a free port, by a connection that is open; gives the base URL.

    The system takes a few megabytes for a client that does not read, if it is not told a limit.
    """
    caller = Caller("http", "node1", new_instance_id())
    async with open_client(connection, directory, caller) as client:
        door = Door(
            client,
            connection,
            caller,
            monitor_url=monitor_url,
            pace=pace,
            people=people,
            matrix=matrix,
            public_url=public_url,
            body_max_bytes=body_max_bytes,
        )
        app = create_app(door, rules)
        server = HttpServer(app, patience=patience, max_connections=max_connections)
        task = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        listener = server.servers[0].sockets[0]
        if send_buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def online(
    running: Running, directory: Directory, *agents: Agent, **options: Any
) -> AsyncIterator[AgentHost]:
    """Run agents, and begin when the door sees them online."""
    async with running(*agents, **options) as host:
        await until(lambda: all(directory.agent(a.id).state is State.ONLINE for a in agents))
        yield host


def speaker(agent_id: str) -> Agent:
    """An agent that streams two words, and counts."""
    agent = Agent(agent_id)

    @agent.chat
    async def speak(request: ChatRequest) -> AsyncIterator[ChatDelta | str]:
        yield "hel"
        yield "lo"
        yield ChatDelta(usage=USAGE)

    return agent


def replier(agent_id: str) -> Agent:
    """An agent that answers at once, and counts."""
    agent = Agent(agent_id)

    @agent.chat
    async def reply(request: ChatRequest) -> ChatReply:
        return ChatReply(content=f"You said: {request.last_text}", usage=USAGE)

    return agent


def ask(agent: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a question."""
    return {"model": agent, "messages": HELLO, **fields}


def chunks(text: str) -> list[Any]:
    """Return what the events of a stream hold, and check that there is nothing else in it."""
    events = text.split("\n\n")
    assert events.pop() == ""
    assert all(one.startswith("data: ") and "\n" not in one for one in events if one[0] != ":")
    payloads = [one.removeprefix("data: ") for one in events if one[0] != ":"]
    return [one if one == "[DONE]" else orjson.loads(one) for one in payloads]


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """Return the error of an answer, and check what holds for all of them."""
    error: dict[str, Any] = answer.json()["error"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error
