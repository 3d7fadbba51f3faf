"""Signed requests: who asks, proven with the key that he logs in with.

What is signed says who asks whom for what, until when, and where the answer goes; so a signature is
good for that one request and for no other. Whose key it is, the registry knows; who may call, see
`mesh.admission`. Does no I/O.
"""

import base64
import binascii
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from mesh import headers as h
from mesh.trust.credentials import Credentials
from mesh.trust.nkeys import SIGNATURE_BYTES, verify

_FORM: Final = "mesh-request-1"
SIGNED: Final = (
    *(h.SOURCE_AGENT, h.SOURCE_NODE, h.CORRELATION_ID, h.REPLY_TO),
    *(h.TIMEOUT_MS, h.HOPS, h.CONTENT_TYPE),
)
"""The headers that are signed, in this order; one that is missing counts as empty."""


def signed_text(subject: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return what is signed of a request: lines, of which none can hold a line break."""
    values = [headers.get(name, "") for name in SIGNED]
    return "\n".join((_FORM, subject, *values, sha256(body).hexdigest())).encode()


def sign(credentials: Credentials, subject: str, headers: dict[str, str], body: bytes) -> None:
    """Add the headers that prove who sends a request."""
    signature = credentials.key.sign(signed_text(subject, headers, body))
    headers[h.SIGNER] = credentials.key.public
    headers[h.SIGNATURE] = base64.urlsafe_b64encode(signature).decode().rstrip("=")


def is_signed(subject: str, headers: Mapping[str, str], body: bytes) -> bool:
    """Tell whether the owner of the key that a request names has signed just this request."""
    try:
        signature = base64.urlsafe_b64decode(headers.get(h.SIGNATURE, "") + "==")
    except (binascii.Error, ValueError):
        return False
    if len(signature) != SIGNATURE_BYTES:
        return False
    return verify(headers.get(h.SIGNER, ""), signed_text(subject, headers, body), signature)
