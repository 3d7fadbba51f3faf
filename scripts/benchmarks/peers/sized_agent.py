"""The agent of `scripts/bench sizes`: answers with as many characters as it is asked for.

Whoever asks for none gets a word, however long the question. Knows nothing but text, so that the
agent by hand answers by the same function.
"""

from functools import lru_cache

from mesh import Agent, ChatRequest

GIVE = "give "
WORDS = "a mesh of agents that ask each other "

agent = Agent("sized", concurrency=64)


@agent.chat
async def answer(request: ChatRequest) -> str:
    """Answer at once."""
    return answer_to(request.last_text)


def answer_to(question: str) -> str:
    """Return the answer to a question."""
    return text_of(int(question.removeprefix(GIVE))) if question.startswith(GIVE) else "read"


@lru_cache
def text_of(size_bytes: int) -> str:
    """Return so much text, the same each time: to make it is not what is measured."""
    return (WORDS * (size_bytes // len(WORDS) + 1))[:size_bytes]
