"""Where a broker is, and as whom one comes there: what a connection is opened with."""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mesh.errors import CredentialsError, SettingsError
from mesh.settings import DEFAULT_BODY_MAX_BYTES, Settings, authority
from mesh.trust.credentials import Credentials
from mesh.trust.keyring import Keyring
from mesh.trust.users import OPERATOR

OPEN_INBOX_PREFIX: Final = "_INBOX"
_ENCRYPTED: Final = frozenset({"tls", "wss"})
_WEB: Final = frozenset({"ws", "wss"})


@dataclass(frozen=True, slots=True)
class Login:
    """A broker, and who we are there. Shows no secret in a `repr`."""

    url: str
    """Several with commas."""
    credentials: Credentials | None = None
    """None: the broker asks nobody, or the URL says a name and a password."""
    ca: Path | None = None
    """Who must have signed the broker's certificate; None: whom this system trusts."""
    body_max_bytes: int = DEFAULT_BODY_MAX_BYTES
    """How large a body or a file may be that lies beside its message."""

    @classmethod
    def of(
        cls, settings: Settings, *, agents: Sequence[str] = (), events: Sequence[str] = ()
    ) -> "Login":
        """Read the credentials that the settings name, or that the keys on this machine hold.

        On the hub it is those of its operator; with `agents`, some with which they may run, and
        hear what is called `events`: names of durables.

        Raises:
            CredentialsError: there are none for these agents, or they cannot be read, or others
                can read them.
            InvalidKeyError: the file holds none.
        """
        path = settings.creds
        if path is None and Keyring.exists(settings.keys_dir):
            keyring = Keyring.open(settings.keys_dir)
            node = settings.node
            path = (
                keyring.credentials_for(node, agents)
                if agents
                else keyring.credentials_path(OPERATOR)
            )
        credentials = Credentials.read(path) if path else None
        if credentials is not None:
            _require_agents(credentials, settings.node, agents)
            _require_events(credentials, events)
        ca = settings.tls_ca or authority(settings.keys_dir)
        return cls(
            settings.nats_url,
            credentials,
            ca if ca.exists() or settings.tls_ca else None,
            settings.body_max_bytes,
        )

    @property
    def name(self) -> str:
        """Who we are; empty where nobody asks."""
        return self.credentials.name if self.credentials else ""

    @property
    def servers(self) -> list[str]:
        """Every URL."""
        return [part.strip() for part in self.url.split(",")]

    @property
    def ways(self) -> list["Login"]:
        """The same by plain connections, and by WebSockets: nats-py takes one kind at a time."""
        kinds = [
            [one for one in self.servers if (urlsplit(one).scheme in _WEB) is is_web]
            for is_web in (False, True)
        ]
        return [replace(self, url=",".join(urls)) for urls in kinds if urls]

    def require_one_way(self) -> None:
        """Check that one client can take all of it.

        Raises:
            SettingsError: WebSockets are mixed with plain connections.
        """
        if len(self.ways) > 1:
            raise SettingsError(
                f"{self} mixes WebSockets with plain connections: give one kind of address",
                variable="MESH_NATS_URL",
            )

    @property
    def is_encrypted(self) -> bool:
        """Whether nothing may be said before the broker has shown its certificate."""
        return any(urlsplit(one).scheme in _ENCRYPTED for one in self.servers)

    @property
    def is_guarded(self) -> bool:
        """Whether there is a border between accounts on the way to JetStream."""
        if self.credentials is not None:
            return not self.credentials.is_core
        return bool(_user(self.servers[0]))

    @property
    def inbox_prefix(self) -> str:
        """Users of one account each have inboxes of their own: a permission then guards them."""
        if not self.is_guarded:
            return OPEN_INBOX_PREFIX
        user = self.credentials.name if self.credentials else _user(self.servers[0])
        return f"{OPEN_INBOX_PREFIX}_{user}"

    def tls_context(self) -> ssl.SSLContext | None:
        """Return what checks the broker's certificate; None where nothing is encrypted.

        Raises:
            CredentialsError: the file of the authority cannot be read, or is none.
        """
        if not self.is_encrypted:
            return None
        try:
            return ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        except OSError as error:
            raise CredentialsError(
                f"cannot read the certificate authority {self.ca}: {error.strerror or error}",
                path=str(self.ca),
            ) from None

    def options(self) -> dict[str, Any]:
        """Return how nats-py is told all that."""
        found: dict[str, Any] = {"servers": self.servers, "inbox_prefix": self.inbox_prefix}
        if self.credentials is not None:
            found["user_jwt_cb"] = self.credentials.show_token
            found["signature_cb"] = self.credentials.answer
        if (context := self.tls_context()) is not None:
            found["tls"] = context
        return found

    def __str__(self) -> str:
        return ",".join(part.rpartition("@")[2] for part in self.servers)


def _require_agents(credentials: Credentials, node: str, agents: Sequence[str]) -> None:
    """A broker only says nothing to what it does not allow: better to be told here."""
    grant = credentials.grant
    missing = [one for one in agents if one not in grant.agents]
    if credentials.is_core or not agents or (not missing and grant.node == node):
        return
    what = f"run {', '.join(missing)}" if missing else f"run on {node}, but on {grant.node}"
    raise CredentialsError(
        f"the credentials of {credentials.name} do not allow to {what}: the hub's operator gives "
        f"others with `mesh keys agent {' '.join(agents)} --node {node}`",
        path="",
    )


def _require_events(credentials: Credentials, events: Sequence[str]) -> None:
    """A broker says nothing to who may not hear, either."""
    missing = [one for one in events if one not in credentials.grant.subscriptions]
    if credentials.is_core or not missing:
        return
    named = [one.partition("@on=")[2].replace("=", ".").replace("+", "*") for one in missing]
    options = " ".join(f"--on {one}" for one in named)
    raise CredentialsError(
        f"the credentials of {credentials.name} do not allow to hear {', '.join(named)}: the hub's "
        f"operator revokes them, and makes others with {options}",
        path="",
    )


def _user(url: str) -> str:
    return urlsplit(url if "//" in url else f"//{url}").username or ""
