"""The JSON web tokens by which a nats-server knows accounts and users (NATS ADR-14).

Writes and reads them; what is granted in them comes from `mesh.trust.grants`. The algorithm is
`ed25519-nkey`, which no library for JWTs knows.
"""

import base64
import binascii
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import orjson

from mesh.errors import InvalidKeyError
from mesh.trust.nkeys import KeyPair, verify

_HEADER: Final = {"typ": "JWT", "alg": "ed25519-nkey"}
_VERSION: Final = 2
_UNLIMITED: Final = -1
_ACCOUNT_LIMITS: Final = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
_STORAGE_LIMITS: Final = (
    *("mem_storage", "disk_storage", "streams", "consumer", "max_ack_pending"),
    *("mem_max_stream_bytes", "disk_max_stream_bytes"),
)


class Crossing(StrEnum):
    """How a subject crosses from one account to another."""

    SERVICE = "service"
    """Requests go in; one answer comes back."""
    ANSWERS = "answers"
    """Requests go in; any number of answers comes back."""
    STREAM = "stream"
    """Messages come out."""

    @property
    def claim(self) -> dict[str, str]:
        """How an export says so."""
        if self is Crossing.ANSWERS:
            return {"type": "service", "response_type": "Stream"}
        return {"type": self.value}


@dataclass(frozen=True, slots=True)
class Border:
    """One subject that another account may use."""

    subject: str
    crossing: Crossing


@dataclass(frozen=True, slots=True)
class Role:
    """What the users of one signing key may do: subjects with templates, filled by their tokens.

    A template such as `{{tag(agent)}}` stands for each such tag of a token. A subject drops out
    where the token has no such tag.
    """

    name: str
    key: str
    """The public half of the signing key, A…"""
    publish: Sequence[str]
    subscribe: Sequence[str]


@dataclass(frozen=True, slots=True)
class Account:
    """What a server is told of an account."""

    name: str
    public: str
    has_storage: bool = False
    exports: Sequence[Border] = ()
    imports: Sequence[Border] = ()
    imported_from: str = ""
    roles: Sequence[Role] = ()
    revoked: Mapping[str, int] | None = None
    """Users whose tokens of that second, and older ones, count no more."""


def operator_token(operator: KeyPair, name: str, system_account: str) -> str:
    """Write the token that every server of a mesh is given: what this key signs, counts."""
    claims = {"type": "operator", "version": _VERSION, "system_account": system_account}
    return _sign(operator, name, operator.public, claims)


def account_token(operator: KeyPair, account: Account) -> str:
    """Write the token of an account, as its servers shall know it."""
    limits: dict[str, Any] = dict.fromkeys(_ACCOUNT_LIMITS, _UNLIMITED)
    if account.has_storage:
        limits |= dict.fromkeys(_STORAGE_LIMITS, _UNLIMITED)
    claims: dict[str, Any] = {
        "type": "account",
        "version": _VERSION,
        "limits": {**limits, "wildcards": True},
        "exports": [
            {"name": one.subject, "subject": one.subject, **one.crossing.claim}
            for one in account.exports
        ],
        "imports": [
            {
                "name": one.subject,
                "subject": one.subject,
                "account": account.imported_from,
                "type": one.crossing.claim["type"],
            }
            for one in account.imports
        ],
    }
    if account.roles:
        claims["signing_keys"] = [_scope(role) for role in account.roles]
    if account.revoked:
        claims["revocations"] = dict(account.revoked)
    return _sign(operator, account.name, account.public, claims)


def _scope(role: Role) -> dict[str, Any]:
    template = {
        "pub": {"allow": list(role.publish)},
        "sub": {"allow": list(role.subscribe)},
        "subs": _UNLIMITED,
        "data": _UNLIMITED,
        "payload": _UNLIMITED,
    }
    return {"kind": "user_scope", "key": role.key, "role": role.name, "template": template}


def unlimited_token(account: KeyPair, name: str, public: str, *, tags: Sequence[str] = ()) -> str:
    """Write the token of a user who may do everything in an account."""
    limits = dict.fromkeys(("subs", "data", "payload"), _UNLIMITED)
    claims: dict[str, Any] = {"type": "user", "version": _VERSION, "pub": {}, "sub": {}, **limits}
    claims["tags"] = list(tags)
    return _sign(account, name, public, claims)


def user_token(
    signer: KeyPair,
    account: str,
    name: str,
    public: str,
    *,
    tags: Sequence[str] = (),
    expires_s: int | None = None,
) -> str:
    """Write the token with which the owner of a key logs in, in the role of its signing key.

    `expires_s` is a Unix time: a server ends the connection then.
    """
    # A token of a role must say nothing of limits, or the server refuses it.
    claims = {"type": "user", "version": _VERSION, "issuer_account": account, "tags": list(tags)}
    return _sign(signer, name, public, claims, expires_s=expires_s)


def read_token(text: str) -> dict[str, Any]:
    """Return what a token claims, once its signature is checked.

    Who has signed it stands in `iss`: whether that is anybody's business, the caller must say.

    Raises:
        InvalidKeyError: it is no token, or is not signed by its `iss`.
    """
    head, _, signature = text.rpartition(".")
    try:
        claims = orjson.loads(_unpack(head.partition(".")[2]))
        issuer = str(claims["iss"])
        is_signed = verify(issuer, head.encode(), _unpack(signature))
    except (ValueError, TypeError, KeyError, binascii.Error):
        raise InvalidKeyError("this is no token of NATS") from None
    if not is_signed:
        raise InvalidKeyError("this token was changed: its signature is of another text")
    return dict(claims)


def _sign(
    issuer: KeyPair,
    name: str,
    subject: str,
    claims: Mapping[str, Any],
    *,
    expires_s: int | None = None,
) -> str:
    body: dict[str, Any] = {
        "iat": int(time.time()),
        "iss": issuer.public,
        "name": name,
        "sub": subject,
        "nats": claims,
    }
    if expires_s is not None:
        body["exp"] = expires_s
    body["jti"] = base64.b32encode(hashlib.sha256(orjson.dumps(body)).digest()).decode().rstrip("=")
    text = f"{_pack(orjson.dumps(_HEADER))}.{_pack(orjson.dumps(body))}"
    return f"{text}.{_pack(issuer.sign(text.encode()))}"


def _pack(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _unpack(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
