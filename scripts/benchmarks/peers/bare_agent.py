"""The agent behind the bare door: repeats the last message, as an OpenAI completion or in chunks.

The same work as `handlers.echo`, on nats-py alone.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import Any

import orjson
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from scripts.benchmarks import hand

NAME = "bare"


async def answer(stream: JetStreamContext, message: Msg) -> None:
    """Publish the answer where the request's header says."""
    headers = message.headers or {}
    subject, call = headers["reply_to"], headers["correlation_id"]
    request = orjson.loads(message.data)
    text = request["messages"][-1]["content"]
    if request.get("stream"):
        for chunk in chunks(call, text):
            await stream.publish_async(subject, chunk, headers={"kind": "chunk"})
    await hand.answer_with(stream, message, completion(call, text))


def completion(call: str, text: str) -> bytes:
    """Encode a whole answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return orjson.dumps({**head(call, "chat.completion"), "choices": [choice], "usage": usage})


def chunks(call: str, text: str) -> Iterator[bytes]:
    """Encode an answer word by word, with the role before and the reason behind it."""
    first = head(call, "chat.completion.chunk")

    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return orjson.dumps({**first, "choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    for place, word in enumerate(text.split(" ")):
        yield chunk({"content": f"{' ' if place else ''}{word}"})
    yield chunk({}, "stop")


def head(call: str, kind: str) -> dict[str, Any]:
    """Return what every answer begins with."""
    return {"id": f"chatcmpl-{call}", "object": kind, "created": int(time.time()), "model": NAME}


if __name__ == "__main__":
    asyncio.run(hand.run_agent(sys.argv[1], NAME, answer))
