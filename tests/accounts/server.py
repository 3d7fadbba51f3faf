"""A broker in secure mode, for tests that log in as its users.

Makes the keys, starts and stops the server. Two hosts, a person, and the control plane.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nats.aio.client import Client

from mesh.broker import embedded_broker
from mesh.settings import Settings
from mesh.streams import event_durable
from mesh.trust.credentials import Credentials
from mesh.trust.grants import Grant
from mesh.trust.keyring import Keyring
from mesh.trust.login import Login
from schemas.registry import UserRole
from tests.bare import connect_bare
from tests.brokers import own_settings


@dataclass(frozen=True, slots=True)
class Accounts:
    """A server that runs, and the keys of everybody."""

    url: str
    keyring: Keyring
    broker: Settings

    def login(self, user: str) -> Login:
        """Return how `user` logs in."""
        return Login(self.url, Credentials.read(self.keyring.credentials_path(user)))

    async def bare(self, user: str) -> Client:
        """Log in as `user` with nats-py alone, which is told of denials and says nothing."""

        async def refused(error: Exception) -> None:
            """Do without nats-py's own handler, which logs every denial with a traceback."""

        options = self.login(user).options()
        return await connect_bare(**options, error_cb=refused)

    def settings(self, user: str, node: str) -> Settings:
        """Return the settings of a process that logs in as `user`."""
        return replace(
            self.broker,
            nats_url=self.url,
            is_broker_external=True,
            node=node,
            creds=self.keyring.credentials_path(user),
        )


@asynccontextmanager
async def accounts_server(data_dir: Path) -> AsyncIterator[Accounts]:
    """Run the server for the length of the context."""
    keyring = Keyring.create(data_dir / "keys")
    heard = (event_durable("b", "a", "done"),)
    keyring.issue("host1", UserRole.AGENT, Grant("node1", ("a", "b"), heard))
    keyring.issue("host2", UserRole.AGENT, Grant("node2", ("c",)))
    keyring.issue("ann", UserRole.PERSON, Grant(callers=("ann",)))
    settings = own_settings(data_dir)
    async with embedded_broker(settings) as broker:
        yield Accounts(broker.url, keyring, settings)
