"""HTTP on plain ASGI: headers, a bounded body, a JSON answer.

Knows nothing of the mesh but its errors. Starlette's `Request` and `Response` would do the same
for two times the work, on the path of every call.
"""

import os
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from mesh.errors import DoorBusyError, InvalidInputError, PayloadTooLargeError

REQUEST_ID: Final = "x-request-id"
CALL_ID: Final = "mesh-call-id"
SMALL_BYTES: Final = 1024**2
"""A body up to here takes none of the `BodyRoom`."""
MAX_DEPTH: Final = 64
"""Of arrays and objects in each other. Agents in other languages have parsers that recurse."""

_HELD_BYTES: Final = "mesh.held_bytes"
_ROOM: Final = "mesh.room"
_PRINTABLE: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_REQUEST_ID: Final = REQUEST_ID.encode()
# Possessive, and content with a missing quote: no body makes it go over a byte twice.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = tuple({91: 1, 123: 1, 93: -1, 125: -1}.get(byte, 0) for byte in range(256))


def read_headers(scope: Scope) -> dict[str, str]:
    """Return the headers of a request, by lower-case name; of repeated ones the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def read_query(scope: Scope) -> dict[str, str]:
    """Return the parameters of a query string that say something; of repeated ones the last."""
    # As text: of bytes the standard library makes bytes again, and fails with what is not ASCII.
    return dict(parse_qsl(scope["query_string"].decode("latin-1")))


def request_id(scope: Scope) -> str:
    """Return the client's own id of the request if it is short printable ASCII, else a new one."""
    for name, value in scope["headers"]:
        if name == _REQUEST_ID and _PRINTABLE.fullmatch(value):
            return str(value, "ascii")
    return new_request_id()


def new_request_id() -> str:
    """Return an id for a request that brought none."""
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


class BodyRoom:
    """How much of the memory all large bodies together may take, until they are answered.

    A body of a megabyte takes no room: of those there were always as many as connections.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._free_bytes = limit_bytes

    def hold(self, scope: Scope, size_bytes: int) -> None:
        """Take room for a request, or more room.

        Raises:
            DoorBusyError: there is none.
        """
        more = size_bytes - scope.get(_HELD_BYTES, 0)
        if more > self._free_bytes:
            raise DoorBusyError("this server has as many large requests as it can hold")
        self._free_bytes -= more
        scope[_HELD_BYTES] = size_bytes
        scope[_ROOM] = self

    def _release(self, scope: Scope) -> None:
        self._free_bytes += scope.pop(_HELD_BYTES)


def release_body(scope: Scope) -> None:
    """Give back the room that the body of a request took, if it did, once it is answered."""
    if _ROOM in scope:
        scope.pop(_ROOM)._release(scope)


async def read_body(
    scope: Scope, receive: Receive, limit_bytes: int, room: BodyRoom | None = None
) -> bytes:
    """Read a request's body, and no more of it than `limit_bytes`.

    How long it may take is watched by `mesh.shim.protocol`.

    Raises:
        PayloadTooLargeError: it is longer, or says so.
        DoorBusyError: it is a large one, and there is no room for it.
        InvalidInputError: as JSON it would be deeper than `MAX_DEPTH`.
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
        if size > SMALL_BYTES and room is not None:
            room.hold(scope, size)
        if not message.get("more_body", False):
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            require_shallow(body)
            return body


def require_shallow(body: bytes) -> None:
    """Check that JSON is not deeper than `MAX_DEPTH`; it need not be valid.

    Raises:
        InvalidInputError: it is.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRING.sub(b"", body).translate(None, _NO_BRACKETS)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise InvalidInputError(
            f"the body is nested deeper than {MAX_DEPTH} levels: send it flatter", field="body"
        )


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
    await send_body(send, status, body, "application/json", headers)


async def send_body(
    send: Send,
    status: int,
    body: bytes,
    content_type: str,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send a whole answer of any type."""
    raw = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    raw += [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
