"""Attacks on the bodies and files of others, by a member with rights of its own.

The user of host2, agent `c`, is the attacker. What the parcels are for, see
`tests/integration/test_parcels.py`.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import nats.errors
import orjson
import pytest
from nats.aio.client import Client

from handlers.sweeper import Sweeper
from mesh import codec, streams, subjects
from mesh import headers as h
from mesh.attachments import put_body, put_file
from mesh.callers import Caller, new_instance_id
from mesh.claims import Claim
from mesh.client import MeshClient, open_client
from mesh.connection import Connection, open_connection
from mesh.directory import follow_directory
from mesh.errors import BodyLostError, CallRefusedError, MeshError, NotPermittedError
from mesh.frames import Frame
from mesh.history import read_history, stored_ns
from mesh.objects import read, remove
from mesh.outbox import Outbox, Request
from mesh.signatures import sign
from mesh.trust.credentials import Credentials
from schemas.object import DiscardReceipt
from tests.accounts.mesh import Mesh, answered, canaries, two_hosts
from tests.accounts.parcels import forget, kept
from tests.clocks import StoppedClock

SECRET = os.urandom(400_000)
READ = f"$JS.API.DIRECT.GET.{streams.BODIES}"


@pytest.fixture(scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh on two accounts."""
    async with two_hosts(tmp_path_factory.mktemp("parcels")) as found:
        yield found


@pytest.fixture(scope="module")
async def connection(mesh: Mesh) -> AsyncIterator[Connection]:
    """The connection of a person, who is attacked."""
    async with open_connection(mesh.accounts.login("ann"), name="ann") as opened:
        yield opened


@pytest.fixture(scope="module")
async def ann(connection: Connection) -> AsyncIterator[MeshClient]:
    """The person calls agents."""
    caller = Caller("ann", "laptop", new_instance_id())
    async with (
        follow_directory(connection) as directory,
        open_client(connection, directory, caller) as client,
    ):
        yield client


@pytest.fixture
async def core(mesh: Mesh) -> AsyncIterator[Connection]:
    """A connection that may do everything, to look at what an attack has done."""
    async with open_connection(mesh.accounts.login("control"), name="core") as opened:
        await forget(opened)
        yield opened


@pytest.fixture
async def mallory(mesh: Mesh) -> AsyncIterator[Client]:
    """The attacker, with bare nats-py."""
    client = await mesh.accounts.bare("host2")
    yield client
    await client.close()


@pytest.fixture
async def claim(core: Connection) -> Claim:
    """Something for ann."""
    return await put_body(core, "call", SECRET, reader="ann")


async def test_nobody_else_reads_it(
    mesh: Mesh, connection: Connection, core: Connection, mallory: Client, claim: Claim
) -> None:
    """Not even who knows its name; by no form of a read, no wildcard, and no list."""
    patterns = (f"{claim.name}.0", f"{claim.name}.*", "body.ann.>", "body.*.*.0", "body.>")
    forms = ("last_by_subj", "next_by_subj")
    bodies = [orjson.dumps({"batch": 9, "seq": 1, form: one}) for one in patterns for form in forms]
    bodies += [orjson.dumps({"last_by_subj": one}) for one in patterns]
    apis = ("STREAM.INFO", "STREAM.MSG.GET", "CONSUMER.CREATE", "STREAM.PURGE")
    asked = [
        *((f"{READ}.{one}", b"") for one in patterns),
        *((READ, one) for one in bodies),
        *((f"$JS.API.{one}.{streams.BODIES}", b"{}") for one in apis),
    ]
    answers = await asyncio.gather(*(answered(mallory, *one) for one in asked))
    assert [one for one, told in zip(asked, answers, strict=True) if told is not None] == []
    for listen in ("body.>", f"{claim.name}.*", "$O.bodies.>", "delivered.ann.>"):
        await mallory.subscribe(listen)
    async with open_connection(mesh.accounts.login("host2"), name="host2") as other:
        with pytest.raises(NotPermittedError, match="for ann, and not for host2"):
            await read(other, claim)
    assert await read(connection, claim) == SECRET
    assert await read(core, claim) == SECRET


@pytest.mark.parametrize(
    "request_body",
    [
        {"seq": 1},
        {"last_by_subj": "body.ann.>"},
        {"seq": 1, "next_by_subj": "body.ann.>", "batch": 10},
        {"multi_last": ["body.ann.>"]},
        {"start_time": "2020-01-01T00:00:00Z", "batch": 10},
    ],
    ids="+".join,
)
async def test_a_read_by_subject_has_no_body(
    mallory: Client, core: Connection, claim: Claim, request_body: dict[str, Any]
) -> None:
    """What stands there could name any subject: the server takes none, and shows nothing."""
    mine = f"body.c.{'0' * 32}.0"
    await mallory.request(mine, b"mine", timeout=5)
    told = await mallory.request(f"{READ}.{mine}", orjson.dumps(request_body), timeout=5)
    assert (told.headers or {})["Status"] == "408"
    assert told.data == b""
    # Literal wildcards in a request are wildcards to the server: within one's own name.
    own = await mallory.request(f"{READ}.body.c.*.*", timeout=5)
    assert own.data == b"mine"


@pytest.mark.parametrize(
    ("headers", "is_stored"),
    [
        ({"Nats-Rollup": "all"}, False),
        ({"Nats-Rollup": "sub"}, False),
        (
            {
                "Nats-Schedule": "@at 2030-01-01T00:00:00Z",
                "Nats-Schedule-Target": "body.ann.x.0",
            },
            False,
        ),
        ({"Nats-Incr": "+1"}, False),
        ({"Nats-Batch-Id": "x", "Nats-Batch-Sequence": "1"}, False),
        ({"Nats-Batch-Id": "x", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"}, False),
        ({"Nats-Expected-Stream": "INBOX"}, False),
        ({"Nats-Expected-Last-Sequence": "999999"}, False),
        ({"Nats-TTL": "0"}, False),
        ({"Nats-Marker-Reason": "Purge"}, True),
        ({"Nats-Marker-Reason": "MaxAge"}, True),
        ({"KV-Operation": "PURGE"}, True),
    ],
    ids=str,
)
async def test_jetstreams_own_headers_do_no_harm(
    connection: Connection,
    mallory: Client,
    claim: Claim,
    headers: dict[str, str],
    is_stored: bool,
) -> None:
    """Beside one's own chunks, or where those of others lie: theirs stay, and are whole."""
    for subject in (f"body.c.{'0' * 32}.0", f"body.ann.{'0' * 32}.0", "body.ann.*.0"):
        told = orjson.loads((await mallory.request(subject, b"x", headers=headers, timeout=5)).data)
        assert ("error" not in told) is is_stored, told
    assert await read(connection, claim) == SECRET


async def test_who_may_send_does_not_learn_a_name(mallory: Client, claim: Claim) -> None:
    """Its refusal says the place of the newest, whoever it is of, and nothing else."""
    expected = "Nats-Expected-Last-Subject-Sequence"
    for pattern in ("body.ann.>", "body.ann.*.0"):
        headers = {expected: "999999", f"{expected}-Subject": pattern}
        told = await mallory.request(f"body.c.{'0' * 32}.0", b"x", headers=headers, timeout=5)
        assert b"wrong last sequence" in told.data
        assert claim.name.encode() not in told.data
    nuid = claim.name.rpartition(".")[2]
    for part in (nuid[:1], nuid[:31]):
        headers = {expected: "999999", f"{expected}-Subject": f"body.ann.{part}*.0"}
        told = await mallory.request(f"body.c.{'0' * 32}.0", b"x", headers=headers, timeout=5)
        # A part of a token matches nothing: the last sequence of nothing is 0.
        assert b"wrong last sequence: 0" in told.data


async def test_what_is_written_over_is_seen(
    connection: Connection, mallory: Client, claim: Claim
) -> None:
    """Who knows a number can write there; the reader knows what it should be."""
    for body in (b"y" * 131_072, b"", b"y" * 900_000):
        await mallory.request(f"{claim.name}.1", body, timeout=5)
        with pytest.raises(BodyLostError):
            await read(connection, claim)
    for body in (b"", b"y", b"y" * 900_000):
        await mallory.request(f"{claim.name}.0", body, timeout=5)
        with pytest.raises(BodyLostError):
            await read(connection, claim)


async def test_only_who_knows_a_parcel_discards_it(
    connection: Connection, core: Connection, mallory: Client, claim: Claim
) -> None:
    """No pattern does, nor anything that is no name; one that is gone is no error."""
    nuid = claim.name.rpartition(".")[2]
    for tail in ("ann.*", "*.*", f"*.{nuid}", f"ann.{nuid[:31]}", "ann.0", f"A.{nuid}", "ann.%2A"):
        told = await mallory.request(f"registry.discard.{tail}", timeout=5)
        assert not codec.decode(DiscardReceipt, told.data).ok, tail
    for tail in ("ann", f"ann.{nuid}.0", ">"):
        assert await answered(mallory, f"registry.discard.{tail}") is None, tail
    assert await kept(core) == [claim.name]
    other = await put_file(core, "call", SECRET, reader="ann")
    await remove(connection, claim)
    await remove(connection, claim)
    assert await kept(core) == [other.name]
    with pytest.raises(BodyLostError, match="is not there"):
        await read(connection, claim)


async def ask_by_hand(
    connection: Connection, signer: Credentials | None, source: str, **headers: str
) -> Frame:
    """Send a request to `b` with what headers say, and return what comes back."""
    call, instance = os.urandom(16).hex(), new_instance_id()
    sent = {
        h.REPLY_TO: subjects.reply(source, instance, call, "b"),
        h.CORRELATION_ID: call,
        h.SOURCE_AGENT: source,
        h.CONTENT_TYPE: h.TEXT,
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    if signer is not None:
        text = b"" if h.BODY in sent else b"hello"
        sign(signer, "agent.b.inbox", sent, text)
    answers = await connection.client.subscribe(subjects.delivered(source, instance))
    await connection.publisher.publish("agent.b.inbox", b"" if h.BODY in sent else b"hello", sent)
    told = await answers.next_msg(timeout=10)
    frame = Frame.read(call, told.headers or {}, told.data, 1)
    assert frame is not None
    return frame


def refused(frame: Frame) -> MeshError:
    """Return why a call failed."""
    assert frame.kind.value == "error", frame
    return frame.error


async def test_a_claim_of_a_stranger_is_not_followed(mesh: Mesh, core: Connection) -> None:
    """Whoever names an object makes no agent read it, nor remove what an open mesh has left."""
    runs = list(mesh.runs)
    mine = await put_body(core, "call", SECRET, reader="b")
    old = subjects.body_meta("a-secret")
    await core.publisher.publish(old, b'{"name":"a-secret","nuid":"x","size":1}', {})
    async with open_connection(mesh.accounts.login("host2"), name="host2") as mallory:
        credentials = mallory.credentials
        unsigned = await ask_by_hand(mallory, None, "c", mesh_body=str(mine))
        assert isinstance(refused(unsigned), CallRefusedError)
        # Signed for another body than is claimed.
        changed = await ask_by_hand(mallory, credentials, "c", mesh_body=str(mine))
        assert isinstance(refused(changed), CallRefusedError)
        broken = await ask_by_hand(mallory, credentials, "c", mesh_body="no claim")
        assert refused(broken).code == "invalid_input"
        past = await ask_by_hand(mallory, None, "c", mesh_body=f"a-secret 1 {'0' * 64}")
        assert isinstance(refused(past), CallRefusedError)
    assert mesh.runs == runs
    assert await core.client.jsm().get_last_msg(streams.BODIES, old)


async def test_a_claim_on_what_is_not_for_the_agent(mesh: Mesh, core: Connection) -> None:
    """It says so at once, whatever is signed."""
    empty = sha256(b"").hexdigest()
    async with open_connection(mesh.accounts.login("host2"), name="host2") as mallory:
        for name, error in (
            (f"body.ann.{'0' * 32}", NotPermittedError),
            (f"body.b.{'0' * 32}", BodyLostError),
            ("call.0123456789ab", BodyLostError),
            ("body.b.*", BodyLostError),
            (f"body.b.{'0' * 32}.0", BodyLostError),
        ):
            # What is signed is the digest of what is claimed: that of nothing.
            told = await ask_by_hand(
                mallory, mallory.credentials, "c", mesh_body=f"{name} 1 {empty}"
            )
            assert isinstance(refused(told), error), name


async def test_a_file_cannot_be_put_beside_anothers_request(
    connection: Connection, ann: MeshClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is signed with the request."""
    send = Outbox.send
    other = await put_file(connection, "call", b"evil", reader="b")

    async def changed(outbox: Outbox, call: Any, request: Request) -> None:
        request.headers[h.FILE] = str(other)
        await send(outbox, call, request)

    assert (await ann.ask("b", "x", file=b"good", timeout_s=10)).text == "b on ann: x"
    monkeypatch.setattr(Outbox, "send", changed)
    for file in (b"good", None):
        with pytest.raises(CallRefusedError):
            await ann.ask("b", "x", file=file, timeout_s=10)


async def test_what_should_have_expired_is_swept(
    connection: Connection, core: Connection, mallory: Client, claim: Claim
) -> None:
    """JetStream keeps what never expires, against the age of the stream; what is young stays."""
    endless = {h.TTL: "never"}
    for place in range(20):
        await mallory.request(f"body.c.{'0' * 32}.{place}", b"x", headers=endless, timeout=5)
    young = await put_body(core, "call", SECRET, reader="ann")
    *_, last_old = await read_history(core, streams.BODIES, "body.c.>")
    first_young, *_, last = await read_history(core, streams.BODIES, f"{young.name}.*")
    clock = StoppedClock(stored_ns(last.headers))
    between_ns = (stored_ns(last_old.headers) + stored_ns(first_young.headers)) // 2
    await Sweeper(core, clock, kept_s=10).sweep()
    assert len(await kept(core)) == 3
    await Sweeper(core, clock, kept_s=clock.age_s(between_ns)).sweep()
    assert await kept(core) == [young.name]
    assert await read(connection, young) == SECRET
    later = StoppedClock(stored_ns(last.headers) + 10_000_000_000)
    await Sweeper(core, later, kept_s=5).sweep()
    assert await kept(core) == []
    await Sweeper(core, later, kept_s=5).sweep()


async def test_rights_on_bodies_reach_nothing_else(core: Connection, mallory: Client) -> None:
    """A reply subject beside a read or a discard leads nowhere; others' names neither."""
    before = await canaries(core)
    nuid = "0" * 32
    for target in ("$JS.API.STREAM.PURGE.OBJ_bodies", f"body.ann.{nuid}.0", "agent.b.inbox"):
        await mallory.publish(f"{READ}.body.c.{nuid}.0", b"", reply=target)
        await mallory.publish(f"registry.discard.c.{nuid}", b"", reply=target)
    with pytest.raises(nats.errors.TimeoutError):
        await mallory.request("$O.bodies.C.x", b"x", timeout=0.5)
    await core.client.flush()
    assert await canaries(core) == before
