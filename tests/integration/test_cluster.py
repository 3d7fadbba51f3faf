"""What holds on a cluster of three brokers as well: a replica that lags misleads nobody."""

import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mesh import headers as h
from mesh import subjects
from mesh.calls import CallState, StoredCall
from mesh.connection import Connection, open_connection
from mesh.followers import follow_call
from mesh.ledger import read_record
from mesh.provision import ensure_streams
from mesh.settings import Settings
from tests.cluster import LoopbackCluster


async def write(connection: Connection, call_id: str, kind: str, body: bytes = b"{}") -> str:
    """Store one frame of a call, and return its subject."""
    subject = subjects.reply("far", "x", call_id, "nobody")
    headers = {h.KIND: kind, h.CORRELATION_ID: call_id, h.CONTENT_TYPE: h.JSON, h.TTL: "60"}
    await connection.publisher.publish(subject, body, headers)
    return subject


@pytest.mark.timeout(120)
async def test_what_was_acknowledged_is_found_at_every_replica(tmp_path: Path) -> None:
    """A record is there at once, and a request that is gone has not expired if it was answered."""
    async with LoopbackCluster(tmp_path) as servers, AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(open_connection(url, name="test", patience_s=20))
            for url in servers.urls
        ]
        await ensure_streams(connections[0], Settings(replicas=3))
        for number in range(150):
            writer, *readers = connections[number % 3 :] + connections[: number % 3]
            call_id = os.urandom(16).hex()
            # Its request is gone from the mailbox, as after an answer.
            body = b'{"agent":"nobody","sequence":1000000,"timeout_ms":1000}'
            subject = await write(writer, call_id, "stored", body)
            for reader in readers:
                assert (await read_record(reader, call_id)).state is CallState.EXPIRED
            await write(writer, call_id, "final")
            for reader in readers:
                assert (await read_record(reader, call_id)).state is CallState.ANSWERED
            call_id = os.urandom(16).hex()
            subject = await write(writer, call_id, "final")
            for reader in readers:
                stored = StoredCall(call_id, "nobody", subject, 1_000_000)
                async with follow_call(reader, stored) as call:
                    await call.result()
