"""Puts requests into mailboxes, and tells the call what became of it.

The acknowledgement is awaited beside the answer, not before it: a fast agent answers first.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from mesh import headers as h
from mesh.background import BackgroundTasks
from mesh.calls import Call
from mesh.errors import AckLostError, MailboxFullError, MeshError, PublishRefusedError
from mesh.publisher import MAILBOX_FULL, PubAck, Publisher


@dataclass(slots=True)
class Request:
    """A message for a mailbox."""

    subject: str
    body: bytes
    headers: dict[str, str]

    def repeated(self) -> "Request":
        """Return the same request, marked: it may be stored already, and even be answered."""
        return Request(self.subject, self.body, {**self.headers, h.RETRY: "1"})


class Outbox:
    """The sending side of one caller."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._tasks = BackgroundTasks()

    async def send(self, call: Call, request: Request) -> None:
        """Publish a request, and again until it is acknowledged or the call has ended.

        Raises:
            PayloadTooLargeError: it is over the broker's limit; the call has failed.
            BrokerUnreachableError: the connection is closed; the call has failed.
        """
        try:
            await self._publish(call, request)
        except MeshError as error:
            call.fail(error)
            raise

    async def _publish(self, call: Call, request: Request) -> None:
        future = await self._publisher.submit(request.subject, request.body, request.headers)
        future.add_done_callback(partial(self._on_ack, call, request))

    def _on_ack(self, call: Call, request: Request, acknowledged: "asyncio.Future[PubAck]") -> None:
        if acknowledged.cancelled():
            return
        error = acknowledged.exception()
        if error is None:
            call.stored()
        elif isinstance(error, AckLostError):
            self._repeat(call, request)
        elif isinstance(error, PublishRefusedError):
            call.fail(_refusal(call.agent, error))
        elif isinstance(error, MeshError):
            call.fail(error)

    def _repeat(self, call: Call, request: Request) -> None:
        if not call.is_done:
            # The same Nats-Msg-Id: stored once, even if the first one had arrived.
            self._tasks.start(self._publish_again(call, request.repeated()))

    async def _publish_again(self, call: Call, request: Request) -> None:
        try:
            await self._publish(call, request)
        except MeshError as error:
            call.fail(error)

    @asynccontextmanager
    async def sending(self) -> AsyncIterator["Outbox"]:
        """Send, until the end."""
        try:
            yield self
        finally:
            await self._tasks.cancel()


def _refusal(agent: str, error: PublishRefusedError) -> MeshError:
    if error.fields.get("err_code") == MAILBOX_FULL:
        return MailboxFullError(
            f"the mailbox of agent {agent!r} is full; try again later", agent=agent
        )
    return error
