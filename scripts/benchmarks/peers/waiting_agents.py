"""Agents whose answers begin, and then wait until the message `END` ends all of them in order.

`mesh run scripts.benchmarks.peers.waiting_agents:agents`.
"""

import asyncio
from collections.abc import AsyncIterator

from mesh import Agent, ChatRequest

COUNT = 4
IDS = tuple(f"waiting{number}" for number in range(COUNT))
FIRST, END = "begun", "end"
CONCURRENCY = 300


def make_agent(agent_id: str) -> Agent:
    """Make one agent, with the event that its answers wait for."""
    agent = Agent(agent_id, concurrency=CONCURRENCY)
    is_over = asyncio.Event()

    @agent.chat
    async def answer(request: ChatRequest) -> AsyncIterator[str]:
        if request.last_text == END:
            is_over.set()
        yield FIRST
        await is_over.wait()

    return agent


agents = [make_agent(agent_id) for agent_id in IDS]
