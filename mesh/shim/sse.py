"""Server-sent events as OpenAI clients read them: `data:` lines and comments, nothing else.

An `id:` or `retry:` line, an `event:` line without data, or an empty `data:`, breaks openai-python
3.54. A stream that is cut looks like success to most clients: a failed one ends with an error
event, and without `[DONE]`. Does not know what is in the events; see `mesh.shim.openai` and
`mesh.shim.response_events`, which names its events.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from starlette.types import Send

from mesh import codec
from mesh.errors import InvalidInputError, ProtocolError

DONE: Final = b"[DONE]"
COMMENT: Final = b": keep-alive\n\n"
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Without it nginx collects the tokens before it passes them on.
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True, slots=True)
class Pace:
    """When something is sent although there is no event."""

    begin_after_s: float = 1.0
    """A failure that comes sooner still gets its HTTP status; then clients want to see headers."""
    keep_alive_s: float = 10.0
    """Proxies cut what is silent for 60 s and more."""


PACE: Final = Pace()


class EventStream:
    """One streamed answer. It begins with the first event, or when that is late."""

    def __init__(
        self,
        send: Send,
        headers: Mapping[str, str],
        *,
        pace: Pace = PACE,
        comment: bytes = COMMENT,
    ) -> None:
        self._send = send
        self._headers = headers
        self._pace = pace
        self._comment = comment
        self._has_begun = False
        self._written_at = 0.0
        self._lock = asyncio.Lock()

    @property
    def has_begun(self) -> bool:
        """Whether the status line has been sent: from then on a failure is an event."""
        return self._has_begun

    async def relay(self, events: AsyncGenerator[bytes, None]) -> None:
        """Send every encoded event, and comments while none comes.

        Raises what `events` raises; nothing is sent about it.
        """
        keeping_alive = asyncio.create_task(self._keep_alive())
        try:
            async with aclosing(events):
                async for one in events:
                    await self._write(one)
        finally:
            keeping_alive.cancel()
            await asyncio.wait({keeping_alive})
        await self._write(b"", is_last=True)

    async def fail(self, last: bytes) -> None:
        """Send an encoded event as the last one."""
        await self._write(last, is_last=True)

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._pace.begin_after_s)
        async with self._lock:
            await self._begin()
        while True:
            due_s = self._written_at + self._pace.keep_alive_s - loop.time()
            if due_s <= 0:
                await self._write(self._comment)
            else:
                await asyncio.sleep(due_s)

    async def _write(self, body: bytes, *, is_last: bool = False) -> None:
        # The keep-alive writes too: nothing may come before the status line.
        async with self._lock:
            await self._begin()
            await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})
            self._written_at = asyncio.get_running_loop().time()

    async def _begin(self) -> None:
        if self._has_begun:
            return
        headers = [(name.encode(), value.encode()) for name, value in self._headers.items()]
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *headers]}
        )
        self._has_begun = True
        self._written_at = asyncio.get_running_loop().time()


def event(payload: bytes) -> bytes:
    """Encode one event.

    Raises:
        ProtocolError: the payload is empty, or has line breaks and is no JSON: it would be read
            as other lines of the stream.
    """
    if not payload:
        raise ProtocolError("the agent sent an empty chunk")
    if b"\n" in payload or b"\r" in payload:
        try:
            payload = codec.dumps(codec.loads(payload))
        except InvalidInputError as error:
            raise ProtocolError(f"the agent sent a chunk that is no event: {error}") from None
    return b"data: " + payload + b"\n\n"
