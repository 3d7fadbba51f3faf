"""Which agents share a durable: makes groups, and takes agents out of them.

A broker compares every durable with all others, so a process of several hundred agents does not get
one for each of them, but one for every hundred. Whoever needs one of his own, because he holds up
the others or runs elsewhere as well, is taken out of his group while it works on. Nobody is put
into a group that exists, see `mesh.streams.group_consumer`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final

import nats.errors
import orjson
from nats.aio.msg import Msg
from nats.js.api import ConsumerInfo
from nats.js.errors import APIError, NotFoundError

from mesh import registry, streams, subjects
from mesh.background import BackgroundTasks
from mesh.connection import Connection
from mesh.delivery import Delivery
from mesh.directory import Directory
from mesh.dispatch import Prompt
from mesh.errors import BrokerUnreachableError, InvalidInputError, MeshError, TransportError
from mesh.history import read_at
from mesh.provision import ensure_consumer
from schemas.registry import AgentRecord, OpenQuestion, OpenRequests, State

logger = logging.getLogger(__name__)

ANSWER_S: Final = 1.0
"""How long a process may take to say what it works on."""
RENEW_S: Final = 3.0
LISTENERS: Final = "registrar"
"""Of several registrars one hears a message."""
OVERLAP: Final = 10100
"""JetStream error code: another durable of a work queue captures one of the subjects."""

PutRecord = Callable[[AgentRecord], Awaitable[None]]


class Groups:
    """The shared durables of the stream of mailboxes."""

    def __init__(self, connection: Connection, directory: Directory, put: PutRecord) -> None:
        self._connection = connection
        self._directory = directory
        self._put = put
        self._tasks = BackgroundTasks()
        self._is_whole = False
        """Whether nothing that was begun is left half done."""
        self.changing = asyncio.Lock()
        """Held while the group of an agent changes, or its record is written."""

    async def close(self) -> None:
        """Let go of what is renewed for others: it comes again by itself."""
        await self._tasks.cancel()

    async def make(self, group: str, agents: Collection[str]) -> frozenset[str]:
        """Make a group, and return those of `agents` that stay alone.

        A group that exists keeps whom it has of them, and no others.

        Raises:
            TransportError: one is in another group: its host is to look again.
        """
        for agent in agents:
            record = self._directory.agent_record(agent)
            if record is not None and record.group not in ("", group):
                raise TransportError(f"agent {agent!r} is in another group, {record.group}")
        found = await self._find(group)
        if found is None:
            return await self._make(group, agents)
        inside = _agents_of(found)
        if strangers := inside - set(agents):
            await self._take_out(group, strangers)
        return frozenset(agents) - inside

    async def _make(self, group: str, agents: Collection[str]) -> frozenset[str]:
        manager = self._connection.client.jsm(timeout=20.0)
        try:
            await manager.add_consumer(streams.INBOX, streams.group_consumer(group, agents))
            return frozenset()
        except APIError as error:
            if error.err_code != OVERLAP:
                raise
        alone = frozenset([one for one in agents if not await self._is_free(one)])
        if members := frozenset(agents) - alone:
            await manager.add_consumer(streams.INBOX, streams.group_consumer(group, members))
        return alone

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

    async def take_out(self, agents: Iterable[str]) -> None:
        """Give agents durables of their own, where they share one.

        Raises:
            TransportError: the others of a group would be nobody: it is as good as one's own.
        """
        groups: dict[str, set[str]] = {}
        for agent in agents:
            record = self._directory.agent_record(agent)
            if record is not None and record.group:
                groups.setdefault(record.group, set()).add(agent)
        for group, leaving in groups.items():
            await self._take_out(group, leaving)

    async def _take_out(self, group: str, agents: Collection[str]) -> None:
        """Take agents out of a group.

        The group still settles what it has delivered, and their own durables begin with the same:
        that is renewed here until it is settled, and not delivered twice.
        """
        self._is_whole = False
        manager = self._connection.client.jsm(timeout=20.0)
        config = (await manager.consumer_info(streams.INBOX, group)).config
        smaller = streams.without(config, agents)
        if not smaller.filter_subjects:
            raise TransportError(f"{', '.join(agents)} share {group} with nobody")
        if smaller.filter_subjects != config.filter_subjects:
            await manager.add_consumer(streams.INBOX, smaller)
        await asyncio.gather(*(self._make_own(one) for one in agents))
        self._is_whole = True

    async def _make_own(self, agent: str) -> None:
        record = self._directory.agent_record(agent)
        manager = self._connection.client.jsm(timeout=20.0)
        taken = await self._open_requests(agent)
        for node in record.nodes if record else ():
            for stream, consumer in streams.mailbox_consumers(agent, node):
                await ensure_consumer(manager, stream, consumer)
        for delivery in await self._pull(agent, len(taken)):
            if delivery.sequence in taken:
                self._tasks.start(self._renew(delivery))
            else:
                await delivery.nak(0)
        if record is not None:
            await self._put(record.model_copy(update={"group": "", "pins": ()}))
        logger.info("agent %s has a durable of its own now", agent)

    async def _open_requests(self, agent: str) -> frozenset[int]:
        """Ask the processes of an agent which of its requests they have."""
        asked = [
            self._ask(one.instance, agent) for one in self._directory.standing(agent).instances
        ]
        return frozenset().union(*await asyncio.gather(*asked))

    async def _ask(self, instance: str, agent: str) -> Collection[int]:
        try:
            answer = await registry.ask(
                self._connection,
                subjects.open_requests(instance),
                OpenQuestion(agents=(agent,)),
                OpenRequests,
                timeout_s=ANSWER_S,
            )
        except MeshError as error:
            # What it has may be worked on twice, and is answered once.
            logger.warning("process %s does not say what it works on: %s", instance, error)
            return ()
        return answer.sequences

    async def _pull(self, durable: str, most: int) -> list[Delivery]:
        """Take what waits for a durable at this moment, up to `most`."""
        client, found = self._connection.client, list[Delivery]()
        if not most:
            return found
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        try:
            request = orjson.dumps({"batch": most, "no_wait": True})
            await client.publish(f"{subjects.PULL}.{streams.INBOX}.{durable}", request, reply=inbox)
            while len(found) < most:
                message: Msg = await subscription.next_msg(timeout=ANSWER_S)
                if not message.reply:
                    break  # A status: nothing more waits.
                found.append(Delivery.read(client, message))
        except nats.errors.Error as error:
            logger.warning("pulling from %s: %s", durable, error)
        finally:
            await subscription.unsubscribe()
        return found

    async def _renew(self, delivery: Delivery) -> None:
        """Keep a request from being delivered as long as another durable has it in work."""
        while True:
            try:
                await delivery.in_progress()
                await asyncio.sleep(RENEW_S)
                if await read_at(self._connection, streams.INBOX, delivery.sequence) is None:
                    return
            except (nats.errors.Error, MeshError) as error:
                logger.debug("cannot renew %s: %s", delivery.ack_subject, error)
                await asyncio.sleep(RENEW_S)

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

    async def mend(self) -> None:
        """End what a registrar has begun that died, or could not reach the broker."""
        if self._is_whole:
            return
        for group, members in self._directory.groups().items():
            found = await self._find(group)
            inside = members if found is None else _agents_of(found)
            if (left := members - inside) and inside:
                logger.warning("%s: %d agents are taken out to the end", group, len(left))
                await self._take_out(group, left)
        self._is_whole = True

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
    return frozenset(subjects.parse_inbox(one).agent for one in captured)
