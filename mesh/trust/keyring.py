"""The keys of a mesh, as its operator keeps them: a folder, made by `mesh keys init`.

    keyring.json     who is who: the public halves
    secret/*.nk      the private halves, by which users are made: whoever has them owns the mesh
    users/*.json     everybody who was given credentials, and what for
    invites/*.json   who was promised some
    creds/*.creds    the credentials of the hub's own processes, and of users made here

Makes and ends credentials; whose there are, see `mesh.trust.roster`. Knows no server; what those
are given, see `mesh.trust.server_tokens`. Secrets are files of mode 0600; nothing here prints one.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from mesh.errors import CredentialsError, InvalidInputError, JoinRefusedError, KeyNotFoundError
from mesh.subjects import require_id
from mesh.trust import jwts
from mesh.trust.credentials import Credentials
from mesh.trust.grants import Grant
from mesh.trust.invites import Invite
from mesh.trust.nkeys import KeyPair, Kind, require_public
from mesh.trust.roster import Roster
from mesh.trust.secrets import make_folder, read_secret, write_secret
from mesh.trust.users import CONTROL, DOOR, OPERATOR, SYSTEM, KeyringFile, User
from schemas.registry import UserRole

MAX_AGENTS: Final = 200
"""Of one user. nats-server takes a token of 32 KB, and 4,096 subjects made of it."""
_OWN: Final = {CONTROL: UserRole.OPERATOR, DOOR: UserRole.DOOR, OPERATOR: UserRole.OPERATOR}


class Secret(StrEnum):
    """The private keys of a mesh."""

    OPERATOR = "operator"
    SYS = "sys"
    CORE = "core"
    AGENTS = "agents"
    MEMBER = "member"
    JOINER = "joiner"


class _Index(KeyringFile):
    """`keyring.json`."""

    made_at_s: int
    public: dict[Secret, str]
    hosts: tuple[str, ...] = ()
    """Names and addresses under which others reach the hub."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """The folder. What changes in it is written at once, under a lock."""

    folder: Path
    public: Mapping[Secret, str]
    hosts: tuple[str, ...] = ()
    """Names and addresses under which others reach the hub."""
    _keys: dict[Secret, KeyPair] = field(default_factory=dict, repr=False)

    @property
    def roster(self) -> Roster:
        """Everybody who was given credentials."""
        return Roster(self.folder)

    @classmethod
    def create(cls, folder: Path, hosts: Sequence[str] = ()) -> "Keyring":
        """Make the keys of a new mesh, and the credentials of its hub's processes.

        `hosts` are the names and addresses under which others reach the hub.

        Raises:
            CredentialsError: there are keys already, or the folder cannot be written.
        """
        if cls.exists(folder):
            raise CredentialsError(
                f"there are keys in {folder} already: a mesh that has lost them must be set up "
                "anew, so they are not overwritten",
                path=str(folder),
            )
        make_folder(folder)
        keys = {
            one: KeyPair.new(Kind.OPERATOR if one is Secret.OPERATOR else Kind.ACCOUNT)
            for one in Secret
        }
        for secret, key in keys.items():
            write_secret(folder / "secret" / f"{secret}.nk", key.seed())
        public = {name: key.public for name, key in keys.items()}
        made = cls(folder, public, tuple(hosts), keys)
        for name, role in _OWN.items():
            made._issue(name, role, Grant(callers=(name,)), revoked={})
        made._write_system()
        # Last: a folder without it holds no keyring.
        index = _Index(made_at_s=int(time.time()), public=public, hosts=made.hosts)
        write_secret(folder / "keyring.json", index.model_dump_json(indent=2))
        return made

    @classmethod
    def open(cls, folder: Path) -> "Keyring":
        """Read a keyring.

        Raises:
            CredentialsError: there is none, or it cannot be read.
        """
        if not cls.exists(folder):
            raise CredentialsError(
                f"there are no keys in {folder}: `mesh keys init` makes them, on the hub",
                path=str(folder),
            )
        index = _Index.load(folder / "keyring.json")
        return cls(folder, index.public, index.hosts)

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Tell whether a folder holds a keyring: then the mesh of this hub is a secure one."""
        return (folder / "keyring.json").exists()

    def with_hosts(self, hosts: Sequence[str]) -> "Keyring":
        """Write down under which names and addresses others reach the hub."""
        path = self.folder / "keyring.json"
        index = _Index.load(path).model_copy(update={"hosts": tuple(hosts)})
        write_secret(path, index.model_dump_json(indent=2))
        return Keyring(self.folder, self.public, index.hosts, self._keys)

    def issue(self, name: str, role: UserRole, grant: Grant) -> User:
        """Let somebody in, and make his credentials.

        Raises:
            InvalidIdError: a name is none.
            InvalidInputError: somebody else is called so already.
            CredentialsError: the keyring cannot be written.
        """
        _require_grant(name, grant)
        with self.roster.locked():
            self.roster.require_free(name, grant)
            return self._issue(name, role, grant, revoked=self.roster.require_new(name))

    def _issue(self, name: str, role: UserRole, grant: Grant, *, revoked: dict[str, int]) -> User:
        key = KeyPair.new(Kind.USER)
        user = User.of(name, key.public, role, grant, revoked)
        if user.is_core:
            account = self.secret(Secret.CORE)
            token = jwts.unlimited_token(account, name, key.public, tags=grant.tags)
        else:
            token = self.token(user)
        Credentials.of(token, key).write(self.credentials_path(name))
        self.roster.save(user)
        return user

    def token(self, user: User) -> str:
        """Write the token with which a member logs in."""
        return jwts.user_token(
            self.secret(Secret.MEMBER),
            self.public[Secret.AGENTS],
            user.name,
            user.public,
            tags=user.grant.tags,
        )

    def invite(self, grant: Grant, *, lifetime_s: float) -> tuple[Invite, Credentials]:
        """Promise a machine what it may do, and make the credentials to ask for it, once.

        Raises:
            InvalidIdError: a name is none.
            InvalidInputError: a name is somebody else's, or there is such a node already.
            CredentialsError: the keyring cannot be written.
        """
        _require_grant(grant.node, grant)
        invite = Invite(
            id=secrets.token_hex(8),
            node=grant.node,
            agents=grant.agents,
            subscriptions=grant.subscriptions,
            expires_at_s=int(time.time() + lifetime_s),
        )
        with self.roster.locked():
            self.roster.require_free(grant.node, replace(grant, callers=(grant.node,)))
            self.roster.require_new(grant.node)
            self.roster.forget_invites(lambda old: old.expires_at_s <= time.time())
            self.roster.save_invite(invite)
        key = KeyPair.new(Kind.USER)
        token = jwts.user_token(
            self.secret(Secret.JOINER),
            self.public[Secret.AGENTS],
            invite.id,
            key.public,
            expires_s=invite.expires_at_s,
        )
        return invite, Credentials.of(token, key)

    def redeem(self, invite_id: str, public: str) -> User:
        """Let in who was invited, with a key of his own.

        Raises:
            JoinRefusedError: nobody was invited so, or no longer, or it was somebody else.
            InvalidKeyError: `public` is no key of a user.
            InvalidInputError: the name has been given to somebody else meanwhile.
            CredentialsError: the keyring cannot be written.
        """
        require_public(public, Kind.USER)
        with self.roster.locked():
            invite = self.roster.invite(invite_id)
            if invite is None or invite.expires_at_s <= time.time():
                raise JoinRefusedError(
                    "this join token has expired, or was taken back: ask for a new one"
                )
            if invite.used_by:
                if invite.used_by == public and (user := self.roster.find(invite.node)) is not None:
                    return user
                raise JoinRefusedError("this join token was used already: ask for a new one")
            node = invite.node
            grant = Grant(node, invite.agents, invite.subscriptions, callers=(node,))
            self.roster.require_free(node, grant)
            revoked = self.roster.require_new(node)
            user = User.of(node, public, UserRole.NODE, grant, revoked)
            self.roster.save(user)
            self.roster.save_invite(invite.model_copy(update={"used_by": public}))
            return user

    def take_back(self, node: str) -> bool:
        """Let in nobody any more who was invited under a name; tell whether anybody was.

        Raises:
            CredentialsError: the keyring cannot be read or written.
        """
        with self.roster.locked():
            return self.roster.forget_invites(lambda one: one.node == node and not one.used_by)

    def revoke(self, name: str) -> User:
        """Let somebody in no more; servers are to be told.

        Raises:
            KeyNotFoundError: nobody is called so.
            CredentialsError: the keyring cannot be written, or it is a process of the hub.
        """
        with self.roster.locked():
            user = self.roster.user(name)
            if user.is_core:
                raise CredentialsError(
                    f"{name} is a process of the hub itself: `mesh keys rotate {name}` gives it "
                    "new credentials",
                    path=str(self.folder),
                )
            gone = user.model_copy(update={"revoked": user.all_revoked()})
            self.roster.save(gone)
            self.credentials_path(name).unlink(missing_ok=True)
            return gone

    def rotate(self, name: str) -> User:
        """Give somebody a new key, and let him in with the old one no more.

        Raises:
            KeyNotFoundError: nobody is called so, or no more.
            CredentialsError: the keyring cannot be written.
        """
        with self.roster.locked():
            user = self.roster.user(name)
            if user.is_revoked:
                raise KeyNotFoundError(
                    f"{name} is revoked: make new credentials with `mesh keys invite`, `node`, "
                    "`agent` or `user`",
                    key=name,
                )
            return self._issue(name, user.role, user.grant, revoked=user.all_revoked())

    def secret(self, name: Secret) -> KeyPair:
        """Return a private key of the mesh.

        Raises:
            CredentialsError: it cannot be read.
        """
        if name not in self._keys:
            self._keys[name] = KeyPair.from_seed(read_secret(self.folder / "secret" / f"{name}.nk"))
        return self._keys[name]

    def credentials_path(self, name: str) -> Path:
        """Return where the credentials of a user made here lie."""
        return self.folder / "creds" / f"{name}.creds"

    def credentials_for(self, node: str, agents: Sequence[str]) -> Path:
        """Find credentials with which these agents may run on a node.

        Raises:
            CredentialsError: nobody was given such.
        """
        for user in self.roster.users():
            may_run = user.node == node and set(agents) <= set(user.agents)
            path = self.credentials_path(user.name)
            if may_run and not user.is_revoked and path.exists():
                return path
        named = " ".join(agents)
        name = f" --name {'-'.join(agents)[:32].strip('-_')}" if len(agents) > 1 else ""
        raise CredentialsError(
            f"there are no credentials to run {', '.join(agents)} on {node}: make them with "
            f"`mesh keys agent {named} --node {node}{name}`",
            path=str(self.folder / "creds"),
        )

    def _write_system(self) -> None:
        key = KeyPair.new(Kind.USER)
        token = jwts.unlimited_token(self.secret(Secret.SYS), SYSTEM, key.public)
        Credentials.of(token, key).write(self.credentials_path(SYSTEM))


def _require_grant(name: str, grant: Grant) -> None:
    require_id(name, "user")
    for agent in grant.agents:
        require_id(agent)
    for caller in grant.callers:
        require_id(caller, "caller")
    if grant.node:
        require_id(grant.node, "node")
    if len(grant.agents) > MAX_AGENTS:
        raise InvalidInputError(
            f"{len(grant.agents)} agents are too many for one user: {MAX_AGENTS} at most",
            field="agents",
        )
