"""Bodies and files in a secure mesh: both ways between accounts, what becomes of them, and what can
go wrong. Who else tries to get at them, see `tests/attacks/test_parcels.py`.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from pathlib import Path

import pytest

from mesh import headers as h
from mesh import streams, subjects
from mesh.attachments import put_body, put_file
from mesh.callers import Caller, new_instance_id
from mesh.cli.dead import _body, _send
from mesh.client import MeshClient, open_client
from mesh.connection import Connection, open_connection
from mesh.dead_letters import DeadLetter, read_letters
from mesh.directory import Directory, follow_directory, load_directory
from mesh.errors import (
    AckLostError,
    CallNotFoundError,
    CallTimeoutError,
    KeyReusedError,
    PayloadTooLargeError,
)
from mesh.followers import follow_call
from mesh.ledger import read_answered, read_record
from mesh.objects import read
from mesh.publisher import PubAck
from mesh.questions import encode_question
from mesh.trust.grants import Grant
from schemas.registry import UserRole
from tests.accounts.mesh import Mesh, two_hosts
from tests.accounts.parcels import forget, kept
from tests.conftest import until
from tests.flat import MEGABYTE, round_trip

LARGE = "x" * 3_000_000
SOME = os.urandom(5_000_000)


@pytest.fixture(scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh on two accounts."""
    async with two_hosts(tmp_path_factory.mktemp("parcels")) as found:
        yield found


@pytest.fixture(scope="module")
async def connection(mesh: Mesh) -> AsyncIterator[Connection]:
    """The connection of a person."""
    async with open_connection(mesh.accounts.login("ann"), name="ann") as opened:
        yield opened


@pytest.fixture(scope="module")
async def directory(connection: Connection) -> AsyncIterator[Directory]:
    """The registry as the person sees it."""
    async with follow_directory(connection) as followed:
        yield followed


@pytest.fixture(scope="module")
async def ann(connection: Connection, directory: Directory) -> AsyncIterator[MeshClient]:
    """The person calls agents."""
    caller = Caller("ann", "laptop", new_instance_id())
    async with open_client(connection, directory, caller) as client:
        yield client


@pytest.fixture(scope="module")
async def hub(mesh: Mesh) -> AsyncIterator[Connection]:
    """A connection that may do everything, as that of a door."""
    async with open_connection(mesh.accounts.login("control"), name="hub") as opened:
        yield opened


@pytest.fixture
async def core(hub: Connection) -> Connection:
    """The same, with nothing in the store that another test has left."""
    await forget(hub)
    return hub


def has(core: Connection, reader: str, count: int) -> Callable[[], Awaitable[bool]]:
    """Tell whether so many parcels are kept for somebody."""

    async def check() -> bool:
        return len(await kept(core, reader)) == count

    return check


async def test_a_large_question_and_its_large_answer_cross_the_accounts(
    mesh: Mesh, ann: MeshClient, core: Connection
) -> None:
    """Between members whole or in parts, of agents that ask agents, and through a door."""
    assert (await ann.ask("b", LARGE, timeout_s=20)).text == f"b on ann: {LARGE}"
    words = f"{'w' * 150_000} " * 20
    parts = [part async for part in ann.stream("a", words, timeout_s=60)]
    assert "".join(parts) == words
    assert (await ann.ask("c", LARGE, timeout_s=20)).text == f"c heard b on c: {LARGE}"
    caller = Caller("http", "hub", new_instance_id())
    async with (
        open_connection(mesh.accounts.login("http"), name="http") as connection,
        open_client(connection, await load_directory(core), caller) as door,
    ):
        assert (await door.ask("b", LARGE, timeout_s=20)).text == f"b on http: {LARGE}"
    await until(has(core, "b", 0))
    await until(has(core, "c", 1))  # The answer to its question, as long as its frame.


async def test_every_size_about_the_limit_crosses(ann: MeshClient) -> None:
    """As one message or beside it, with what headers and signature take."""
    for size in range(1_041_500, 1_045_000, 500):
        assert len((await ann.ask("b", "x" * size, timeout_s=5)).text) == size + len("b on ann: ")


async def test_a_file_goes_there_and_back(
    ann: MeshClient, core: Connection, tmp_path: Path
) -> None:
    """Beside a small question and beside a large one; an empty one, and one of one chunk."""
    path = tmp_path / "Büro plan, 1.pdf"
    path.write_bytes(SOME)
    for text, file, content in (
        ("x", path, SOME),
        (LARGE, path, SOME),
        ("x", b"", b""),
        ("x", b"small", b"small"),
        ("x", SOME[: 128 * 1024], SOME[: 128 * 1024]),
        ("x", SOME[: 128 * 1024 + 1], SOME[: 128 * 1024 + 1]),
    ):
        reply = await ann.ask("b", text, file=file, timeout_s=20)
        assert reply.text == f"b on ann: {text}"
        assert reply.file is not None
        assert reply.file.name == ("Büro plan, 1.pdf" if file is path else "")
        assert await reply.file.read() == content
        assert reply.file.sha256 == sha256(content).hexdigest()
    await until(has(core, "b", 0))


async def test_a_question_is_removed_when_it_is_answered(
    ann: MeshClient, core: Connection, connection: Connection
) -> None:
    """An answer stays as long as its frame, for its caller, who can come back for it."""
    call = await ann.start("b", encode_question("b", LARGE, stream=False), timeout_s=20)
    assert (await call.reply()).text.endswith(LARGE)
    await until(has(core, "b", 0))
    [name] = await kept(core, "ann")
    record = (await read_record(connection, call.id)).call
    async with follow_call(connection, record) as again:
        assert (await again.reply()).text.endswith(LARGE)
    frame = await core.client.jsm().get_last_msg(streams.REPLY, call.reply_subject)
    assert (frame.headers or {})[h.BODY].startswith(f"{name} ")
    chunk = await core.client.jsm().get_last_msg(streams.BODIES, f"{name}.0")
    assert int((chunk.headers or {})[h.TTL]) >= int((frame.headers or {})[h.TTL])


async def test_the_hub_reads_every_answer_and_other_members_none(
    mesh: Mesh, ann: MeshClient, core: Connection
) -> None:
    """Whoever looks a call up: its operator sees it whole, and a stranger finds nothing."""
    call = await ann.start("b", encode_question("b", LARGE, stream=False), timeout_s=20)
    await call.result()
    seen = await read_answered(core, call.id)
    assert LARGE.encode() in seen.outcome.body  # type: ignore[union-attr]
    async with open_connection(mesh.accounts.login("host2"), name="host2") as other:
        with pytest.raises(CallNotFoundError):
            await read_answered(other, call.id)


async def test_what_is_not_answered_is_removed(ann: MeshClient, core: Connection) -> None:
    """Of a call that is cancelled, and of an upload that fails or is stopped half-way."""
    body = encode_question("b", LARGE, stream=False)
    with pytest.raises(CallTimeoutError):
        await (await ann.start("b", body, node="node1", timeout_s=0.001)).result()
    await until(has(core, "b", 0))
    await forget(core)  # An answer that was made within the millisecond.

    async def broken() -> AsyncIterator[bytes]:
        yield SOME
        raise ValueError("no more of it")

    with pytest.raises(ValueError, match="no more"):
        await ann.ask("b", "x", file=broken(), timeout_s=20)
    await until(has(core, "b", 0))

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield SOME[:200_000]
            await asyncio.sleep(0.01)

    asking = asyncio.create_task(ann.ask("b", "x", file=endless(), timeout_s=20))
    await until(has(core, "b", 1))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(has(core, "b", 0))
    assert await kept(core) == []


async def test_the_mesh_has_a_limit(
    ann: MeshClient, core: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MESH_BODY_MAX of who writes, and of who reads."""
    claim = await put_body(core, "limited", SOME, reader="ann")
    assert await read(ann._connection, claim) == SOME
    monkeypatch.setattr(ann._connection, "body_max_bytes", 1_000_000)
    with pytest.raises(PayloadTooLargeError, match="MESH_BODY_MAX"):
        await ann.ask("b", LARGE, timeout_s=5)
    with pytest.raises(PayloadTooLargeError):
        await read(ann._connection, claim)


async def test_an_idempotent_call_with_a_large_question(mesh: Mesh, ann: MeshClient) -> None:
    """A retry is the same call, and another question under its id is refused."""
    body, call_id = encode_question("b", LARGE, stream=False), os.urandom(16).hex()
    first = await ann.submit("b", body, call_id=call_id)
    again = await ann.submit("b", body, call_id=call_id)
    assert (again.id, again.sequence) == (first.id, first.sequence)
    await until(lambda: mesh.runs.count(call_id) == 1)
    with pytest.raises(KeyReusedError):
        await ann.submit("b", body + b" ", call_id=call_id)
    answered = await read_answered(ann._connection, call_id)
    assert LARGE.encode() in answered.outcome.body  # type: ignore[union-attr]


async def test_a_hundred_megabytes_in_flat_memory(mesh: Mesh, tmp_path: Path) -> None:
    """Caller and agent take no more memory for 100 MB, there and back, than for a small file."""
    keyring = mesh.accounts.keyring
    user = keyring.issue("flat", UserRole.AGENT, Grant("node1", ("flat",)))
    grown = await round_trip(
        mesh.accounts.url,
        "flat",
        tmp_path,
        agent_creds=str(keyring.credentials_path(user.name)),
        caller_creds=str(keyring.credentials_path("ann")),
    )
    assert max(grown["caller"], grown["agent"]) < 8 * MEGABYTE, grown


async def test_chunks_are_read_whatever_their_size(core: Connection, ann: MeshClient) -> None:
    """Cut by a broker, or a client, that takes smaller messages."""
    limit = core.client._max_payload
    core.client._max_payload = 20_000
    try:
        claim = await put_file(core, "cut", SOME, reader="ann")
    finally:
        core.client._max_payload = limit
    assert await read(ann._connection, claim) == SOME


async def test_chunks_that_are_sent_again(
    ann: MeshClient, core: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acknowledgements are lost, of what was stored and of what was not: all comes, and once."""
    publisher, number = ann._connection.publisher, 0
    submit = publisher.submit

    async def submit_badly(
        subject: str, body: bytes, headers: dict[str, str]
    ) -> "asyncio.Future[PubAck]":
        nonlocal number
        number += 1
        if number % 5 != 2:
            return await submit(subject, body, headers)
        if number % 2:
            await (await submit(subject, body, headers))
        lost: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        lost.set_exception(AckLostError("lost by the test"))
        return lost

    monkeypatch.setattr(publisher, "submit", submit_badly)
    claim = await put_body(ann._connection, "call", SOME, reader="ann")
    monkeypatch.undo()
    assert number > 38
    assert await read(ann._connection, claim) == SOME
    info = await core.client.jsm().stream_info(streams.BODIES, subjects_filter=f"{claim.name}.*")
    assert set((info.state.subjects or {}).values()) == {1}


async def test_a_dead_letter_is_sent_again(mesh: Mesh, ann: MeshClient, core: Connection) -> None:
    """Its body and its file are the agent's alone, and the operator's, who sends them again."""
    body = encode_question("b", LARGE, stream=False)
    call = await ann.start("b", body, file=SOME, timeout_s=30)
    await call.result()
    question = await put_body(core, "call", body, reader="b")
    file = await put_file(core, "call", SOME, reader="b")
    # No answer may go there: its agent buries it.
    headers = {
        h.REPLY_TO: "$KV.registry.agent.b",
        h.SOURCE_AGENT: "ann",
        h.CONTENT_TYPE: h.JSON,
        h.BODY: str(question),
        h.FILE: str(file),
    }
    await core.publisher.publish(subjects.inbox("b"), b"", headers)
    letters: list[DeadLetter] = []

    async def is_buried() -> bool:
        letters[:] = [one async for one in read_letters(core, "b") if one.body_claim]
        return bool(letters)

    await until(is_buried)
    async with (
        open_connection(mesh.accounts.login("cli"), name="cli") as connection,
        follow_directory(connection) as directory,
        open_client(connection, directory, Caller("cli", "hub", new_instance_id())) as client,
    ):
        again = await _send(client, connection, letters[0], await _body(connection, letters[0]), "")
        async with follow_call(connection, again) as answer:
            reply = await answer.reply()
        assert reply.text.endswith(LARGE)
        assert reply.file is not None
        assert await reply.file.read() == SOME
    assert {question.name, file.name} <= set(await kept(core, "b"))
