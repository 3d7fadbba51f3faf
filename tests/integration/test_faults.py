"""Connections are cut, brokers are killed: no answer is lost, and none comes twice."""

import asyncio
import gc
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh import Agent, CallContext, ChatRequest
from mesh.broker import EmbeddedBroker, embedded_broker
from mesh.callers import Caller, new_instance_id
from mesh.client import MeshClient, connect, open_client
from mesh.connection import open_connection
from mesh.directory import follow_directory
from mesh.errors import BrokerUnreachableError, PublishRefusedError, StreamMissingError
from mesh.history import read_history
from mesh.provision import ensure_streams
from mesh.runtime import AgentHost
from mesh.settings import Settings
from tests.brokers import KillableBroker
from tests.calls import Held, offline, own_mesh, question
from tests.conftest import Running, control_plane, until
from tests.proxy import FaultProxy, fault_proxy


@pytest.fixture
async def proxy(nats_url: str) -> AsyncIterator[FaultProxy]:
    """A cuttable way to the broker."""
    async with fault_proxy(nats_url) as running:
        yield running


@asynccontextmanager
async def client_at(url: str) -> AsyncIterator[MeshClient]:
    """A client of its own connection."""
    async with (
        open_connection(url, name="test far client") as connection,
        follow_directory(connection) as directory,
        open_client(connection, directory, Caller("far", "node1", new_instance_id())) as client,
    ):
        yield client


async def test_an_answer_that_came_while_away_is_read_back(
    agent_id: str, running: Running, proxy: FaultProxy
) -> None:
    """The caller's link is cut while the agent answers: after the reconnect the answer is there."""
    agent, started, go = Agent(agent_id), asyncio.Event(), asyncio.Event()

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        started.set()
        await go.wait()
        return "kept for you"

    async with running(agent), client_at(proxy.url) as client:
        asking = asyncio.create_task(client.ask(agent_id, "x", timeout_s=20))
        await started.wait()
        proxy.cut()
        go.set()
        await asyncio.sleep(0.3)
        assert not asking.done()
        proxy.heal()
        assert (await asking).text == "kept for you"


async def test_what_comes_again_together_begins_apart(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """Two processes died of what they had: if one request kills the third, others are done."""
    await offline(running, client, agent_id)
    for _ in range(20):
        await client.submit(agent_id, question(agent_id))
    pulling = await bare.jetstream().pull_subscribe_bind(agent_id, "INBOX")
    for _ in range(2):
        taken = list[Msg]()
        while len(taken) < 20:
            taken += await pulling.fetch(20 - len(taken))
        for message in taken:
            await message.nak()
    await pulling.unsubscribe()
    agent, begun = Agent(agent_id, concurrency=20), list[tuple[int, float]]()

    @agent.chat
    async def answer(request: ChatRequest, call: CallContext) -> str:
        begun.append((call.attempt, asyncio.get_running_loop().time()))
        return "done"

    async with running(agent):
        await until(lambda: len(begun) == 20)
    assert {attempt for attempt, _ in begun} == {3}
    assert begun[-1][1] - begun[0][1] > 1.0


async def test_attempts_to_reconnect_leave_no_sockets(proxy: FaultProxy) -> None:
    """Who is accepted and cut off before the handshake, again and again, has one socket."""
    async with open_connection(proxy.url, name="test cut off") as connection:
        refused = proxy.refused
        gc.disable()
        try:
            before = len(os.listdir("/dev/fd"))
            proxy.cut()
            await until(lambda: proxy.refused >= refused + 3)
            proxy.heal()
            await until(lambda: connection.client.is_connected)
            assert len(os.listdir("/dev/fd")) <= before + 1
        finally:
            gc.enable()


async def test_a_stream_goes_on_after_a_cut(
    agent_id: str, running: Running, proxy: FaultProxy
) -> None:
    """Chunks that came while the caller was away are read from the stream, in order, once."""
    agent, away, back = Agent(agent_id), asyncio.Event(), asyncio.Event()

    @agent.chat
    async def count(request: ChatRequest) -> AsyncIterator[str]:
        yield "a"
        await away.wait()
        yield "b"
        yield "c"
        await back.wait()
        yield "d"

    async with running(agent), client_at(proxy.url) as client:
        answer = client.stream(agent_id, "x", timeout_s=20)
        parts = [await anext(answer)]
        proxy.cut()
        away.set()
        await asyncio.sleep(0.3)
        proxy.heal()
        parts.append(await anext(answer))
        back.set()
        parts += [part async for part in answer]
    assert parts == ["a", "b", "c", "d"]


async def test_an_agent_whose_link_is_cut_answers_once(
    agent_id: str, settings: Settings, proxy: FaultProxy, client: MeshClient
) -> None:
    """Its final frame goes out after the reconnect, and the request is not run again."""
    agent, runs, started, go = Agent(agent_id), 0, asyncio.Event(), asyncio.Event()

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        nonlocal runs
        runs += 1
        started.set()
        await go.wait()
        return "still me"

    stop = asyncio.Event()
    async with open_connection(proxy.url, name="test cut host") as connection:
        host = AgentHost(connection, [agent], node="node1", settings=settings)
        task = asyncio.create_task(host.run(stop))
        await asyncio.wait_for(host.ready.wait(), 30)
        await until(lambda: client.directory.agent_record(agent_id) is not None)
        asking = asyncio.create_task(client.ask(agent_id, "x", timeout_s=30))
        await started.wait()
        proxy.cut()
        go.set()
        await asyncio.sleep(0.3)
        proxy.heal()
        assert (await asking).text == "still me"
        assert (await client.ask(agent_id, "again", timeout_s=30)).text == "still me"
        stop.set()
        await task
    assert runs == 2


async def test_a_request_that_comes_again_after_its_answer_is_only_acknowledged(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """The reply subject is the ledger: a repeated publish of an answered call runs nothing."""
    agent, runs = Agent(agent_id), 0

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        nonlocal runs
        runs += 1
        return "once"

    async with running(agent):
        headers = {"reply_to": "agent.me.reply.x.again", "correlation_id": "again"}
        delivered = await bare.subscribe("delivered.me.reply.x.again")
        jetstream = bare.jetstream()
        await jetstream.publish(f"agent.{agent_id}.inbox", b"x", headers=headers)
        await delivered.next_msg(timeout=30)
        for _ in range(3):
            repeated = {**headers, "mesh-retry": "1"}
            await jetstream.publish(f"agent.{agent_id}.inbox", b"x", headers=repeated)
        await client.ask(agent_id, "flush")
        assert runs == 2, "the repeated request was run again"
        assert delivered.pending_msgs == 0


@pytest.fixture
def own_broker(tmp_path: Path) -> Callable[[], AbstractAsyncContextManager[EmbeddedBroker]]:
    """Starts a broker that may be killed; always at the same port, with the same data."""
    settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=tmp_path)

    @asynccontextmanager
    async def start() -> AsyncIterator[EmbeddedBroker]:
        nonlocal settings
        async with embedded_broker(settings) as broker:
            port = urlsplit(broker.url).port or 0
            settings = replace(settings, nats_port=port)
            yield broker

    return start


async def test_calls_survive_nine_kills_of_the_broker(
    own_broker: Callable[[], AbstractAsyncContextManager[EmbeddedBroker]],
    settings: Settings,
) -> None:
    """kill -9 of the broker under load: every call is answered, each by one final frame."""
    agent = Agent("steady", concurrency=32)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return request.last_text

    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(own_broker())
        own = replace(settings, nats_url=broker.url)
        async with (
            control_plane(own),
            connect(broker.url, name="loader") as client,
            open_connection(broker.url, name="steady host") as connection,
        ):
            host = AgentHost(connection, [agent], node="node1", settings=own)
            stop, enough = asyncio.Event(), asyncio.Event()
            serving = asyncio.create_task(host.run(stop))
            await asyncio.wait_for(host.ready.wait(), 30)
            await until(lambda: client.directory.agent_record("steady") is not None)
            answered = 0

            async def ask_for_ever(number: int) -> None:
                nonlocal answered
                while not enough.is_set():
                    text = f"{number}-{answered}"
                    try:
                        reply = await client.ask("steady", text, timeout_s=20)
                    except BrokerUnreachableError:
                        continue  # Said at once, before anything was sent.
                    assert reply.text == text
                    answered += 1

            asking = [asyncio.create_task(ask_for_ever(number)) for number in range(16)]
            for _ in range(9):
                before = answered
                await until(lambda: answered > before + 50, within_s=20)  # noqa: B023
                os.kill(broker.pid, signal.SIGKILL)
                await broker.wait()
                await stack.aclose()
                broker = await stack.enter_async_context(own_broker())
            enough.set()
            await asyncio.wait_for(asyncio.gather(*asking), 30)
            stop.set()
            await serving
        finals = await _finals_by_call(broker.url)
    assert answered > 450
    assert set(finals.values()) == {1}, "a call was answered twice"


async def _finals_by_call(url: str) -> dict[str, int]:
    """Count the terminal frames in the reply stream, by call."""
    async with open_connection(url, name="count") as connection:
        stored = await read_history(connection, "REPLY", "agent.loader.reply.>")
    kinds = ("final", "error")
    calls = [one.headers["correlation_id"] for one in stored if one.headers["mesh-kind"] in kinds]
    return dict(Counter(calls))


async def test_a_broker_without_a_mesh_is_told_as_that(
    own_broker: Callable[[], AbstractAsyncContextManager[EmbeddedBroker]],
) -> None:
    """No streams: the client says so, and what to do."""
    async with own_broker() as broker:
        with pytest.raises(StreamMissingError, match="run `mesh up`"):
            async with connect(broker.url):
                pytest.fail("connected to a broker without a mesh")


async def test_a_refused_publish_is_told_at_once(
    own_broker: Callable[[], AbstractAsyncContextManager[EmbeddedBroker]],
) -> None:
    """JetStream's own error comes back, instead of a wait for an acknowledgement."""
    async with own_broker() as broker, open_connection(broker.url, name="x") as connection:
        await ensure_streams(connection, Settings(mailbox_max=1))
        publish = connection.publisher.publish
        await publish("agent.a.inbox", b"1", {})
        with pytest.raises(PublishRefusedError) as refused:
            await asyncio.wait_for(publish("agent.a.inbox", b"2", {}), 30)
        assert refused.value.err_code == 10077
        with pytest.raises(StreamMissingError):
            await asyncio.wait_for(publish("nobody.listens", b"", {}), 30)


async def test_a_lost_connection_can_be_closed(proxy: FaultProxy) -> None:
    """What was still to be sent is lost, and nothing is raised about it."""
    async with open_connection(proxy.url, name="x") as connection:
        proxy.cut()
        await until(lambda: not connection.client.is_connected)
        await connection.client.publish("last.words", b"x")


async def test_a_broker_that_is_slow_is_there(tmp_path: Path) -> None:
    """It is waited for, longer than nats-py does; only one that refuses is given up at once."""
    async with KillableBroker(tmp_path) as broker:
        frozen = asyncio.create_task(broker.freeze(2.5))
        await asyncio.sleep(0)
        async with open_connection(broker.url, name="test hasty") as connection:
            assert connection.client.is_connected
        await frozen


async def test_an_answer_is_held_while_the_broker_is_away(
    settings: Settings, tmp_path: Path
) -> None:
    """Work that is done is not done again, though the broker stays away for half a minute."""
    held = Held("holder")
    async with own_mesh(settings, tmp_path, held.agent) as mesh:
        call = await mesh.client.start("holder", question("holder"), timeout_s=120)
        await until(lambda: held.started == 1)
        away = asyncio.create_task(mesh.broker.kill(down_s=27))
        await until(lambda: not mesh.connection.client.is_connected)
        held.go.set()
        await away
        assert (await call.reply()).text == "hello, attempt 1"
        assert held.started == 1
