"""The agents of `scripts/bench machines`: some answer at once, and some after 20 ms, as models do.

Each attribute is what one process hosts: `mesh run scripts.benchmarks.peers.machine_agents:one`.
Those that wait take eight calls at once, hence 400 in a second: of a second process comes as much.
"""

import asyncio

from mesh import Agent, ChatRequest

CONCURRENCY, FEW = 64, 8
MODEL_S = 0.02
SLOW = "slow_"
"""What the ids of those begin with that take their time."""
OPEN = "open"
"""Takes its time, and any number of calls."""


def quick(agent_id: str) -> Agent:
    """Make an agent that answers at once."""
    agent = Agent(agent_id, concurrency=CONCURRENCY)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return request.last_text

    return agent


def slow(agent_id: str, concurrency: int) -> Agent:
    """Make an agent that takes its time."""
    agent = Agent(agent_id, concurrency=concurrency)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        await asyncio.sleep(MODEL_S)
        return request.last_text

    return agent


def pair(agent_id: str) -> list[Agent]:
    """Make one of either kind: whichever is not asked costs nothing."""
    return [quick(agent_id), slow(SLOW + agent_id, FEW)]


one, both, left, right = (pair(name) for name in ("one", "both", "left", "right"))
behind_doors = [quick("quick"), slow(OPEN, 4 * CONCURRENCY)]
