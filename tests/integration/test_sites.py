"""Three servers as one broker in secure mode, started by hand, as `nats/README.md` says."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import nats.errors
from nats.js.errors import APIError

from mesh import Agent, ChatRequest
from mesh.callers import Caller, new_instance_id
from mesh.child import Child
from mesh.client import open_client
from mesh.connection import open_connection
from mesh.directory import follow_directory
from mesh.errors import MeshError
from mesh.settings import Settings, authority, server_certificate
from mesh.trust.certificates import write_server_certificate
from mesh.trust.grants import Grant
from mesh.trust.keyring import CONTROL, OPERATOR, Keyring
from mesh.trust.login import Login
from mesh.trust.server_tokens import ServerTokens
from schemas.registry import UserRole
from tests.accounts.mesh import hosting
from tests.brokers import NATS_SERVER, free_port
from tests.conftest import control_plane, until

NATS = Path(__file__).parent.parent.parent / "nats"


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

    def variables(self, name: str, port: int) -> dict[str, str]:
        """Return what a server is told by its environment."""
        data = self.folder / name
        tokens = ServerTokens.of(self.keyring)
        tokens.write_accounts(data / "accounts")
        certificate = server_certificate(self.keyring.folder)
        return {
            "HUB_NAME": f'"{name}"',
            "HUB_HOST": '"127.0.0.1"',
            "HUB_PORT": str(port),
            "HUB_MONITOR": f'"127.0.0.1:{free_port()}"',
            "HUB_DATA_DIR": f'"{data}"',
            "HUB_SYNC_INTERVAL": '"2m"',
            "HUB_OPERATOR": tokens.operator,
            "HUB_SYSTEM_ACCOUNT": tokens.system_account,
            "HUB_ACCOUNTS_DIR": f'"{data / "accounts"}"',
            "HUB_TLS_CERT": f'"{certificate}"',
            "HUB_TLS_KEY": f'"{certificate.with_suffix(".key")}"',
            "HUB_TLS_CA": f'"{authority(self.keyring.folder)}"',
        }

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
async def server(conf: Path, variables: dict[str, str], log: list[str]) -> AsyncIterator[Child]:
    """Run a nats-server."""
    child = await Child.start(
        (NATS_SERVER, "-c", conf), log.append, environ={**os.environ, **variables}
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


async def ask(login: Login, agent: str, caller: str) -> str:
    """Ask an agent."""
    async with (
        open_connection(login, name="test", patience_s=10) as connection,
        follow_directory(connection) as directory,
        open_client(connection, directory, Caller(caller, "x", new_instance_id())) as client,
    ):
        await until(lambda: directory.agent_record(agent) is not None)
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
    clients, routes = [free_port() for _ in range(3)], [free_port() for _ in range(3)]
    url = ",".join(f"tls://127.0.0.1:{port}" for port in clients)
    async with AsyncExitStack() as stack:
        servers = []
        for number, port in enumerate(clients):
            others = [one for one in routes if one != routes[number]]
            variables = {
                **hub.variables(f"n{number + 1}", port),
                "CLUSTER_LISTEN": f'"127.0.0.1:{routes[number]}"',
                "CLUSTER_ROUTES": str([f"tls://127.0.0.1:{one}" for one in others]).replace(
                    "'", '"'
                ),
            }
            running = server(NATS / "secure" / "cluster.conf", variables, log)
            servers.append(await stack.enter_async_context(running))
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
