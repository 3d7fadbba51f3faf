"""One call by hand, as a program: `python -m …bare_send URL AGENT TEXT`. What `mesh send` does."""

import asyncio
import json
import sys
from uuid import uuid4

import nats
from nats.aio.msg import Msg

TIMEOUT_S = 30.0


async def main(url: str, agent: str, text: str) -> None:
    """Ask, and print the answer."""
    client = await nats.connect(url)
    answered: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
    call, address = uuid4().hex, f"script.reply.{uuid4().hex[:8]}"

    async def on_reply(message: Msg) -> None:
        answered.set_result(message)

    await client.subscribe(f"delivered.{address}.>", cb=on_reply)
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    headers = {
        "reply_to": f"agent.{address}.{call}",
        "correlation_id": call,
        "Nats-Msg-Id": call,
    }
    await client.jetstream().publish(f"agent.{agent}.inbox", body, headers=headers)
    answer = await asyncio.wait_for(answered, TIMEOUT_S)
    print(json.loads(answer.data)["choices"][0]["message"]["content"])
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
