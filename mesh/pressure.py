"""Whether a mailbox has room, and how long until it has: what waits, and how fast that is done.

Looks only when a mailbox has refused somebody, or belongs to an agent with a limit of its own; the
pace is what was done between two looks at one that refused.
"""

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import nats.errors
from nats.js.errors import APIError, NotFoundError

from mesh import streams, subjects
from mesh.connection import Connection
from mesh.nats_client import is_guarded

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
BLIND_S: Final = 5.0
"""After a look that was not answered: callers must not wait in turn for one."""
FRESH_S: Final = 0.05
"""How long a look stands for what is in a mailbox, together with what was sent since."""


@dataclass(frozen=True, slots=True)
class Look:
    """A mailbox at one moment."""

    at_s: float
    done: int | None
    """Requests that were settled, ever; None where that is not told apart, in a group."""
    waiting: int
    """Requests that are in it, those that are being worked on included."""


def room_in_s(then: Look, now: Look) -> int:
    """Return after how many seconds, by the pace between two looks, half of the mailbox is free.

    At least 1 and at most 60: that is also the answer where nothing was done in between.
    """
    pace = ((now.done or 0) - (then.done or 0)) / (now.at_s - then.at_s)
    if pace <= 0:
        return AT_MOST_S
    return min(AT_MOST_S, max(AT_LEAST_S, math.ceil(now.waiting * SHARE / pace)))


@dataclass(slots=True)
class _Mailbox:
    """What was seen of a mailbox in the last half minute."""

    looks: deque[Look] = field(default_factory=deque)
    asked_s: float = -math.inf
    """When somebody looked last, seen or not."""
    counting: asyncio.Lock = field(default_factory=asyncio.Lock)
    counted_s: float = -math.inf
    count: int = 0
    """What was in it when it was counted, and what this process has sent since."""


class Pressure:
    """The mailboxes that were full a moment ago."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._mailboxes: dict[str, _Mailbox] = {}

    async def has_room(self, inbox: str, limit: int) -> bool:
        """Tell whether fewer than `limit` requests are in a mailbox, and count one more.

        Each caller counts for itself, so many at once may be a few over. True where nobody can
        look: the broker's own limit holds.
        """
        if is_guarded(self._connection.client):
            return True
        mailbox = self._mailbox(inbox)
        async with mailbox.counting:
            now_s = asyncio.get_running_loop().time()
            if now_s - mailbox.counted_s > FRESH_S:
                look = await self._look(inbox, now_s)
                if look is None:  # Nor is it looked again before long.
                    mailbox.counted_s, mailbox.count = now_s + BLIND_S, 0
                    return True
                mailbox.counted_s, mailbox.count = now_s, look.waiting
            if mailbox.count >= limit:
                return False
            mailbox.count += 1
            return True

    async def room_in_s(self, inbox: str) -> int | None:
        """Estimate when a mailbox has room again, in whole seconds; `inbox` is its subject.

        None at the first look, when the broker does not say in a second, behind an account
        boundary, where nobody may look into another's mailbox, and of an agent that shares its
        durable: what it has done is not told apart.
        """
        if is_guarded(self._connection.client):
            return None
        mailbox = self._mailbox(inbox)
        looks, now_s = mailbox.looks, asyncio.get_running_loop().time()
        while looks and now_s - looks[0].at_s > WINDOW_S:
            looks.popleft()
        # Of a flood of callers only the first one looks: the others do not wait for what it sees.
        if now_s - mailbox.asked_s >= APART_S:
            mailbox.asked_s = now_s
            look = await self._look(inbox, now_s)
            # Answers may overtake each other.
            if look and look.done is not None and (not looks or now_s > looks[-1].at_s):
                looks.append(look)
        return room_in_s(looks[0], looks[-1]) if len(looks) > 1 else None

    def _mailbox(self, inbox: str) -> _Mailbox:
        mailbox = self._mailboxes.setdefault(inbox, _Mailbox())
        if len(self._mailboxes) > REMEMBERED:
            del self._mailboxes[next(iter(self._mailboxes))]
        return mailbox

    async def _look(self, inbox: str, now_s: float) -> Look | None:
        target = subjects.parse_inbox(inbox)
        manager = self._connection.client.jsm(timeout=PATIENCE_S)
        durable = streams.durable(target.agent, target.node)
        try:
            info = await manager.consumer_info(streams.INBOX, durable)
        except NotFoundError:
            return await self._count(inbox, now_s)
        except (nats.errors.Error, APIError):
            return None
        return Look(
            at_s=now_s,
            done=int(info.ack_floor.consumer_seq) if info.ack_floor else 0,
            waiting=(info.num_pending or 0) + (info.num_ack_pending or 0),
        )

    async def _count(self, inbox: str, now_s: float) -> Look | None:
        """Look at an agent that shares its durable: what is stored for it is its own."""
        manager = self._connection.client.jsm(timeout=PATIENCE_S)
        try:
            info = await manager.stream_info(streams.INBOX, subjects_filter=inbox)
        except (nats.errors.Error, APIError):
            return None
        return Look(at_s=now_s, done=None, waiting=(info.state.subjects or {}).get(inbox, 0))
