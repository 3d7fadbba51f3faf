"""What the tests of several shims share: two replicas of one, and readers of calls and events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson

from mesh import Agent, ChatRequest
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory
from schemas.registry import State
from tests.calls import terminals
from tests.conftest import Running, until
from tests.shim import CHAT, replier, serving


@dataclass(frozen=True, slots=True)
class Replica:
    """One shim: a client of it, and its connection to the broker."""

    http: httpx2.AsyncClient
    connection: Connection


@asynccontextmanager
async def replica_at(url: str) -> AsyncIterator[Replica]:
    """Run a shim on a connection of its own."""
    async with (
        open_connection(url, name="test replica") as connection,
        follow_directory(connection) as directory,
        serving(connection, directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=30) as http,
    ):
        yield Replica(http, connection)


@asynccontextmanager
async def two_replicas(url: str) -> AsyncIterator[tuple[Replica, Replica]]:
    """Run two shims, which share nothing but the broker; at the end every call has one answer."""
    async with replica_at(url) as one, replica_at(url) as two:
        yield one, two
        assert set((await terminals(one.connection)).values()) <= {1}


async def make_offline(running: Running, directory: Directory, agent_id: str) -> None:
    """Make an agent known, and leave it offline."""
    async with running(replier(agent_id)):
        pass
    await until(lambda: directory.agent(agent_id).state is State.OFFLINE)


async def post(http: httpx2.AsyncClient, body: dict[str, Any], **headers: str) -> httpx2.Response:
    """Ask, with headers as keyword arguments."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await http.post(CHAT, json=body, headers=named)


async def view(http: httpx2.AsyncClient, call_id: str, *, wait_s: int = 0) -> dict[str, Any]:
    """Return where a call stands."""
    answer = await http.get(f"/v1/calls/{call_id}", params={"wait": wait_s})
    assert answer.status_code == 200, answer.text
    assert answer.headers["mesh-call-id"] == call_id
    found: dict[str, Any] = answer.json()
    return found


def text_of(completion: dict[str, Any]) -> str:
    """Return the text of a completion."""
    text: str = completion["choices"][0]["message"]["content"]
    return text


@dataclass(slots=True)
class Events:
    """What came on an event stream."""

    ids: list[int] = field(default_factory=list)
    payloads: list[Any] = field(default_factory=list)
    is_done: bool = False
    error: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The text of the chunks."""
        deltas = (one["choices"][0]["delta"] for one in self.payloads)
        return "".join(delta.get("content") or "" for delta in deltas)

    async def read(self, answer: httpx2.Response, *, at_most: int = 1_000_000) -> None:
        """Read on, until the end or so many events."""
        async for line in answer.aiter_lines():
            assert line[:1] in ("", ":") or line.startswith(("id: ", "data: ")), line
            name, _, value = line.partition(": ")
            if name == "id":
                self.ids.append(int(value))
            elif line == "data: [DONE]":
                self.is_done = True
            elif name == "data":
                payload = orjson.loads(value)
                if "error" in payload:
                    self.error = payload["error"]
                    continue
                self.payloads.append(payload)
                at_most -= 1
                if not at_most:
                    return


async def read_events(http: httpx2.AsyncClient, call_id: str, after: int = 0) -> Events:
    """Read the events of a call to their end."""
    events = Events()
    path = f"/v1/calls/{call_id}/events"
    async with http.stream("GET", path, params={"after": after}) as answer:
        assert answer.status_code == 200
        assert answer.headers["mesh-call-id"] == call_id
        await events.read(answer)
    return events


def counter(agent_id: str, count: int = 200, pause_s: float = 0.0) -> Agent:
    """An agent that streams numbers."""
    agent = Agent(agent_id)

    @agent.chat
    async def speak(request: ChatRequest) -> AsyncIterator[str]:
        for number in range(count):
            await asyncio.sleep(pause_s)
            yield f"{number} "

    return agent


NUMBERS = "".join(f"{number} " for number in range(200))
