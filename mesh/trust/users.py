"""Who was given credentials, and what for: what the keyring keeps of everybody but his secret."""

import time
from pathlib import Path
from typing import Final, Self

import pydantic
from pydantic import BaseModel, ConfigDict

from mesh.errors import CredentialsError
from mesh.trust.grants import Grant
from mesh.trust.secrets import read_secret
from schemas.registry import Identity, UserRole

CONTROL: Final = "control"
"""The control plane."""
DOOR: Final = "http"
"""The hub's HTTP door."""
OPERATOR: Final = "cli"
"""Whoever can read the keyring, at the command line of the hub."""
SYSTEM: Final = "system"
"""Tells servers what has changed."""


class KeyringFile(BaseModel):
    """A file of the keyring."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read one.

        Raises:
            CredentialsError: it cannot be read, or is damaged.
        """
        try:
            return cls.model_validate_json(read_secret(path))
        except pydantic.ValidationError:
            raise CredentialsError(
                f"{path} is damaged: restore it from a backup", path=str(path)
            ) from None


class User(KeyringFile):
    """Somebody who was given credentials."""

    name: str
    public: str
    role: UserRole
    node: str = ""
    agents: tuple[str, ...] = ()
    subscriptions: tuple[str, ...] = ()
    callers: tuple[str, ...] = ()
    issued_at_s: int
    revoked: dict[str, int] = {}
    """Keys of this user that count no more, and since when."""

    @classmethod
    def of(
        cls, name: str, public: str, role: UserRole, grant: Grant, revoked: dict[str, int]
    ) -> Self:
        """Write down who is let in now, with a new key."""
        return cls(
            name=name,
            public=public,
            role=role,
            node=grant.node,
            agents=grant.agents,
            subscriptions=grant.subscriptions,
            callers=grant.callers,
            issued_at_s=int(time.time()),
            revoked=revoked,
        )

    def all_revoked(self) -> dict[str, int]:
        """Return its keys that count no more, once the newest one does not either."""
        return {**self.revoked, self.public: int(time.time())}

    @property
    def is_revoked(self) -> bool:
        """Whether the newest of its keys counts no more."""
        return self.public in self.revoked

    @property
    def is_core(self) -> bool:
        """Whether it is a process of the hub, in the account that may do everything."""
        return self.role in (UserRole.OPERATOR, UserRole.DOOR)

    @property
    def grant(self) -> Grant:
        """What it may do."""
        return Grant(self.node, self.agents, self.subscriptions, self.callers)

    @property
    def identity(self) -> Identity:
        """How the registry tells it to everybody."""
        return Identity(
            key=self.public,
            name=self.name,
            role=self.role,
            node=self.node or None,
            speaks_for=tuple(sorted(self.grant.speakers)),
        )
