"""Several servers in secure mode, started by hand, as `nats/README.md` says."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import nats.errors
from nats.js.errors import APIError

from mesh import Agent, ChatRequest, subjects
from mesh.broker import embedded_broker
from mesh.callers import Caller, new_instance_id
from mesh.child import Child
from mesh.client import open_client
from mesh.connection import open_connection
from mesh.directory import follow_directory
from mesh.enrolment import cut_off
from mesh.errors import MeshError
from mesh.server_folders import Server, write_server_folders
from mesh.settings import Settings, authority
from mesh.trust.certificates import write_server_certificate
from mesh.trust.grants import Grant
from mesh.trust.keyring import Keyring
from mesh.trust.login import Login
from mesh.trust.users import CONTROL, OPERATOR
from schemas.registry import UserRole
from tests.accounts.mesh import hosting
from tests.brokers import NATS_SERVER, free_port, own_settings
from tests.conftest import control_plane, until
from tests.proxy import fault_proxy

NATS = Path(__file__).parent.parent.parent / "nats"
AS_IT_SAYS = ". ./server.env && exec nats-server -c server.conf"


@dataclass(frozen=True, slots=True)
class Hub:
    """The keys of a mesh whose servers are started by hand."""

    folder: Path
    keyring: Keyring

    @classmethod
    def make(cls, folder: Path) -> "Hub":
        """Make keys, and a certificate for 127.0.0.1."""
        keyring = Keyring.create(folder / "keys", ["127.0.0.1"])
        write_server_certificate(keyring.folder, ["127.0.0.1"])
        return cls(folder, keyring)

    def settings(self, url: str, user: str) -> Settings:
        """Return the settings of a process that logs in as `user`."""
        return Settings(
            nats_url=url,
            is_broker_external=True,
            data_dir=self.folder,
            creds=self.keyring.credentials_path(user),
            tls_ca=authority(self.keyring.folder),
        )

    def login(self, url: str, user: str) -> Login:
        """Return how `user` logs in."""
        return Login.of(self.settings(url, user))


@asynccontextmanager
async def server(
    folder: Path, command: str, log: list[str], **variables: str
) -> AsyncIterator[Child]:
    """Run a nats-server, by what a person would type."""
    environ = {**os.environ, **variables, "PATH": f"{NATS_SERVER.parent}:{os.environ['PATH']}"}
    child = await Child.start(
        ("sh", "-c", f"cd {folder} && {command}"), log.append, environ=environ
    )
    try:
        yield child
    finally:
        await child.stop(5)


async def answers(login: Login) -> bool:
    """Tell whether a broker lets somebody in, and has JetStream."""
    try:
        async with open_connection(login, name="test") as connection:
            await connection.client.jsm(timeout=2).account_info()
    except (MeshError, APIError, nats.errors.Error):
        return False
    return True


async def reaches_hub(login: Login) -> bool:
    """Tell whether the registry can be read."""
    try:
        async with open_connection(login, name="test") as connection:
            await connection.client.request(subjects.REGISTRY_LIST, timeout=2)
    except (MeshError, nats.errors.Error):
        return False
    return True


async def is_cut_off(login: Login) -> bool:
    """Tell whether it cannot, any more."""
    return not await reaches_hub(login)


async def ask(login: Login, agent: str, caller: str) -> str:
    """Ask an agent, and something that fits into no message."""
    large = "x" * 2_000_000
    async with (
        open_connection(login, name="test", patience_s=10) as connection,
        follow_directory(connection) as directory,
        open_client(connection, directory, Caller(caller, "x", new_instance_id())) as client,
    ):
        await until(lambda: directory.agent_record(agent) is not None)
        assert (await client.ask(agent, large, timeout_s=20)).text == f"{agent}: {large}"
        return (await client.ask(agent, "hello", timeout_s=20)).text


def kept() -> Agent:
    """An agent that repeats what it is asked."""
    agent = Agent("kept")

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return f"kept: {request.last_text}"

    return agent


async def test_a_cluster_in_secure_mode(tmp_path: Path) -> None:
    """Three servers speak TLS with each other, and a call survives the loss of one."""
    hub, log = Hub.make(tmp_path), list[str]()
    hub.keyring.issue("host", UserRole.AGENT, Grant("node1", ("kept",)))
    asked = [Server.parse(f"n{number}=127.0.0.1:{port}") for number, port in _ports()]
    url = ",".join(one.url for one in asked)
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(server(folder, AS_IT_SAYS, log))
            for folder in write_server_folders(hub.keyring, tmp_path / "servers", asked)
        ]
        await until(lambda: answers(hub.login(url, CONTROL)), within_s=60)
        control = replace(hub.settings(url, CONTROL), replicas=3)
        await stack.enter_async_context(control_plane(control))
        settings = replace(hub.settings(url, "host"), node="node1")
        await stack.enter_async_context(hosting(settings, kept()))
        assert await ask(hub.login(url, OPERATOR), "kept", OPERATOR) == "kept: hello"
        await servers[0].stop(0)
        started = time.monotonic()
        assert await ask(hub.login(url, OPERATOR), "kept", OPERATOR) == "kept: hello"
        assert time.monotonic() - started < 20


def _ports() -> Iterator[tuple[int, int]]:
    """Number three free ports, whose neighbours for routes and monitoring are free, too."""
    for number in (1, 2, 3):
        port = 0
        while not 20_000 < port < 40_000 or not all(map(_is_free, (port + 2_000, port + 4_000))):
            port = free_port()
        yield number, port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@dataclass(frozen=True, slots=True)
class Site:
    """A hub that takes servers of other sites, and the settings of one's processes."""

    hub: Hub
    broker: Settings
    settings: Settings

    @classmethod
    def make(cls, folder: Path) -> "Site":
        """Choose ports, and make the credentials."""
        hub = Hub.make(folder)
        hub.keyring.issue("site", UserRole.NODE, Grant("site", ("kept",), callers=("site",)))
        broker = replace(own_settings(folder), keys_folder=hub.keyring.folder)
        broker = replace(broker, nats_port=free_port(), leaf_port=free_port())
        own = hub.settings(f"nats://127.0.0.1:{free_port()}", "site")
        return cls(hub, broker, replace(own, node="site"))

    @property
    def url(self) -> str:
        """Where clients reach the hub."""
        return f"tls://127.0.0.1:{self.broker.nats_port}"

    @property
    def login(self) -> Login:
        """How a process of the site logs in."""
        return Login.of(self.settings)

    @asynccontextmanager
    async def server(self, leaf_port: int) -> AsyncIterator[None]:
        """Run the site's own server."""
        variables = {
            "SITE_NAME": '"site"',
            "SITE_LISTEN": f'"{urlsplit(self.settings.nats_url).netloc}"',
            "SITE_HUB": f'["tls://127.0.0.1:{leaf_port}"]',
            "SITE_CREDS": f'"{self.settings.creds}"',
            "SITE_TLS_CA": f'"{self.settings.tls_ca}"',
        }
        command = f"exec nats-server -c {NATS / 'leaf' / 'site.conf'}"
        async with server(self.hub.folder, command, [], **variables):
            yield

    @asynccontextmanager
    async def mesh(self) -> AsyncIterator[None]:
        """Run the hub."""
        async with (
            embedded_broker(self.broker),
            control_plane(self.hub.settings(self.url, CONTROL)),
        ):
            yield

    async def ask_from_hub(self) -> str:
        """Ask the agent of the site."""
        return await ask(self.hub.login(self.url, OPERATOR), "kept", OPERATOR)


async def test_a_site_behind_a_server_of_its_own(tmp_path: Path) -> None:
    """What runs there is called and calls, also after the hub was gone, until it is cut off."""
    site = Site.make(tmp_path)
    async with AsyncExitStack() as stack, site.server(site.broker.leaf_port):
        async with site.mesh():
            await until(lambda: reaches_hub(site.login))
            await stack.enter_async_context(hosting(site.settings, kept()))
            assert await site.ask_from_hub() == "kept: hello"
            assert await ask(site.login, "kept", "site") == "kept: hello"
        async with site.mesh():
            assert await site.ask_from_hub() == "kept: hello"
            login, keyring = site.login, site.hub.keyring
            keyring.revoke("site")
            await cut_off(site.hub.settings(site.url, OPERATOR), keyring)
            await until(lambda: is_cut_off(login))


async def test_a_site_that_was_cut_off_for_a_moment(tmp_path: Path) -> None:
    """Its agents hear again at once, although none of them lost a connection."""
    site = Site.make(tmp_path)
    async with (
        site.mesh(),
        fault_proxy(f"nats://127.0.0.1:{site.broker.leaf_port}") as link,
        site.server(link.port),
        AsyncExitStack() as stack,
    ):
        await until(lambda: reaches_hub(site.login))
        await stack.enter_async_context(hosting(site.settings, kept()))
        assert await site.ask_from_hub() == "kept: hello"
        link.cut()
        await until(lambda: is_cut_off(site.login))
        asking = asyncio.create_task(site.ask_from_hub())
        link.heal()
        # In less than the 20 s that it is given; a pull that was lost without a word takes 40 s.
        assert await asking == "kept: hello"
