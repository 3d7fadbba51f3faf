"""What holds on a cluster of three brokers as well: a replica that lags misleads nobody."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from mesh import headers as h
from mesh import subjects
from mesh.calls import CallState, StoredCall
from mesh.connection import Connection, open_connection
from mesh.errors import TransportError
from mesh.followers import follow_call
from mesh.ledger import read_record
from mesh.provision import ensure_streams
from mesh.settings import Settings
from tests.brokers import NATS_SERVER, free_port

CONFIG = """
server_name: n{number}
listen: 127.0.0.1:{port}
jetstream {{ store_dir: "{folder}" }}
cluster {{ name: test, listen: 127.0.0.1:{own}, routes: [{others}] }}
"""


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[list[str]]:
    """Run three brokers as one; gives their addresses."""
    ports = [free_port() for _ in range(3)]
    routes = [free_port() for _ in range(3)]
    async with AsyncExitStack() as stack:
        for number, (port, own) in enumerate(zip(ports, routes, strict=True)):
            others = ", ".join(f'"nats://127.0.0.1:{one}"' for one in routes if one != own)
            text = CONFIG.format(
                number=number, port=port, own=own, others=others, folder=folder / str(number)
            )
            (folder / f"{number}.conf").write_text(text)
            process = await asyncio.create_subprocess_exec(
                *(NATS_SERVER, "-c", str(folder / f"{number}.conf")),
                stderr=asyncio.subprocess.DEVNULL,
            )
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
        yield [f"nats://127.0.0.1:{port}" for port in ports]


async def declare_streams(connection: Connection) -> None:
    """Declare the streams, as soon as the cluster has a leader."""
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        try:
            await ensure_streams(connection, Settings(replicas=3))
        except TransportError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)
        else:
            return


async def write(connection: Connection, call_id: str, kind: str, body: bytes = b"{}") -> str:
    """Store one frame of a call, and return its subject."""
    subject = subjects.reply("far", "x", call_id, "nobody")
    headers = {h.KIND: kind, h.CORRELATION_ID: call_id, h.CONTENT_TYPE: h.JSON, h.TTL: "60"}
    await connection.publisher.publish(subject, body, headers)
    return subject


@pytest.mark.timeout(120)
async def test_what_was_acknowledged_is_found_at_every_replica(tmp_path: Path) -> None:
    """A record is there at once, and a request that is gone has not expired if it was answered."""
    async with cluster(tmp_path) as urls, AsyncExitStack() as stack:
        connections = [
            await stack.enter_async_context(open_connection(url, name="test", patience_s=20))
            for url in urls
        ]
        await declare_streams(connections[0])
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
