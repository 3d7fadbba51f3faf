"""The agent's half of a round trip by hand in nats-py: what both benches compare the mesh with.

Pulls with credits from the mesh's own streams, stores the reply, and only then acknowledges the
request. Nothing else: no deadline, no second attempt, no heartbeat.
"""

import asyncio
from collections.abc import Awaitable, Callable

import nats
import orjson
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

CREDITS = 64

Answer = Callable[[JetStreamContext, Msg], Awaitable[None]]
"""Publishes the answer of a request, and returns when it is stored."""


async def declare_mailbox(url: str, name: str) -> None:
    """Make the durable of an agent by hand; the streams are there."""
    client = await nats.connect(url)
    config = ConsumerConfig(
        durable_name=name,
        filter_subject=f"agent.{name}.inbox",
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=10,
    )
    await client.jetstream().add_consumer("INBOX", config)
    await client.close()


async def run_agent(url: str, name: str, answer: Answer) -> None:
    """Answer the requests in the mailbox of `name`, until cancelled. Says when it is ready."""
    client = await nats.connect(url)
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
    try:
        await pull()
        print("ready", flush=True)
        await asyncio.Event().wait()
    finally:
        await client.close()
