"""A plain FastStream application as an agent of the mesh.

A subscriber on `agent.<id>.inbox` works by itself, and is reachable by subject. `attach` adds
what only the mesh can: the announcement, the heartbeat, a renewed ack_wait, and replies that
JetStream has acknowledged. FastStream's own reply is a core publish, which a broker that dies
at that moment loses without a trace.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from faststream import ContextRepo, FastStream
from faststream.message import StreamMessage, encode_message
from faststream.middlewares import BaseMiddleware
from faststream.nats import NatsBroker
from faststream.nats.response import NatsPublishCommand
from nats.aio.msg import Msg

from mesh import headers as h
from mesh import registry, subjects
from mesh.background import BackgroundTasks
from mesh.connection import Connection
from mesh.errors import SettingsError
from mesh.heartbeat import beat_forever
from mesh.publisher import Publisher
from mesh.replies import frame_lifetime_s
from mesh.runtime import describe_process
from mesh.settings import Settings
from mesh.worker import RENEW_AFTER_S
from schemas.card import AgentCard
from schemas.registry import Announcement, Role

logger = logging.getLogger(__name__)

Publish = Callable[[NatsPublishCommand], Awaitable[Any]]


class MeshReplies(BaseMiddleware[NatsPublishCommand, Msg]):
    """Publishes replies through JetStream, and renews the request while the handler works."""

    def __init__(self, msg: Msg, /, *, context: ContextRepo, publisher: Publisher) -> None:
        super().__init__(msg, context=context)
        self._publisher = publisher

    async def consume_scope(
        self, call_next: Callable[[StreamMessage[Any]], Awaitable[Any]], msg: StreamMessage[Any]
    ) -> Any:
        """Renew the ack_wait until the handler is done."""
        renewing = asyncio.create_task(_renew_forever(msg.raw_message))
        try:
            return await call_next(msg)
        finally:
            renewing.cancel()

    async def publish_scope(self, call_next: Publish, cmd: NatsPublishCommand) -> Any:
        """Store a reply, and return when JetStream has it; leave everything else as it is."""
        if not subjects.is_reply(cmd.destination):
            return await call_next(cmd)
        body, content_type = encode_message(cmd.body, None)
        request = h.RequestHeaders.read(self.msg.headers)
        left_s = (request.timeout_ms or 0) / 1000
        headers = {
            h.CONTENT_TYPE: content_type or h.TEXT,
            h.MSG_ID: f"{cmd.correlation_id}.final",
            h.TTL: h.ttl(frame_lifetime_s(left_s)),
            **cmd.headers_to_publish(),
        }
        return await self._publisher.publish(cmd.destination, body, headers)


async def _renew_forever(message: Msg) -> None:
    while True:
        await asyncio.sleep(RENEW_AFTER_S)
        await message.in_progress()


def attach(app: FastStream, card: AgentCard, *, settings: Settings | None = None) -> None:
    """Make a FastStream application a full agent: announced, seen, and never losing a reply.

    Its subscriber must pull: `stream=JStream("INBOX", declare=False), durable=<id>,
    pull_sub=PullSub(1), ack_policy=AckPolicy.NACK_ON_ERROR`. The default policy would delete a
    request whose handler raises.

    Raises:
        SettingsError: the application has no NATS broker.
    """
    broker = app.broker
    if not isinstance(broker, NatsBroker):
        raise SettingsError("attach needs a FastStream application with a NatsBroker")
    attachment = _Attachment(broker, card, settings or Settings.from_env())
    app.on_startup(attachment.start)
    app.on_shutdown(attachment.stop)


class _Attachment:
    def __init__(self, broker: NatsBroker, card: AgentCard, settings: Settings) -> None:
        self._broker = broker
        self._settings = settings
        instance = describe_process(settings.node, Role.HOST, [card.id])
        self._announcement = Announcement(card=card, instance=instance)
        self._tasks = BackgroundTasks()
        self._connection: Connection | None = None

    async def start(self) -> None:
        """Announce before FastStream subscribes: the mailbox must be made by the registrar."""
        await self._broker.connect()
        connection = self._connection = Connection(self._broker.connection)
        await connection.start()
        publisher = connection.publisher

        def replies(msg: Any, /, *, context: ContextRepo) -> BaseMiddleware[Any, Any]:
            return MeshReplies(msg, context=context, publisher=publisher)

        self._broker.add_middleware(replies)
        await self._announce()
        self._tasks.start(
            beat_forever(
                connection,
                self._announcement.instance,
                interval_s=self._settings.heartbeat_s,
                on_forgotten=self._announce,
            )
        )

    async def stop(self) -> None:
        """Leave the registry while there is a connection."""
        await self._tasks.cancel()
        if self._connection is not None:
            card, instance = self._announcement.card, self._announcement.instance
            await registry.withdraw(self._connection, card.id, instance.instance)
            await self._connection.release()

    async def _announce(self) -> None:
        if self._connection is not None:
            await registry.announce(self._connection, self._announcement)
