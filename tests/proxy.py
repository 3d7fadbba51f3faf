"""A TCP proxy on loopback that can cut, slow down and heal: faults between two real processes."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

SLICE_BYTES: Final = 2_000
"""At 0.2 s each, 10 kB/s: a telephone in a tunnel."""


class FaultProxy:
    """Passes bytes between clients and one server, as long as it is told to."""

    def __init__(self, scheme: str, host: str, port: int) -> None:
        self._scheme = scheme
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_open = True
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._delay_s = 0.0
        self.port = 0
        self.refused = 0
        """How many came while it was cut."""

    @property
    def url(self) -> str:
        """Where clients connect instead."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Drop every connection, and refuse new ones."""
        self._is_open = False
        for writer in list(self._writers):
            writer.transport.abort()

    def heal(self) -> None:
        """Let connections through again."""
        self._is_open = True

    def slow(self, delay_s: float) -> None:
        """Pass bytes on in slices, each half as late again or half as early; 0: as they come."""
        self._delay_s = delay_s

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        if not self._is_open:
            self.refused += 1
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
        except OSError:  # The server is away: so is the way to it.
            writer.transport.abort()
            return
        pair = {writer, up_writer}
        self._writers |= pair
        self._is_idle.clear()
        try:
            if self._is_open:
                await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))
        finally:
            self._writers -= pair
            for one in pair:
                one.transport.abort()
            if not self._writers:
                self._is_idle.set()

    async def close(self) -> None:
        """Cut, and return when nothing is passed on any more."""
        self.cut()
        await self._is_idle.wait()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(SLICE_BYTES if self._delay_s else 65_536):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s * random.uniform(0.5, 1.5))
                writer.write(data)
                await writer.drain()
        except (ConnectionError, OSError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def fault_proxy(url: str) -> AsyncIterator[FaultProxy]:
    """Run a proxy in front of the server at `url`."""
    target = urlsplit(url)
    proxy = FaultProxy(target.scheme, str(target.hostname), target.port or 0)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
