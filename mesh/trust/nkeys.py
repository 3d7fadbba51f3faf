"""nkeys: the ed25519 keys of NATS, in its own form of text. https://github.com/nats-io/nkeys

A key proves who somebody is. What he may do stands in `mesh.trust.grants`.
"""

import base64
import binascii
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Final

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from mesh.errors import InvalidKeyError

SIGNATURE_BYTES: Final = 64
KEY_BYTES: Final = 32
_CHECK_BYTES: Final = 2
_SEED: Final = 18 << 3
"""The prefix of a seed, of which each begins with S."""


class Kind(Enum):
    """What a key is for. The value is its prefix: the first letter tells the kind."""

    OPERATOR = 14 << 3
    ACCOUNT = 0
    USER = 20 << 3


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key that can sign. Its secret half shows in no `repr`."""

    kind: Kind
    public: str
    """Its name for everybody: O…, A… or U…"""
    _key: SigningKey = field(repr=False)

    @classmethod
    def new(cls, kind: Kind) -> "KeyPair":
        """Make a key from the randomness of the operating system."""
        return cls._of(kind, SigningKey.generate())

    @classmethod
    def from_seed(cls, text: str) -> "KeyPair":
        """Read a seed.

        Raises:
            InvalidKeyError: it is none. The message does not repeat it.
        """
        raw = _decode(text, "seed")
        # Two prefixes of five and eight bits, in thirteen bits.
        prefix = (raw[0] & 0b111) << 5 | raw[1] >> 3
        if raw[0] & 0b11111000 != _SEED or len(raw) != 2 + KEY_BYTES:
            raise InvalidKeyError("this is no seed of an nkey")
        return cls._of(_kind(prefix, "seed"), SigningKey(raw[2:]))

    @classmethod
    def _of(cls, kind: Kind, key: SigningKey) -> "KeyPair":
        return cls(kind, _encode(bytes([kind.value]) + bytes(key.verify_key)), key)

    def seed(self) -> str:
        """Return the secret half, S…: whoever has it is this key's owner."""
        prefix = bytes([_SEED | self.kind.value >> 5, (self.kind.value & 0b11111) << 3])
        return _encode(prefix + bytes(self._key))

    def sign(self, data: bytes) -> bytes:
        """Return the signature of `data`, 64 bytes."""
        return bytes(self._key.sign(data).signature)


def verify(public: str, data: bytes, signature: bytes) -> bool:
    """Tell whether the owner of a public key has signed `data`; False where it is no key at all."""
    try:
        _verify_key(public).verify(data, signature)
    except (BadSignatureError, InvalidKeyError, ValueError):
        return False
    return True


def require_public(text: str, kind: Kind) -> str:
    """Return a public key that is one.

    Raises:
        InvalidKeyError: it is none, or of another kind.
    """
    raw = _decode(text, "public key")
    if len(raw) != 1 + KEY_BYTES or _kind(raw[0], "public key") is not kind:
        raise InvalidKeyError(f"{text[:60]!r} is no public key of kind {kind.name.lower()}")
    return text


@lru_cache(maxsize=10_000)
def _verify_key(public: str) -> VerifyKey:
    return VerifyKey(_decode(public, "public key")[1:])


def _kind(prefix: int, what: str) -> Kind:
    try:
        return Kind(prefix)
    except ValueError:
        raise InvalidKeyError(f"this {what} is of a kind that the mesh does not use") from None


def _encode(raw: bytes) -> str:
    check = binascii.crc_hqx(raw, 0).to_bytes(_CHECK_BYTES, "little")
    return base64.b32encode(raw + check).decode().rstrip("=")


def _decode(text: str, what: str) -> bytes:
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        raise InvalidKeyError(f"this {what} is no base 32") from None
    body, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    if (
        len(body) <= KEY_BYTES
        or binascii.crc_hqx(body, 0).to_bytes(_CHECK_BYTES, "little") != check
    ):
        raise InvalidKeyError(f"this {what} is cut off, or mistyped")
    return body
