"""What a process logs in with: a token that says what it may do, and the key that it is for.

Kept as the `.creds` files of NATS, which its other clients read, too.
"""

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nats.errors

from mesh.errors import InvalidKeyError
from mesh.trust.grants import Grant
from mesh.trust.jwts import read_token
from mesh.trust.nkeys import KeyPair
from mesh.trust.secrets import read_secret, write_secret

_BLOCK: Final = re.compile(r"-----BEGIN [A-Z ]+-----\s+(\S+)\s+-+END [A-Z ]+-+")
_NONCE: Final = re.compile(r"[A-Za-z0-9_+/=-]{1,64}")
"""One line: a request that is signed has many (`mesh.signatures`)."""
_FORM: Final = """\
-----BEGIN NATS USER JWT-----
{token}
------END NATS USER JWT------

************************* IMPORTANT *************************
Whoever has the seed below can log in as {name}. Keep it to yourself.

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""


@dataclass(frozen=True, slots=True)
class Credentials:
    """One user. Neither its token nor its key shows in a `repr`."""

    name: str
    grant: Grant
    is_core: bool
    """Whether it is of the account that may do everything."""
    token: str = field(repr=False)
    key: KeyPair = field(repr=False)

    @classmethod
    def of(cls, token: str, key: KeyPair) -> "Credentials":
        """Read what a token says of the owner of a key.

        Raises:
            InvalidKeyError: it is no token, or of another key.
        """
        claims = read_token(token)
        if claims.get("sub") != key.public:
            raise InvalidKeyError("the token and the seed of these credentials do not fit")
        said: dict[str, Any] = claims.get("nats") or {}
        return cls(
            name=str(claims.get("name", "")),
            grant=Grant.of_tags(said.get("tags") or ()),
            is_core="issuer_account" not in said,
            token=token,
            key=key,
        )

    @classmethod
    def parse(cls, text: str) -> "Credentials":
        """Read the text of a `.creds` file.

        Raises:
            InvalidKeyError: it is none. The message repeats nothing of it.
        """
        blocks = _BLOCK.findall(text)
        if len(blocks) != 2:
            raise InvalidKeyError("this is no file of credentials: it has no token and seed")
        return cls.of(blocks[0], KeyPair.from_seed(blocks[1]))

    @classmethod
    def read(cls, path: Path) -> "Credentials":
        """Read a `.creds` file.

        Raises:
            CredentialsError: it is not there, or others can read it.
            InvalidKeyError: it holds no credentials.
        """
        text = read_secret(path)
        try:
            return cls.parse(text)
        except InvalidKeyError as error:
            raise InvalidKeyError(f"{path}: {error.message}") from None

    def write(self, path: Path) -> None:
        """Write a `.creds` file that only its owner can read.

        Raises:
            CredentialsError: it cannot be written.
        """
        write_secret(path, _FORM.format(token=self.token, name=self.name, seed=self.key.seed()))

    def caller(self, name: str) -> str:
        """Return as whom to call who would be called `name` in an open mesh."""
        grant = self.grant
        if self.is_core or name in grant.speakers:
            return name
        return next(iter((*grant.callers, *grant.agents)), name)

    def show_token(self) -> bytes:
        """Give a NATS client the token."""
        return self.token.encode()

    def answer(self, nonce: str) -> bytes:
        """Give a NATS client the proof, over what the server has made up, that the key is here.

        Raises:
            nats.errors.Error: that is nothing that a server makes up. The same key signs requests
                and the server chooses the text: it could have itself a request signed.
        """
        if not _NONCE.fullmatch(nonce):
            raise nats.errors.Error("nats: the broker asks for a signature of something else")
        return base64.b64encode(self.key.sign(nonce.encode()))
