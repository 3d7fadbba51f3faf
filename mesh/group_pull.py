"""Pulls from a durable that several agents of one process share.

What it brings may be for any of them, also for one whose slots are all busy: that is held, and
renewed, as long as it is little. Who holds up the others is named, so that the registrar gives him
a durable of his own.
"""

import asyncio
import logging
from typing import Final

from mesh import subjects
from mesh.connection import Connection
from mesh.delivery import Delivery
from mesh.pulls import OnDelivery, PullLoop
from mesh.streams import INBOX

logger = logging.getLogger(__name__)

WINDOW: Final = 16
"""Messages that are asked for at most: all may be for one agent."""
CROWD: Final = 8
"""So many are held for one agent: it holds up the others, and nothing is pulled for a moment."""
CROWD_PAUSE_S: Final = 5.0
"""That moment, in which the registrar takes it out; without one the others are served after it."""
HELD_S: Final = 1.0
"""Something is held for so long: another process may have a slot for it, and should be asked."""
HELD_MOST: Final = 1_000
"""Nothing is pulled as long as so many are held: a whole mailbox of one agent is no reason."""


class GroupPull:
    """The pulls of one process for one group."""

    def __init__(self, connection: Connection, group: str) -> None:
        self.group = group
        self._loop = PullLoop(connection, INBOX, group, self._on_delivery)
        self._takers: dict[str, OnDelivery] = {}
        """Of everybody who ever sat here: what the group delivered once, it delivers again."""
        self._free: dict[str, int] = {}
        """Slots of those who sit here; below zero, so many requests are held."""
        self._slots = 0
        self._held = 0
        """Of all of them together: with every request this is looked at."""
        self._held_since: dict[str, float] = {}
        self._crowded_at: dict[str, float] = {}
        self._is_started = False
        self._stopping = asyncio.Lock()

    def seat(self, agent: str, take: OnDelivery) -> "Seat":
        """Give an agent a place in the group."""
        self._takers[agent] = take
        return Seat(self, agent)

    def crowded(self) -> list[str]:
        """Return who holds up the others, or has held something for a while."""
        now = asyncio.get_running_loop().time()
        late = (one for one, since in self._held_since.items() if now - since > HELD_S)
        return sorted({*self._crowded_at, *late})

    async def start(self) -> None:
        """Begin to pull, once."""
        if not self._is_started:
            self._is_started = True
            await self._loop.start()

    async def stop(self) -> None:
        """Pull no more, for nobody. What is on its way is still brought."""
        async with self._stopping:
            if self._is_started:
                self._is_started = False
                await self._loop.stop()

    async def tick(self) -> None:
        """Look after the pulls. To be called every second or so."""
        self._pull()
        await self._loop.tick()

    def want(self, agent: str, free: int) -> None:
        """Say how many slots an agent has free; below zero, so many of its requests are held."""
        self._count(self._free.get(agent, 0), free)
        self._free[agent] = free
        now = asyncio.get_running_loop().time()
        if free >= 0:
            self._held_since.pop(agent, None)
        else:
            self._held_since.setdefault(agent, now)
        if -free < CROWD:
            self._crowded_at.pop(agent, None)
        else:
            self._crowded_at.setdefault(agent, now)
        self._pull()

    def leave(self, agent: str) -> None:
        """Take an agent's slots out. What the group has delivered is still brought to it."""
        self._count(self._free.pop(agent, 0), 0)
        self._held_since.pop(agent, None)
        self._crowded_at.pop(agent, None)
        self._pull()

    def _count(self, before: int, now: int) -> None:
        self._slots += max(0, now) - max(0, before)
        self._held += max(0, -now) - max(0, -before)

    def _pull(self) -> None:
        if self._is_started:
            self._loop.want(0 if self._is_held_up() else min(WINDOW, self._slots))

    def _is_held_up(self) -> bool:
        if self._held >= HELD_MOST:
            return True
        if not self._crowded_at:
            return False
        since_s = asyncio.get_running_loop().time() - max(self._crowded_at.values())
        return since_s < CROWD_PAUSE_S

    def _on_delivery(self, delivery: Delivery) -> None:
        agent = subjects.parse_inbox(delivery.subject).agent
        if (take := self._takers.get(agent)) is not None:
            take(delivery)
            return
        # Of somebody who leaves the group, and what a process had that is dead: it is delivered by
        # the durable that he will have, and this one gives it up after some tries.
        logger.debug("%s: a request for %s, who is not here", self.group, agent)


class Seat:
    """One agent's part of a group: used as a pull loop of its own would be."""

    def __init__(self, pull: GroupPull, agent: str) -> None:
        self.group: Final = pull.group
        self._pull = pull
        self._agent = agent
        self._is_given_up = False

    async def start(self) -> None:
        """Begin to pull, with the others."""
        await self._pull.start()

    async def stop(self) -> None:
        """Stop for all: the process ends."""
        await self._pull.stop()

    async def tick(self) -> None:
        """Nothing to do: the group is looked after once for all."""

    def want(self, messages: int) -> None:
        """Have pulls outstanding for `messages` messages; below zero, so many are held."""
        if not self._is_given_up:
            self._pull.want(self._agent, messages)

    def leave(self) -> None:
        """Pull no more for this agent."""
        self._is_given_up = True
        self._pull.leave(self._agent)
