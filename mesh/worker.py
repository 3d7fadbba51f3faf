"""Works for one agent in one process: pulls for the free slots, and keeps what it took alive.

Shared work and work pinned to this node use the same slots. A pinned message takes a slot whose
shared pull stays outstanding; a shared message that arrives meanwhile is held, and renewed. It
is never given back with a NAK: each one would use up a delivery.
"""

import asyncio
import logging
import random
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh import codec, metrics, subjects
from mesh import headers as h
from mesh.agent import Agent
from mesh.background import BackgroundTasks
from mesh.delivery import Delivery
from mesh.dispatch import Prompt
from mesh.errors import ProtocolError
from mesh.execution import Execution, Tally
from mesh.group_pull import GroupPull
from mesh.history import is_stored_under
from mesh.place import Place
from mesh.pulls import PullLoop
from mesh.streams import CONTROL, INBOX, pinned_durable
from schemas.frame import CancelBody
from schemas.registry import AgentRecord

logger = logging.getLogger(__name__)

TICK_S: Final = 1.0
RENEW_AFTER_S: Final = 3.0
"""Well inside the ack_wait of 10 s, which is the first step of the back-off."""
BUSY_AFTER_S: Final = 0.5
"""How long a ping is held: slots that turn over in that time are none to complain about."""
SPREAD_S: Final = (0.0, 1.0, 5.0)
"""By attempt, and the last for all later ones: a moment up to this passes before it begins. What a
process left when it died comes again together, the request that killed it among the rest."""


# Its members are keys, and a string is hashed without Python's help.
class Share(StrEnum):
    """Which mailbox a message came from."""

    SHARED = "shared"
    PINNED = "pinned"


class Source(Protocol):
    """Where messages are pulled from: a durable of the agent's own, or its part of a group."""

    async def start(self) -> None:
        """Subscribe."""

    async def stop(self) -> None:
        """Pull no more; what is on its way is still heard."""

    async def tick(self) -> None:
        """Look after the pulls, every second or so."""

    def want(self, messages: int) -> None:
        """Have pulls outstanding for so many; below zero, so many are held."""


@dataclass(slots=True)
class _Open:
    """A delivery that is not settled."""

    delivery: Delivery
    share: Share
    renewed_at: float
    also: Delivery | None = None
    """The same by another durable, when the agent has left its group meanwhile."""

    def comes_again(self, delivery: Delivery) -> None:
        """Take in a further delivery. The acknowledgement of one settles all."""
        if delivery.durable == self.delivery.durable:
            self.delivery = delivery
        else:
            self.also = delivery

    async def renew(self) -> None:
        """Ask for another ack_wait."""
        for one in (self.delivery, self.also):
            if one is not None:
                await one.in_progress()


def pause_s(attempt: int) -> float:
    """Return how long to wait with an attempt, so that few of those that come together begin so."""
    return 0.0 if attempt == 1 else random.uniform(0.0, SPREAD_S[min(attempt, len(SPREAD_S)) - 1])


class AgentWorker:
    """The slots of one agent in this process.

    It pulls from durables of its own, or shares one with the others of a `group`.
    """

    def __init__(self, agent: Agent, place: Place, group: GroupPull | None = None) -> None:
        self.agent = agent
        self._slots = agent.card.concurrency
        self._execution = Execution(agent, place)
        self._tasks = BackgroundTasks()
        self._open: dict[int, _Open] = {}
        """By place in the stream."""
        self._held: deque[_Open] = deque()
        self._running = 0
        self._taken = {Share.SHARED: 0, Share.PINNED: 0}
        self._is_stopping = False
        self._place = place
        self._client = place.connection.client
        self._cancels: Subscription | None = None
        self._seat = None if group is None else group.seat(agent.id, self._on_grouped)
        self._sources: dict[Share, Source] = {}
        if self._seat is not None:
            self._sources[Share.SHARED] = self._seat
        else:
            self._sources[Share.SHARED] = self._own(Share.SHARED)
            self._sources[Share.PINNED] = self._own(Share.PINNED)

    def _own(self, share: Share) -> PullLoop:
        agent, connection = self.agent.id, self._place.connection
        if share is Share.SHARED:
            return PullLoop(connection, INBOX, agent, self._on_shared)
        durable = pinned_durable(agent, self._place.node)
        return PullLoop(connection, INBOX, durable, self._on_pinned)

    @property
    def running(self) -> int:
        """How many calls are being worked on."""
        return self._running

    @property
    def tally(self) -> Tally:
        """What it has done so far."""
        return self._execution.tally

    @property
    def is_busy(self) -> bool:
        """Whether no slot is free."""
        return self._running >= self._slots

    async def start(self) -> None:
        """Begin to pull. The agent's durables must exist."""
        subject = subjects.delivered_cancels(self.agent.id)
        self._cancels = await self._client.subscribe(subject, cb=Prompt(self._on_cancel))
        for source in self._sources.values():
            await source.start()
        label = metrics.agent_label(self.agent.id)
        metrics.SLOTS.set(self._slots, label)
        metrics.RUNNING.set(lambda: self._running, label)
        self._ask()

    async def take_no_more(self) -> None:
        """Stop pulling. What is on its way is still taken."""
        self._is_stopping = True
        for source in self._sources.values():
            await source.stop()

    async def stop(self, grace_s: float) -> None:
        """Finish what was taken, and cancel what takes longer than `grace_s`."""
        await self.take_no_more()
        deadline = asyncio.get_running_loop().time() + grace_s
        while self._open and (left_s := deadline - asyncio.get_running_loop().time()) > 0:
            await self._tasks.join(min(left_s, TICK_S))
            await self.tick()
        if self._open:
            logger.warning("%s: %d calls go to another instance", self.agent.id, len(self._open))
        self._held.clear()
        await self._tasks.cancel()
        if self._cancels is not None and not self._client.is_closed:
            await self._cancels.unsubscribe()

    async def tick(self) -> None:
        """Renew what is open, and look after the pulls. To be called every second or so."""
        now = asyncio.get_running_loop().time()
        for one in list(self._open.values()):
            if now - one.renewed_at >= RENEW_AFTER_S:
                one.renewed_at = now
                try:
                    await one.renew()
                except nats.errors.Error as error:
                    logger.debug("cannot renew %s: %s", one.delivery.ack_subject, error)
        for source in self._sources.values():
            await source.tick()

    @property
    def open_sequences(self) -> tuple[int, ...]:
        """Which requests for anybody it has taken and not settled, by their place in the stream."""
        return tuple(place for place, one in self._open.items() if one.share is Share.SHARED)

    @property
    def group(self) -> str:
        """The durable that it shares; empty where it has one of its own."""
        return "" if self._seat is None else self._seat.group

    async def follow(self, record: AgentRecord) -> None:
        """Pull from where the registrar has put the agent's requests by now."""
        if self._is_stopping:
            return
        if self._seat is not None and record.is_leaving:
            self._seat.leave()
        if self._seat is not None and not record.group:
            self._seat.leave()
            self._seat = None
            await self._pull_from(Share.SHARED)
        if Share.PINNED not in self._sources and (
            self._seat is None or self._place.node in record.pins
        ):
            await self._pull_from(Share.PINNED)

    async def _pull_from(self, share: Share) -> None:
        source = self._sources[share] = self._own(share)
        await source.start()
        self._ask()

    def _on_cancel(self, message: Msg) -> None:
        _, _, call_id = message.subject.rpartition(".")
        stored = subjects.cancel(self.agent.id, call_id)
        if not is_stored_under(message.headers, CONTROL, stored):
            return
        try:
            sequence = codec.decode(CancelBody, message.data, subject=stored).sequence
        except ProtocolError as error:
            logger.warning("%s: a cancel that is none: %s", self.agent.id, error)
            return
        self._execution.cancel(call_id, sequence)

    def _on_shared(self, delivery: Delivery) -> None:
        self._take(delivery, Share.SHARED)

    def _on_grouped(self, delivery: Delivery) -> None:
        # Once the agent has left, what a process had that is dead comes by its own durable.
        if self._seat is not None or delivery.sequence in self._open:
            self._take(delivery, Share.SHARED)

    def _on_pinned(self, delivery: Delivery) -> None:
        self._take(delivery, Share.PINNED)

    def _take(self, delivery: Delivery, share: Share) -> None:
        if (running := self._open.get(delivery.sequence)) is not None:
            # The link was away for longer than ack_wait. Its own ack will settle this one too.
            running.comes_again(delivery)
            self._ask()
            return
        now = asyncio.get_running_loop().time()
        one = _Open(delivery, share, renewed_at=now)
        self._open[delivery.sequence] = one
        self._taken[share] += 1
        if self._seat is not None:
            self._ask()  # The others pull on, and have to know.
        if self._running < self._slots:
            self._begin(one)
            return
        self._held.append(one)
        if h.PING in (delivery.headers or {}):
            # Held, it is not seen in the mailbox: who sent it would take us for dead.
            asyncio.get_running_loop().call_later(BUSY_AFTER_S, self._refuse, one)

    def _begin(self, one: _Open) -> None:
        self._running += 1
        self._tasks.begin(self._work(one))

    async def _work(self, one: _Open) -> None:
        try:
            if pause := pause_s(one.delivery.attempt):
                await asyncio.sleep(pause)
            await self._execution.run(one.delivery)
        except Exception:
            # It is not settled, and comes again.
            logger.exception("%s: cannot work on %s", self.agent.id, one.delivery.ack_subject)
        finally:
            self._running -= 1
            if self._held:
                self._begin(self._held.popleft())
            self._forget(one)
            self._tasks.end()

    def _refuse(self, ping: _Open) -> None:
        if ping in self._held:
            self._held.remove(ping)
            self._tasks.start(self._tell_busy(ping))

    async def _tell_busy(self, ping: _Open) -> None:
        try:
            await self._execution.run(ping.delivery, has_slot=False)
        finally:
            self._forget(ping)

    def _forget(self, one: _Open) -> None:
        self._open.pop(one.delivery.sequence, None)
        self._taken[one.share] -= 1
        self._ask()

    def _ask(self) -> None:
        if self._is_stopping:
            return
        self._sources[Share.SHARED].want(self._slots - self._taken[Share.SHARED])
        if (pinned := self._sources.get(Share.PINNED)) is None:
            return
        # Nobody else can take pinned work, so one message may wait here for a slot.
        free = self._slots - self._running
        is_waiting = bool(self._held) and any(one.share is Share.PINNED for one in self._held)
        pinned.want(0 if is_waiting else max(1, free))
