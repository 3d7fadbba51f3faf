"""Daarwizz, of the demo: compares days between cities, by asking Solarius about each.

It knows nothing of the sun itself: what it answers has crossed the mesh and come back.
"""

import asyncio
import re
from dataclasses import dataclass

from handlers.solarius import PLACES, find_day
from mesh import Agent, CallContext, ChatRequest

agent = Agent("daarwizz", description="Compares the length of the day between cities.")

_LENGTH = re.compile(r"the day lasts (\d+) h (\d+) min")


@dataclass(frozen=True, slots=True)
class Day:
    """What Solarius said of one city."""

    city: str
    length_min: int


async def ask_solarius(call: CallContext, city: str, day: str) -> Day:
    """Ask about one city, wherever Solarius runs."""
    reply = await call.ask("solarius", f"When does the sun rise and set in {city} on {day}?")
    found = _LENGTH.search(reply.text)
    if found is None:
        raise ValueError(f"solarius gave no length of day: {reply.text[:200]}")
    return Day(city, int(found[1]) * 60 + int(found[2]))


@agent.chat
async def compare(request: ChatRequest, call: CallContext) -> str:
    """Compare the cities named in the last message, on the day it names or today."""
    text = request.last_text.lower()
    cities = [name.title() for name in PLACES if re.search(rf"\b{name}\b", text)]
    if not cities:
        return "Name one city or more, such as: is the day longer in Kyiv or in Lisbon?"
    day = find_day(text).isoformat()
    days = await asyncio.gather(*(ask_solarius(call, city, day) for city in cities))
    listed = ", ".join(f"{one.city} {_hours(one.length_min)}" for one in days)
    if len(days) == 1:
        return f"I asked solarius. On {day}: {listed} of daylight."
    longest, shortest = (pick(days, key=lambda one: one.length_min) for pick in (max, min))
    more = _hours(longest.length_min - shortest.length_min)
    return (
        f"I asked solarius. On {day}: {listed}. "
        f"The day is longest in {longest.city}, {more} longer than in {shortest.city}."
    )


def _hours(minutes: int) -> str:
    return f"{minutes // 60} h {minutes % 60:02d} min"
