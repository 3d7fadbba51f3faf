"""A FastStream application with default options: `python -m …faststream_app URL`.

One subscriber answers requests, the other takes from a stream and publishes its answers. Only the
two lines that it logs about each message are switched off. In the environment of
`scripts/setup peers`.
"""

import asyncio
import sys
from typing import Any

from faststream import FastStream
from faststream.nats import NatsBroker, NatsMessage

ECHO, WORK, STREAM = "faststream.echo", "faststream.work", "FASTSTREAM"


def create_app(url: str) -> FastStream:
    """Make the application."""
    broker = NatsBroker(url, logger=None)

    @broker.subscriber(ECHO)
    async def echo(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @broker.subscriber(WORK, stream=STREAM)
    async def work(body: dict[str, Any], message: NatsMessage) -> None:
        answer_to = message.headers["answer_to"]
        await broker.publish(body, answer_to, correlation_id=message.correlation_id)

    async def ready() -> None:
        print("faststream is ready", flush=True)

    return FastStream(broker, logger=None, after_startup=[ready])


if __name__ == "__main__":
    asyncio.run(create_app(sys.argv[1]).run())
