"""An OpenAI-compatible upstream for LiteLLM: raw ASGI, repeats the last message at once."""

import asyncio
from typing import Any
from uuid import uuid4

import orjson

from scripts.benchmarks.peers.bare_agent import completion
from scripts.benchmarks.peers.serving import read_body, send_json, serve


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer a chat request, whatever the path."""
    request = orjson.loads(await read_body(receive))
    await send_json(send, completion(uuid4().hex, request["messages"][-1]["content"]))


if __name__ == "__main__":
    asyncio.run(serve(app))
