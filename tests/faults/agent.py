"""The agent of the fault tests: repeats what it is asked, after a while, and notes what it did.

    FAULT_EFFECTS  where it writes a line for each call that it begins, and one when it has done it
    FAULT_WORK_S   it works for up to so many seconds
    FAULT_NEIGHBOURS  so many others are in its process: with 20 and more they share a durable

Its handler is killed by a text that begins with `poison`.
"""

import asyncio
import os
import random
import signal

from mesh import Agent, ChatRequest

WORK_S = float(os.environ.get("FAULT_WORK_S", "0"))
EFFECTS = os.open(os.environ["FAULT_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

NEIGHBOURS = int(os.environ.get("FAULT_NEIGHBOURS", "0"))

# Whoever holds up his neighbours leaves their group, and then it is not tried any more.
agent = Agent("faulty", concurrency=64 if NEIGHBOURS else 8)
agents = [agent, *(Agent(f"neighbour{number}") for number in range(NEIGHBOURS))]


for one in agents[1:]:

    @one.chat
    async def repeat(request: ChatRequest) -> str:
        """Answer at once; nobody asks."""
        return request.last_text


@agent.chat
async def answer(request: ChatRequest) -> str:
    """Repeat the text."""
    text = request.last_text
    _note("begun", text)
    if text.startswith("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(random.uniform(0, WORK_S))
    _note("done", text)
    return text


def _note(what: str, text: str) -> None:
    # One write of less than a page: lines of several processes are not mixed.
    os.write(EFFECTS, f"{what} {text}\n".encode())
