"""Everybody who was given credentials, and who was promised some: the files beside the keys.

Knows no secret; see `mesh.trust.keyring`.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.errors import CredentialsError, InvalidInputError, KeyNotFoundError
from mesh.subjects import require_id
from mesh.trust.grants import Grant
from mesh.trust.invites import Invite
from mesh.trust.secrets import write_secret
from mesh.trust.users import CONTROL, DOOR, OPERATOR, SYSTEM, User
from schemas.registry import Identity

_RESERVED: Final = (CONTROL, DOOR, OPERATOR, SYSTEM)


@dataclass(frozen=True, slots=True)
class Roster:
    """The files of one keyring. Whoever changes them holds the lock."""

    folder: Path

    def users(self) -> list[User]:
        """Return everybody, also who is revoked, by name."""
        paths = sorted((self.folder / "users").glob("*.json"))
        return [User.load(path) for path in paths]

    def user(self, name: str) -> User:
        """Return somebody by name.

        Raises:
            KeyNotFoundError: nobody is called so.
        """
        if (found := self.find(name)) is None:
            raise KeyNotFoundError(f"nobody is called {name[:60]!r}", key=name[:60])
        return found

    def identities(self) -> list[Identity]:
        """Return who counts, for the registry."""
        return [one.identity for one in self.users() if not one.is_revoked]

    def find(self, name: str) -> User | None:
        """Return somebody by name, or nobody."""
        path = self.folder / "users" / f"{require_id(name, 'user')}.json"
        return User.load(path) if path.exists() else None

    def save(self, user: User) -> None:
        """Write somebody down."""
        path = self.folder / "users" / f"{user.name}.json"
        write_secret(path, user.model_dump_json(indent=2))

    def require_free(self, name: str, grant: Grant) -> None:
        """Check that a caller's name is of one user only: whoever may hear it gets its answers.

        Raises:
            InvalidInputError: it is somebody else's already.
        """
        for user in self.users():
            if user.name == name or user.is_revoked:
                continue
            taken = set(grant.callers) & user.grant.speakers | set(grant.agents) & set(user.callers)
            if taken:
                raise InvalidInputError(
                    f"{sorted(taken)[0]} is a name of {user.name} already: answers to it would "
                    "reach both; take another one",
                    field="name",
                )
        if name in _RESERVED:
            raise InvalidInputError(f"{name} is a process of the hub: take another name")

    def require_new(self, name: str) -> dict[str, int]:
        """Check that nobody is called so now, and return the keys of who was.

        Raises:
            InvalidInputError: somebody is.
        """
        before = self.find(name)
        if before and not before.is_revoked:
            raise InvalidInputError(
                f"there are credentials of {name} already: `mesh keys rotate {name}` makes new "
                f"ones, `mesh keys revoke {name}` ends them; or take another name",
                field="name",
            )
        return before.revoked if before else {}

    def open_invites(self) -> list[Invite]:
        """Return what was promised and not taken yet, by node."""
        found = map(Invite.load, (self.folder / "invites").glob("*.json"))
        now = time.time()
        return sorted(
            (one for one in found if not one.used_by and one.expires_at_s > now),
            key=lambda one: one.node,
        )

    def save_invite(self, invite: Invite) -> None:
        """Write a promise down."""
        write_secret(self._invite_path(invite.id), invite.model_dump_json(indent=2))

    def forget_invites(self, is_meant: Callable[[Invite], bool]) -> bool:
        """Take back what was promised, where it is meant; tell whether there was any."""
        paths = (self.folder / "invites").glob("*.json")
        found = [path for path in paths if is_meant(Invite.load(path))]
        for path in found:
            path.unlink()
        return bool(found)

    def invite(self, invite_id: str) -> Invite | None:
        """Return what somebody was promised, if he was."""
        path = self._invite_path(invite_id)
        return Invite.load(path) if path.exists() else None

    def _invite_path(self, invite_id: str) -> Path:
        return self.folder / "invites" / f"{require_id(invite_id, 'invite')}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the keyring meanwhile.

        Raises:
            CredentialsError: the folder cannot be written.
        """
        try:
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise CredentialsError(
                f"cannot write {self.folder}: {error.strerror}", path=str(self.folder)
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
