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


def signed_text(subject: str, headers: Mapping[str, str], body_sha256: str) -> bytes:
    """Return what is signed of a request: lines, of which none can hold a line break.

    The body is signed wherever it lies; a file that comes with it, by the claim on it.
    """
    values = [headers.get(name, "") for name in SIGNED]
    file = [headers[h.FILE]] if h.FILE in headers else []
    return "\n".join((_FORM, subject, *values, body_sha256, *file)).encode()


def sign(credentials: Credentials, subject: str, headers: dict[str, str], body: bytes) -> None:
    """Add the headers that prove who sends a request."""
    text = signed_text(subject, headers, sha256(body).hexdigest())
    signature = credentials.key.sign(text)
    headers[h.SIGNER] = credentials.key.public
    headers[h.SIGNATURE] = base64.urlsafe_b64encode(signature).decode().rstrip("=")


def is_signed(subject: str, headers: Mapping[str, str], body_sha256: str) -> bool:
    """Tell whether the owner of the key that a request names has signed just this request.

    `body_sha256` is in hexadecimal.
    """
    try:
        signature = base64.urlsafe_b64decode(headers.get(h.SIGNATURE, "") + "==")
    except (binascii.Error, ValueError):
        return False
    if len(signature) != SIGNATURE_BYTES:
        return False
    return verify(headers.get(h.SIGNER, ""), signed_text(subject, headers, body_sha256), signature)
