"""How long until a full mailbox has room: what waits there, and how fast it is being worked off.

Looks only when a mailbox has refused somebody; the pace is what was done between two such looks.
"""

import asyncio
import math
from collections import deque
from dataclasses import dataclass
from typing import Final

import nats.errors
from nats.js.errors import APIError

from mesh import streams, subjects
from mesh.connection import Connection

WINDOW_S: Final = 30.0
APART_S: Final = 0.2
"""Two looks that are closer say nothing of a pace."""
PATIENCE_S: Final = 1.0
"""A caller that is refused is told at once, with or without an estimate."""
SHARE: Final = 0.5
"""Of the mailbox that should be free: who comes back finds room, and the agent never idles."""
AT_LEAST_S: Final = 1
AT_MOST_S: Final = 60
REMEMBERED: Final = 1_000


@dataclass(frozen=True, slots=True)
class Look:
    """A mailbox at one moment."""

    at_s: float
    done: int
    """Requests that were settled, ever."""
    waiting: int
    """Requests that are in it, those that are being worked on included."""


def room_in_s(then: Look, now: Look) -> int:
    """Return after how many seconds, by the pace between two looks, half of the mailbox is free.

    At least 1 and at most 60: that is also the answer where nothing was done in between.
    """
    pace = (now.done - then.done) / (now.at_s - then.at_s)
    if pace <= 0:
        return AT_MOST_S
    return min(AT_MOST_S, max(AT_LEAST_S, math.ceil(now.waiting * SHARE / pace)))


class Pressure:
    """The mailboxes that were full a moment ago."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._looks: dict[str, deque[Look]] = {}

    async def room_in_s(self, inbox: str) -> int | None:
        """Estimate when a mailbox has room again, in whole seconds; `inbox` is its subject.

        None at the first look, when the broker does not say in a second, and behind an account
        boundary, where nobody may look into another's mailbox.
        """
        if self._connection.is_guarded:
            return None
        looks = self._looks.setdefault(inbox, deque())
        if len(self._looks) > REMEMBERED:
            del self._looks[next(iter(self._looks))]
        now_s = asyncio.get_running_loop().time()
        while looks and now_s - looks[0].at_s > WINDOW_S:
            looks.popleft()
        # Of a flood of callers only the first one looks.
        if not looks or now_s - looks[-1].at_s >= APART_S:
            look = await self._look(inbox)
            # Somebody else may have looked meanwhile.
            if look and (not looks or look.at_s - looks[-1].at_s >= APART_S):
                looks.append(look)
        return room_in_s(looks[0], looks[-1]) if len(looks) > 1 else None

    async def _look(self, inbox: str) -> Look | None:
        target = subjects.parse_inbox(inbox)
        manager = self._connection.client.jsm(timeout=PATIENCE_S)
        durable = streams.durable(target.agent, target.node)
        try:
            info = await manager.consumer_info(streams.INBOX, durable)
        except (nats.errors.Error, APIError):
            return None
        return Look(
            at_s=asyncio.get_running_loop().time(),
            done=int(info.ack_floor.consumer_seq) if info.ack_floor else 0,
            waiting=(info.num_pending or 0) + (info.num_ack_pending or 0),
        )
