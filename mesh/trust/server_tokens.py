"""What servers of a secure mesh are given: whom to believe, and the accounts with their rights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.trust import jwts
from mesh.trust.grants import (
    EXPORTS,
    JOINER_PUBLISH,
    JOINER_SUBSCRIBE,
    MEMBER_PUBLISH,
    MEMBER_SUBSCRIBE,
)
from mesh.trust.keyring import Keyring, Secret
from mesh.trust.secrets import make_folder, write_secret
from mesh.trust.users import User


@dataclass(frozen=True, slots=True)
class ServerTokens:
    """The tokens of one moment. They hold no secret, but whoever writes them needs some."""

    operator: str
    """What that key has signed, counts."""
    system_account: str
    """The account in which servers are told what has changed."""
    members: str
    """The account in which everybody is but the processes of the hub."""
    accounts: Mapping[str, str]
    """All of them, by their public keys."""

    @classmethod
    def of(cls, keyring: Keyring) -> "ServerTokens":
        """Write what stands in a keyring now.

        Raises:
            CredentialsError: it cannot be read.
        """
        operator = keyring.secret(Secret.OPERATOR)
        accounts = {one.public: jwts.account_token(operator, one) for one in _accounts(keyring)}
        system = keyring.public[Secret.SYS]
        return cls(
            operator=jwts.operator_token(operator, "mesh", system),
            system_account=system,
            members=accounts[keyring.public[Secret.AGENTS]],
            accounts=accounts,
        )

    def write_accounts(self, folder: Path) -> None:
        """Write the accounts where a server looks for them at its start.

        Raises:
            CredentialsError: the folder cannot be written.
        """
        make_folder(folder)
        for path in folder.glob("*.jwt"):
            if path.stem not in self.accounts:
                path.unlink()
        for public, token in self.accounts.items():
            write_secret(folder / f"{public}.jwt", token)


def _accounts(keyring: Keyring) -> tuple[jwts.Account, ...]:
    public, users = keyring.public, keyring.roster.users()
    roles = (
        _role(keyring, Secret.MEMBER, MEMBER_PUBLISH, MEMBER_SUBSCRIBE),
        _role(keyring, Secret.JOINER, JOINER_PUBLISH, JOINER_SUBSCRIBE),
    )
    return (
        jwts.Account("SYS", public[Secret.SYS]),
        jwts.Account(
            "CORE",
            public[Secret.CORE],
            has_storage=True,
            exports=EXPORTS,
            revoked=_all_revoked(one for one in users if one.is_core),
        ),
        jwts.Account(
            "AGENTS",
            public[Secret.AGENTS],
            imports=EXPORTS,
            imported_from=public[Secret.CORE],
            roles=roles,
            revoked=_all_revoked(one for one in users if not one.is_core),
        ),
    )


def _role(
    keyring: Keyring, key: Secret, publish: Sequence[str], subscribe: Sequence[str]
) -> jwts.Role:
    return jwts.Role(key.value, keyring.public[key], publish, subscribe)


def _all_revoked(users: Iterator[User]) -> dict[str, int]:
    return {key: at_s for user in users for key, at_s in user.revoked.items()}
