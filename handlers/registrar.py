"""The registrar: the only writer of the registry, and the maker of mailboxes.

Believes an announcement or a heartbeat only from the node that its subject names, and sweeps what
has died. The data path does not need it: with no registrar alive, liveness is unknown and calls go
on. What it is asked on NATS stands in `handlers.registry`.
"""

import asyncio
import datetime
import logging
from collections.abc import Collection, Sequence
from typing import Final

from handlers.groups import Groups
from mesh import registry, streams
from mesh.background import BackgroundTasks
from mesh.connection import Connection
from mesh.directory import Directory, read_directory
from mesh.enrolment import tell_registry
from mesh.errors import (
    BrokerUnreachableError,
    MeshError,
    PublishRefusedError,
    StreamMissingError,
)
from mesh.provision import ensure_streams
from mesh.settings import Settings
from mesh.standing import Ending
from mesh.trust.keyring import Keyring
from schemas.base import WireModel
from schemas.card import AgentCard
from schemas.registry import (
    AgentRecord,
    AgentView,
    Announcement,
    Heartbeat,
    Instance,
    NodeRecord,
    Placement,
    Receipt,
    RegistryView,
    Reign,
    Role,
    Withdrawal,
)

logger = logging.getLogger(__name__)

GRACE_HEARTBEATS: Final = 1.5
"""After a start, every live host must have had the time to say so before silence means dead."""


REIGN_HEARTBEATS: Final = 1.5
"""A registrar that dies must be gone before the first process whose heartbeats it no longer
writes: three heartbeats less the one it may just have missed."""


class Registrar:
    """Writes the registry, and reads it from memory."""

    def __init__(
        self,
        connection: Connection,
        directory: Directory,
        settings: Settings,
        instance: Instance,
        keyring: Keyring | None = None,
    ) -> None:
        self._connection = connection
        self._keyring = keyring
        """In a secure mesh, on its hub."""
        self._directory = directory
        self._settings = settings
        self._instance = instance
        self.groups = Groups(connection, directory, self._put_agent)
        self._tasks = BackgroundTasks()
        self._silent_until = 0.0
        self._reign_revision: int | None = None
        """Of our last `reign` key; None where the directory knows it."""

    async def announce(self, agent: str, node: str, announcement: Announcement) -> Receipt:
        """Make the mailboxes of agents, then show the agents."""
        instance = announcement.instance
        if announcement.card.id != agent:
            told = f"a card of {announcement.card.id!r} on the subject of {agent!r}"
            return refusal("card_refused", told)
        if refused := self._refuse_foreign(node, instance) or self._refuse_group(announcement):
            return refused
        async with self.groups.changing:
            alone = await self.groups.make_for(announcement)
            await self._put_instance(instance)
            await self._put_node(instance)
            await asyncio.gather(*(self._place(one.id, instance) for one in announcement.cards))
            # Last: a record without `last_seen` is of an agent that has a live process.
            records = [self._record(one, announcement, alone) for one in announcement.cards]
            await asyncio.gather(*map(self._put_agent, records))
        for card in announcement.cards:
            logger.info("agent %s on %s", card.id, instance.node)
        return Receipt(cards=len(announcement.cards), alone=tuple(sorted(alone)))

    async def withdraw(self, agent: str, withdrawal: Withdrawal) -> None:
        """Take an agent off a process. Its card and its mailbox stay."""
        await self._delete(registry.placement_key(agent, withdrawal.instance))
        logger.info("agent %s left", agent)

    async def heartbeat(self, node: str, heartbeat: Heartbeat) -> Receipt:
        """Keep a process alive, and tell it when its placements have been forgotten."""
        instance = heartbeat.instance
        if refused := self._refuse_foreign(node, instance):
            return refused
        if heartbeat.leaving:
            await self.forget(instance.instance)
            await self._delete(registry.instance_key(instance.instance))
            return Receipt()
        await self._put_instance(instance)
        await self._put_node(instance)
        if instance.crowded and self._is_open:
            self._tasks.start(self._give_room(instance.crowded))
        return Receipt(known=self._directory.is_on_record(instance))

    async def _give_room(self, agents: Sequence[str]) -> None:
        async with self.groups.changing:
            await self.groups.mark(agents)

    async def forget(self, instance: str) -> None:
        """Delete the placements of a process that is gone."""
        found = [one for one in self._directory.placements() if one.instance == instance]
        await self._remove(found)

    async def sweep(self) -> None:
        """Delete processes that are silent, and placements whose process is gone.

        A key should end by itself. But a broker that was killed rebuilds its store, and brings
        back keys that had expired, without their time to live (nats-server 2.15.1).
        """
        limit_s = self._settings.offline_after_s + self._settings.heartbeat_s
        for instance in self._directory.silent_instances(limit_s):
            await self._delete(registry.instance_key(instance))
            logger.info("process %s is silent", instance)
        placed = self._directory.placements()
        await self._remove(
            [one for one in placed if not self._directory.has_instance(one.instance)]
        )

    async def settle(self) -> None:
        """Write down when those were last seen that are gone; then, that all others are watched.

        A record is written once when its last process ends. Whatever dies together with all
        registrars, and the broker, has the time of the last `reign` key.
        """
        await asyncio.gather(*(self._end(one) for one in self._directory.endings()))
        await self._put_reign()

    async def reign(self) -> None:
        """Say that a registrar is alive, and sweep, until cancelled.

        Not before every live host had the time for a heartbeat: after a pause of all registrars
        the bucket shows nobody, and nobody must be called offline for that.
        """
        self._connection.on_reconnect(self._pause)
        self._connection.elections.on_leader(streams.REGISTRY, self._pause)
        if self._directory.placements():
            await self._pause()
        if self._is_open:
            await self.groups.listen()
            self._tasks.start(self.groups.part_forever())
        key = registry.instance_key(self._instance.instance)
        ttl_s = self._settings.heartbeat_s * REIGN_HEARTBEATS
        loop, written_at = asyncio.get_running_loop(), None
        await self._tell_identities()
        while True:
            if written_at is not None and loop.time() - written_at > ttl_s:
                # This process stood still (a machine asleep, a stopped process): as after a start.
                await self._pause()
            written_at = None
            if (left_s := self._silent_until - loop.time()) > 0:
                await asyncio.sleep(left_s)
            try:
                self._require_link()
                await self._put(key, self._instance, ttl_s=ttl_s)
                await self._put_node(self._instance)
                written_at = loop.time()
                await self.sweep()
                await self.settle()
            except StreamMissingError as error:
                logger.warning("the registry was deleted, and is made again: %s", error)
                await self._make_again()
            except MeshError as error:
                logger.warning("the registry cannot be written: %s", error)
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _put_reign(self) -> None:
        """Say that everything was looked at, in the place where we said so last.

        If that is empty, the bucket was wiped or deleted, of which nobody is told. We know no more
        than the bucket then: hosts announce again what is forgotten.
        """
        reign = Reign(node=self._instance.node, instance=self._instance.instance)
        key = registry.reign_key(reign.node)
        if self._reign_revision is None:
            self._reign_revision = self._directory.revision(key)
        try:
            entry = await registry.put(
                self._connection, key, reign, expected_revision=self._reign_revision
            )
        except PublishRefusedError as refused:
            if refused.err_code != registry.CHANGED:
                raise
            # Or another registrar of this node was faster.
            logger.warning("the registry is not as it was left: it is read again")
            self._reign_revision = None
            await read_directory(self._connection, self._directory)
            await self._tell_identities()
        else:
            self._reign_revision = entry.revision
            self._directory.apply(entry)

    async def _make_again(self) -> None:
        self._reign_revision = None
        try:
            await ensure_streams(self._connection, self._settings)
            await read_directory(self._connection, self._directory)
        except MeshError as error:
            logger.warning("the registry cannot be made: %s", error)
        await self._tell_identities()

    async def _tell_identities(self) -> None:
        """Write whose key is whose, where the registry does not know it."""
        if self._keyring is None:
            return
        try:
            await tell_registry(self._connection, self._keyring)
        except MeshError as error:
            logger.warning("the registry is not told who counts: %s", error)

    def _require_link(self) -> None:
        # A write into the buffer of a lost connection would go out before the grace has begun.
        if not self._connection.client.is_connected:
            raise BrokerUnreachableError("no connection")

    async def _pause(self) -> None:
        """Give every live host the time for a heartbeat: while we were away nobody heard them."""
        grace_s = self._settings.heartbeat_s * GRACE_HEARTBEATS
        self._silent_until = asyncio.get_running_loop().time() + grace_s

    async def abdicate(self) -> None:
        """Say that this registrar leaves."""
        await self._tasks.cancel()
        await self.groups.close()
        await self._delete(registry.instance_key(self._instance.instance))

    def _refuse_foreign(self, node: str, instance: Instance) -> Receipt | None:
        """A node speaks for its own processes only. The broker proves the subject's node."""
        others = (one for one in self._directory.instances() if one.node != node)
        if instance.node != node or any(one.instance == instance.instance for one in others):
            return refusal("card_refused", f"the instance is not one of node {node!r}")
        if instance.role is Role.REGISTRAR:
            return refusal("card_refused", "a registrar does not announce itself")
        return None

    def lookup(self, agent: str) -> AgentView:
        """Return one agent.

        Raises:
            AgentNotFoundError: never announced.
            InvalidIdError: not an id.
        """
        return self._directory.agent(agent)

    def list(self) -> RegistryView:
        """Return the whole registry."""
        return self._directory.view()

    @property
    def _is_open(self) -> bool:
        """Whether the mesh asks nobody who he is: agents may share durables."""
        return self._connection.credentials is None and self._keyring is None

    def _refuse_group(self, announcement: Announcement) -> Receipt | None:
        """In a secure mesh a subject proves one agent, and rights are given by agent."""
        group, ids = announcement.group, [one.id for one in announcement.cards]
        if not group and not announcement.beside:
            return None
        if not self._is_open:
            return refusal("card_refused", "agents of a secure mesh share no durable")
        if not streams.is_group(group) or len(set(ids)) < len(ids) or len(ids) > streams.GROUP_MOST:
            most = f"a group has a name with {streams.GROUP_MARK} and up to {streams.GROUP_MOST}"
            return refusal("card_refused", f"{most} different agents")
        return None

    async def _place(self, agent: str, instance: Instance) -> None:
        placement = Placement(
            agent=agent, node=instance.node, instance=instance.instance, since=_now()
        )
        await self._put(registry.placement_key(agent, instance.instance), placement)

    def _record(
        self, card: AgentCard, announcement: Announcement, alone: Collection[str]
    ) -> AgentRecord:
        known = self._directory.agent_record(card.id)
        node = announcement.instance.node
        earlier = [one for one in known.nodes if one != node] if known else []
        is_alone = card.id in alone
        return AgentRecord(
            card=card,
            nodes=(*earlier, node),
            registered_at=known.registered_at if known else _now(),
            group="" if is_alone else announcement.group,
            # What was alone before has durables of its own on these nodes, and keeps them.
            pins=() if is_alone or known is None else known.pins if known.group else known.nodes,
        )

    async def _put_agent(self, record: AgentRecord) -> None:
        await self._put(registry.agent_key(record.card.id), record)

    async def _put_node(self, instance: Instance) -> None:
        known = self._directory.node_record(instance.node)
        if known is None or known.last_seen:
            registered_at = known.registered_at if known else _now()
            record = NodeRecord(node=instance.node, registered_at=registered_at)
            await self._put(registry.node_key(instance.node), record)

    async def _put_instance(self, instance: Instance) -> None:
        key = registry.instance_key(instance.instance)
        await self._put(key, instance, ttl_s=self._settings.offline_after_s)

    async def _remove(self, placements: Sequence[Placement]) -> None:
        # Side by side: one by one, ten thousand would outlast the registrar's own key.
        keys = [registry.placement_key(one.agent, one.instance) for one in placements]
        await asyncio.gather(*(self._delete(one) for one in keys))
        for one in placements:
            logger.info("agent %s is off %s", one.agent, one.node)

    async def _end(self, ending: Ending) -> None:
        try:
            await self._put(ending.key, ending.record, expected_revision=ending.revision)
        except PublishRefusedError as refused:
            # Another registrar was faster, or it is announced again at this moment.
            if refused.err_code != registry.CHANGED:
                raise

    async def _put(
        self,
        key: str,
        value: WireModel,
        *,
        ttl_s: float | None = None,
        expected_revision: int | None = None,
    ) -> None:
        entry = await registry.put(
            self._connection, key, value, ttl_s=ttl_s, expected_revision=expected_revision
        )
        # Our own write is known at once; its event comes a moment later.
        self._directory.apply(entry)

    async def _delete(self, key: str) -> None:
        self._directory.apply(await registry.delete(self._connection, key))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def refusal(code: str, message: str) -> Receipt:
    """Tell an announcer that, and why, it is not believed."""
    return Receipt(ok=False, code=code, message=message)
