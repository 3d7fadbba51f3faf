"""A pull of a lost connection is over with it: on the next one nobody would hear what it brings.
And what a group asks for: little at once, and nothing while one agent holds up the others.

Behind an account boundary the broker does not see that nobody listens (it does in an open mesh),
and a message that nobody hears waits for its ack_wait. What is pulled is heard here by a bystander.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from nats.aio.msg import Msg
from nats.js.api import StreamConfig

from mesh import pulls
from mesh.connection import Connection, open_connection
from mesh.delivery import Delivery
from mesh.group_pull import CROWD, CROWD_PAUSE_S, HELD_S, WINDOW, GroupPull, Seat
from mesh.pulls import PullLoop
from mesh.streams import INBOX, _worker, group_consumer, group_name
from mesh.subjects import PULL
from tests.brokers import KillableBroker
from tests.conftest import until

STREAM = "WORK"
DURABLE = "worker"


def _ignore(_: Delivery) -> None:
    return


@asynccontextmanager
async def group(
    connection: Connection, agent_id: str
) -> AsyncIterator[tuple[GroupPull, Seat, Seat, list[int]]]:
    """Two agents that share a durable, and how many messages each pull of theirs asks for."""
    asked: list[int] = []

    async def on_pull(message: Msg) -> None:
        asked.append(orjson.loads(message.data)["batch"])

    durable, manager = group_name([agent_id]), connection.client.jsm()
    await manager.add_consumer(INBOX, group_consumer(durable, [agent_id]))
    pull = GroupPull(connection, durable)
    await connection.client.subscribe(f"{PULL}.{INBOX}.{durable}", cb=on_pull)
    one, other = pull.seat("one", _ignore), pull.seat("other", _ignore)
    await one.start()
    yield pull, one, other, asked
    await pull.stop()
    await manager.delete_consumer(INBOX, durable)


async def test_a_group_asks_for_little_at_once(connection: Connection, agent_id: str) -> None:
    """However many slots there are: all of it may be for one agent."""
    async with group(connection, agent_id) as (pull, one, other, asked):
        one.want(10)
        await until(lambda: asked == [10])
        other.want(10)
        await until(lambda: asked == [10, WINDOW - 10])
        one.want(100)
        await connection.client.flush()
        assert sum(asked) == WINDOW
        assert pull.crowded() == []


async def test_a_group_that_one_holds_up(connection: Connection, agent_id: str) -> None:
    """Nothing is asked for, until it has left, or has had its time."""
    async with group(connection, agent_id) as (pull, one, other, asked):
        one.want(-CROWD)
        other.want(4)
        await connection.client.flush()
        assert (asked, pull.crowded()) == ([], ["one"])
        one.leave()
        await until(lambda: asked == [4])
        one.want(-CROWD)  # What it has still, and is worked on.
        assert pull.crowded() == []


async def test_a_group_whose_registrar_is_away(connection: Connection, agent_id: str) -> None:
    """The others are served after a while, and who has held something for long is named."""
    async with group(connection, agent_id) as (pull, one, other, asked):
        one.want(-1)
        assert pull.crowded() == []
        await until(lambda: pull.crowded() == ["one"], within_s=HELD_S + 5)
        one.want(-CROWD)
        other.want(4)

        async def is_served() -> bool:
            await pull.tick()
            return asked == [4]

        started = asyncio.get_running_loop().time()
        await until(is_served, within_s=CROWD_PAUSE_S + 5)
        assert asyncio.get_running_loop().time() - started >= CROWD_PAUSE_S - 0.1


class Pulling:
    """A pull loop, and the inboxes that its pulls name."""

    def __init__(self, broker: KillableBroker, connection: Connection) -> None:
        self.broker = broker
        self.connection = connection
        self.loop = PullLoop(connection, STREAM, DURABLE, _ignore)
        self.named: list[str] = []

    @property
    def inbox(self) -> str:
        """Where the pull loop listens now."""
        return self.loop._inbox


@asynccontextmanager
async def pulling(tmp_path: Path) -> AsyncIterator[Pulling]:
    """A durable, a pull loop with one pull, and a bystander."""
    async with (
        KillableBroker(tmp_path) as broker,
        open_connection(broker.url, name="test", patience_s=10) as connection,
        open_connection(broker.url, name="test bystander", patience_s=10) as bystander,
    ):
        manager = connection.client.jsm()
        await manager.add_stream(StreamConfig(name=STREAM, subjects=["work"]))
        await manager.add_consumer(STREAM, _worker(DURABLE, "work"))
        it = Pulling(broker, connection)

        async def on_pull(message: Msg) -> None:
            it.named.append(message.reply)

        await bystander.client.subscribe(f"{PULL}.{STREAM}.{DURABLE}", cb=on_pull)
        await bystander.client.flush()
        await it.loop.start()
        it.loop.want(1)
        await until(lambda: it.named == [it.inbox])
        yield it
        await it.loop.stop()


async def test_between_the_connection_and_the_word_of_it(tmp_path: Path) -> None:
    """nats-py is connected for a round trip before it says so: a slot may free up just then."""
    async with pulling(tmp_path) as it:
        old, client = it.inbox, it.connection.client
        killing = asyncio.create_task(it.broker.kill())
        await until(lambda: not client.is_connected)
        while not client.is_connected:  # noqa: ASYNC110, nats-py tells nobody of this moment.
            await asyncio.sleep(0)
        assert it.inbox == old, "it was told already"
        it.loop.want(2)
        await killing
        await until(lambda: it.inbox != old and it.inbox in it.named)
        assert old not in it.named[1:]


async def test_in_the_buffer_of_a_lost_connection(tmp_path: Path) -> None:
    """Everything else in it goes out when the connection is back."""
    async with pulling(tmp_path) as it:
        old, client = it.inbox, it.connection.client
        heard: list[bytes] = []

        async def on_word(message: Msg) -> None:
            heard.append(message.data)

        await client.subscribe("word", cb=on_word)
        await client.flush()
        it.loop.want(2)
        await asyncio.sleep(0)
        await client.publish("word", b"kept")
        assert any(old.encode() in one for one in client._pending), "it is out already"
        await client._process_op_err(ConnectionResetError())
        await until(lambda: it.inbox != old and it.inbox in it.named)
        await until(lambda: heard == [b"kept"])
        assert old not in it.named[1:]


async def test_a_pull_that_had_to_wait_is_not_sent_again(
    connection: Connection, agent_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was to go by nats-py's own way, and the loop began anew meanwhile: one pull."""
    monkeypatch.setattr(pulls, "post", lambda *_: False)
    asked: list[tuple[int, str]] = []

    async def on_pull(message: Msg) -> None:
        asked.append((orjson.loads(message.data)["batch"], message.reply))

    await connection.client.subscribe(f"{PULL}.{INBOX}.{agent_id}", cb=on_pull)
    loop = PullLoop(connection, INBOX, agent_id, _ignore)
    await loop.start()
    loop.want(4)
    loop._refill()
    await loop.restart()
    await until(lambda: bool(asked))
    await connection.client.flush()
    assert asked == [(4, loop._inbox)]
    await loop.stop()
