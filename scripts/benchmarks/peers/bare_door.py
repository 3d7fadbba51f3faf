"""The same round trip as the mesh's door, by hand: raw ASGI on uvicorn, nats-py, nothing else.

A request goes into the agent's mailbox on JetStream with its `reply_to`; the answer is what the
reply stream republishes once it is stored. No validation, no typed errors, no liveness, no limits.
"""

import asyncio
import sys
from typing import Any

import orjson

from scripts.benchmarks import hand
from scripts.benchmarks.hand import HandCaller
from scripts.benchmarks.peers import bare_agent
from scripts.benchmarks.peers.serving import read_body, send_json, serve


class BareDoor:
    """One application, one connection, one subscription for all answers."""

    def __init__(self, caller: HandCaller) -> None:
        self._caller = caller

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        body = await read_body(receive)
        if orjson.loads(body).get("stream"):
            await self._relay(body, send)
        else:
            await send_json(send, await self._caller.ask(bare_agent.NAME, body))

    async def _relay(self, body: bytes, send: Any) -> None:
        chunks = self._caller.stream(bare_agent.NAME, body)
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for chunk in chunks:
            event = b"data: " + chunk + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def main(url: str) -> None:
    """Connect, and serve."""
    async with hand.calling(url) as caller:
        await serve(BareDoor(caller))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
