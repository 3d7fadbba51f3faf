"""Agents that are not ours: they know NATS, and nothing of this house."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh import registry
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.runtime import describe_process
from schemas.card import AgentCard
from schemas.registry import Announcement, Role, State
from tests.conftest import until

Reply = Callable[[bytes, dict[str, str]], Awaitable[None]]
"""Publishes a body with headers, as a part of the answer."""
Script = Callable[[Reply], Awaitable[None]]


@asynccontextmanager
async def foreign_agent(
    agent_id: str,
    connection: Connection,
    directory: Directory,
    bare: Client,
    script: Script,
    *,
    max_choices: int = 1,
) -> AsyncIterator[None]:
    """An agent by hand: announced, and answering one request by a script."""
    card = AgentCard(id=agent_id, max_choices=max_choices)
    instance = describe_process("node1", Role.HOST, [agent_id])
    await registry.announce(connection, Announcement(card=card, instance=instance))
    await until(lambda: directory.agent(agent_id).state is State.ONLINE)
    stream = bare.jetstream()
    inbox = await stream.pull_subscribe_bind(consumer=agent_id, stream="INBOX")

    async def answer() -> None:
        [message] = await inbox.fetch(1, timeout=10)
        await script(lambda body, headers: publish(message, body, headers))
        await message.ack()

    async def publish(request: Msg, body: bytes, headers: dict[str, str]) -> None:
        asked = request.headers or {}
        named = {"correlation_id": asked["correlation_id"], **headers}
        await stream.publish(asked["reply_to"], body, headers=named)

    task = asyncio.create_task(answer())
    try:
        yield
    finally:
        await task
        await inbox.unsubscribe()
