"""API keys in their bucket: made, found, revoked everywhere, and told to nobody."""

import asyncio
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh.access import MAX_CACHED, MAX_LIFETIME_S, STALE_S, Access
from mesh.broker import embedded_broker
from mesh.connection import Connection, open_connection
from mesh.errors import (
    BrokerUnreachableError,
    InvalidIdError,
    InvalidInputError,
    KeyNotFoundError,
    MeshError,
    StreamMissingError,
    UnauthenticatedError,
)
from mesh.publisher import PubAck
from mesh.settings import Settings
from mesh.streams import ACCESS
from tests.brokers import own_settings
from tests.conftest import until

WRONG = "x" * 43


@pytest.fixture
def access(connection: Connection) -> Access:
    """The bucket as one process sees it."""
    return Access(connection)


async def is_refused(access: Access, token: str) -> bool:
    """Tell whether a token is none any more."""
    try:
        await access.verify(token)
    except UnauthenticatedError:
        return True
    return False


async def test_a_token_gives_its_key(access: Access) -> None:
    """Everything that was said about the key comes back, and nothing of the secret."""
    issued = await access.create("phone", agents=("a", "b", "a"), lifetime_s=60)
    key = await access.verify(issued.token)
    assert key == issued.key
    assert (key.name, key.agents) == ("phone", ("a", "b"))
    assert key.expires_at is not None
    assert (key.expires_at - key.created_at).total_seconds() == 60
    assert (key.allows("a"), key.allows("c")) == (True, False)
    assert issued.token.startswith(f"mesh_{key.id}_")
    assert issued.token.removeprefix(f"mesh_{key.id}_") not in key.model_dump_json()


async def test_a_key_without_agents_is_for_all(access: Access) -> None:
    """As long as nobody is named."""
    assert (await access.create("all")).key.allows("anybody")


async def test_keys_are_listed_in_order(access: Access) -> None:
    """Also revoked ones, so that somebody can see what they were."""
    issued = [await access.create(f"listed {n}") for n in range(3)]
    await access.revoke(issued[1].key.id)
    ids = [one.key.id for one in issued]
    found = [one for one in await access.keys() if one.id in ids]
    assert sorted(one.id for one in found) == sorted(ids)
    assert [one.created_at for one in found] == sorted(one.created_at for one in found)
    assert [one.id for one in found if one.revoked_at] == [ids[1]]


@pytest.mark.parametrize(
    "token",
    [
        "",
        "any",
        "mesh__",
        "mesh_unknown0_" + WRONG,
        "mesh_*_" + WRONG,
        "mesh_>_" + WRONG,
        "mesh_a.b_" + WRONG,
        "mesh_{id}_" + WRONG,
        "mesh_{id}_",
        "mesh_{id}",
        "MESH_{id}_{secret}",
        "mesh_{id}_{secret}=",
        "mesh_{id}_{secret}\n",
        " mesh_{id}_{secret}",
        "mesh_{id}_{secret}" + "x" * 10_000,
    ],
)
async def test_what_is_no_valid_token(access: Access, token: str) -> None:
    """Nothing that is like a token is one."""
    issued = await access.create("almost")
    secret = issued.token.removeprefix(f"mesh_{issued.key.id}_")
    with pytest.raises(UnauthenticatedError) as refused:
        await access.verify(token.format(id=issued.key.id, secret=secret))
    assert secret not in str(refused.value)
    assert (await access.verify(issued.token)).id == issued.key.id


async def test_a_revoked_key_is_refused_everywhere_within_3_s(
    connection: Connection, settings: Settings
) -> None:
    """Another process that has just used it, and another that comes now."""
    async with open_connection(settings.nats_url, name="other door") as other:
        here, there = Access(connection), Access(other)
        issued = await here.create("lost laptop")
        assert await there.verify(issued.token)
        loop = asyncio.get_running_loop()
        revoked_at = loop.time()
        assert (await here.revoke(issued.key.id)).revoked_at is not None
        assert await is_refused(here, issued.token)
        await until(lambda: is_refused(there, issued.token), within_s=10)
        assert loop.time() - revoked_at < 3
        with pytest.raises(UnauthenticatedError, match="revoked"):
            await there.verify(issued.token)


async def test_a_key_in_use_is_seldom_read(access: Access, connection: Connection) -> None:
    """Not for every request, and not by all requests at once when its time is over."""
    issued = await access.create("busy")
    await access.verify(issued.token)
    loop = asyncio.get_running_loop()
    sent_before, end = connection.client.stats["out_msgs"], loop.time() + 2.5
    checked = 0
    while loop.time() < end:
        await asyncio.gather(*(access.verify(issued.token) for _ in range(50)))
        checked += 50
        await asyncio.sleep(0.01)
    sent = connection.client.stats["out_msgs"] - sent_before
    assert checked > 500
    assert sent < 20, f"{sent} messages for {checked} checks in 2.5 s"


async def test_a_key_is_read_once_for_all_who_ask_at_once(
    access: Access, connection: Connection
) -> None:
    """A key that is not known yet, and one that nobody has used for a while."""
    issued = await access.create("a burst")
    for _ in range(2):
        sent_before = connection.client.stats["out_msgs"]
        found = await asyncio.gather(*(access.verify(issued.token) for _ in range(50)))
        assert {key.id for key in found} == {issued.key.id}
        assert connection.client.stats["out_msgs"] - sent_before == 1
        await asyncio.sleep(STALE_S)


async def test_who_gives_up_ends_it_for_nobody_else(access: Access) -> None:
    """The first who asks leaves before the answer."""
    issued = await access.create("impatient")
    first, second = (asyncio.create_task(access.verify(issued.token)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).id == issued.key.id
    assert first.cancelled()


async def test_a_key_expires(access: Access) -> None:
    """At every door, without anybody doing anything."""
    issued = await access.create("guest", lifetime_s=1)
    assert await access.verify(issued.token)
    await until(lambda: is_refused(access, issued.token), within_s=10)
    with pytest.raises(UnauthenticatedError, match="expired"):
        await access.verify(issued.token)


async def test_a_deleted_key_is_refused(access: Access, bare: Client) -> None:
    """As any KV client deletes it."""
    issued = await access.create("deleted")
    js = bare.jetstream()
    await js.publish(f"$KV.access.key.{issued.key.id}", b"", headers={"KV-Operation": "DEL"})
    with pytest.raises(UnauthenticatedError):
        await access.verify(issued.token)
    with pytest.raises(KeyNotFoundError):
        await access.revoke(issued.key.id)
    assert issued.key.id not in [one.id for one in await access.keys()]


async def test_revoking_again_changes_nothing(access: Access, connection: Connection) -> None:
    """Not even from two places at the same time."""
    issued = await access.create("twice")
    both = await asyncio.gather(
        access.revoke(issued.key.id), Access(connection).revoke(issued.key.id)
    )
    third = await access.revoke(issued.key.id)
    assert both[0].revoked_at is not None
    assert {one.revoked_at for one in both} == {third.revoked_at}


@pytest.mark.parametrize("key_id", ["", "nobody", "*", ">", "a.b", "a b", "x" * 10_000, "ä"])
async def test_nobody_can_be_revoked(access: Access, key_id: str) -> None:
    """An id that is none is not found, whatever is in it."""
    with pytest.raises(KeyNotFoundError, match="mesh keys list"):
        await access.revoke(key_id)


@pytest.mark.parametrize(
    ("name", "agents", "lifetime_s", "error"),
    [
        ("", (), None, InvalidInputError),
        ("x" * 101, (), None, InvalidInputError),
        ("two\nlines", (), None, InvalidInputError),
        (" ", (), None, InvalidInputError),
        ("good", ("a.b",), None, InvalidIdError),
        ("good", ("",), None, InvalidIdError),
        ("good", (), 0, InvalidInputError),
        ("good", (), -1, InvalidInputError),
        ("good", (), float("nan"), InvalidInputError),
        ("good", (), MAX_LIFETIME_S * 2, InvalidInputError),
    ],
)
async def test_a_key_that_cannot_be(
    access: Access,
    name: str,
    agents: tuple[str, ...],
    lifetime_s: float | None,
    error: type[MeshError],
) -> None:
    """Bad names, agents and lifetimes are refused before anything is written."""
    before = await access.keys()
    with pytest.raises(error):
        await access.create(name, agents=agents, lifetime_s=lifetime_s)
    assert await access.keys() == before


async def test_who_tries_keys_fills_no_memory(access: Access) -> None:
    """What was not found is remembered too, but only so much of it."""
    for start in range(0, MAX_CACHED + 200, 100):
        await asyncio.gather(
            *(is_refused(access, f"mesh_no{n}_{WRONG}") for n in range(start, start + 100))
        )
    assert len(access._known) <= MAX_CACHED


async def test_without_a_broker_nobody_passes(settings: Settings) -> None:
    """What was read is good for two seconds; then a check fails, and never lets through."""
    async with open_connection(settings.nats_url, name="cut off") as connection:
        access = Access(connection)
        issued = await access.create("cut off")
        await access.verify(issued.token)
        await connection.client.close()
        assert (await access.verify(issued.token)).id == issued.key.id

        async def cannot_be_asked() -> bool:
            try:
                await access.verify(issued.token)
            except BrokerUnreachableError:
                return True
            return False

        await until(cannot_be_asked, within_s=10)


async def test_a_broker_without_a_mesh(tmp_path: Path) -> None:
    """The bucket is missing, and that is said."""
    async with (
        embedded_broker(own_settings(tmp_path)) as broker,
        open_connection(broker.url, name="test") as connection,
    ):
        access = Access(connection)
        for attempt in (access.create("x"), access.keys(), access.idempotency_secret()):
            with pytest.raises(StreamMissingError, match="mesh up"):
                await attempt
        with pytest.raises(StreamMissingError):
            await access.verify(f"mesh_unknown_{WRONG}")


async def test_the_doors_share_one_secret(connection: Connection) -> None:
    """Whoever comes first makes it; the others find it, also when all come at once."""
    await connection.client.jsm().purge_stream(ACCESS, subject="$KV.access.secret.idempotency")
    found = await asyncio.gather(*(Access(connection).idempotency_secret() for _ in range(8)))
    assert len(set(found)) == 1
    assert len(found[0]) == 32
    one = Access(connection)
    assert await one.idempotency_secret() is await one.idempotency_secret()


async def test_a_secret_that_was_deleted_is_made_again(connection: Connection) -> None:
    """What is left of it is empty: anybody could work out the ids that were made with that."""
    before = await Access(connection).idempotency_secret()
    bucket = await connection.client.jetstream().key_value("access")
    await bucket.delete("secret.idempotency")
    found = await asyncio.gather(*(Access(connection).idempotency_secret() for _ in range(4)))
    assert {len(one) for one in found} == {32}
    assert len({before, *found}) == 2


async def test_a_repeat_is_no_conflict(
    access: Access, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write whose acknowledgement was lost is sent again, and refused: it was ours."""
    publish = connection.publisher.publish

    async def publish_twice(subject: str, body: bytes, headers: dict[str, str]) -> PubAck:
        await publish(subject, body, headers)
        return await publish(subject, body, headers)

    monkeypatch.setattr(connection.publisher, "publish", publish_twice)
    issued = await access.create("repeated")
    assert (await access.verify(issued.token)).id == issued.key.id
    assert (await access.revoke(issued.key.id)).revoked_at is not None
    assert [one.name for one in await access.keys()].count("repeated") == 1


async def test_no_hash_is_broadcast(access: Access, connection: Connection, bare: Client) -> None:
    """The bucket republishes nothing, and nobody sources it: not the audit either."""
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    await bare.subscribe(">", cb=hear)
    issued = await access.create("secret")
    await access.verify(issued.token)
    await bare.flush()
    await until(lambda: any(issued.key.sha256.encode() in one.data for one in heard))
    subjects = {one.subject for one in heard if issued.key.sha256.encode() in one.data}
    # What the two ends of the conversation say, on a broker where everybody may listen.
    own = ("$KV.access.key.", "_INBOX.")
    assert [one for one in subjects if not one.startswith(own)] == []
    secret = issued.token.rpartition(f"{issued.key.id}_")[2].encode()
    assert not any(secret in one.data for one in heard)
    manager = connection.client.jsm()
    assert (await manager.stream_info(ACCESS)).config.republish is None
    sources = [s.name for one in await manager.streams_info() for s in one.config.sources or ()]
    assert ACCESS not in sources
