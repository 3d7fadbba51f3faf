"""A process that has connected with nats-py, subscribed, and does nothing: `…bare_idle URL`."""

import asyncio
import sys

import nats
from nats.aio.msg import Msg


async def main(url: str) -> None:
    """Wait for ever."""

    async def nothing(message: Msg) -> None:
        """Nobody publishes here."""

    client = await nats.connect(url)
    await client.subscribe("bare.idle", cb=nothing)
    print("idle is ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
