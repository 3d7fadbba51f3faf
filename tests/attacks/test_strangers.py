"""Who has no credentials, old ones, or a join token only: nobody gets further than that allows."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import nats
import nats.errors
import orjson
import pytest
from nats.aio.msg import Msg

from mesh import headers as h
from mesh.connection import open_connection
from mesh.errors import BrokerUnreachableError, CredentialsError, JoinRefusedError, TrustError
from mesh.joining import join_with_token
from mesh.signatures import signed_text
from mesh.trust import jwts
from mesh.trust.credentials import Credentials
from mesh.trust.grants import Grant
from mesh.trust.invites import JoinToken
from mesh.trust.keyring import Keyring
from mesh.trust.login import Login
from mesh.trust.nkeys import KeyPair, Kind
from mesh.trust.users import CONTROL
from schemas.registry import UserRole
from tests.accounts.mesh import DENIED, answered
from tests.accounts.server import Accounts, accounts_server
from tests.bare import connect_bare
from tests.conftest import control_plane, until

Listener = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
async def accounts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Accounts]:
    """A secure mesh."""
    async with (
        accounts_server(tmp_path_factory.mktemp("accounts")) as accounts,
        control_plane(accounts.settings(CONTROL, "hub")),
    ):
        yield accounts


def invite(accounts: Accounts, node: str, *, lifetime_s: float = 60) -> JoinToken:
    """Invite a machine."""
    made = accounts.keyring.invite(Grant(node, (f"{node}-agent",)), lifetime_s=lifetime_s)
    return JoinToken(accounts.url, node, "", made[1])


async def refused(accounts: Accounts, credentials: Credentials | None) -> bool:
    """Tell whether a broker does not let somebody in."""
    try:
        async with open_connection(Login(accounts.url, credentials), name="stranger"):
            return False
    except CredentialsError:
        return True


async def test_nobody_comes_in_without_credentials(accounts: Accounts) -> None:
    """Neither with none, nor with a name and a password, nor with a token of one's own making."""
    assert await refused(accounts, None)
    address = urlsplit(accounts.url).netloc
    for user in ("control:control", "host1:host1", "sys:sys", "admin:", ":"):
        with pytest.raises(TrustError):
            async with open_connection(f"nats://{user}@{address}", name="stranger"):
                pass
    own = KeyPair.new(Kind.ACCOUNT)
    key = KeyPair.new(Kind.USER)
    # An account that nobody has signed; the real one's name on a token that it has not signed.
    for token in (
        jwts.unlimited_token(own, "control", key.public),
        jwts.user_token(own, accounts.keyring.public["core"], "control", key.public),  # type: ignore[index]
    ):
        assert await refused(accounts, Credentials.of(token, key))


async def test_a_stolen_token_is_nothing_without_its_key(accounts: Accounts) -> None:
    """Whoever has read somebody's token still has to sign what the server makes up."""
    path = accounts.keyring.credentials_path(CONTROL)
    stolen = replace(Credentials.read(path), key=KeyPair.new(Kind.USER))
    assert await refused(accounts, stolen)


async def test_who_has_expired_is_out(accounts: Accounts) -> None:
    """On the second, in the middle of a connection; and stays out."""
    keyring, key = accounts.keyring, KeyPair.new(Kind.USER)
    seed = (keyring.folder / "secret" / "member.nk").read_text()
    token = jwts.user_token(
        KeyPair.from_seed(seed),
        keyring.public["agents"],  # type: ignore[index]
        "short",
        key.public,
        tags=["caller:short"],
        expires_s=int(time.time()) + 4,
    )
    credentials = Credentials.of(token, key)
    async with open_connection(Login(accounts.url, credentials), name="short") as connection:
        await asyncio.wait_for(connection.closed.wait(), 20)
        assert isinstance(connection.ending(), CredentialsError)
    # The server counts whole seconds: within the last one it lets in again, and cuts off at once.
    await until(lambda: refused(accounts, credentials), within_s=5)


async def test_a_join_token_opens_nothing_but_the_door(accounts: Accounts) -> None:
    """It may ask to be let in: no call, no look at the registry, no other invite."""
    token = invite(accounts, "guest")
    options = Login(token.url, token.credentials).options()

    async def quiet(error: Exception) -> None:
        """Do without nats-py's own handler."""

    client = await connect_bare(**options, error_cb=quiet)
    try:
        wanted = (*DENIED, "agent.b.inbox", "registry.list", "registry.get.b", "registry.join.x")
        assert not any(await asyncio.gather(*(answered(client, one) for one in wanted)))
        heard: list[Msg] = []

        async def hear(message: Msg) -> None:
            heard.append(message)

        for subject in (">", "registry.event.>", "delivered.>", "_INBOX.>", "agent.>"):
            await client.subscribe(subject, cb=hear)
        async with open_connection(accounts.login(CONTROL), name="core") as core:
            await core.client.publish("registry.event.x", b"{}")
            await core.client.publish("delivered.ann.reply.i.c.b", b"{}")
            await core.client.flush()
        await client.flush()
        assert heard == []
    finally:
        await client.close()


async def test_of_two_with_the_same_token_one_gets_in(accounts: Accounts, tmp_path: Path) -> None:
    """Whoever was copied from sees that, as he is not let in; the other can be revoked."""
    token = invite(accounts, "twin")
    folders = [tmp_path / str(number) for number in range(6)]
    done = await asyncio.gather(
        *(join_with_token(token, folder) for folder in folders), return_exceptions=True
    )
    assert [one for one in done if one == "twin"] == ["twin"]
    assert sum(isinstance(one, JoinRefusedError) for one in done) == 5
    assert len([one for one in folders if (one / "joined.json").exists()]) == 1


async def test_an_invite_is_taken_back(accounts: Accounts, tmp_path: Path) -> None:
    """Before it was used; who was let in by then is somebody to be revoked."""
    token = invite(accounts, "unwanted")
    assert accounts.keyring.take_back("unwanted")
    with pytest.raises(JoinRefusedError, match="taken back"):
        await join_with_token(token, tmp_path)
    assert not accounts.keyring.take_back("unwanted")


async def test_an_answer_that_got_lost(accounts: Accounts) -> None:
    """The same machine may ask again, with the key that it has made; another key may not."""
    token = invite(accounts, "lossy")
    key = KeyPair.new(Kind.USER).public
    first = accounts.keyring.redeem(token.credentials.name, key)
    assert accounts.keyring.redeem(token.credentials.name, key) == first
    with pytest.raises(JoinRefusedError, match="was used already"):
        accounts.keyring.redeem(token.credentials.name, KeyPair.new(Kind.USER).public)


@pytest.mark.parametrize("public", ["", "x", "A" * 56, "U" * 56, "../../x"])
async def test_a_key_that_is_none_joins_nowhere(accounts: Accounts, public: str) -> None:
    """And the token is still good for the machine that it was meant for."""
    token = invite(accounts, "keyless", lifetime_s=5)
    client = await nats.connect(**Login(token.url, token.credentials).options())
    try:
        subject = f"registry.join.{token.credentials.name}"
        body = b'{"public":"%b"}' % public.encode()
        with suppress(nats.errors.Error):
            answer = await client.request(subject, body, timeout=1)
            assert b'"ok":true' not in answer.data
    finally:
        await client.close()
    assert not [one for one in accounts.keyring.roster.users() if one.name == "keyless"]


async def test_an_invited_name_stays_free_of_others(accounts: Accounts, tmp_path: Path) -> None:
    """If it was given away meanwhile, the machine is told, and gets nothing of it."""
    token = invite(accounts, "rival")
    accounts.keyring.issue("rival", UserRole.PERSON, Grant(callers=("rival",)))
    with pytest.raises(Exception, match="credentials of rival already"):
        await join_with_token(token, tmp_path)
    assert not (tmp_path / "joined.json").exists()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT {}\r\nPUB agent.b.inbox 1\r\nx\r\n",
        b'CONNECT {"verbose":false,"jwt":"x","sig":"y"}\r\nPING\r\n',
        b"PUB agent.b.inbox 1\r\nx\r\n",
        b"CONNECT " + b"A" * 100_000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 400,
        b"\xff" * 70_000,
        b"INFO {}\r\n" * 1_000,
    ],
    ids=["http", "no name", "bad jwt", "no connect", "long", "tls", "noise", "info"],
)
async def test_noise_at_the_brokers_port(accounts: Accounts, sent: bytes) -> None:
    """It hangs up, and lets the next one in as if nothing had been."""
    parts = urlsplit(accounts.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    with suppress(ConnectionError):
        writer.write(sent)
        await writer.drain()
        async with asyncio.timeout(10):
            while await reader.read(65_536):
                pass
    writer.close()
    async with open_connection(accounts.login(CONTROL), name="core") as core:
        info = await core.client.jsm().stream_info("INBOX")
        assert info.state.messages == 0


async def test_keys_of_another_mesh_sign_nothing_here(accounts: Accounts, tmp_path: Path) -> None:
    """Another operator's account, with all the names of ours."""
    other = Keyring.create(tmp_path / "keys")
    for name in (CONTROL, "http", "cli", "system"):
        assert await refused(accounts, Credentials.read(other.credentials_path(name)))


async def lure(accounts: Accounts, listen: Listener) -> Login:
    """Let a host come to a server of the attacker's."""
    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    login = replace(accounts.login("host1"), url=f"nats://127.0.0.1:{port}")
    with suppress(BrokerUnreachableError):
        async with open_connection(login, name="lured"):
            pass
    server.close()
    return login


async def test_a_server_gets_no_request_signed(accounts: Accounts) -> None:
    """The key that logs in signs requests, too, and a server chooses what is signed at a login."""
    headers = {h.SOURCE_AGENT: "a", h.CORRELATION_ID: "c", h.REPLY_TO: "agent.a.reply.i.c.b"}
    wanted = signed_text("agent.b.inbox", headers, sha256(b"evil").hexdigest()).decode()
    seen: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "max_payload": 1_048_576, "headers": True, "nonce": wanted}
        writer.write(b"INFO " + orjson.dumps({**info, "auth_required": True}) + b"\r\n")
        with suppress(ConnectionError):
            seen.append(await reader.readline())
        writer.close()

    await lure(accounts, listen)
    assert seen == [b""]


async def test_a_server_that_asks_for_nothing_learns_nothing(
    accounts: Accounts, nats_url: str
) -> None:
    """Credentials shown to an open broker are not sent: it has not asked."""
    seen: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","max_payload":1048576,"headers":true}\r\n')
        with suppress(ConnectionError):
            seen.append(await reader.readline())
        writer.close()

    login = await lure(accounts, listen)
    assert seen
    assert login.credentials is not None
    assert login.credentials.token.encode() not in seen[0]
    assert login.credentials.key.seed().encode() not in b"".join(seen)
