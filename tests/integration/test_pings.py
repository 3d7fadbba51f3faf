"""Pings go the whole way of a call, and never run a handler."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import orjson
import pytest
from nats.aio.client import Client

from mesh import Agent, ChatRequest
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.errors import AgentBusyError, CallTimeoutError
from mesh.questions import encode_question
from schemas.chat import ChatReply
from tests.conftest import Running, until
from tests.shim import CHAT, ask, chunks, online, serving


class Costly:
    """An agent that counts how often its handler runs, and waits to be let go."""

    def __init__(self, agent_id: str, *, concurrency: int = 1) -> None:
        self.agent = Agent(agent_id, concurrency=concurrency)
        self.runs = 0
        self.go = asyncio.Event()
        self.agent.chat(self._answer)

    async def _answer(self, request: ChatRequest) -> str:
        self.runs += 1
        await self.go.wait()
        return "that was expensive"


async def ping(
    client: MeshClient, agent: str, node: str | None = None, timeout_s: float = 3.0
) -> ChatReply:
    """Send a ping, and return its answer."""
    body = encode_question(agent, "ping", stream=False)
    call = await client.start(agent, body, node=node, timeout_s=timeout_s, is_ping=True)
    return await call.reply()


async def waiting_in(bare: Client, subject: str) -> int:
    """Return how many messages the mailboxes hold under a subject."""
    info = await bare.jsm().stream_info("INBOX", subjects_filter=subject)
    return sum((info.state.subjects or {}).values())


@asynccontextmanager
async def busy(client: MeshClient, costly: Costly) -> AsyncIterator[None]:
    """Keep the only slot of an agent in use."""
    working = asyncio.create_task(client.ask(costly.agent.id, "work"))
    await until(lambda: costly.runs == 1)
    try:
        yield
    finally:
        costly.go.set()
        assert (await working).text == "that was expensive"


async def test_a_ping_is_answered_without_the_handler(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """To any instance and to the one on a node: pong, from there, and the mailbox is empty."""
    costly = Costly(agent_id)
    async with running(costly.agent):
        assert (await ping(client, agent_id)).text == "pong"
        assert (await ping(client, agent_id, node="node1")).text == "pong"
        await until(lambda: is_empty(bare, agent_id))
    assert costly.runs == 0


async def is_empty(bare: Client, agent_id: str) -> bool:
    """Tell whether nothing lies in an agent's mailboxes."""
    counts = [
        await waiting_in(bare, one)
        for one in (f"agent.{agent_id}.inbox", f"agent.{agent_id}.inbox.*")
    ]
    return counts == [0, 0]


@pytest.mark.parametrize("body", [b"", b"\xff", b"{", b'{"message": "x"}'])
async def test_a_bare_ping_is_answered_as_text(
    body: bytes, agent_id: str, running: Running, bare: Client
) -> None:
    """Whatever its body is, on the subject where bare messages are answered."""
    costly = Costly(agent_id)
    async with running(costly.agent):
        replies = await bare.subscribe(f"agent.{agent_id}.reply")
        await bare.publish(f"agent.{agent_id}.inbox", body, headers={"mesh-ping": "1"})
        assert (await replies.next_msg(timeout=30)).data == b"pong"
    assert costly.runs == 0


async def test_a_ping_may_be_answered_on_a_nats_inbox(
    agent_id: str, running: Running, bare: Client
) -> None:
    """`reply_to` under `_INBOX.` gets a completion, by a core publish."""
    async with running(Costly(agent_id).agent):
        inbox = bare.new_inbox()
        answers = await bare.subscribe(inbox)
        headers = {"reply_to": inbox, "mesh-ping": "1"}
        await bare.publish(f"agent.{agent_id}.inbox", b"", headers=headers)
        body = orjson.loads((await answers.next_msg(timeout=30)).data)
    assert body["choices"][0]["message"]["content"] == "pong"


async def test_a_ping_makes_no_agent_publish_elsewhere(
    agent_id: str, running: Running, bare: Client
) -> None:
    """The reply subject of a ping is checked like that of a call."""
    async with running(Costly(agent_id).agent):
        heard = await bare.subscribe("elsewhere")
        headers = {"reply_to": "elsewhere", "mesh-ping": "1"}
        await bare.publish(f"agent.{agent_id}.inbox", b"", headers=headers)
        await until(lambda: is_empty(bare, agent_id))
        assert heard.pending_msgs == 0


async def test_a_ping_waits_for_a_slot_and_vanishes_at_its_deadline(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """An agent without a free slot does not take it, and it does not stay."""
    costly = Costly(agent_id)
    async with running(costly.agent), busy(client, costly):
        with pytest.raises(CallTimeoutError):
            await ping(client, agent_id, timeout_s=1)

        async def is_gone() -> bool:
            # The one that is left is the call in progress.
            return await waiting_in(bare, f"agent.{agent_id}.inbox") == 1

        await until(is_gone)
    assert costly.runs == 1


async def test_a_ping_that_is_held_without_a_slot_is_told_so(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """Work for one node is taken before there is a slot: its sender learns that there is none."""
    costly = Costly(agent_id)
    async with running(costly.agent), busy(client, costly):
        with pytest.raises(AgentBusyError, match="no free slot on 'node1'"):
            await ping(client, agent_id, node="node1")

        async def is_gone() -> bool:
            return await waiting_in(bare, f"agent.{agent_id}.inbox.node1") == 0

        await until(is_gone)
        # The next one is taken again: nothing of the first is left behind.
        with pytest.raises(AgentBusyError):
            await ping(client, agent_id, node="node1")
    assert costly.runs == 1


async def test_a_held_ping_gets_the_slot_that_frees_up(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """Slots that turn over quickly are no reason to complain."""
    costly = Costly(agent_id)
    async with running(costly.agent), busy(client, costly):
        pinging = asyncio.create_task(ping(client, agent_id, node="node1"))
        await asyncio.sleep(0.1)
        costly.go.set()
        assert (await pinging).text == "pong"


async def test_an_http_client_can_ping(
    agent_id: str,
    running: Running,
    connection: Connection,
    directory: Directory,
) -> None:
    """`X-Mesh-Ping` on a chat request: a completion that says pong, plain or streamed."""
    costly = Costly(agent_id)
    headers = {"X-Mesh-Ping": "1"}
    async with (
        online(running, directory, costly.agent),
        serving(connection, directory) as base,
        httpx2.AsyncClient(base_url=base, headers=headers) as http,
    ):
        answer = (await http.post(CHAT, json=ask(agent_id))).json()
        assert answer["choices"][0]["message"]["content"] == "pong"
        streamed = chunks((await http.post(CHAT, json=ask(agent_id, stream=True))).text)
        said = [one["choices"][0]["delta"].get("content") for one in streamed[:-1]]
        assert "".join(filter(None, said)) == "pong"
    assert costly.runs == 0
