"""FastStream under load, as its caller: `python -m …faststream_client HOW URL CALLS IN_FLIGHT`.

`request` asks by `broker.request`, `jetstream` stores the question in a stream and hears the answer
on a subject of its own. In the environment of `scripts/setup peers`.
"""

import asyncio
import gc
import json
import sys
from typing import Any
from uuid import uuid4

from faststream.nats import NatsBroker, NatsMessage

from scripts.benchmarks.loads import Ask, load
from scripts.benchmarks.peers.faststream_app import ECHO, STREAM, WORK

BODY = {"model": "bench", "messages": [{"role": "user", "content": "hello"}]}
ANSWERS = f"faststream.answers.{uuid4().hex}"
TIMEOUT_S = 30.0


def by_request(broker: NatsBroker) -> Ask:
    """Ask and be answered on core NATS."""

    async def ask() -> None:
        answer = await broker.request(BODY, ECHO, timeout=TIMEOUT_S)
        await answer.decode()

    return ask


def by_jetstream(broker: NatsBroker) -> Ask:
    """Ask through a stream."""
    waiting: dict[str, asyncio.Future[None]] = {}

    @broker.subscriber(ANSWERS)
    async def on_answer(body: dict[str, Any], message: NatsMessage) -> None:
        if message.correlation_id in waiting:
            waiting[message.correlation_id].set_result(None)

    async def ask() -> None:
        call = uuid4().hex
        answer = waiting[call] = asyncio.get_running_loop().create_future()
        headers = {"answer_to": ANSWERS}
        try:
            await broker.publish(BODY, WORK, stream=STREAM, correlation_id=call, headers=headers)
            await asyncio.wait_for(answer, TIMEOUT_S)
        finally:
            del waiting[call]

    return ask


async def main(how: str, url: str, calls: int, in_flight: int) -> None:
    """Make the calls, and print what they took."""
    broker = NatsBroker(url, logger=None)
    ask = by_request(broker) if how == "request" else by_jetstream(broker)
    async with broker:
        await broker.start()
        print(json.dumps(await load(ask, calls, in_flight, gc.freeze)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
