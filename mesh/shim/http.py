"""HTTP on plain ASGI: headers, a bounded body, a JSON answer.

Knows nothing of the mesh but its errors. Starlette's `Request` and `Response` would do the same
for two times the work, on the path of every call.
"""

import os
import re
from collections.abc import Mapping
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from mesh.errors import PayloadTooLargeError

REQUEST_ID: Final = "x-request-id"
CALL_ID: Final = "mesh-call-id"

_PRINTABLE: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_REQUEST_ID: Final = REQUEST_ID.encode()


def read_headers(scope: Scope) -> dict[str, str]:
    """Return the headers of a request, by lower-case name; of repeated ones the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def request_id(scope: Scope) -> str:
    """Return the client's own id of the request if it is short printable ASCII, else a new one."""
    for name, value in scope["headers"]:
        if name == _REQUEST_ID and _PRINTABLE.fullmatch(value):
            return str(value, "ascii")
    return f"req_{os.urandom(16).hex()}"


def base_url(scope: Scope) -> str:
    """Return the address at which the client has found us, without a path.

    By its `Host` header, which the guard has checked, or by the socket if there is none.
    """
    for name, value in scope["headers"]:
        if name == b"host" and value:
            return f"{scope['scheme']}://{value.decode('latin-1')}"
    host, port = scope["server"]
    return f"{scope['scheme']}://{f'[{host}]' if ':' in host else host}:{port}"


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """Read a request's body, and no more of it than `limit_bytes`.

    Raises:
        PayloadTooLargeError: it is longer, or says so.
        ClientDisconnect: the client left before the end.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit_bytes:
            raise _too_large(int(value), limit_bytes)
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit_bytes:
            raise _too_large(size, limit_bytes)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(size: int, limit_bytes: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"the body has {size} bytes or more; {limit_bytes} are taken: send less, or a link to it",
        actual_bytes=size,
        limit_bytes=limit_bytes,
    )


async def send_json(
    send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> None:
    """Send a whole JSON answer."""
    raw = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    raw += [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
