"""A plain FastStream application as an agent of the mesh.

A subscriber on `agent.<id>.inbox` works by itself, and is reachable by subject. `attach` adds
what only the mesh can: the announcement, the heartbeat, a renewed ack_wait, answers to pings, and
replies that JetStream has acknowledged. FastStream's own reply is a core publish, which a broker
that dies at that moment loses without a trace.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from faststream import ContextRepo, FastStream
from faststream.exceptions import AckMessage
from faststream.message import StreamMessage, encode_message
from faststream.middlewares import BaseMiddleware
from faststream.nats import NatsBroker
from faststream.nats.response import NatsPublishCommand
from nats.aio.msg import Msg

from mesh import headers as h
from mesh import registry, subjects
from mesh.attachments import put_body, read_body
from mesh.background import BackgroundTasks
from mesh.connection import Connection
from mesh.delivery import Delivery
from mesh.errors import (
    BodyLostError,
    InvalidInputError,
    PayloadTooLargeError,
    SettingsError,
)
from mesh.heartbeat import beat_forever
from mesh.pings import write_pong
from mesh.replies import ReplyWriter, frame_lifetime_s
from mesh.requests import read_address
from mesh.runtime import describe_process
from mesh.settings import Settings
from mesh.trust.login import Login
from mesh.worker import RENEW_AFTER_S
from schemas.card import AgentCard
from schemas.registry import Announcement, Instance, Role

logger = logging.getLogger(__name__)

Publish = Callable[[NatsPublishCommand], Awaitable[Any]]

_JETSTREAM_ACK: Final = "$JS.ACK."


class MeshReplies(BaseMiddleware[NatsPublishCommand, Msg]):
    """Publishes replies through JetStream, renews the request while the handler works, and
    answers pings.
    """

    def __init__(
        self,
        msg: Msg,
        /,
        *,
        context: ContextRepo,
        connection: Connection,
        agent: str,
        instance: Instance,
    ) -> None:
        super().__init__(msg, context=context)
        self._connection = connection
        self._agent = agent
        self._instance = instance

    async def on_receive(self) -> None:
        """Answer a ping here, before filters, decoders, the handler and its publishers.

        A body that fits into no message is fetched: the handler gets it as if it had.
        """
        if self._is_request(h.PING):
            await self._answer(self.msg, lambda writer: write_pong(writer, self._agent))
        elif self._is_request(h.BODY):
            await self._fetch_body(self.msg)

    def _is_request(self, header: str) -> bool:
        # A batch of messages, or a change of a bucket, is no `Msg`.
        return (
            isinstance(self.msg, Msg)
            and header in (self.msg.headers or {})
            and self.msg.reply.startswith(_JETSTREAM_ACK)
            and f"{self.msg.subject}.".startswith(f"{subjects.inbox(self._agent)}.")
        )

    async def _fetch_body(self, msg: Msg) -> None:
        renewing = asyncio.create_task(_renew_forever(msg))
        try:
            msg.data = await read_body(self._connection, (msg.headers or {})[h.BODY])
        except (BodyLostError, InvalidInputError) as error:
            lost = error
            await self._answer(msg, lambda writer: writer.error(lost))
        finally:
            renewing.cancel()

    async def _answer(self, msg: Msg, write: Callable[[ReplyWriter], Awaitable[None]]) -> None:
        """Answer in the place of the handler, which does not see the request."""
        delivery = Delivery.read(self._connection.client, msg)
        headers = h.RequestHeaders.read(msg.headers)
        place = (self._instance.node, self._instance.instance)
        left_s = (headers.timeout_ms or 0) / 1000
        address = read_address(delivery, headers, agent=self._agent, place=place, left_s=left_s)
        if address is None:
            logger.warning("%s: refused to answer on %r", self._agent, headers.reply_to[:120])
            await msg.term()
        else:
            await write(ReplyWriter(self._connection, address))
            await msg.ack()
        # Ends the processing of this message; it is acknowledged already.
        raise AckMessage

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
        publish = self._connection.publisher.publish
        try:
            return await publish(cmd.destination, body, headers)
        except PayloadTooLargeError:
            if cmd.destination == subjects.bare_reply(self._agent):
                raise  # Who sent a bare message cannot follow a claim.
            claim = await put_body(
                self._connection,
                str(cmd.correlation_id),
                body,
                reader=subjects.caller_of(cmd.destination),
                lifetime_s=frame_lifetime_s(left_s),
            )
            return await publish(cmd.destination, b"", {**headers, h.BODY: str(claim)})


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
        SettingsError: the application has no NATS broker, or the mesh is a secure one: FastStream
            asks JetStream for more there than an agent may, and checks no signature.
    """
    broker, settings = app.broker, settings or Settings.from_env()
    if not isinstance(broker, NatsBroker):
        raise SettingsError("attach needs a FastStream application with a NatsBroker")
    if Login.of(settings).credentials is not None:
        raise SettingsError(
            f"a secure mesh takes no FastStream application as agent {card.id!r}, which would "
            "answer whoever claims to be somebody: write it with mesh.Agent"
        )
    attachment = _Attachment(broker, card, settings)
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
        card, instance = self._announcement.card, self._announcement.instance

        def replies(msg: Any, /, *, context: ContextRepo) -> BaseMiddleware[Any, Any]:
            return MeshReplies(
                msg, context=context, connection=connection, agent=card.id, instance=instance
            )

        self._broker.add_middleware(replies)
        await self._announce()
        self._tasks.start(
            beat_forever(
                connection,
                lambda: instance,
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
