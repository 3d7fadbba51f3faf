"""A pull of a lost connection is over with it: on the next one nobody would hear what it brings.

Behind an account boundary the broker does not see that nobody listens (it does in an open mesh),
and a message that nobody hears waits for its ack_wait. What is pulled is heard here by a bystander.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nats.aio.msg import Msg
from nats.js.api import StreamConfig

from mesh.connection import Connection, open_connection
from mesh.delivery import Delivery
from mesh.pulls import PullLoop
from mesh.streams import _worker
from mesh.subjects import PULL
from tests.brokers import KillableBroker
from tests.conftest import until

STREAM = "WORK"
DURABLE = "worker"


def _ignore(_: Delivery) -> None:
    return


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
