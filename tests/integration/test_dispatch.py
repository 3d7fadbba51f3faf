"""A `Prompt` is called where messages are read, and in the place of a callback everywhere. What is
published goes out in its order, also through a socket that is full.
"""

import logging
import os
import signal
from asyncio import Event, sleep
from pathlib import Path

import nats
import pytest
from nats.aio.msg import Msg

from mesh.connection import Connection, open_connection
from mesh.dispatch import Prompt
from tests.brokers import KillableBroker
from tests.conftest import until


async def test_in_the_order_of_arrival(connection: Connection, agent_id: str) -> None:
    """Across subscriptions, too: there is no queue for each in which one could be late."""
    client, seen = connection.client, list[str]()
    for one in ("a", "b"):
        await client.subscribe(f"{agent_id}.{one}", cb=Prompt(lambda m: seen.append(m.subject)))
    sent = [f"{agent_id}.{'ab'[number % 2]}" for number in range(1_000)]
    for subject in sent:
        await client.publish(subject, b"x", headers={"some": "header"})
    await client.flush()
    assert seen == sent  # The broker's PONG comes behind them: they are taken by now.


async def test_what_it_raises_is_told_and_reading_goes_on(
    connection: Connection, agent_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[bytes] = []

    def take(message: Msg) -> None:
        if message.data == b"bad":
            raise LookupError("not this one")
        seen.append(message.data)

    await connection.client.subscribe(agent_id, cb=Prompt(take))
    with caplog.at_level(logging.WARNING, "mesh.connection"):
        for body in (b"one", b"bad", b"two"):
            await connection.client.publish(agent_id, body)
        await connection.client.flush()
    assert seen == [b"one", b"two"]
    assert "not this one" in caplog.text


async def test_a_subscription_ends_as_any_does(nats_url: str, agent_id: str) -> None:
    """Drained, it takes what is on its way, and then no more."""
    seen: list[bytes] = []
    async with open_connection(nats_url, name="test") as connection:
        client = connection.client
        subscription = await client.subscribe(agent_id, cb=Prompt(lambda m: seen.append(m.data)))
        await client.publish(agent_id, b"in time")
        await subscription.drain()  # type: ignore[no-untyped-call]
        await client.publish(agent_id, b"late")
        await client.flush()
        assert seen == [b"in time"]


async def test_on_a_client_of_somebody_else(nats_url: str, agent_id: str) -> None:
    """There it is a callback as nats-py knows them."""
    came = Event()
    client = await nats.connect(nats_url)
    try:
        await client.subscribe(agent_id, cb=Prompt(lambda _: came.set()))
        await client.publish(agent_id, b"")
        await until(came.is_set)
    finally:
        await client.close()


async def test_through_a_socket_that_is_full(tmp_path: Path) -> None:
    """A broker that stands still for a moment is sent the rest when it reads again."""
    bodies, seen = [f"{number:05}".encode() * 10_000 for number in range(150)], list[bytes]()
    async with (
        KillableBroker(tmp_path) as broker,
        open_connection(broker.url, name="test reader") as reader,
        open_connection(broker.url, name="test writer") as writer,
    ):
        await reader.client.subscribe("some", cb=Prompt(lambda m: seen.append(m.data)))
        await reader.client.flush()
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            for body in bodies:
                await writer.client.publish("some", body)
                await sleep(0)  # A turn of the loop, and so a write, for each.
            assert writer.client.pending_data_size > 0, "the socket took everything"
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        await until(lambda: len(seen) == len(bodies))
    assert seen == bodies
