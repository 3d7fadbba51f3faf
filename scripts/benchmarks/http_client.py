"""An HTTP/1.1 client on asyncio streams, the same for everybody who is measured with it.

Small, so that what is measured is the server; knows only what these servers send.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from scripts.benchmarks.processes import BenchError

READ_BYTES = 65_536
LIMIT_S = 60.0


class HttpConnection:
    """One connection that is kept alive."""

    def __init__(
        self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._host = host
        self._reader = reader
        self._writer = writer
        self._seen = b""

    async def get(self, path: str) -> bytes:
        """Return the body of an answer that says its length."""
        await self._send(f"GET {path} HTTP/1.1\r\nhost: {self._host}\r\n\r\n".encode())
        head = await self.read_past(b"\r\n\r\n")
        found = re.search(rb"^HTTP/1.1 200 .*\r\ncontent-length: (\d+)\r\n", head, re.DOTALL)
        if found is None:
            raise BenchError(f"{path}: {head.decode(errors='replace')}")
        length = int(found[1])
        while len(self._seen) < length:
            await self._read_more()
        body, self._seen = self._seen[:length], self._seen[length:]
        return body

    async def begin(self, body: bytes) -> None:
        """Send a chat request."""
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._host}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        await self._send(head.encode() + body)

    async def time_to(self, word: bytes, body: bytes) -> float:
        """Ask for a stream, and return how many seconds its first `word` took. Reads it all."""
        start = time.perf_counter()
        await self.begin(body)
        await self.read_past(word)
        took_s = time.perf_counter() - start
        await self.finish()
        return took_s

    async def finish(self) -> bytes:
        """Read to the end of a stream that ended as it should, and return what was left of it."""
        rest = await self.read_past(b"data: [DONE]\n\n")
        await self.read_past(b"0\r\n\r\n")
        return rest

    async def read_past(self, marker: bytes) -> bytes:
        """Read until `marker` has come, and return what came with it."""
        while (place := self._seen.find(marker)) < 0:
            await self._read_more()
        end = place + len(marker)
        found, self._seen = self._seen[:end], self._seen[end:]
        return found

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def _read_more(self) -> None:
        data = await asyncio.wait_for(self._reader.read(READ_BYTES), LIMIT_S)
        if not data:
            raise BenchError(f"{self._host} closed early: {self._seen.decode(errors='replace')}")
        self._seen += data


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[HttpConnection]:
    """Connect to the server at `url`, and close at the end."""
    host = urlsplit(url)
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    try:
        yield HttpConnection(host.netloc, reader, writer)
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            return
