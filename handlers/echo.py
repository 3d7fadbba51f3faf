"""The smallest agent: it repeats the last message. `mesh run handlers.echo:agent`."""

from collections.abc import AsyncIterator

from mesh import Agent, ChatRequest

agent = Agent("echo", description="Repeats the last message, word by word.", concurrency=64)


@agent.chat
async def repeat(request: ChatRequest) -> AsyncIterator[str]:
    """Yield the words of the last message."""
    words = request.last_text.split(" ")
    for place, word in enumerate(words):
        yield f"{' ' if place else ''}{word}"
