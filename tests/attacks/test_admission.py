"""Who may call an agent, and who is believed: in secure mode what is signed, else everybody."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson
import pytest

from mesh import Agent, CallContext, ChatRequest
from mesh import headers as h
from mesh.callers import Caller, new_instance_id
from mesh.client import MeshClient, connect, open_client
from mesh.connection import open_connection
from mesh.directory import follow_directory
from mesh.enrolment import cut_off, enrol
from mesh.errors import CallRefusedError, MeshError
from mesh.history import read_last
from mesh.questions import encode_question
from mesh.signatures import sign
from mesh.streams import REPLY
from mesh.trust.credentials import Credentials
from mesh.trust.grants import Grant
from schemas.registry import UserRole
from tests.accounts.mesh import host
from tests.accounts.server import Accounts, accounts_server
from tests.conftest import Running, control_plane, until

TELLER = Agent("b")
CHOOSY = Agent("a", callers=["c", "role:person"])


@TELLER.chat
async def tell(request: ChatRequest, call: CallContext) -> str:
    """Say who asks."""
    return f"{call.source_agent} on {call.source_node or '?'}, proven: {call.is_proven}"


@CHOOSY.chat
async def answer(request: ChatRequest) -> str:
    """Answer whom it takes calls from."""
    return "welcome"


@dataclass(frozen=True, slots=True)
class Secure:
    """A secure mesh with both agents on node1, and an agent `c` of node2 that passes on."""

    accounts: Accounts

    @asynccontextmanager
    async def client(self, name: str) -> AsyncIterator[MeshClient]:
        """Call as a user, under the user's name."""
        caller = Caller(name, "elsewhere", new_instance_id())
        async with (
            open_connection(self.accounts.login(name), name="test") as connection,
            follow_directory(connection) as directory,
            open_client(connection, directory, caller) as client,
        ):
            yield client


@pytest.fixture(scope="module")
async def secure(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secure]:
    """A secure mesh."""
    passing = Agent("c")

    @passing.chat
    async def pass_on(request: ChatRequest, call: CallContext) -> str:
        to, _, text = request.last_text.partition(" ")
        return (await call.ask(to, text or "x")).text

    async with (
        accounts_server(tmp_path_factory.mktemp("accounts")) as accounts,
        control_plane(accounts.settings("control", "hub")),
        host(accounts, "host1", "node1", CHOOSY, TELLER),
        host(accounts, "host2", "node2", passing),
    ):
        yield Secure(accounts)


async def test_who_asks_is_proven(secure: Secure) -> None:
    """Of a person, and of an agent that asks on; also the node, which is not what somebody says."""
    async with secure.client("ann") as ann:
        assert (await ann.ask("b", "x", timeout_s=5)).text == "ann on ?, proven: True"
        assert (await ann.ask("c", "b x", timeout_s=5)).text == "c on node2, proven: True"


async def test_the_python_api_calls_as_its_user(
    secure: Secure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mesh.connect()` knows the credentials, and calls under a name that they allow."""
    monkeypatch.setenv("MESH_CREDS", str(secure.accounts.keyring.credentials_path("ann")))
    async with connect(secure.accounts.url) as client:
        assert (await client.ask("b", "x", timeout_s=5)).text == "ann on ?, proven: True"


async def test_nobody_is_asked_for_in_another_name(secure: Secure) -> None:
    """What a legacy client says over HTTP does not become what the door says."""
    async with secure.client("ann") as ann:
        named = Caller("a", "node1", new_instance_id())
        body = encode_question("b", "x", stream=False)
        call = await ann.start("b", body, source=named, timeout_s=5)
        assert (await call.reply()).text == "ann on ?, proven: True"


async def test_an_agent_takes_calls_from_whom_it_names(secure: Secure) -> None:
    """By id and by role; the hub's operator is neither."""
    async with secure.client("ann") as ann:
        assert (await ann.ask("a", "x", timeout_s=5)).text == "welcome"
        assert (await ann.ask("c", "a x", timeout_s=5)).text == "welcome"
    async with secure.client("cli") as operator:
        with pytest.raises(CallRefusedError, match="'a' takes no calls from cli") as caught:
            await operator.ask("a", "x", timeout_s=5)
        assert caught.value.source == "cli"


async def test_a_key_that_was_made_a_moment_ago(secure: Secure) -> None:
    """The registry is asked where its news have not come yet."""
    keyring = secure.accounts.keyring
    keyring.issue("dora", UserRole.PERSON, Grant(callers=("dora",)))
    await enrol(secure.accounts.settings("cli", "hub"), keyring)
    async with secure.client("dora") as dora:
        assert (await dora.ask("b", "x", timeout_s=5)).text == "dora on ?, proven: True"


@pytest.mark.parametrize(
    ("changes", "signer"),
    [
        ({h.SIGNER: "", h.SIGNATURE: ""}, "host2"),
        ({h.SIGNATURE: "A" * 86}, "host2"),
        ({h.SOURCE_AGENT: "a"}, "host2"),
        ({h.SIGNER: "UCK5N7N66OBOINFXAYC2ACJQYFSOD4VYNU6APEJTAVFZB2SVHLKGEW7L"}, "host2"),
        ({h.TIMEOUT_MS: "9000"}, "host2"),
        ({}, "host1"),
    ],
    ids=["unsigned", "no signature", "changed", "unknown key", "another deadline", "foreign key"],
)
async def test_what_is_not_proven_is_refused(
    secure: Secure, changes: dict[str, str], signer: str
) -> None:
    """The attacker has the rights of host2, agent `c`, and is told why in a frame of its own."""
    call = new_instance_id()
    reply_to = f"agent.c.reply.{new_instance_id()}.{call}.b"
    headers = {
        h.REPLY_TO: reply_to,
        h.CORRELATION_ID: call,
        h.SOURCE_AGENT: "c",
        h.TIMEOUT_MS: "5000",
        h.CONTENT_TYPE: h.JSON,
    }
    body = encode_question("b", "x", stream=False)
    path = secure.accounts.keyring.credentials_path(signer)
    sign(Credentials.read(path), "agent.b.inbox", headers, body)
    client = await secure.accounts.bare("host2")
    try:
        await client.request("agent.b.inbox", body, headers={**headers, **changes}, timeout=5)
    finally:
        await client.close()
    async with open_connection(secure.accounts.login("control"), name="test") as core:

        async def is_refused() -> bool:
            frame = await read_last(core, REPLY, reply_to)
            return frame is not None and frame.headers.get("mesh-kind") == "error"

        await until(is_refused)
        frame = await read_last(core, REPLY, reply_to)
    assert frame is not None
    error = orjson.loads(frame.body)["error"]
    assert error["code"] == "call_refused"
    assert "must be signed" in error["message"]


async def test_an_open_mesh_believes_what_is_said(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """There the list keeps out whoever does not lie."""
    agent = Agent(agent_id, callers=["friend", "node:node7"])

    @agent.chat
    async def tell(request: ChatRequest, call: CallContext) -> str:
        return f"{call.source_agent}, proven: {call.is_proven}"

    async with running(agent):
        for friend in (Caller("friend", "node1", "i"), Caller("other", "node7", "i")):
            body = encode_question(agent_id, "x", stream=False)
            call = await client.start(agent_id, body, source=friend, timeout_s=5)
            assert (await call.reply()).text == f"{friend.id}, proven: False"
        with pytest.raises(CallRefusedError, match="takes no calls from"):
            await client.ask(agent_id, "x", timeout_s=5)
        assert client.directory.agent(agent_id).card.callers == ("friend", "node:node7")


async def test_cutting_somebody_off_disturbs_nobody(secure: Secure) -> None:
    """The pulls of all agents go on: an account that is changed loses what waits between two."""
    keyring = secure.accounts.keyring
    keyring.issue("eve", UserRole.PERSON, Grant(callers=("eve",)))
    settings = secure.accounts.settings("cli", "hub")
    await enrol(settings, keyring)
    async with secure.client("eve") as eve, secure.client("ann") as ann:
        assert (await eve.ask("b", "x", timeout_s=5)).text == "eve on ?, proven: True"
        keyring.revoke("eve")
        await cut_off(settings, keyring)
        with pytest.raises(MeshError):
            await eve.ask("b", "x", timeout_s=5)
        for _ in range(20):
            assert (await ann.ask("b", "x", timeout_s=5)).text == "ann on ?, proven: True"
