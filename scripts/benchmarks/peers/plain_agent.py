"""The agent of `scripts/bench calls`: repeats the last message, in one piece."""

from mesh import Agent, ChatRequest

agent = Agent("bench", concurrency=64)


@agent.chat
async def answer(request: ChatRequest) -> str:
    """Answer at once."""
    return request.last_text
