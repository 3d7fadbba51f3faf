"""A hundred agents for one process: `mesh run scripts.benchmarks.peers.hundred_agents:agents`."""

from mesh import Agent, ChatRequest

COUNT = 100
IDS = tuple(f"idle{number}" for number in range(COUNT))


def make_agent(agent_id: str) -> Agent:
    """Make one that repeats the last message."""
    agent = Agent(agent_id)

    @agent.chat
    async def repeat(request: ChatRequest) -> str:
        return request.last_text

    return agent


agents = [make_agent(agent_id) for agent_id in IDS]
