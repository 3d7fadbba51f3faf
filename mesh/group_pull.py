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

WINDOW: Final = 32
"""Messages that are asked for at most: all may be for one agent."""
CROWD: Final = 16
"""So many are waiting for one agent: it holds up the others."""
CROWD_S: Final = 5.0
"""How long nothing is pulled while somebody holds up the others: the time to give him a durable."""
HELD_MOST: Final = 256
"""Nothing is pulled as long as so many are held, whoever they are for."""


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
        self._crowded_at: dict[str, float] = {}
        self._is_started = False

    def seat(self, agent: str, take: OnDelivery) -> "Seat":
        """Give an agent a place in the group."""
        self._takers[agent] = take
        return Seat(self, agent)

    def crowded(self) -> list[str]:
        """Return who holds up the others."""
        return list(self._crowded_at) if len(self._free) > 1 else []

    async def start(self) -> None:
        """Begin to pull, once."""
        if not self._is_started:
            self._is_started = True
            await self._loop.start()

    async def stop(self) -> None:
        """Pull no more, for nobody."""
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
        if -free < CROWD:
            self._crowded_at.pop(agent, None)
        else:
            self._crowded_at.setdefault(agent, asyncio.get_running_loop().time())
        self._pull()

    def leave(self, agent: str) -> None:
        """Take an agent's slots out. What the group has delivered is still brought to it."""
        self._count(self._free.pop(agent, 0), 0)
        self._crowded_at.pop(agent, None)
        self._pull()

    def _count(self, before: int, now: int) -> None:
        self._slots += max(0, now) - max(0, before)
        self._held += max(0, -now) - max(0, -before)

    def _pull(self) -> None:
        if self._is_started:
            self._loop.want(0 if self._is_held_up() else min(WINDOW, self._slots))

    def _is_held_up(self) -> bool:
        if not self._crowded_at:
            return False
        since_s = asyncio.get_running_loop().time() - max(self._crowded_at.values())
        return self._held >= HELD_MOST or (since_s < CROWD_S and len(self._free) > 1)

    def _on_delivery(self, delivery: Delivery) -> None:
        agent = subjects.parse_inbox(delivery.subject).agent
        if (take := self._takers.get(agent)) is not None:
            take(delivery)
            return
        # Somebody who has left the group, and what a process had that is dead: it is delivered by
        # its own durable, and this one gives it up after some tries.
        logger.debug("%s: a request for %s, who is not here", self.group, agent)


class Seat:
    """One agent's part of a group: used as a pull loop of its own would be."""

    def __init__(self, pull: GroupPull, agent: str) -> None:
        self.group: Final = pull.group
        self._pull = pull
        self._agent = agent

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
        self._pull.want(self._agent, messages)

    def leave(self) -> None:
        """Give the place up."""
        self._pull.leave(self._agent)
