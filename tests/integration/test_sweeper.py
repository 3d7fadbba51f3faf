"""What is sent to stay for ever goes with everything else, and nothing that is young does."""

from pathlib import Path

from handlers.sweeper import Sweeper
from mesh import headers as h
from mesh.broker import embedded_broker
from mesh.connection import open_connection
from mesh.history import read_next, stored_ns
from mesh.provision import ensure_streams
from mesh.streams import INBOX, REPLY
from tests.brokers import own_settings
from tests.clocks import StoppedClock

STREAMS = {INBOX: "agent.a.inbox", REPLY: "agent.ann.reply.i.c.a"}


async def test_what_never_expires_is_swept(tmp_path: Path) -> None:
    """From the mailboxes and from the answers; what came later stays, up to the last one."""
    settings = own_settings(tmp_path / "data")
    async with (
        embedded_broker(settings) as broker,
        open_connection(broker.url, name="test") as connection,
    ):
        await ensure_streams(connection, settings)
        manager = connection.client.jsm()
        for stream, subject in STREAMS.items():
            for _ in range(25):
                await connection.publisher.publish(subject, b"x", {h.TTL: "never"})
            places = [await connection.publisher.publish(subject, b"young", {}) for _ in range(3)]
            first = await read_next(connection, stream, ">", places[0].sequence)
            assert first is not None
            now = StoppedClock(stored_ns(first.headers))
            await Sweeper(connection, now, kept_s=10).sweep()
            assert (await manager.stream_info(stream)).state.messages == 28
            await Sweeper(connection, now, kept_s=0).sweep()
            left = (await manager.stream_info(stream)).state
            assert (left.messages, left.first_seq) == (3, places[0].sequence)
            later = StoppedClock(stored_ns(first.headers) + 3_600_000_000_000)
            await Sweeper(connection, later, kept_s=60).sweep()
            assert (await manager.stream_info(stream)).state.messages == 0
            await Sweeper(connection, later, kept_s=60).sweep()
