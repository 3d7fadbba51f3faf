"""Messages that nobody should send: they are answered or dropped, and nobody else is hurt."""

import asyncio
import json
from urllib.parse import urlsplit

import pytest
from nats.aio.client import Client

from mesh import Agent, ChatReply, ChatRequest
from mesh.callers import Caller, new_instance_id
from mesh.client import MeshClient, open_client
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.errors import AgentFailedError, CallTimeoutError, MeshError, PayloadTooLargeError
from tests.conftest import UNKNOWN_AGENT_GRACE_S, Running, until


def echo(agent_id: str) -> Agent:
    """An agent that repeats what it is told."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return request.last_text

    return agent


async def send_raw(nats_url: str, data: bytes) -> None:
    """Say to the broker what no client library would."""
    where = urlsplit(nats_url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        await reader.readline()
        connect = b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n'
        writer.write(connect + data + b"PING\r\n")
        # A PONG, or an error about the subject: the broker stores what it complains about.
        assert await asyncio.wait_for(reader.readline(), 30)
    finally:
        writer.close()
        await writer.wait_closed()


LONG = "_INBOX." + "a" * 5000


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        ({"reply_to": LONG}, 1),
        ({"reply_to": "agent.me.reply", "correlation_id": "c" * 65_000}, 930_000),
        ({"reply_to": "agent.me.reply", "correlation_id": "c" * 64_000}, 1),
        ({"reply_to": "agent.me.reply", "mesh-timeout-ms": "9" * 5000}, 1),
        ({"reply_to": "agent.me.reply", "mesh-timeout-ms": "9" * 400}, 1),
        ({"reply_to": "agent.me.reply", "mesh-hops": ",".join("x" * 900)}, 1),
        ({"reply_to": "agent.me.reply", "mesh-source-agent": "Zoë"}, 1),
    ],
    ids=["long-inbox", "big-id-big-body", "big-id", "5000-digits", "400-digits", "hops", "umlaut"],
)
async def test_odd_headers_hurt_nobody(
    headers: dict[str, str],
    size: int,
    agent_id: str,
    running: Running,
    client: MeshClient,
    bare: Client,
) -> None:
    """The agent goes on, on the same connection, and the mailbox is empty again."""
    async with running(echo(agent_id)):
        await bare.jetstream().publish(f"agent.{agent_id}.inbox", b"x" * size, headers=headers)

        async def is_settled() -> bool:
            info = await bare.jsm().stream_info("INBOX", subjects_filter=f"agent.{agent_id}.inbox")
            return not info.state.subjects

        await until(is_settled)
        assert (await client.ask(agent_id, "still here", timeout_s=5)).text == "still here"


@pytest.mark.parametrize(
    "block",
    [b"NATS/1.0", b"XX", b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"NATS/1.0 503\r\n\r\n"],
    ids=repr,
)
async def test_broken_header_blocks_are_dropped(
    block: bytes, agent_id: str, running: Running, client: MeshClient, nats_url: str
) -> None:
    """What nats-py cannot take apart does not end its read loop."""
    async with running(echo(agent_id)):
        sizes = (len(block), len(block) + 1, block)
        await send_raw(
            nats_url, b"HPUB agent.%s.inbox %d %d\r\n%sx\r\n" % (agent_id.encode(), *sizes)
        )
        assert (await client.ask(agent_id, "still here", timeout_s=5)).text == "still here"


@pytest.mark.parametrize("subject", [b"registry.event.\xff\xfe", b"agent.\xff.event.x"], ids=repr)
async def test_subjects_that_are_no_text_are_dropped(
    subject: bytes, agent_id: str, running: Running, client: MeshClient, bare: Client, nats_url: str
) -> None:
    """Hosts, callers and the control plane all go on."""
    async with running(echo(agent_id)):
        await send_raw(nats_url, b"PUB %s 1\r\nx\r\n" % subject)
        assert (await client.ask(agent_id, "still here", timeout_s=5)).text == "still here"
        assert (await bare.request("registry.list", timeout=30)).data


async def test_a_literal_star_buries_nobody(
    agent_id: str, running: Running, client: MeshClient, bare: Client, nats_url: str
) -> None:
    """The broker takes a publish to `agent.*.inbox`; others' waiting requests stay theirs."""
    async with running(echo(agent_id)):
        pass
    await until(lambda: client.directory.agent(agent_id).state == "offline")
    asking = asyncio.create_task(client.ask(agent_id, "wait for me", timeout_s=30))
    await send_raw(nats_url, b"PUB agent.*.inbox 1\r\nx\r\n")

    async def is_buried() -> bool:
        info = await bare.jsm().stream_info("DEAD", subjects_filter="dead.invalid-id")
        return bool(info.state.subjects)

    await until(is_buried)
    await asyncio.sleep(UNKNOWN_AGENT_GRACE_S)  # One more scan.
    async with running(echo(agent_id)):
        assert (await asking).text == "wait for me"


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        ({"mesh-timeout-ms": "9" * 5000}, 1),
        ({"mesh-timeout-ms": "9" * 400}, 1),
        ({}, 1_048_000),
        ({"mesh-source-agent": "Zoë", "correlation_id": "ü"}, 1),
        ({"reply_to": LONG}, 1),
    ],
    ids=["5000-digits", "400-digits", "to-the-last-byte", "umlauts", "long-inbox"],
)
async def test_odd_requests_to_nobody_do_not_stop_the_undertaker(
    headers: dict[str, str], size: int, agent_id: str, bare: Client
) -> None:
    """They become dead letters, and so does the next one."""
    jetstream = bare.jetstream()
    await jetstream.publish(f"agent.{agent_id}.inbox", b"x" * size, headers=headers or None)
    await jetstream.publish(f"agent.{agent_id}-b.inbox", b"y")

    async def are_dead() -> bool:
        info = await bare.jsm().stream_info("DEAD", subjects_filter=">")
        return {f"dead.{agent_id}", f"dead.{agent_id}-b"} <= set(info.state.subjects or {})

    await until(are_dead)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"mesh-kind": "working", "mesh-seq": "9" * 5000}, {}),
        (
            {"mesh-kind": "error", "content-type": "application/json"},
            {"error": {"code": "agent_failed", "message": "m", "fields": {"message": "again"}}},
        ),
    ],
    ids=["numbers", "fields"],
)
async def test_odd_frames_do_not_hang_the_caller(
    headers: dict[str, str],
    body: dict[str, object],
    agent_id: str,
    running: Running,
    client: MeshClient,
    bare: Client,
) -> None:
    """Whatever the agent sends, the call ends by its deadline."""
    async with running(echo(agent_id)):
        pass
    question = b'{"messages":[{"role":"user","content":"x"}]}'
    call = await client.start(agent_id, question, timeout_s=1.0)
    reply = json.dumps(body).encode()
    await bare.jetstream().publish(call.reply_subject, reply, headers=headers)
    with pytest.raises((CallTimeoutError, AgentFailedError)):
        await asyncio.wait_for(call.result(), 30)


@pytest.mark.parametrize(
    "fault", ["cancelled", "surrogate", "object", "huge", "odd-text", "stop", "nothing"]
)
async def test_handlers_that_misbehave_are_told_about_once(
    fault: str, agent_id: str, running: Running, client: MeshClient
) -> None:
    """Whatever a handler does, the caller gets a typed error at once, and it is not run again."""
    agent, runs = Agent(agent_id), 0

    @agent.chat
    async def answer(request: ChatRequest) -> object:
        nonlocal runs
        runs += 1
        match fault:
            case "cancelled":
                raise asyncio.CancelledError
            case "surrogate":
                return "\ud83d"
            case "object":
                return ChatReply(content=None, tool_calls=[{"id": object()}])
            case "huge":
                raise RuntimeError("x" * 2_000_000)
            case "odd-text":
                raise RuntimeError("file \udcff is missing")
            case "stop":
                raise StopIteration
        return None

    async with running(agent):
        with pytest.raises((AgentFailedError, PayloadTooLargeError)):
            await client.ask(agent_id, "x", timeout_s=5)
    assert runs == 1


async def test_a_blocking_handler_may_stop_iteration(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """`next()` of nothing in a plain function is an error like any other."""
    agent = Agent(agent_id)

    @agent.chat
    def answer(request: ChatRequest) -> str:
        return next(part for part in request.last_text.split() if part == "nowhere")

    async with running(agent):
        with pytest.raises(AgentFailedError, match="StopIteration"):
            await client.ask(agent_id, "x", timeout_s=5)


async def test_an_agent_without_a_chat_handler_says_so(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """Who asks it is told at once, instead of waiting for nothing."""
    async with running(Agent(agent_id)):
        with pytest.raises(AgentFailedError, match="answers no chat requests"):
            await client.ask(agent_id, "x", timeout_s=5)


@pytest.mark.parametrize("instance", ["a b", "a.b.c", "*", ""], ids=repr)
async def test_an_instance_is_one_token(instance: str, bare: Client) -> None:
    """The registry takes no key that somebody else could be hit with."""
    inbox = bare.new_inbox()
    answers = await bare.subscribe(inbox)
    body = {"card": {"id": "own"}, "instance": {"instance": instance, "node": "n9", "role": "host"}}
    headers = {"reply_to": inbox, "content-type": "application/json"}
    await bare.publish("registry.announce.own.n9", json.dumps(body).encode(), headers=headers)
    assert not json.loads((await answers.next_msg(timeout=30)).data)["ok"]


async def test_calls_end_with_their_client(
    agent_id: str, running: Running, connection: Connection, directory: Directory
) -> None:
    """Nobody waits for ever on a call whose client is gone."""
    async with running(echo(agent_id)):
        pass
    caller = Caller("short", "node1", new_instance_id())
    async with open_client(connection, directory, caller) as short:
        asking = asyncio.create_task(short.ask(agent_id, "x", timeout_s=30))
        await asyncio.sleep(0.1)
    with pytest.raises(MeshError, match="closed"):
        await asyncio.wait_for(asking, 30)
