"""An agent that comes when there are letters for it already."""

from mesh import Agent, ChatRequest

agent = Agent("late")


@agent.chat
async def answer(request: ChatRequest) -> str:
    """Say what was heard."""
    return f"late heard: {request.last_text}"
