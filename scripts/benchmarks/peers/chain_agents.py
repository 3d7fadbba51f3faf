"""Agents that ask each other: the third asks the second, which asks the first.

`mesh run scripts.benchmarks.peers.chain_agents:joined` runs a chain in one process, and `:apart1`,
`:apart2` and `:apart3` each a link of another one.
"""

from itertools import pairwise

from mesh import Agent, CallContext, ChatRequest

LENGTH = 3
CONCURRENCY = 64


def ids_of(name: str) -> list[str]:
    """Return the ids of a chain, the one that answers by itself first."""
    return [f"{name}{place}" for place in range(1, LENGTH + 1)]


def make_chain(name: str) -> list[Agent]:
    """Make the links of a chain."""
    ids = ids_of(name)
    return [make_link(ids[0], None), *(make_link(above, one) for one, above in pairwise(ids))]


def make_link(agent_id: str, below: str | None) -> Agent:
    """Make an agent that asks `below`, or answers by itself."""
    agent = Agent(agent_id, concurrency=CONCURRENCY)

    @agent.chat
    async def answer(request: ChatRequest, call: CallContext) -> str:
        text = request.last_text
        return text if below is None else (await call.ask(below, text)).text

    return agent


joined = make_chain("joined")
apart1, apart2, apart3 = make_chain("apart")
