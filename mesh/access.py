"""The API keys of the HTTP door: made, listed, revoked, and found again from a token.

They stand hashed in the bucket `access`, which nothing republishes. Does not know HTTP
(`mesh.shim.guard`); what a key allows stands in `schemas.access`.
"""

import asyncio
import hmac
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from mesh import codec, subjects
from mesh.connection import Connection
from mesh.errors import (
    BrokerUnreachableError,
    InvalidInputError,
    KeyNotFoundError,
    PublishRefusedError,
    UnauthenticatedError,
)
from mesh.history import StoredMessage, read_history, read_last
from mesh.streams import ACCESS
from schemas.access import ApiKey

FRESH_S: Final = 1.0
"""After this long one request looks a key up again, while the others go on with what is known."""
STALE_S: Final = 2.0
"""After this long nobody does: a key that was revoked is refused everywhere."""
MAX_CACHED: Final = 1024
MAX_LIFETIME_S: Final = 100 * 365 * 86_400.0

_PREFIX: Final = f"$KV.{subjects.ACCESS_BUCKET}."
_IDEMPOTENCY: Final = "secret.idempotency"
_ID_CHARACTERS: Final = string.ascii_lowercase + string.digits
_ID_LENGTH: Final = 10
_SECRET_BYTES: Final = 32
_TOKEN: Final = re.compile(r"mesh_([a-z0-9]{1,32})_([A-Za-z0-9_-]{20,100})")
_SEAL: Final = re.compile(r"(([a-z0-9]{1,32})\.([0-9]{1,12}))\.([0-9a-f]{64})")
_MAX_NAME: Final = 100
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_OPERATION: Final = "KV-Operation"
_WRONG_LAST_SEQUENCE: Final = (10071, 10164)
"""JetStream error codes, the second on a cluster: somebody else wrote first."""
_REREADS: Final = 20
_REREAD_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key that was just made, with the only copy of its token."""

    key: ApiKey
    token: str


@dataclass(frozen=True, slots=True)
class _Known:
    """What the bucket said about a key id."""

    key: ApiKey | None
    read_at: float


@dataclass(frozen=True, slots=True)
class _Reading:
    """A look at the bucket that has not ended, for all who ask meanwhile."""

    found: "asyncio.Task[ApiKey | None]"
    began_at: float


class Access:
    """The bucket `access`, as one process sees it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[str, _Known] = {}
        """In the order of reading."""
        self._readings: dict[str, _Reading] = {}
        self._secret: bytes | None = None

    async def create(
        self, name: str, *, agents: Sequence[str] = (), lifetime_s: float | None = None
    ) -> IssuedKey:
        """Make a key for `agents`, or for all of them. Its token is not kept anywhere.

        Raises:
            InvalidInputError: the name is none, an agent's id neither, or the lifetime is over.
            StreamMissingError: there is no mesh on this broker.
            BrokerUnreachableError: the broker does not answer.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        fields = {
            "name": _require_name(name),
            "agents": tuple(dict.fromkeys(subjects.require_id(agent) for agent in agents)),
            "created_at": now,
            "expires_at": _expiry(now, lifetime_s),
        }
        while True:
            issued = _issue(fields)
            if await self._write(_subject(issued.key.id), codec.encode(issued.key), after=0):
                return issued

    async def keys(self) -> list[ApiKey]:
        """Return all keys, the oldest first, revoked ones included.

        Raises:
            StreamMissingError: there is no mesh on this broker.
            BrokerUnreachableError: the broker does not answer.
        """
        stored = await read_history(self._connection, ACCESS, f"{_PREFIX}key.>")
        found = [key for one in stored if (key := _read(one)) is not None]
        return sorted(found, key=lambda key: (key.created_at, key.id))

    async def revoke(self, key_id: str) -> ApiKey:
        """Make a key useless, within 3 s at every door. A second time changes nothing.

        Raises:
            KeyNotFoundError: there is no such key.
            StreamMissingError: there is no mesh on this broker.
            BrokerUnreachableError: the broker does not answer.
        """
        for _ in range(_REREADS):
            stored = await self._read_last(_subject(_require_key_id(key_id)))
            key = _read(stored) if stored is not None else None
            if stored is None or key is None:
                raise _no_such_key(key_id)
            self._forget(key_id)
            if key.revoked_at is not None:
                return key
            now = datetime.now(UTC).replace(microsecond=0)
            revoked = key.model_copy(update={"revoked_at": now})
            if await self._write(stored.subject, codec.encode(revoked), after=stored.sequence):
                self._forget(key_id)
                return revoked
            await asyncio.sleep(_REREAD_PAUSE_S)
        raise BrokerUnreachableError(f"key {key_id} was not revoked: the bucket keeps changing")

    async def verify(self, token: str) -> ApiKey:
        """Return the key of a token, from memory if it was read within two seconds.

        Raises:
            UnauthenticatedError: it is no token, or one of no valid key.
            BrokerUnreachableError: the key is not known here, and the broker cannot be asked.
            StreamMissingError: there is no mesh on this broker.
        """
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            raise UnauthenticatedError("this is no API key of the mesh: it begins with mesh_")
        key = await self._find(parts[1])
        if key is None or not hmac.compare_digest(_digest(parts[2]), key.sha256):
            raise UnauthenticatedError(
                "this API key is not valid: make one with `mesh keys create NAME`"
            )
        # Only the holder of the secret learns why.
        return _require_usable(key)

    async def seal(self, key: ApiKey, lifetime_s: float) -> str:
        """Return what stands for a key that was verified, and is no key: good at the mesh's doors
        only, for so long, and as long as the key is.

        Raises:
            BrokerUnreachableError: the doors' secret cannot be read.
        """
        until = f"{key.id}.{int(datetime.now(UTC).timestamp() + lifetime_s)}"
        return f"{until}.{await self._mac(until)}"

    async def verify_seal(self, seal: str) -> ApiKey:
        """Return the key that a seal stands for. Raises what `verify` raises."""
        parts = _SEAL.fullmatch(seal)
        if parts is None or not hmac.compare_digest(await self._mac(parts[1]), parts[4]):
            raise UnauthenticatedError("this log-in is none of this mesh: log in")
        if int(parts[3]) < datetime.now(UTC).timestamp():
            raise UnauthenticatedError("this log-in is over: log in again")
        key = await self._find(parts[2])
        if key is None:
            raise UnauthenticatedError("the key of this log-in is gone: log in with another one")
        return _require_usable(key)

    async def _mac(self, text: str) -> str:
        secret = await self.idempotency_secret()
        return hmac.new(secret, f"login\0{text}".encode(), sha256).hexdigest()

    async def verify_again(self, key: ApiKey) -> None:
        """Check that a key that was verified before is still good.

        Raises what `verify` raises.
        """
        found = await self._find(key.id)
        if found is None:
            raise UnauthenticatedError(f"API key {key.id} is gone: ask for another one")
        _require_usable(found)

    async def idempotency_secret(self) -> bytes:
        """Return 32 bytes that all doors of the mesh share; the first who asks makes them.

        The door of a machine that has joined cannot read those: its own come from its key.

        Raises:
            StreamMissingError: there is no mesh on this broker.
            BrokerUnreachableError: the broker does not answer.
        """
        if self._secret is None:
            credentials = self._connection.credentials
            if credentials is None or credentials.is_core:
                self._secret = await self._shared_secret()
            else:
                seed = credentials.key.seed().encode()
                self._secret = hmac.new(seed, _IDEMPOTENCY.encode(), sha256).digest()
        return self._secret

    async def _shared_secret(self) -> bytes:
        subject = f"{_PREFIX}{_IDEMPOTENCY}"
        for _ in range(_REREADS):
            stored = await self._read_last(subject)
            # One that somebody has deleted is empty, and would make ids that anybody can work out.
            if stored is not None and len(stored.body) >= _SECRET_BYTES:
                return stored.body
            made = secrets.token_bytes(_SECRET_BYTES)
            if await self._write(subject, made, after=stored.sequence if stored else 0):
                return made
            # Somebody was first; a replica that lags does not know it yet.
            await asyncio.sleep(_REREAD_PAUSE_S)
        raise BrokerUnreachableError("the doors' shared secret cannot be read; try again")

    async def _find(self, key_id: str) -> ApiKey | None:
        now, known = asyncio.get_running_loop().time(), self._known.get(key_id)
        reading = self._readings.get(key_id)
        if known is not None:
            age_s = now - known.read_at
            if age_s < FRESH_S or (age_s < STALE_S and reading is not None):
                return known.key
        # One that hangs says less than what is not to be believed any more.
        if reading is None or now - reading.began_at >= STALE_S:
            reading = _Reading(asyncio.create_task(self._look_up(key_id)), now)
            self._readings[key_id] = reading
        # One who gives up must not end it for the others.
        return await asyncio.shield(reading.found)

    async def _look_up(self, key_id: str) -> ApiKey | None:
        read_at = asyncio.get_running_loop().time()
        try:
            stored = await self._read_last(_subject(key_id))
            key = _read(stored) if stored is not None else None
            if self._is_read_here(key_id):
                self._remember(key_id, _Known(key, read_at))
            return key
        finally:
            if self._is_read_here(key_id):
                del self._readings[key_id]

    def _forget(self, key_id: str) -> None:
        self._known.pop(key_id, None)
        self._readings.pop(key_id, None)

    def _is_read_here(self, key_id: str) -> bool:
        """Tell whether this task still reads the key for all: not if it hung, or if the key was
        revoked meanwhile.
        """
        reading = self._readings.get(key_id)
        return reading is not None and reading.found is asyncio.current_task()

    def _remember(self, key_id: str, known: _Known) -> None:
        self._known.pop(key_id, None)
        while len(self._known) >= MAX_CACHED:
            del self._known[next(iter(self._known))]
        self._known[key_id] = known

    async def _read_last(self, subject: str) -> StoredMessage | None:
        if not self._connection.client.is_connected:
            # A read would wait for seconds, and the client can as well try again.
            raise BrokerUnreachableError("the broker cannot be asked about API keys; try again")
        return await read_last(self._connection, ACCESS, subject)

    async def _write(self, subject: str, body: bytes, *, after: int) -> bool:
        """Write, and tell whether nobody was faster: `after` is the revision that was read."""
        try:
            await self._connection.publisher.publish(subject, body, {_EXPECTED: str(after)})
        except PublishRefusedError as error:
            if error.err_code not in _WRONG_LAST_SEQUENCE:
                raise
            # Perhaps we were: the publisher repeats what was not acknowledged.
            stored = await self._read_last(subject)
            return stored is not None and stored.body == body
        return True


def _require_usable(key: ApiKey) -> ApiKey:
    if key.revoked_at is not None:
        raise UnauthenticatedError(f"API key {key.id} is revoked: ask for another one")
    if key.is_expired(datetime.now(UTC)):
        raise UnauthenticatedError(f"API key {key.id} has expired: ask for another one")
    return key


def _issue(fields: Mapping[str, Any]) -> IssuedKey:
    key_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    key = ApiKey(id=key_id, sha256=_digest(secret), **fields)
    return IssuedKey(key, f"mesh_{key_id}_{secret}")


def _digest(secret: str) -> str:
    # A plain hash is enough: nobody tries 2^256 secrets.
    return sha256(secret.encode()).hexdigest()


def _subject(key_id: str) -> str:
    return f"{_PREFIX}key.{key_id}"


def _read(stored: StoredMessage) -> ApiKey | None:
    if _OPERATION in stored.headers:
        return None
    return codec.decode(ApiKey, stored.body, subject=stored.subject)


def _require_name(name: str) -> str:
    if 0 < len(name) <= _MAX_NAME and name.isprintable() and name.strip() == name:
        return name
    raise InvalidInputError(
        f"{name[:80]!r} cannot name a key: use up to {_MAX_NAME} printable characters",
        field="name",
    )


def _require_key_id(key_id: str) -> str:
    if key_id.isascii() and key_id.isalnum() and len(key_id) <= 32:
        return key_id
    raise _no_such_key(key_id)


def _no_such_key(key_id: str) -> KeyNotFoundError:
    return KeyNotFoundError(
        f"there is no API key {key_id[:40]!r}: look into `mesh keys list`, and for who is let "
        "into a secure mesh into `mesh keys users`",
        key=key_id[:40],
    )


def _expiry(now: datetime, lifetime_s: float | None) -> datetime | None:
    if lifetime_s is None:
        return None
    if not 1 <= lifetime_s <= MAX_LIFETIME_S:
        raise InvalidInputError(
            "a key lives for a second at least, and for a hundred years at most", field="expires"
        )
    return now + timedelta(seconds=lifetime_s)
