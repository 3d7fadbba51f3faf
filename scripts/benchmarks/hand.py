"""A round trip by hand in nats-py: what the benches compare the mesh with.

An agent pulls with credits from the mesh's own streams, stores the reply, and only then
acknowledges the request; a caller hears what the reply stream republishes once it is stored.
Nothing else: no deadline, no second attempt, no heartbeat.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final
from uuid import uuid4

import nats
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

CREDITS = 64
NO_MORE: Final[Mapping[str, str]] = {}
REQUEST_HEADERS: Final = {
    "Nats-TTL": "30",
    "content-type": "application/json",
    "mesh-source-agent": "bencher",
    "mesh-source-node": "node1",
    "mesh-timeout-ms": "30000",
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
}
"""What a request of the mesh says beside what it takes to answer it: see `schemas/README.md`."""
REPLY_HEADERS: Final = {
    "Nats-TTL": "120",
    "content-type": "application/json",
    "mesh-instance": "c" * 32,
    "mesh-node": "node1",
    "mesh-ran-ms": "1",
    "mesh-request": "123456/1764248078123456789",
    "mesh-trace": REQUEST_HEADERS["traceparent"],
}
"""What an answer says."""
TIMEOUT_S = 30.0

Answer = Callable[[JetStreamContext, Msg], Awaitable[None]]
"""Publishes the answer of a request, and returns when it is stored."""


async def declare_mailbox(url: str, name: str) -> None:
    """Make the durable of an agent by hand; the streams are there."""
    async with opened(url) as client:
        config = ConsumerConfig(
            durable_name=name,
            filter_subject=f"agent.{name}.inbox",
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=10,
        )
        await client.jetstream().add_consumer("INBOX", config)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Client]:
    """Connect, and close at the end."""
    client = await nats.connect(url)
    try:
        yield client
    finally:
        await client.close()


async def run_agent(url: str, name: str, answer: Answer) -> None:
    """Answer the requests in the mailbox of `name`, until cancelled. Says when it is ready."""
    async with opened(url) as client:
        await serve(client, name, answer)


async def serve(client: Client, name: str, answer: Answer) -> None:
    """Answer on a connection that is open, as `run_agent` does."""
    stream = client.jetstream()
    inbox = client.new_inbox()
    tasks: set[asyncio.Task[None]] = set()
    free = CREDITS

    async def pull() -> None:
        nonlocal free
        batch, free = free, 0
        request = orjson.dumps({"batch": batch, "expires": 30_000_000_000})
        await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.INBOX.{name}", request, reply=inbox)

    def start(work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def work(message: Msg) -> None:
        nonlocal free
        await answer(stream, message)
        await client.publish(message.reply, b"+ACK")
        free += 1
        if free == 1:  # One pull for all that become free in the same turn of the loop.
            asyncio.get_running_loop().call_soon(lambda: start(pull()))

    async def on_message(message: Msg) -> None:
        nonlocal free
        if message.reply:
            start(work(message))
        else:  # The pull has expired; the broker says how many of its credits were left.
            free += int((message.headers or {}).get("Nats-Pending-Messages", 0))
            if free:
                await pull()

    await client.subscribe(inbox, cb=on_message)
    await pull()
    print(f"{name} is ready", flush=True)
    await asyncio.Event().wait()


async def answer_with(
    stream: JetStreamContext, message: Msg, body: bytes, more: Mapping[str, str] = NO_MORE
) -> None:
    """Store the only frame of an answer where the request's header says, with `more` headers."""
    headers = message.headers or {}
    call = headers["correlation_id"]
    reply = {"correlation_id": call, "Nats-Msg-Id": f"{call}.final", "kind": "final", **more}
    await stream.publish(headers["reply_to"], body, headers=reply)


class HandCaller:
    """Asks agents by hand: one connection, one subscription for all answers."""

    def __init__(
        self, client: Client, name: str = "hand", more: Mapping[str, str] = NO_MORE
    ) -> None:
        self._client = client
        self._more = more
        self._stream = client.jetstream()
        self._address = f"{name}.reply.{uuid4().hex[:8]}"
        self._answers: dict[str, asyncio.Future[bytes]] = {}
        self._streams: dict[str, asyncio.Queue[Msg]] = {}

    async def listen(self) -> None:
        """Subscribe to the stored answers. Once, before anything is asked."""
        await self._client.subscribe(f"delivered.{self._address}.>", cb=self._on_reply)

    async def serve(self, name: str, answer: Answer) -> None:
        """Be an agent as well, over the same connection, until cancelled."""
        await serve(self._client, name, answer)

    async def ask(self, agent: str, body: bytes) -> bytes:
        """Return the answer of an agent that does not stream."""
        call = uuid4().hex
        answer = self._answers[call] = asyncio.get_running_loop().create_future()
        try:
            await self._publish(agent, call, body)
            return await asyncio.wait_for(answer, TIMEOUT_S)
        finally:
            del self._answers[call]

    async def stream(self, agent: str, body: bytes) -> AsyncIterator[bytes]:
        """Yield the chunks of a streamed answer as they come."""
        call = uuid4().hex
        frames = self._streams[call] = asyncio.Queue()
        try:
            await self._publish(agent, call, body)
            async with asyncio.timeout(TIMEOUT_S):
                while ((frame := await frames.get()).headers or {}).get("kind") != "final":
                    yield frame.data
        finally:
            del self._streams[call]

    async def _publish(self, agent: str, call: str, body: bytes) -> None:
        headers = {
            "reply_to": f"agent.{self._address}.{call}",
            "correlation_id": call,
            "Nats-Msg-Id": call,
            **self._more,
        }
        await self._stream.publish_async(f"agent.{agent}.inbox", body, headers=headers)

    async def _on_reply(self, message: Msg) -> None:
        call = message.subject.rpartition(".")[2]
        if (answer := self._answers.get(call)) is not None:
            answer.set_result(message.data)
        elif (frames := self._streams.get(call)) is not None:
            frames.put_nowait(message)


@asynccontextmanager
async def calling(url: str, more: Mapping[str, str] = NO_MORE) -> AsyncIterator[HandCaller]:
    """Connect somebody who asks, with `more` headers, and close at the end."""
    async with opened(url) as client:
        caller = HandCaller(client, more=more)
        await caller.listen()
        yield caller
