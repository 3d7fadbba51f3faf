"""The mesh from outside: bare nats-py, the guide's snippet, and plain FastStream applications."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from faststream import AckPolicy, FastStream
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.aio.client import Client

from handlers.foreign import attach
from mesh import Agent, CallContext, ChatRequest
from mesh.client import MeshClient
from mesh.errors import BodyLostError, SettingsError
from mesh.questions import encode_question
from mesh.settings import Settings
from mesh.trust.keyring import Keyring
from schemas.card import AgentCard
from tests.conftest import Running, until


def echo(agent_id: str) -> Agent:
    """An agent that repeats what it is told, and by whom."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest, call: CallContext) -> str:
        return f"{call.source_agent or 'somebody'} said: {request.last_text}"

    return agent


async def test_the_guides_snippet_gets_its_answer(
    agent_id: str, running: Running, nats_url: str
) -> None:
    """Publish text to the inbox, then subscribe the agent's reply subject, then wait for one."""
    async with running(echo(agent_id)):
        for _ in range(20):
            nc = await nats.connect(nats_url)
            js = nc.jetstream()
            await js.publish(f"agent.{agent_id}.inbox", b"Hello from Daarwizz")
            sub = await nc.subscribe(f"agent.{agent_id}.reply")
            msg = await sub.next_msg(timeout=30)
            assert msg.data == b"somebody said: Hello from Daarwizz"
            await nc.close()


async def test_the_guides_other_spelling_answers_the_sender(
    agent_id: str, running: Running, bare: Client
) -> None:
    """A JSON body that names its sender is answered on the sender's subject too."""
    sender = f"{agent_id}-s"
    async with running(echo(agent_id)):
        own = await bare.subscribe(f"agent.{sender}.reply")
        target = await bare.subscribe(f"agent.{agent_id}.reply")
        body = {"source_agent": sender, "message": "hi"}
        await bare.publish(f"agent.{agent_id}.inbox", json.dumps(body).encode())
        answers = [(await one.next_msg(timeout=30)).data for one in (own, target)]
    assert answers == [f"{sender} said: hi".encode()] * 2


async def test_a_bare_openai_body_is_answered_as_text(
    agent_id: str, running: Running, bare: Client
) -> None:
    """Without headers, JSON with messages is a chat request, and its answer is text."""
    async with running(echo(agent_id)):
        replies = await bare.subscribe(f"agent.{agent_id}.reply")
        body = {"messages": [{"role": "user", "content": "from json"}]}
        await bare.publish(f"agent.{agent_id}.inbox", json.dumps(body).encode())
        message = await replies.next_msg(timeout=30)
    assert message.data == b"somebody said: from json"
    assert (message.headers or {})["correlation_id"].startswith("seq-")


async def test_a_bare_message_that_is_none_is_told_so(
    agent_id: str, running: Running, bare: Client
) -> None:
    """Empty messages, broken text and broken requests get an error in words; the agent lives."""
    async with running(echo(agent_id)):
        replies = await bare.subscribe(f"agent.{agent_id}.reply")
        for body in (b"", b"   ", b"\xff\xfe", b'{"messages": []}', b'{"messages": "x"}'):
            await bare.publish(f"agent.{agent_id}.inbox", body)
            message = await replies.next_msg(timeout=30)
            assert message.data.startswith(b"error: invalid_input: "), (body, message.data)
        await bare.publish(f"agent.{agent_id}.inbox", b"fine")
        assert (await replies.next_msg(timeout=30)).data == b"somebody said: fine"


async def test_a_request_with_reply_to_is_answered_there(
    agent_id: str, running: Running, bare: Client
) -> None:
    """With `reply_to` and `correlation_id`, the stored and republished answer has both."""
    call = uuid.uuid4().hex
    async with running(echo(agent_id)):
        delivered = await bare.subscribe("delivered.me.reply.x.>")
        body = {"messages": [{"role": "user", "content": "x"}]}
        await bare.jetstream().publish(
            f"agent.{agent_id}.inbox",
            json.dumps(body).encode(),
            headers={
                "reply_to": f"agent.me.reply.x.{call}",
                "correlation_id": call,
                "content-type": "application/json",
                "mesh-source-agent": "me",
            },
        )
        message = await delivered.next_msg(timeout=30)
    headers = message.headers or {}
    assert headers["mesh-kind"] == "final"
    assert headers["correlation_id"] == call
    assert int(headers["Nats-Sequence"]) > 0
    answer = json.loads(message.data)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == "me said: x"


async def test_two_callers_may_choose_the_same_short_id(
    agent_id: str, running: Running, bare: Client
) -> None:
    """Dedupe knows ids only; a caller's answer is not taken for another's all the same."""
    async with running(echo(agent_id)):
        for me in ("alice", "bob"):
            subject = f"agent.{me}.reply.{agent_id}.1"
            answers = await bare.subscribe(subject)
            headers = {"reply_to": subject, "correlation_id": "1"}
            await bare.publish(f"agent.{agent_id}.inbox", me.encode(), headers=headers)
            assert (await answers.next_msg(timeout=30)).data == f"somebody said: {me}".encode()


async def test_a_nats_inbox_can_be_the_reply_subject(
    agent_id: str, running: Running, bare: Client
) -> None:
    """`reply_to` under `_INBOX.` is answered by a core publish."""
    async with running(echo(agent_id)):
        inbox = bare.new_inbox()
        answers = await bare.subscribe(inbox)
        await bare.publish(f"agent.{agent_id}.inbox", b"x", headers={"reply_to": inbox})
        assert (await answers.next_msg(timeout=30)).data == b"somebody said: x"


async def test_no_agent_publishes_where_a_caller_points_it(
    agent_id: str, running: Running, bare: Client
) -> None:
    """A `reply_to` that is no reply subject is refused: nothing is published there."""
    async with running(echo(agent_id)):
        targets = (
            "$JS.API.STREAM.PURGE.INBOX",
            "$KV.registry.agent.x",
            "elsewhere",
            "agent.*.reply",
        )
        heard = [await bare.subscribe(one) for one in targets]
        for target in targets:
            headers = {"reply_to": target}
            await bare.publish(f"agent.{agent_id}.inbox", b"x", headers=headers)
        replies = await bare.subscribe(f"agent.{agent_id}.reply")
        await bare.publish(f"agent.{agent_id}.inbox", b"fine")
        await replies.next_msg(timeout=30)
        # The wildcard hears the honest answer, and nothing else.
        assert [one.pending_msgs for one in heard] == [0, 0, 0, 1]


async def test_a_request_to_nobody_becomes_a_dead_letter(agent_id: str, bare: Client) -> None:
    """Its body is kept with the reason, the caller is told, and the mailbox is empty again."""
    replies = await bare.subscribe(f"agent.{agent_id}.reply")
    jetstream = bare.jetstream()
    await jetstream.publish(f"agent.{agent_id}.inbox", b"anybody?")
    message = await replies.next_msg(timeout=30)
    assert message.data.startswith(b"error: agent_not_found: ")
    dead = await bare.jsm().get_last_msg("DEAD", f"dead.{agent_id}")
    assert dead.data == b"anybody?"
    assert (dead.headers or {})["mesh-reason"] == "unknown_agent"

    async def is_empty() -> bool:
        info = await bare.jsm().stream_info("INBOX", subjects_filter=f"agent.{agent_id}.inbox")
        return not info.state.subjects

    await until(is_empty)


async def test_a_request_to_no_id_becomes_a_dead_letter(bare: Client) -> None:
    """A token that is no id cannot have an agent; its letters lie under one name."""
    await bare.jetstream().publish("agent.NO_ID.inbox", b"x")

    async def is_dead() -> bool:
        try:
            dead = await bare.jsm().get_last_msg("DEAD", "dead.invalid-id")
        except nats.js.errors.NotFoundError:
            return False
        return dict(dead.headers or {}).get("mesh-subject") == "agent.NO_ID.inbox"

    await until(is_dead)


def mailbox(broker: NatsBroker, agent_id: str) -> Callable[[Callable[..., Any]], object]:
    """Return what has a function answer the requests in a mailbox, as plain FastStream does."""
    return broker.subscriber(
        f"agent.{agent_id}.inbox",
        stream=JStream("INBOX", declare=False),
        durable=agent_id,
        pull_sub=PullSub(1),
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )


@asynccontextmanager
async def faststream_agent(
    agent_id: str, settings: Settings, *, attached: bool
) -> AsyncIterator[None]:
    """Run a plain FastStream application that is an agent."""
    broker = NatsBroker(settings.nats_url)
    app = FastStream(broker)
    if attached:
        attach(app, AgentCard(id=agent_id), settings=settings)

    @mailbox(broker, agent_id)
    async def answer(message: NatsMessage) -> str:
        return f"faststream read {len(message.body)} bytes"

    await app.start()
    try:
        yield
    finally:
        await app.stop()


async def test_a_plain_faststream_application_is_an_agent(
    agent_id: str, settings: Settings, bare: Client
) -> None:
    """With nothing of ours, it is reachable by subject."""
    call = uuid.uuid4().hex
    async with faststream_agent(agent_id, settings, attached=False):
        delivered = await bare.subscribe("delivered.me.reply.x.>")
        headers = {"reply_to": f"agent.me.reply.x.{call}", "correlation_id": call}
        await bare.jetstream().publish(f"agent.{agent_id}.inbox", b"four", headers=headers)
        message = await delivered.next_msg(timeout=30)
    assert message.data == b"faststream read 4 bytes"


async def test_an_attached_faststream_application_is_a_full_agent(
    agent_id: str, settings: Settings, client: MeshClient
) -> None:
    """It is in the registry, every client can call it, and it leaves when it stops."""
    async with faststream_agent(agent_id, settings, attached=True):
        await until(lambda: client.directory.agent_record(agent_id) is not None)
        assert client.directory.agent(agent_id).state == "online"
        reply = await client.ask(agent_id, "hello")
        assert reply.text.startswith("faststream read ")
    await until(lambda: client.directory.agent(agent_id).state == "offline")


async def test_an_attached_faststream_application_takes_large_bodies(
    agent_id: str, settings: Settings, client: MeshClient, bare: Client
) -> None:
    """Both ways; of one that is gone its caller is told, and the handler does not see it."""
    read: list[int] = []

    def large() -> FastStream:
        broker = NatsBroker(settings.nats_url)
        app = FastStream(broker)
        attach(app, AgentCard(id=agent_id), settings=settings)

        @mailbox(broker, agent_id)
        async def answer(message: NatsMessage) -> str:
            read.append(len(message.body))
            return "y" * len(message.body)

        return app

    body = encode_question(agent_id, "x" * 2_000_000, stream=False)
    app = large()
    await app.start()
    await until(lambda: client.directory.agent_record(agent_id) is not None)
    call = await client.start(agent_id, body)
    assert (await call.reply()).text == "y" * len(body)
    await app.stop()
    await until(lambda: client.directory.agent(agent_id).state == "offline")
    call = await client.start(agent_id, body)
    store = await bare.jetstream().object_store("bodies")
    names = [one.name or "" for one in await store.list(ignore_deletes=True)]
    await store.delete(next(one for one in names if one.startswith(call.id)))
    app = large()
    await app.start()
    try:
        with pytest.raises(BodyLostError):
            await call.result()
    finally:
        await app.stop()
    assert read == [len(body)]


async def test_a_secure_mesh_takes_no_faststream_application(tmp_path: Path) -> None:
    """It would answer unsigned requests: whoever writes one is told so, and what to do."""
    keyring = Keyring.create(tmp_path / "keys")
    settings = Settings(data_dir=tmp_path, keys_folder=keyring.folder)
    with pytest.raises(SettingsError, match=r"mesh\.Agent"):
        attach(FastStream(NatsBroker(settings.nats_url)), AgentCard(id="x"), settings=settings)


async def test_an_attached_faststream_application_answers_pings(
    agent_id: str, settings: Settings, client: MeshClient, bare: Client
) -> None:
    """Neither its handler runs, nor its filter and publisher; the request is acknowledged."""
    broker, runs = NatsBroker(settings.nats_url), []
    app = FastStream(broker)
    attach(app, AgentCard(id=agent_id), settings=settings)

    async def note(message: NatsMessage) -> bool:
        runs.append("filter")
        return True

    subscriber = broker.subscriber(
        f"agent.{agent_id}.inbox",
        stream=JStream("INBOX", declare=False),
        durable=agent_id,
        pull_sub=PullSub(1),
        ack_policy=AckPolicy.MANUAL,
    )

    @subscriber(filter=note)
    @broker.publisher(f"noted.{agent_id}")
    async def answer(message: NatsMessage) -> str:
        runs.append("handler")
        await message.ack()
        return "told"

    noted = await bare.subscribe(f"noted.{agent_id}")
    await app.start()
    try:
        await until(lambda: client.directory.agent_record(agent_id) is not None)
        body = encode_question(agent_id, "ping", stream=False)
        call = await client.start(agent_id, body, timeout_s=5, is_ping=True)
        frame = await call.result()
        assert (frame.node, (await call.reply()).text) == (settings.node, "pong")
        assert runs == []
        assert (await client.ask(agent_id, "hello")).text == "told"
        assert (runs, (await noted.next_msg(timeout=30)).data) == (["filter", "handler"], b"told")
        assert noted.pending_msgs == 0
        info = await bare.jsm().stream_info("INBOX", subjects_filter=f"agent.{agent_id}.inbox")
        assert not info.state.subjects
    finally:
        await app.stop()


async def test_a_faststream_application_calls_an_agent(
    agent_id: str, running: Running, settings: Settings
) -> None:
    """FastStream publishes with its own headers and hears the answer, not a PubAck."""
    broker = NatsBroker(settings.nats_url)
    answers: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    call = uuid.uuid4().hex

    @broker.subscriber(f"delivered.{agent_id}-c.reply.x.*")
    async def on_answer(body: str, message: NatsMessage) -> None:
        await answers.put((message.correlation_id, body))

    async with running(echo(agent_id)), broker:
        await broker.start()
        await broker.publish(
            "from faststream",
            f"agent.{agent_id}.inbox",
            reply_to=f"agent.{agent_id}-c.reply.x.{call}",
            correlation_id=call,
            stream="INBOX",
        )
        found = await asyncio.wait_for(answers.get(), 30)
    assert found == (call, "somebody said: from faststream")
