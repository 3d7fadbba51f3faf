"""The durables of agents: makes them, shared by groups or not, and lets agents leave a group.

A broker compares every durable with all others, so a process of several hundred agents does not get
one for each of them, but one for every hundred. Whoever needs one of his own, because he holds up
the others or runs elsewhere as well, leaves his group while it works on. Nobody is put into a group
that exists, see `mesh.streams.group_consumer`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from typing import Final

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, ConsumerInfo
from nats.js.errors import APIError, NotFoundError
from nats.js.manager import JetStreamManager

from mesh import registry, streams, subjects
from mesh.background import BackgroundTasks
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.dispatch import Prompt
from mesh.errors import BrokerUnreachableError, InvalidInputError, MeshError, TransportError
from mesh.provision import ensure_consumer
from schemas.registry import AgentRecord, Announcement, OpenQuestion, OpenRequests, State

logger = logging.getLogger(__name__)

ANSWER_S: Final = 1.0
"""How long a process may take to say what it works on."""
PART_S: Final = 0.2
LOOK_S: Final = 5.0
PATIENCE_S: Final = 30.0
"""How long who leaves a group waits for what he has in work: new requests wait with him. What takes
longer may be delivered to another process of his as well, and is answered once."""
LISTENERS: Final = "registrar"
"""Of several registrars one hears a message."""
OVERLAP: Final = 10100
"""JetStream error code: another durable of a work queue captures one of the subjects."""

PutRecord = Callable[[AgentRecord], Awaitable[None]]


class Groups:
    """The shared durables of the stream of mailboxes.

    Who is to leave a group is marked in its record. The group's filter is shortened then, what the
    group has delivered is worked on, and only when nothing of it is open the agent gets a durable
    of its own: so no two durables have the same request in work. Each step can be done again, by
    any registrar, and is, as long as the mark stands.
    """

    def __init__(self, connection: Connection, directory: Directory, put: PutRecord) -> None:
        self._connection = connection
        self._directory = directory
        self._put = put
        self._tasks = BackgroundTasks()
        self._leaving_since: dict[str, float] = {}
        """Since when this registrar sees to it that an agent leaves its group."""
        self._is_wanted = asyncio.Event()
        self.changing = asyncio.Lock()
        """Held while records of agents are made of what the directory says, and written."""

    async def close(self) -> None:
        """Do nothing more."""
        await self._tasks.cancel()

    async def make_for(self, announcement: Announcement) -> frozenset[str]:
        """Make the durables of what is announced; return who has durables of his own.

        Raises:
            TransportError: the host is to look again, or to wait: somebody is in another group.
        """
        ids = frozenset(one.id for one in announcement.cards)
        if announcement.group:
            alone = await self._gather(announcement.group, ids, announcement.instance.agents)
        else:
            alone = ids
            await self._require_alone(announcement.card.id)
        manager = self._connection.client.jsm(timeout=20.0)
        try:
            for card in announcement.cards:
                if card.id in alone:
                    node = announcement.instance.node
                    await self._ensure(manager, streams.mailbox_consumers(card.id, node))
                events = [(one.source, one.name) for one in card.subscriptions]
                await self._ensure(manager, streams.event_consumers(card.id, events))
        except APIError as error:
            if error.err_code != OVERLAP:
                raise
            await self._free(ids)
            raise TransportError("a group had its mailbox, of a registry that was lost") from None
        return alone

    async def _ensure(
        self, manager: JetStreamManager, wanted: Iterable[tuple[str, ConsumerConfig]]
    ) -> None:
        for stream, consumer in wanted:
            await ensure_consumer(manager, stream, consumer)

    async def _gather(
        self, group: str, agents: Collection[str], host: Collection[str]
    ) -> frozenset[str]:
        """Make a group, and return those of `agents` that have durables of their own.

        A group that exists keeps whom it has of them. Others are to leave it, unless they are
        agents of the same process, `host`.
        """
        self._require_free(agents, group)
        found = await self._find(group)
        if found is None:
            return await self._make(group, agents)
        inside = _agents_of(found)
        if (missing := inside - frozenset(agents)) & frozenset(host):
            raise TransportError(
                f"{', '.join(sorted(missing)[:3])} were to be announced with {group}"
            )
        await self.mark(missing)
        return frozenset(agents) - inside

    def _require_free(self, agents: Iterable[str], group: str) -> None:
        for agent in agents:
            record = self._directory.agent_record(agent)
            if record is not None and (record.is_leaving or record.group not in ("", group)):
                raise TransportError(f"agent {agent!r} is in another group, or leaves it")

    async def _make(self, group: str, agents: Collection[str]) -> frozenset[str]:
        manager = self._connection.client.jsm(timeout=20.0)
        try:
            await manager.add_consumer(streams.INBOX, streams.group_consumer(group, agents))
            return frozenset()
        except APIError as error:
            if error.err_code != OVERLAP:
                raise
        await self._free(agents)
        alone = frozenset([one for one in agents if not await self._is_free(one)])
        if members := frozenset(agents) - alone:
            await manager.add_consumer(streams.INBOX, streams.group_consumer(group, members))
        return alone

    async def _free(self, agents: Iterable[str]) -> None:
        """Take agents out of groups that the registry does not know of: it was lost, they were not.

        At once: who has requests of such a group in work is not known either.
        """
        strangers, known = frozenset(agents), self._directory.groups()
        manager, offset = self._connection.client.jsm(timeout=20.0), 0
        while page := await manager.consumers_info(streams.INBOX, offset=offset):
            offset += len(page)
            for one in page:
                found = strangers - frozenset(known.get(one.name, ()))
                if streams.is_group(one.name) and found & _agents_of(one):
                    logger.warning("%s has agents that the registry does not know there", one.name)
                    await manager.add_consumer(streams.INBOX, streams.without(one.config, found))

    async def _is_free(self, agent: str) -> bool:
        """Tell whether an agent has no durable of its own; one that nobody uses is given up.

        What is stored under its subject stays, and is the group's.
        """
        found = await self._find(agent)
        if found is None:
            return True
        is_used = found.num_ack_pending or found.num_waiting
        if is_used or self._directory.state_on(agent, None) is State.ONLINE:
            return False
        await self._connection.client.jsm(timeout=20.0).delete_consumer(streams.INBOX, agent)
        return True

    async def _require_alone(self, agent: str) -> None:
        """Have an agent leave its group, if it is in one.

        Raises:
            TransportError: it is in one still; it will have left in a moment.
        """
        record = self._directory.agent_record(agent)
        if record is not None and record.group:
            await self.mark((agent,))
            raise TransportError(f"agent {agent!r} is about to leave its group")

    async def mark(self, agents: Iterable[str]) -> None:
        """Have agents leave their groups."""
        for agent in agents:
            record = self._directory.agent_record(agent)
            if record is not None and record.group and not record.is_leaving:
                logger.info("agent %s is to leave %s", agent, record.group)
                await self._put(record.model_copy(update={"is_leaving": True}))
        self._is_wanted.set()

    async def part_forever(self) -> None:
        """Let those leave that are marked, until cancelled."""
        while True:
            self._is_wanted.clear()
            try:
                if await self._part():
                    self._is_wanted.set()
            except (MeshError, APIError, nats.errors.Error) as error:
                logger.warning("agents that are to leave their groups: %s", error)
                self._is_wanted.set()
            with suppress(TimeoutError):
                # Another registrar may have marked some, and be gone.
                await asyncio.wait_for(self._is_wanted.wait(), LOOK_S)
            await asyncio.sleep(PART_S)

    async def _part(self) -> bool:
        """Do for everybody who is marked what can be done now; tell whether somebody is left."""
        leaving: dict[str, list[str]] = {}
        for agent, record in self._directory.leaving().items():
            leaving.setdefault(record.group, []).append(agent)
        names = {agent for agents in leaving.values() for agent in agents}
        self._leaving_since = {
            one: since for one, since in self._leaving_since.items() if one in names
        }
        left = False
        for group, agents in leaving.items():
            await self._shorten(group, agents)
            for agent in agents:
                left |= not await self._part_one(agent)
        return left

    async def _shorten(self, group: str, agents: Collection[str]) -> None:
        """Have a group deliver nothing more of some agents."""
        if (found := await self._find(group)) is None:
            return
        smaller = streams.without(found.config, agents)
        if smaller.filter_subjects != found.config.filter_subjects:
            await self._connection.client.jsm(timeout=20.0).add_consumer(streams.INBOX, smaller)

    async def _part_one(self, agent: str) -> bool:
        """Give an agent durables of its own, if nothing that its group has delivered is open."""
        now = asyncio.get_running_loop().time()
        since = self._leaving_since.setdefault(agent, now)
        if now - since < PATIENCE_S and await self._is_open(agent):
            return False
        async with self.changing:
            record = self._directory.agent_record(agent)
            if record is None or not record.is_leaving:
                return True
            manager = self._connection.client.jsm(timeout=20.0)
            for node in record.nodes:
                await self._ensure(manager, streams.mailbox_consumers(agent, node))
            await self._put(
                record.model_copy(update={"group": "", "is_leaving": False, "pins": ()})
            )
        logger.info("agent %s has a durable of its own now", agent)
        return True

    async def _is_open(self, agent: str) -> bool:
        """Ask the processes of an agent whether they have requests of its group."""
        live = self._directory.standing(agent).instances
        return any(await asyncio.gather(*(self._ask(one.instance, agent) for one in live)))

    async def _ask(self, instance: str, agent: str) -> bool:
        try:
            answer = await registry.ask(
                self._connection,
                subjects.open_requests(instance),
                OpenQuestion(agent=agent),
                OpenRequests,
                timeout_s=ANSWER_S,
            )
        except MeshError as error:
            # It stands still, or dies: it is asked again until it is off the registry.
            logger.debug("process %s does not say what it works on: %s", instance, error)
            return True
        return bool(answer.sequences)

    async def listen(self) -> None:
        """Hear work that is bound to a node, to the end of the connection."""
        await self._connection.client.subscribe(
            subjects.ALL_PINNED_INBOXES, queue=LISTENERS, cb=Prompt(self._on_pinned)
        )

    def _on_pinned(self, message: Msg) -> None:
        try:
            target = subjects.parse_inbox(message.subject)
        except InvalidInputError:
            return
        if target.node and self._lacks_pin(target.agent, target.node):
            self._tasks.start(self._try_pin(target.agent, target.node))

    async def _try_pin(self, agent: str, node: str) -> None:
        try:
            await self.pin(agent, node)
        except (MeshError, APIError, nats.errors.Error) as error:
            # Whoever looks through the mailboxes finds it.
            logger.warning("no durable yet for the work of %s on %s: %s", agent, node, error)

    def _lacks_pin(self, agent: str, node: str) -> bool:
        record = self._directory.agent_record(agent)
        return bool(record and record.group and node not in record.pins and node in record.nodes)

    async def pin(self, agent: str, node: str) -> None:
        """Make the durable of a grouped agent's work on one node, where it has none."""
        async with self.changing:
            record = self._directory.agent_record(agent)
            if record is None or not self._lacks_pin(agent, node):
                return
            manager = self._connection.client.jsm(timeout=20.0)
            await ensure_consumer(manager, *streams.pinned_consumer(agent, node))
            await self._put(record.model_copy(update={"pins": (*record.pins, node)}))
            logger.info("agent %s has a durable for its work on %s now", agent, node)

    async def _find(self, durable: str) -> ConsumerInfo | None:
        try:
            manager = self._connection.client.jsm(timeout=20.0)
            found: ConsumerInfo = await manager.consumer_info(streams.INBOX, durable)
        except NotFoundError:
            return None
        except nats.errors.Error as error:
            raise BrokerUnreachableError(f"the broker does not answer: {error}") from error
        return found


def _agents_of(found: ConsumerInfo) -> frozenset[str]:
    """Return whose requests a durable delivers; one subject alone may be told in its own field."""
    captured = found.config.filter_subjects or [found.config.filter_subject or ""]
    return frozenset(subjects.parse_inbox(one).agent for one in captured) - {str(found.name)}
