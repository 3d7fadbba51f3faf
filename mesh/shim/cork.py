"""One system call for what one answer says in several writes: its head, its body, its end.

uvicorn writes each as it comes, and a system call costs more than all the rest of a small answer.
"""

import asyncio
from typing import Any, Final

MAX_KEPT_BYTES: Final = 16 * 1024
"""More goes out at once: only the real transport can tell that the client does not keep up."""


class CorkedTransport(asyncio.Transport):
    """Joins the writes of one turn of the event loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes | bytearray | memoryview[Any]] = []
        self._kept_bytes = 0

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        """Keep bytes until the loop turns, or until they are many."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._kept_bytes += len(data)
        if self._kept_bytes >= MAX_KEPT_BYTES:
            self._flush()

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        self._kept_bytes = 0
        if parts:
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        """Send what is kept, then close."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once, and drop what is kept."""
        self._parts.clear()
        self._kept_bytes = 0
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether it is closed, or will be when all is sent."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Take no more bytes for a while."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes again."""
        self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the client has not taken yet."""
        return self._transport.get_write_buffer_size() + self._kept_bytes

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the socket knows."""
        return self._transport.get_extra_info(name, default)
