"""The HTTP door when something is wrong: bad input, lost agents, clients that leave."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx2
import pytest
from nats.aio.client import Client

from mesh import Agent, CallContext, ChatRequest
from mesh.connection import Connection, open_connection
from mesh.directory import Directory
from mesh.errors import (
    CallCancelledError,
    HopLimitError,
    InvalidInputError,
    MeshError,
    PayloadTooLargeError,
    ProtocolError,
)
from mesh.settings import Settings
from schemas.registry import State
from tests.conftest import Running, until
from tests.foreign import Reply, foreign_agent
from tests.shim import CHAT, ask, chunks, error_of, online, replier, serving


@pytest.fixture(scope="module")
async def http(connection: Connection, directory: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the door of these tests."""
    async with (
        serving(connection, directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
    ):
        yield client


async def test_an_agent_that_is_offline(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Known, not running: come again soon. Nothing waits in its mailbox."""
    async with online(running, directory, replier(agent_id)):
        pass
    await until(lambda: directory.agent(agent_id).state is State.OFFLINE)
    for stream in (False, True):
        answer = await http.post(CHAT, json=ask(agent_id, stream=stream))
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "agent_offline"
        assert answer.headers["retry-after"] == "2"
        assert "x-should-retry" not in answer.headers


async def test_a_lost_broker(
    settings: Settings, agent_id: str, running: Running, directory: Directory
) -> None:
    """Nothing was sent, so the client may try again."""
    async with (
        online(running, directory, replier(agent_id)),
        open_connection(settings.nats_url, name="test lost") as lost,
        serving(lost, directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=30) as client,
    ):
        await lost.client.close()
        answer = await client.post(CHAT, json=ask(agent_id))
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "broker_unavailable"
    assert answer.headers["retry-after"] == "2"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (lambda: ValueError("x"), 502, "agent_error"),
        (lambda: MeshError("x"), 502, "agent_error"),
        (lambda: PayloadTooLargeError("x"), 502, "agent_error"),
        (lambda: ProtocolError("x"), 502, "bad_answer"),
        (lambda: HopLimitError("x"), 502, "hop_limit"),
        (lambda: CallCancelledError("x"), 409, "call_cancelled"),
        (lambda: InvalidInputError("x", field="tools"), 400, "invalid_value"),
    ],
)
async def test_what_an_agent_raises(
    *,
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    make: Callable[[], Exception],
    status: int,
    code: str,
    stream: bool,
) -> None:
    """An early failure has its HTTP status in a stream too, and no SDK repeats the work."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> str:
        raise make()

    async with online(running, directory, agent):
        answer = await http.post(CHAT, json=ask(agent_id, stream=stream))
    assert answer.status_code == status
    assert error_of(answer)["code"] == code
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["mesh-call-id"]


async def test_a_nested_call_that_fails_is_the_agents_failure(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """The client's own target does exist: no 404 for what the agent could not find."""
    agent = Agent(agent_id)

    @agent.chat
    async def delegate(request: ChatRequest, call: CallContext) -> str:
        return (await call.ask("nobody", "hello")).text

    async with online(running, directory, agent):
        answer = await http.post(CHAT, json=ask(agent_id))
    assert answer.status_code == 502
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("agent_error", None)
    assert "nobody" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory, stream: bool
) -> None:
    """The client's own, by a header."""
    agent = Agent(agent_id)

    @agent.chat
    async def never(request: ChatRequest) -> str:
        await asyncio.Event().wait()
        return ""

    async with online(running, directory, agent):
        answer = await http.post(
            CHAT, json=ask(agent_id, stream=stream), headers={"X-Mesh-Timeout": "0.3"}
        )
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "agent_timeout"
    assert answer.headers["x-should-retry"] == "false"


async def test_an_agent_that_dies_while_it_streams(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """The stream ends with an error event, and without [DONE]."""
    agent = Agent(agent_id)

    @agent.chat
    async def never(request: ChatRequest) -> AsyncIterator[str]:
        yield "half"
        await asyncio.Event().wait()

    text = ""
    async with online(running, directory, agent, grace_s=0):
        streaming = http.stream(
            "POST", CHAT, json=ask(agent_id, stream=True), headers={"X-Mesh-Timeout": "1.5"}
        )
        answer = await streaming.__aenter__()
        parts = answer.aiter_text()
        while "half" not in text:
            text += await anext(parts)
    # The process is gone; nobody else runs the agent.
    text += "".join([part async for part in parts])
    await streaming.__aexit__(None, None, None)
    *_, half, last = chunks(text)
    assert half["choices"][0]["delta"]["content"] == "half"
    assert last["error"]["code"] == "agent_timeout"


async def test_a_stream_that_breaks_stops_its_agent(
    http: httpx2.AsyncClient,
    agent_id: str,
    connection: Connection,
    directory: Directory,
    bare: Client,
) -> None:
    """Nobody can be shown what it still has to say."""
    is_cancelled = asyncio.Event()

    async def on_cancel(_: object) -> None:
        is_cancelled.set()

    async def script(reply: Reply) -> None:
        await reply(b"", {"mesh-kind": "chunk"})
        await asyncio.wait_for(is_cancelled.wait(), 30)

    await bare.subscribe(f"delivered.{agent_id}.cancel.*", cb=on_cancel)
    async with foreign_agent(agent_id, connection, directory, bare, script):
        answer = await http.post(CHAT, json=ask(agent_id, stream=True))
    assert answer.status_code == 502
    assert error_of(answer)["code"] == "bad_answer"


def waiting_tasks() -> int:
    """Return how many of the door's tasks wait for an answer in this process."""
    names = {"Waiting._watch", "EventStream.relay", "EventStream._keep_alive"}
    coroutines = (task.get_coro() for task in asyncio.all_tasks())
    return sum(getattr(one, "__qualname__", "") in names for one in coroutines)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("headers", "is_stopped"),
    [
        ({}, True),
        ({"X-Mesh-On-Disconnect": "detach"}, False),
        ({"Idempotency-Key": "come-back"}, False),
        ({"Idempotency-Key": "come-back", "X-Mesh-On-Disconnect": "cancel"}, True),
    ],
)
async def test_a_client_that_leaves(
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    headers: dict[str, str],
    *,
    is_stopped: bool,
    stream: bool,
) -> None:
    """Nothing waits for it any more. The agent is stopped, unless the client may come back."""
    has_begun, go_on = asyncio.Event(), asyncio.Event()
    was_stopped, has_finished = asyncio.Event(), asyncio.Event()
    agent = Agent(agent_id)

    @agent.chat
    async def work(request: ChatRequest) -> AsyncIterator[str]:
        has_begun.set()
        yield "half"
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            was_stopped.set()
            raise
        yield "done"
        has_finished.set()

    async with online(running, directory, agent):
        body = ask(agent_id, stream=stream, user=agent_id)
        own = dict(headers)
        if "Idempotency-Key" in own:
            own["Idempotency-Key"] += agent_id
        asking = asyncio.create_task(http.post(CHAT, json=body, headers=own))
        await has_begun.wait()
        await until(lambda: waiting_tasks() > 0)
        asking.cancel()
        await asyncio.wait({asking})
        await until(lambda: not waiting_tasks())
        if is_stopped:
            await asyncio.wait_for(was_stopped.wait(), 30)
        go_on.set()
        if not is_stopped:
            await asyncio.wait_for(has_finished.wait(), 30)
        assert (await http.get("/health")).status_code == 200
