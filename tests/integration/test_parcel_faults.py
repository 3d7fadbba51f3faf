"""What happens around bodies that cross accounts: who is away, who dies, and who is older."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from mesh import Agent, CallContext, ChatReply, ChatRequest, provision, streams
from mesh.attachments import put_body, put_file
from mesh.broker import embedded_broker
from mesh.callers import Caller, new_instance_id
from mesh.client import open_client
from mesh.connection import open_connection
from mesh.directory import follow_directory
from mesh.errors import (
    PayloadTooLargeError,
    StreamMissingError,
)
from mesh.objects import read_chunks
from mesh.trust import server_tokens
from mesh.trust.credentials import Credentials
from mesh.trust.grants import EXPORTS, MEMBER_PUBLISH, Grant
from mesh.trust.keyring import Keyring
from mesh.trust.login import Login
from schemas.registry import UserRole
from tests.accounts.mesh import Mesh, host, hosting
from tests.accounts.parcels import kept
from tests.accounts.server import accounts_server
from tests.brokers import KillableBroker, own_settings
from tests.conftest import control_plane

LARGE = "x" * 3_000_000
SOME = os.urandom(5_000_000)


async def test_the_control_plane_is_not_on_the_path(tmp_path: Path) -> None:
    """It goes away in the middle of an upload, and is not there for the rest of the call."""

    async def slowly() -> AsyncIterator[bytes]:
        for start in range(0, len(SOME), 100_000):
            yield SOME[start : start + 100_000]
            if start == 2_000_000:
                await control.aclose()

    agent = Agent("c")

    @agent.chat
    async def give_back(request: ChatRequest, call: CallContext) -> ChatReply:
        return ChatReply(content=request.last_text, file=call.file)

    async with (
        accounts_server(tmp_path) as accounts,
        AsyncExitStack() as control,
        open_connection(accounts.login("control"), name="core") as core,
    ):
        await control.enter_async_context(control_plane(accounts.settings("control", "hub")))
        async with (
            hosting(accounts.settings("host2", "node2"), agent),
            open_connection(accounts.login("ann"), name="ann") as connection,
            follow_directory(connection) as directory,
            open_client(connection, directory, Caller("ann", "x", new_instance_id())) as ann,
        ):
            reply = await ann.ask("c", LARGE, file=slowly(), timeout_s=20)
            assert reply.text == LARGE
            assert reply.file is not None
            assert await reply.file.read() == SOME
            # Nobody removes them but the clock of the broker.
            assert len(await kept(core, "c")) == 2


async def test_a_transfer_outlives_the_broker(tmp_path: Path) -> None:
    """It is killed in the middle, of an upload and of a download, and both go on."""
    keyring = Keyring.create(tmp_path / "keys")
    keyring.issue("eve", UserRole.PERSON, Grant(callers=("eve",)))
    person = Credentials.read(keyring.credentials_path("eve"))
    async with (
        KillableBroker(tmp_path, keyring.folder) as broker,
        open_connection(Login(broker.url, person), name="eve") as eve,
    ):
        login = Login(broker.url, Credentials.read(keyring.credentials_path("control")))
        async with open_connection(login, name="core") as core:
            await provision.ensure_streams(core, own_settings(tmp_path))
        sent = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            for start in range(0, len(SOME), 100_000):
                yield SOME[start : start + 100_000]
                if start == 2_000_000:
                    sent.set()
                    await killed.wait()

        killed = asyncio.Event()
        putting = asyncio.create_task(put_file(eve, "call", slowly(), reader="eve"))
        await sent.wait()
        await broker.kill()
        killed.set()
        claim = await asyncio.wait_for(putting, 60)
        found = bytearray()
        async for chunk in read_chunks(eve, claim):
            if not found:
                await broker.kill()
            found += chunk
    assert found == SOME


def give_old_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let brokers be as they were before anything but messages crossed the accounts."""
    exports = [one for one in EXPORTS if "body" not in one.subject]
    monkeypatch.setattr(server_tokens, "EXPORTS", exports)
    rights = [one for one in MEMBER_PUBLISH if "body" not in one]
    monkeypatch.setattr(server_tokens, "MEMBER_PUBLISH", rights)


async def test_an_answer_that_an_older_hub_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller is told so, as with a question; and what fits goes on."""
    give_old_rights(monkeypatch)
    async with accounts_server(tmp_path) as accounts:
        found = Mesh(accounts)
        async with (
            control_plane(accounts.settings("control", "hub")),
            host(accounts, "host1", "node1", found.a, found.b),
            open_connection(accounts.login("ann"), name="ann") as connection,
            follow_directory(connection) as directory,
            open_client(connection, directory, Caller("ann", "x", new_instance_id())) as ann,
        ):
            refused_by = set()
            for size in range(1_042_000, 1_044_500, 100):
                try:
                    await ann.ask("b", "x" * size, timeout_s=30)
                except PayloadTooLargeError as error:
                    # Only what came back from there has an agent.
                    refused_by.add((error.fields.get("agent"), "`mesh up`" in error.message))
            assert refused_by >= {("b", True)}
            assert refused_by <= {("b", True), (None, True)}
            assert (await ann.ask("b", "x", timeout_s=5)).text == "b on ann: x"


async def test_a_mesh_that_is_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes with a large body is told what to do; then the same credentials are good for it."""
    give_old_rights(monkeypatch)
    monkeypatch.setattr(provision, "stream_configs", lambda of, **_: streams.stream_configs(of))
    monkeypatch.setattr(provision, "_guard", AsyncMock(side_effect=lambda *found: found[-1]))
    async with accounts_server(tmp_path) as accounts:
        async with open_connection(accounts.login("control"), name="core") as core:
            await provision.ensure_streams(core, accounts.broker)
        async with open_connection(accounts.login("ann"), name="ann") as connection:
            with pytest.raises(PayloadTooLargeError, match="run `mesh up` of this version"):
                await put_body(connection, "call", SOME, reader="b")
    monkeypatch.undo()
    found = Mesh(accounts)
    async with embedded_broker(accounts.broker) as broker:
        accounts = found.accounts = replace(accounts, url=broker.url)
        async with open_connection(accounts.login("ann"), name="ann") as connection:
            with pytest.raises(StreamMissingError, match="mesh up"):
                await put_body(connection, "call", SOME, reader="b")
        async with (
            control_plane(accounts.settings("control", "hub")),
            host(accounts, "host1", "node1", found.a, found.b),
            open_connection(accounts.login("ann"), name="ann") as connection,
            follow_directory(connection) as directory,
            open_client(connection, directory, Caller("ann", "x", new_instance_id())) as ann,
            open_connection(accounts.login("control"), name="core") as core,
        ):
            assert (await ann.ask("b", LARGE, timeout_s=20)).text == f"b on ann: {LARGE}"
            config = (await core.client.jsm().stream_info(streams.BODIES)).config
            assert not config.allow_rollup_hdrs
            assert await provision.check_streams(core, accounts.broker) == []
            # An operator who allows them again, with a tool that asks for it say, is not heard.
            await core.client.jsm().update_stream(config.evolve(allow_rollup_hdrs=True))
            assert len(await provision.check_streams(core, accounts.broker)) == 1
            assert await provision.ensure_streams(core, accounts.broker) == []
