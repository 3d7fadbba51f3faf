"""Counts the functions of a call, by hand and through the mesh: `python -m …functions URL`.

A process of its own: whatever else runs in it would be counted too. The broker has its streams,
and a control plane.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, Final

from mesh.errors import AgentNotFoundError
from scripts.benchmarks import calls, hand
from scripts.benchmarks.loads import Ask

CALLS: Final = 200


async def functions_of(ask: Ask) -> float:
    """Return how many functions this process calls for one call, caller and agent together."""
    for _ in range(20):
        await ask()
    seen: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        seen[event] += 1

    sys.setprofile(count)
    try:
        for _ in range(CALLS):
            await ask()
    finally:
        sys.setprofile(None)
    return (seen["call"] + seen["c_call"]) / CALLS


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run an agent in this process."""
    agent = asyncio.create_task(work)
    try:
        yield
    finally:
        agent.cancel()
        await asyncio.wait({agent})


async def registered(ask: Ask) -> None:
    """Wait until the agent is in the registry, for at most ten seconds."""
    async with asyncio.timeout(10):
        while True:
            try:
                await ask()
                return
            except AgentNotFoundError:
                await asyncio.sleep(0.05)


async def main(url: str) -> None:
    """Print both numbers."""
    await hand.declare_mailbox(url, calls.BARE)
    by_hand_agent = hand.run_agent(url, calls.BARE, calls.answer_by_hand)
    async with beside(by_hand_agent), calls.bare_caller(url) as ask:
        by_hand = await functions_of(ask)
    async with beside(calls.run_mesh_agent(url)), calls.mesh_caller(url) as ask:
        await registered(ask)
        mesh = await functions_of(ask)
    print(json.dumps({"by_hand": by_hand, "mesh": mesh}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
