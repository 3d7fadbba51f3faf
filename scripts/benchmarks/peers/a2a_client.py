"""The A2A SDK's own client under load: `python -m …a2a_client URL CALLS IN_FLIGHT`.

In the environment of `scripts/setup peers`.
"""

import asyncio
import gc
import json
import sys

import httpx
from a2a.client import ClientConfig, create_client
from a2a.helpers import new_text_message
from a2a.types import Role, SendMessageRequest

from scripts.benchmarks.loads import load

# By default httpx keeps 20 connections, and the others are made anew for each call.
KEPT = httpx.Limits(max_connections=None, max_keepalive_connections=None)


async def main(url: str, calls: int, in_flight: int) -> None:
    """Make the calls, and print what they took."""
    async with httpx.AsyncClient(limits=KEPT, timeout=60) as http:
        config = ClientConfig(streaming=False, httpx_client=http)
        client = await create_client(url, client_config=config)

        async def ask() -> None:
            message = new_text_message("hello", role=Role.ROLE_USER)
            request = SendMessageRequest(message=message)
            (answer,) = [one async for one in client.send_message(request)]
            if not answer.HasField("message"):
                raise RuntimeError(f"no message: {answer}")

        print(json.dumps(await load(ask, calls, in_flight, gc.freeze)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
