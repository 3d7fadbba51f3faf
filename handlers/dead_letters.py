"""Dead letters: requests that nobody gets any more are moved to `dead.<id>`, with the reason.

Agents of ours bury by themselves what they get and cannot answer (`mesh.dead_letters`). Here is the
rest: JetStream tells of requests that were delivered too often, or that a foreign worker refused;
and the mailboxes are looked through for those it did not tell of, and for messages to agents that
nobody knows.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Annotated, Final

import nats.errors
from faststream import AckPolicy, Context
from faststream.nats import JStream, NatsRouter, PullSub
from nats.js.api import ConsumerInfo
from nats.js.errors import APIError, NotFoundError

from handlers.cancel import LINK, PULL_TIMEOUT_S
from mesh import streams, subjects
from mesh.connection import Connection
from mesh.dead_letters import Reason, bury
from mesh.directory import Directory
from mesh.errors import MeshError
from mesh.history import StoredMessage, read_at, read_next
from mesh.settings import Settings
from schemas.advisory import Exhausted, Terminated

logger = logging.getLogger(__name__)

BATCH: Final = 200
"""Messages of one subject that one scan moves at most: a flood must not stop the rest."""

router = NatsRouter()
DIRECTORY: Final = "directory"
Link = Annotated[Connection, Context(LINK)]
Known = Annotated[Directory, Context(DIRECTORY)]
_ADVISORY: Final = JStream(streams.ADVISORY, declare=False)
_PULL: Final = PullSub(batch_size=1, timeout=PULL_TIMEOUT_S)


@router.subscriber(
    subjects.MAX_DELIVERIES_ADVISORIES,
    stream=_ADVISORY,
    durable=streams.EXHAUSTED,
    pull_sub=_PULL,
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def on_exhausted(advisory: Exhausted, connection: Link, directory: Known) -> None:
    """A request was delivered for the last time, and not acknowledged."""
    request = await read_at(connection, streams.INBOX, advisory.stream_seq)
    if request is None:
        return
    target = subjects.parse_inbox(request.subject)
    record = directory.agent_record(target.agent)
    is_leaving = record is not None and record.is_leaving
    if is_leaving or advisory.consumer != directory.durable(target.agent, target.node):
        return  # Of a group that the agent has left, or leaves: its own durable delivers it.
    await _move(connection, request, Reason.MAX_DELIVERIES)


@router.subscriber(
    subjects.TERMINATED_ADVISORIES,
    stream=_ADVISORY,
    durable=streams.TERMINATED,
    pull_sub=_PULL,
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def on_terminated(advisory: Terminated, connection: Link) -> None:
    """A worker refused a request, and JetStream has deleted it: that it was there is kept."""
    if advisory.is_deletion:
        return  # Cancelled, expired, or buried while somebody worked on it.
    agent, _, node = advisory.consumer.partition(streams.GROUP_MARK)
    if not agent:
        logger.warning("message %d of %s was refused", advisory.stream_seq, advisory.consumer)
        return  # Of several agents: whose it was is gone with it.
    subject = str(subjects.InboxSubject(agent, node or None))
    request = StoredMessage(subject, advisory.stream_seq, {}, advisory.reason.encode())
    await bury(connection, request, Reason.TERMINATED)
    logger.info("dead letter: %s, message %d: refused", subject, advisory.stream_seq)


Pin = Callable[[str, str], Awaitable[None]]
"""Makes the durable of an agent's work on a node, where it shares the other one."""


class Undertaker:
    """Looks for requests that nobody gets, and buries them where they can be found."""

    def __init__(
        self, connection: Connection, directory: Directory, settings: Settings, pin: Pin
    ) -> None:
        self._connection = connection
        self._pin = pin
        self._directory = directory
        self._grace_s = settings.unknown_agent_grace_s
        self._seen_at: dict[str, float] = {}
        self._suspects: set[int] = set()
        """Requests that seemed exhausted at the last scan, by their place."""

    async def scan_forever(self) -> None:
        """Scan at once, and then every half grace period until cancelled."""
        while True:
            try:
                await self.scan()
            except (nats.errors.Error, MeshError) as error:
                logger.warning("the scan for dead letters failed: %s", error)
            await asyncio.sleep(self._grace_s / 2)

    async def scan(self) -> int:
        """Bury every request that nobody will get; return how many.

        A request to an unknown agent is one after the grace period, in which the agent may still
        announce itself.
        """
        waiting = await self._waiting()
        orphans = [subject for subject in waiting if not self._is_known(subject)]
        now = asyncio.get_running_loop().time()
        self._seen_at = {one: self._seen_at.get(one, now) for one in orphans}
        overdue = [one for one in orphans if now - self._seen_at[one] >= self._grace_s]
        moved = sum([await self._bury_orphans(subject) for subject in overdue])
        suspects: set[int] = set()
        for durable, subjects_of in self._by_durable(waiting.keys() - set(orphans)).items():
            count = sum(waiting[subject] for subject in subjects_of)
            for request in await self._exhausted(durable, subjects_of, count):
                # The broker takes an acknowledged request out a moment later: what is dead is
                # still there at the next look.
                if request.sequence in self._suspects:
                    moved += await _move(self._connection, request, Reason.MAX_DELIVERIES)
                else:
                    suspects.add(request.sequence)
        self._suspects = suspects
        return moved

    async def _waiting(self) -> dict[str, int]:
        """Return how many requests are in each mailbox that is not empty."""
        manager = self._connection.client.jsm(timeout=10.0)
        waiting: dict[str, int] = {}
        for pattern in (subjects.ALL_INBOXES, subjects.ALL_PINNED_INBOXES):
            info = await manager.stream_info(streams.INBOX, subjects_filter=pattern)
            waiting |= info.state.subjects or {}
        return waiting

    def _is_known(self, subject: str) -> bool:
        return self._directory.agent_record(subjects.parse_inbox(subject).agent) is not None

    async def _bury_orphans(self, subject: str) -> int:
        moved = 0
        async for request in self._requests(subject):
            if self._is_known(subject):
                break
            moved += await _move(self._connection, request, Reason.UNKNOWN_AGENT)
        return moved

    def _by_durable(self, waiting: Iterable[str]) -> dict[str, list[str]]:
        """Sort mailboxes that are not empty by who delivers what is in them."""
        found: dict[str, list[str]] = {}
        for subject in waiting:
            target = subjects.parse_inbox(subject)
            record = self._directory.agent_record(target.agent)
            is_leaving = record is not None and record.is_leaving
            # Not on a node that there cannot be: it expires. Nor of who leaves his group at the
            # moment: his own durable will deliver it.
            if target.is_valid and not is_leaving:
                durable = self._directory.durable(target.agent, target.node)
                found.setdefault(durable, []).append(subject)
        return found

    async def _exhausted(
        self, durable: str, waiting: list[str], messages: int
    ) -> list[StoredMessage]:
        """Return what was delivered for the last time while nobody listened to the advisories.

        Such a message lies in the mailbox, counts as neither pending nor being worked on, and is
        below the durable's acknowledgement floor: JetStream lets the floor pass it as soon as
        everything that was at work has been settled (measured with nats-server 2.15.1). A mailbox
        that is never without work keeps it until then, or until it expires.
        """
        manager = self._connection.client.jsm(timeout=10.0)
        try:
            info = await manager.consumer_info(streams.INBOX, durable)
        except NotFoundError:
            await self._ask_for(waiting)
            return []
        if messages <= (info.num_pending or 0) + (info.num_ack_pending or 0):
            return []
        exhausted, floor = list[StoredMessage](), _floor(info)
        for subject in waiting:
            async for request in self._requests(subject):
                if request.sequence > floor:
                    break
                exhausted.append(request)
        return exhausted

    async def _ask_for(self, waiting: list[str]) -> None:
        """Have a durable made for work that is bound to a node, if the agent has been there."""
        for subject in waiting:
            target = subjects.parse_inbox(subject)
            if target.node:
                await self._pin(target.agent, target.node)

    async def _requests(self, subject: str) -> AsyncIterator[StoredMessage]:
        """Yield the oldest requests in a mailbox."""
        sequence = 1
        for _ in range(BATCH):
            found = await read_next(self._connection, streams.INBOX, subject, sequence)
            if found is None:
                return
            # The broker takes a publish to the literal `agent.*.inbox`, and then this look-up
            # matches everybody's messages.
            if found.subject == subject:
                yield found
            sequence = found.sequence + 1


def _floor(info: ConsumerInfo) -> int:
    """Return up to where nothing of a durable will be delivered again."""
    if info.num_ack_pending:
        return int(info.ack_floor.stream_seq) if info.ack_floor else 0
    return int(info.delivered.stream_seq) if info.delivered else 0


async def _move(connection: Connection, request: StoredMessage, reason: Reason) -> bool:
    """Bury a request, unless it is answered, and take it out of the mailbox."""
    is_dead = await bury(connection, request, reason)
    try:
        await connection.client.jsm(timeout=10.0).delete_msg(streams.INBOX, request.sequence)
    except APIError as error:
        logger.debug("message %d is gone already: %s", request.sequence, error)
    if is_dead:
        logger.info("dead letter: %s, message %d: %s", request.subject, request.sequence, reason)
    return is_dead
