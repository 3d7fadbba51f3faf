"""The registrar: the only writer of the registry, and the maker of mailboxes.

Takes announcements, withdrawals and heartbeats, answers look-ups, and sweeps what has died. The
data path does not need it: with no registrar alive, liveness is unknown and calls go on.
"""

import asyncio
import datetime
import logging
from typing import Annotated, Any, Final

from faststream import AckPolicy, BaseMiddleware, Context, ExceptionMiddleware, Path
from faststream.nats import JStream, NatsMessage, NatsRouter, PullSub
from pydantic import ValidationError

from mesh import headers as h
from mesh import registry, streams, subjects
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.errors import MeshError
from mesh.provision import ensure_consumer
from mesh.settings import Settings
from schemas.base import WireModel
from schemas.frame import ErrorBody, ErrorDetail
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
    ) -> None:
        self._connection = connection
        self._directory = directory
        self._settings = settings
        self._instance = instance

    async def announce(self, agent: str, node: str, announcement: Announcement) -> Receipt:
        """Make an agent's mailbox, then show the agent."""
        card, instance = announcement.card, announcement.instance
        if card.id != agent:
            return _refusal("card_refused", f"a card of {card.id!r} on the subject of {agent!r}")
        if refusal := self._refuse_foreign(node, instance):
            return refusal
        await self._make_mailbox(announcement)
        await self._put_node(instance)
        await self._put(registry.agent_key(agent), self._record(announcement))
        await self._put_instance(instance)
        placement = Placement(
            agent=agent, node=instance.node, instance=instance.instance, since=_now()
        )
        await self._put(registry.placement_key(agent, instance.instance), placement)
        logger.info("agent %s on %s", agent, instance.node)
        return Receipt()

    async def withdraw(self, agent: str, withdrawal: Withdrawal) -> None:
        """Take an agent off a process. Its card and its mailbox stay."""
        await self._delete(registry.placement_key(agent, withdrawal.instance))
        logger.info("agent %s left", agent)

    async def heartbeat(self, node: str, heartbeat: Heartbeat) -> Receipt:
        """Keep a process alive, and tell it when its placements have been forgotten."""
        instance = heartbeat.instance
        if refusal := self._refuse_foreign(node, instance):
            return refusal
        if heartbeat.leaving:
            await self.forget(instance.instance)
            await self._delete(registry.instance_key(instance.instance))
            return Receipt()
        await self._put_node(instance)
        await self._put_instance(instance)
        placed = {
            one.agent for one in self._directory.placements() if one.instance == instance.instance
        }
        is_known = placed >= set(instance.agents) and self._directory.has_node(instance.node)
        return Receipt(known=is_known)

    async def forget(self, instance: str) -> None:
        """Delete the placements of a process that is gone."""
        for placement in self._directory.placements():
            if placement.instance == instance:
                await self._delete(registry.placement_key(placement.agent, instance))
                logger.info("agent %s is off %s", placement.agent, placement.node)

    async def sweep(self) -> None:
        """Delete placements whose process is gone, however it went unnoticed."""
        for placement in self._directory.placements():
            if not self._directory.has_instance(placement.instance):
                await self._delete(registry.placement_key(placement.agent, placement.instance))

    async def reign(self) -> None:
        """Say that a registrar is alive, and sweep, until cancelled.

        Not before every live host had the time for a heartbeat: after a pause of all registrars
        the bucket shows nobody, and nobody must be called offline for that.
        """
        if self._directory.placements():
            await asyncio.sleep(self._settings.heartbeat_s * GRACE_HEARTBEATS)
        key = registry.instance_key(self._instance.instance)
        ttl_s = self._settings.heartbeat_s * REIGN_HEARTBEATS
        while True:
            try:
                await self._put_node(self._instance)
                await self._put(key, self._instance, ttl_s=ttl_s)
                await self.sweep()
            except MeshError as error:
                logger.warning("the registry cannot be written: %s", error)
            await asyncio.sleep(self._settings.heartbeat_s)

    async def abdicate(self) -> None:
        """Say that this registrar leaves."""
        await self._delete(registry.instance_key(self._instance.instance))

    def _refuse_foreign(self, node: str, instance: Instance) -> Receipt | None:
        """A node speaks for its own processes only. The broker proves the subject's node."""
        others = (one for one in self._directory.instances() if one.node != node)
        if instance.node != node or any(one.instance == instance.instance for one in others):
            return _refusal("card_refused", f"the instance is not one of node {node!r}")
        if instance.role is Role.REGISTRAR:
            return _refusal("card_refused", "a registrar does not announce itself")
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

    async def _make_mailbox(self, announcement: Announcement) -> None:
        card = announcement.card
        events = [(one.source, one.name) for one in card.subscriptions]
        manager = self._connection.client.jsm(timeout=20.0)
        node = announcement.instance.node
        for stream, consumer in streams.agent_consumers(card.id, node, events):
            await ensure_consumer(manager, stream, consumer)

    def _record(self, announcement: Announcement) -> AgentRecord:
        known = self._directory.agent_record(announcement.card.id)
        node = announcement.instance.node
        earlier = [one for one in known.nodes if one != node] if known else []
        return AgentRecord(
            card=announcement.card,
            nodes=(*earlier, node),
            registered_at=known.registered_at if known else _now(),
        )

    async def _put_node(self, instance: Instance) -> None:
        if not self._directory.has_node(instance.node):
            record = NodeRecord(node=instance.node, registered_at=_now())
            await self._put(registry.node_key(instance.node), record)

    async def _put_instance(self, instance: Instance) -> None:
        key = registry.instance_key(instance.instance)
        await self._put(key, instance, ttl_s=self._settings.offline_after_s)

    async def _put(self, key: str, value: WireModel, *, ttl_s: float | None = None) -> None:
        entry = await registry.put(self._connection, key, value, ttl_s=ttl_s)
        # Our own write is known at once; its event comes a moment later.
        self._directory.apply(entry)

    async def _delete(self, key: str) -> None:
        self._directory.apply(await registry.delete(self._connection, key))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _refusal(code: str, message: str) -> Receipt:
    return Receipt(ok=False, code=code, message=message)


failures = ExceptionMiddleware()


@failures.add_handler(ValidationError, publish=True)
def refuse_body(error: ValidationError) -> Receipt:
    """Tell a caller whose message does not fit its model."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return _refusal("protocol", f"{place}: {first['msg']}")


class OwnReplies(BaseMiddleware):
    """Answers announcements only where the announcer itself is answered.

    FastStream publishes a handler's return value wherever a `reply_to` header says, with the
    registrar's rights: `$KV.registry.victim` would do.
    """

    async def consume_scope(self, call_next: Any, msg: Any) -> Any:
        """Forget a `reply_to` header that points elsewhere."""
        reply_to = msg.headers.get(h.REPLY_TO)
        if reply_to and not (
            subjects.is_inbox_reply(reply_to)
            or subjects.is_reply_to(reply_to, msg.path.get("agent", ""))
        ):
            logger.warning("refused to answer on %r", reply_to[:120])
            msg.reply_to = ""
        return await call_next(msg)


router = NatsRouter(middlewares=(failures, OwnReplies))
RegistrarInstance = Annotated[Registrar, Context("registrar")]
PULL_TIMEOUT_S: Final = 5.0
"""A pull that a broker restart has swallowed is noticed no sooner."""

_CONTROL: Final = JStream(streams.CONTROL, declare=False)
_PULL: Final = PullSub(batch_size=1, timeout=PULL_TIMEOUT_S)


# The durables are ours (`mesh.streams`); FastStream binds to them as they are.


@router.subscriber(
    "registry.announce.{agent}.{node}",
    stream=_CONTROL,
    durable=streams.REGISTRAR_ANNOUNCE,
    pull_sub=_PULL,
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def on_announce(
    announcement: Announcement,
    registrar: RegistrarInstance,
    agent: Annotated[str, Path()],
    node: Annotated[str, Path()],
) -> Receipt:
    """A host announces an agent."""
    return await registrar.announce(agent, node, announcement)


@router.subscriber(
    "registry.withdraw.{agent}",
    stream=_CONTROL,
    durable=streams.REGISTRAR_WITHDRAW,
    pull_sub=_PULL,
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def on_withdraw(
    withdrawal: Withdrawal, registrar: RegistrarInstance, agent: Annotated[str, Path()]
) -> None:
    """A host stops an agent."""
    await registrar.withdraw(agent, withdrawal)


@router.subscriber("registry.heartbeat.{node}.{instance}", queue="registrar")
async def on_heartbeat(
    heartbeat: Heartbeat, registrar: RegistrarInstance, node: Annotated[str, Path()]
) -> Receipt:
    """A process is alive, or leaves."""
    return await registrar.heartbeat(node, heartbeat)


@router.subscriber("registry.get.{agent}", queue="registrar")
async def on_lookup(
    registrar: RegistrarInstance, agent: Annotated[str, Path()]
) -> AgentView | ErrorBody:
    """Anybody asks about one agent."""
    try:
        return registrar.lookup(agent)
    except MeshError as error:
        return ErrorBody(
            error=ErrorDetail(code=error.code, message=error.message, fields=error.fields)
        )


@router.subscriber(subjects.REGISTRY_LIST, queue="registrar")
async def on_list(registrar: RegistrarInstance) -> RegistryView:
    """Anybody asks for the whole registry."""
    return registrar.list()


@router.subscriber(subjects.ALL_INSTANCE_EVENTS)
async def on_instance_event(message: NatsMessage, registrar: RegistrarInstance) -> None:
    """A process has expired: what it hosted is nowhere now."""
    subject = message.raw_message.subject
    key = subject.removeprefix(registry.EVENT_PREFIX)
    entry = registry.Entry.read(key, message.headers, message.body, 0)
    if entry.value is None:
        await registrar.forget(key.partition(".")[2])
