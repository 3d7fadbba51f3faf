"""The same round trip as the mesh's door, by hand: raw ASGI on uvicorn, nats-py, nothing else.

A request goes into the agent's mailbox on JetStream with its `reply_to`; the answer is what the
reply stream republishes once it is stored. No validation, no typed errors, no liveness, no limits.
"""

import asyncio
import sys
from typing import Any
from uuid import uuid4

import nats
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from scripts.benchmarks.peers import bare_agent
from scripts.benchmarks.peers.serving import read_body, send_json, serve

INSTANCE = "x"
TIMEOUT_S = 30.0


class BareDoor:
    """One application, one connection, one subscription for all answers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stream = client.jetstream()
        self._answers: dict[str, asyncio.Future[bytes]] = {}
        self._streams: dict[str, asyncio.Queue[Msg]] = {}

    async def listen(self) -> None:
        """Subscribe to the stored answers."""
        await self._client.subscribe(f"delivered.door.reply.{INSTANCE}.>", cb=self._on_reply)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        body = await read_body(receive)
        call = uuid4().hex
        if orjson.loads(body).get("stream"):
            await self._relay(call, body, send)
        else:
            await send_json(send, await self._ask(call, body))

    async def _ask(self, call: str, body: bytes) -> bytes:
        answer = self._answers[call] = asyncio.get_running_loop().create_future()
        try:
            await self._publish(call, body)
            return await asyncio.wait_for(answer, TIMEOUT_S)
        finally:
            del self._answers[call]

    async def _relay(self, call: str, body: bytes, send: Any) -> None:
        frames = self._streams[call] = asyncio.Queue()
        try:
            await self._publish(call, body)
            headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while True:
                frame = await asyncio.wait_for(frames.get(), TIMEOUT_S)
                if (frame.headers or {}).get("kind") == "final":
                    break
                event = b"data: " + frame.data + b"\n\n"
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            del self._streams[call]

    async def _publish(self, call: str, body: bytes) -> None:
        headers = {
            "reply_to": f"agent.door.reply.{INSTANCE}.{call}",
            "correlation_id": call,
            "Nats-Msg-Id": call,
        }
        await self._stream.publish_async(f"agent.{bare_agent.NAME}.inbox", body, headers=headers)

    async def _on_reply(self, message: Msg) -> None:
        call = message.subject.rpartition(".")[2]
        if (answer := self._answers.get(call)) is not None:
            answer.set_result(message.data)
        elif (frames := self._streams.get(call)) is not None:
            frames.put_nowait(message)


async def main(url: str) -> None:
    """Connect, and serve."""
    client = await nats.connect(url)
    door = BareDoor(client)
    await door.listen()
    await serve(door)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
