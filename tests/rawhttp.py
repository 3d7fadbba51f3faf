"""HTTP by hand: bytes that no client library would send, and answers read strictly."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Headers by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error in it, with what holds for all of them checked."""
        error: dict[str, Any] = orjson.loads(self.body)["error"]
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error


class RawClient:
    """One TCP connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes as they are. A server that has gone away is no failure here."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            return

    async def answer(self, *, is_head: bool = False) -> Answer:
        """Read one answer with a length, whole."""
        status, headers = await self.head()
        length = 0 if is_head else int(headers.get("content-length", "0"))
        body = await asyncio.wait_for(self.reader.readexactly(length), 30)
        return Answer(status, headers, body)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read a status and its headers."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 30)
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        pairs = [line.partition(": ") for line in lines]
        headers = {name.lower(): value for name, _, value in pairs}
        assert len(headers) == len(pairs), f"a header came twice: {lines}"
        return int(first.split(" ")[1]), headers

    async def part(self) -> bytes:
        """Read one part of a chunked body; the empty one ends it."""
        size = int(await asyncio.wait_for(self.reader.readline(), 30), 16)
        return (await asyncio.wait_for(self.reader.readexactly(size + 2), 30))[:-2]

    async def parts(self) -> bytes:
        """Read the rest of a chunked body, whole."""
        read = b""
        while part := await self.part():
            read += part
        return read

    async def is_closed(self, within_s: float = 15.0) -> bool:
        """Tell whether the server ends the connection, and sends nothing before it does."""
        try:
            return await asyncio.wait_for(self.reader.read(1), within_s) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


def address(base: str) -> tuple[str, int]:
    """Return what to connect to for a base URL."""
    at = urlsplit(base)
    return str(at.hostname), at.port or 80


def raw_socket(*, receive_buffer: int = 0) -> socket.socket:
    """Return a socket for asyncio, perhaps with a small buffer."""
    opened = socket.socket()
    opened.setblocking(False)
    if receive_buffer:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    return opened


@asynccontextmanager
async def raw(base: str, *, receive_buffer: int = 0) -> AsyncIterator[RawClient]:
    """Connect to `base`; with a small `receive_buffer` a server soon feels who does not read."""
    opened = raw_socket(receive_buffer=receive_buffer)
    await asyncio.get_running_loop().sock_connect(opened, address(base))
    reader, writer = await asyncio.open_connection(sock=opened)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def request(
    method: str = "POST",
    target: str = "/v1/chat/completions",
    body: bytes = b"",
    *headers: str,
    version: str = "1.1",
    host: str = "localhost",
) -> bytes:
    """Write a request down, with a length if it has a body."""
    lines = [f"{method} {target} HTTP/{version}", f"Host: {host}", *headers]
    if body:
        lines += [f"content-length: {len(body)}"]
        if not any(one.lower().startswith("content-type") for one in headers):
            lines += ["content-type: application/json"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
