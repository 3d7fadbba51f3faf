"""Join tokens: what lets another machine in, once, and only until it expires.

A token holds where the hub is, whom to trust there, and credentials that allow nothing but to ask
for more. The key of the machine is made on the machine, and never leaves it.
"""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final

import orjson

from mesh.errors import InvalidKeyError
from mesh.trust.credentials import Credentials
from mesh.trust.nkeys import KeyPair
from mesh.trust.users import KeyringFile

PREFIX: Final = "mesh-join-"


class Invite(KeyringFile):
    """`invites/<id>.json`: what was promised, and who has taken it."""

    id: str
    node: str
    agents: tuple[str, ...] = ()
    subscriptions: tuple[str, ...] = ()
    expires_at_s: int
    used_by: str = ""
    """The public key that came; the same one may come again, as an answer can get lost."""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What the other machine is given. Its secret does not show in a `repr`."""

    url: str
    node: str
    authority: str
    """The certificate of whoever signs the hub's, in PEM; empty: whom the system trusts."""
    credentials: Credentials = field(repr=False)

    def text(self) -> str:
        """Return the token as one word."""
        body = {
            "url": self.url,
            "node": self.node,
            "ca": self.authority,
            "jwt": self.credentials.token,
            "seed": self.credentials.key.seed(),
        }
        return PREFIX + base64.urlsafe_b64encode(orjson.dumps(body)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "JoinToken":
        """Read a token.

        Raises:
            InvalidKeyError: it is none, or not whole. The message repeats nothing of it.
        """
        packed = text.strip().removeprefix(PREFIX)
        try:
            body = orjson.loads(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)))
            url, node, authority, token, seed = (
                str(body[name]) for name in ("url", "node", "ca", "jwt", "seed")
            )
        except (ValueError, KeyError, TypeError, binascii.Error):
            raise InvalidKeyError(
                "this is no join token, or not all of it: `mesh keys invite` prints one line"
            ) from None
        return cls(url, node, authority, Credentials.of(token, KeyPair.from_seed(seed)))
