"""The object store itself: order, room, and what others read and write there."""

import asyncio
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from mesh import Agent, ChatRequest
from mesh.attachments import put_body, put_file
from mesh.claims import Claim
from mesh.connection import Connection, open_connection
from mesh.errors import (
    AckLostError,
    BodyLostError,
    BrokerUnreachableError,
    PayloadTooLargeError,
    StorageFullError,
    TransportError,
)
from mesh.objects import read, read_chunks, remove
from mesh.publisher import PubAck
from mesh.questions import encode_question
from mesh.settings import Settings
from mesh.streams import BODIES
from tests.brokers import KillableBroker
from tests.calls import own_mesh
from tests.conftest import until

SOME = os.urandom(5_000_000)


@asynccontextmanager
async def narrow_store(url: str, max_bytes: int) -> AsyncIterator[None]:
    """Leave little room in the object store of a broker."""
    client = await nats.connect(url)
    manager = client.jsm()
    config = (await manager.stream_info(BODIES)).config
    await manager.update_stream(config.evolve(max_bytes=max_bytes))
    try:
        yield
    finally:
        await manager.update_stream(config)
        await client.close()


async def test_nats_py_reads_what_we_write_and_the_other_way_round(
    connection: Connection, bare: Client
) -> None:
    """Also an empty one, and one of a single chunk."""
    store = await bare.jetstream().object_store("bodies")
    for content in (b"", b"x", SOME[:131_072], SOME):
        claim = await put_file(connection, "ours", content, reader="own")
        file = io.BytesIO()
        found = await store.get(claim.name, writeinto=file)
        assert (file.getvalue(), found.info.size) == (content, len(content))
        theirs = await store.put("theirs", content)
        read_by_us = Claim("theirs", len(content), claim.sha256)
        assert theirs.size == len(content)
        assert await read(connection, read_by_us) == content
        await remove(connection, claim)
        await remove(connection, claim)
        with pytest.raises(BodyLostError):
            await read(connection, claim)


async def test_chunks_that_are_sent_again_keep_their_order(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acknowledgements are lost, of what was stored and of what was not."""
    submit, number = connection.publisher.submit, 0

    async def submit_badly(
        subject: str, body: bytes, headers: dict[str, str]
    ) -> "asyncio.Future[PubAck]":
        nonlocal number
        number += 1
        if number % 5 != 2:
            return await submit(subject, body, headers)
        if number % 3 == 2:
            raise BrokerUnreachableError("the buffer is full, says the test")
        if number % 2:
            await (await submit(subject, body, headers))
        lost: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        lost.set_exception(AckLostError("lost by the test"))
        return lost

    monkeypatch.setattr(connection.publisher, "submit", submit_badly)
    claim = await put_body(connection, "ordered", SOME, reader="own")
    monkeypatch.undo()
    assert number > 38
    assert await read(connection, claim) == SOME


async def test_an_upload_outlives_the_broker(tmp_path: Path, settings: Settings) -> None:
    """It is killed in the middle, of an upload and of a download, and both go on."""

    async def slowly() -> AsyncIterator[bytes]:
        for start in range(0, len(SOME), 100_000):
            yield SOME[start : start + 100_000]
            await asyncio.sleep(0.02)

    async with own_mesh(settings, tmp_path, Agent("own")) as mesh:
        putting = asyncio.create_task(put_file(mesh.connection, "outlives", slowly(), reader="own"))

        async def has_begun() -> bool:
            info = await mesh.connection.client.jsm().stream_info(BODIES)
            return info.state.messages > 5

        await until(has_begun)
        await mesh.broker.kill()
        claim = await asyncio.wait_for(putting, 60)
        found = bytearray()
        async for chunk in read_chunks(mesh.connection, claim):
            if not found:
                await mesh.broker.kill()
            found += chunk
    assert found == SOME


async def test_a_full_store_is_told(tmp_path: Path, settings: Settings) -> None:
    """To who asks, before the call; and of an answer, to its caller; small calls go on."""
    agent = Agent("own")

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return "y" * 5_000_000 if request.last_text == "much" else "little"

    async with own_mesh(settings, tmp_path, agent) as mesh, narrow_store(mesh.broker.url, 2**20):
        info = await mesh.connection.client.jsm().stream_info("INBOX")
        with pytest.raises(StorageFullError) as full:
            await mesh.client.ask("own", "x" * 5_000_000)
        assert full.value.fields["bucket"] == "bodies"
        after = await mesh.connection.client.jsm().stream_info("INBOX")
        assert after.state.last_seq == info.state.last_seq
        with pytest.raises(StorageFullError):
            await mesh.client.ask("own", "much", timeout_s=6)
        assert (await mesh.client.ask("own", "x")).text == "little"

        async def is_empty() -> bool:
            kept = await mesh.connection.client.jsm().stream_info(BODIES)
            return not kept.state.messages

        await until(is_empty)


async def test_a_held_answer_is_stored_when_there_is_room(
    tmp_path: Path, settings: Settings
) -> None:
    """The work is done: it waits for as long as half of its deadline."""
    agent, runs = Agent("own"), 0

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        nonlocal runs
        runs += 1
        return "y" * 5_000_000

    async with own_mesh(settings, tmp_path, agent) as mesh:
        async with narrow_store(mesh.broker.url, 2**20):
            body = encode_question("own", "much", stream=False)
            call = await mesh.client.start("own", body, timeout_s=60)

            async def has_tried_twice() -> bool:
                # A store that is full takes a part, and each try begins anew.
                kept = await mesh.connection.client.jsm().stream_info(BODIES)
                return kept.state.last_seq > 10

            await until(has_tried_twice)
            assert not call.is_done
        assert len((await call.reply()).text) == 5_000_000
    assert runs == 1


async def test_a_mesh_without_the_store_says_what_to_do(tmp_path: Path, settings: Settings) -> None:
    """The control plane is an older one, or somebody has deleted the stream."""
    async with own_mesh(settings, tmp_path, Agent("own")) as mesh:
        await mesh.connection.client.jsm().delete_stream(BODIES)
        with pytest.raises(TransportError) as missing:
            await mesh.client.ask("own", "x" * 5_000_000)
        assert "mesh up" in str(missing.value)


async def test_a_broker_with_small_messages(tmp_path: Path) -> None:
    """Chunks are cut to what it takes."""
    async with (
        KillableBroker(tmp_path) as broker,
        open_connection(broker.url, name="test small") as connection,
    ):
        config = StreamConfig(name=BODIES, subjects=["$O.bodies.>"], allow_direct=True)
        await connection.client.jsm().add_stream(config)
        connection.client._max_payload = 20_000
        claim = await put_body(connection, "small", SOME, reader="own")
        assert await read(connection, claim) == SOME


async def test_what_is_read_has_a_limit(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim on more than this process takes is refused before anything is read."""
    claim = await put_body(connection, "limited", SOME, reader="own")
    monkeypatch.setattr(connection, "body_max_bytes", 1_000_000)
    with pytest.raises(PayloadTooLargeError):
        await read(connection, claim)
