"""What a stream has stored is read whole, however much it is."""

import asyncio
import time

from mesh.connection import Connection
from mesh.history import read_history
from mesh.streams import REPLY

PART, PARTS = b"x" * 900_000, 120


async def test_more_than_the_broker_holds_for_a_slow_reader(
    connection: Connection, agent_id: str
) -> None:
    """A reader that stands still for a second is not cut off: it has not asked for more yet."""
    subject = f"agent.{agent_id}.reply.i.c.x"
    for _ in range(PARTS):
        await connection.publisher.publish(subject, PART, {"Nats-TTL": "60s"})
    reconnects = connection.client.stats["reconnects"]
    reading = asyncio.create_task(read_history(connection, REPLY, subject))
    asyncio.get_running_loop().call_later(0.02, time.sleep, 1.0)
    found = await reading
    assert [len(one.body) for one in found] == [len(PART)] * PARTS
    assert connection.client.stats["reconnects"] == reconnects
    await connection.client.jsm().purge_stream(REPLY, subject=subject)
