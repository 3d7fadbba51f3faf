"""What a call costs, counted and not timed: the same on a busy machine as on an idle one.

A change that makes calls dearer fails here, whatever the machine does beside. The measure is the
same round trip by hand in nats-py, counted in the same way, so that versions of Python and of
nats-py do not matter. `scripts/bench calls` tells the times of both.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, Final

import orjson

from mesh import Agent, ChatRequest
from mesh.client import MeshClient
from scripts.benchmarks import hand
from scripts.benchmarks.calls import answer_by_hand, bare_caller
from tests.conftest import Running

BODY: Final = orjson.dumps({"model": "x", "messages": [{"role": "user", "content": "hello"}]})
CALLS: Final = 200
MOST: Final = 0.8
"""So many times what it takes by hand; measured 0.74. Whoever makes calls cheaper lowers it."""


async def functions_of(ask: Callable[[], Awaitable[None]]) -> float:
    """Return how many functions this process calls for one call, caller and agent together."""
    for _ in range(20):
        await ask()
    seen: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        seen[event] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        for _ in range(CALLS):
            await ask()
    finally:
        sys.setprofile(before)
    return (seen["call"] + seen["c_call"]) / CALLS


@asynccontextmanager
async def by_hand(nats_url: str, name: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Run an agent by hand in this process, and give what asks it."""
    await hand.declare_mailbox(nats_url, name)
    agent = asyncio.create_task(hand.run_agent(nats_url, name, answer_by_hand))
    try:
        async with bare_caller(nats_url, name) as ask:
            yield ask
    finally:
        agent.cancel()


async def test_a_call_takes_no_more_than_by_hand(
    client: MeshClient, running: Running, nats_url: str, agent_id: str
) -> None:
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return request.last_text

    async def ask() -> None:
        await (await client.start(agent_id, BODY, timeout_s=30)).result()

    async with by_hand(nats_url, f"{agent_id}-hand") as ask_by_hand:
        by_hand_count = await functions_of(ask_by_hand)
    async with running(agent):
        mesh_count = await functions_of(ask)
    assert mesh_count <= MOST * by_hand_count
