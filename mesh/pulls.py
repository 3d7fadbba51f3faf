"""Pulls from one durable: never more messages than were asked for.

Keeps pull requests outstanding for a number of messages that its user sets as slots free up, so
an idle replica gets the next message and a busy one hoards nothing. One subscription for its
whole life, but a fresh one after a reconnect: the old pull may still be valid on the old inbox,
and would then deliver a message that nobody asked for. On a cluster the next leader of the durable
answers the pulls that waited at the last one, 409, killed or not.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh.background import BackgroundTasks
from mesh.connection import Connection
from mesh.delivery import Delivery
from mesh.dispatch import Prompt
from mesh.nats_client import is_guarded, post
from mesh.subjects import PULL

logger = logging.getLogger(__name__)

EXPIRES_S: Final = 30.0
"""Long, because an idle pull costs nothing between renewals."""
OVERDUE_S: Final = 10.0
"""How long after its expiry a pull that was never answered counts as lost."""
RETRY_S: Final = 1.0
"""Pause after an answer that says the durable cannot be pulled from now."""

OnDelivery = Callable[[Delivery], None]
"""Takes a message; it is called where the message is read, and must be quick."""


class PullLoop:
    """The outstanding pulls of one process on one durable."""

    def __init__(
        self, connection: Connection, stream: str, durable: str, on_delivery: OnDelivery
    ) -> None:
        self._connection = connection
        self._subject = f"{PULL}.{stream}.{durable}"
        self._on_delivery = on_delivery
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._losses = 0
        """Of the connection, when the inbox was made."""
        self._outstanding = 0
        self._wanted = 0
        self._asked_at = 0.0
        self._refilling = False
        self._tasks = BackgroundTasks()

    async def start(self) -> None:
        """Subscribe. Nothing is pulled before `want` says how much."""
        await self._subscribe()
        self._connection.on_reconnect(self.restart)

    async def stop(self) -> None:
        """Give up the subscription. What was delivered before still has to be settled.

        What is on its way is still heard: unheard, it would wait for its ack_wait.
        """
        self._wanted = 0
        self._connection.drop_hook(self.restart)
        await self._tasks.cancel()
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            await _drain(subscription)

    async def restart(self) -> None:
        """Start again on a fresh inbox."""
        if self._subscription is not None:
            old, self._subscription = self._subscription, None
            await _unsubscribe(old)
            await self._subscribe()
            self._top_up()

    def want(self, messages: int) -> None:
        """Have pulls outstanding for `messages` messages; fewer are never taken back."""
        self._wanted = messages
        self._top_up()

    async def tick(self) -> None:
        """Notice a pull that was lost without a word. To be called every second or so."""
        now = asyncio.get_running_loop().time()
        if self._outstanding and now - self._asked_at > EXPIRES_S + OVERDUE_S:
            logger.warning("no answer to a pull on %s; asking again", self._subject)
            await self.restart()

    async def _subscribe(self) -> None:
        client = self._connection.client
        inbox = self._inbox = client.new_inbox()
        self._outstanding = 0
        self._losses = self._connection.losses
        self._subscription = await client.subscribe(
            inbox, cb=Prompt(partial(self._on_message, inbox))
        )

    def _top_up(self) -> None:
        if self._refilling or self._outstanding >= self._wanted or self._subscription is None:
            return
        # Slots that free up in the same turn of the loop share one pull.
        self._refilling = True
        asyncio.get_running_loop().call_soon(self._refill)

    def _refill(self) -> None:
        self._refilling = False
        batch = self._wanted - self._outstanding
        if batch <= 0 or self._subscription is None or not self._is_fresh():
            return
        self._outstanding += batch
        self._asked_at = asyncio.get_running_loop().time()
        request = b'{"batch":%d,"expires":%d}' % (batch, EXPIRES_S * 1e9)
        if not post(self._connection.client, self._subject, request, self._inbox):
            self._tasks.start(self._publish(request, batch, self._inbox))

    async def _publish(self, request: bytes, batch: int, inbox: str) -> None:
        if inbox != self._inbox or not self._is_fresh():
            return  # `restart` has asked again meanwhile, and counted anew.
        try:
            await self._connection.client.publish(self._subject, request, reply=inbox)
        except nats.errors.Error:
            # Not connected: `restart` asks again on the new connection.
            if inbox == self._inbox:
                self._outstanding = max(0, self._outstanding - batch)

    def _is_fresh(self) -> bool:
        """Tell whether the inbox is of this connection.

        nats-py is connected again before it says so, and before `restart`: a pull of that moment,
        or one in the buffer of a lost connection, would go to the old inbox, which is given up
        then, and bring messages that nobody hears until their ack_wait is over.
        """
        return self._connection.client.is_connected and self._losses == self._connection.losses

    def _on_message(self, inbox: str, message: Msg) -> None:
        is_current = inbox == self._inbox
        if message.headers and "Status" in message.headers and not message.reply:
            if is_current:
                self._on_status(message.headers)
            return
        if is_current:
            self._outstanding = max(0, self._outstanding - 1)
        is_cut = is_guarded(self._connection.client) and not message.data and not message.headers
        if is_current and is_cut:
            # Between accounts an empty message ends the answers to a pull (nats-server #6149):
            # what else it brought is lost until its ack_wait, so ask again on a fresh inbox.
            self._tasks.start(self.restart())
        self._on_delivery(Delivery.read(self._connection.client, message))

    def _on_status(self, headers: dict[str, str]) -> None:
        status = headers["Status"]
        if status == "408":
            # The pull expired; the server says how much of it was not used.
            unused = int(headers.get("Nats-Pending-Messages", self._outstanding))
            self._outstanding = max(0, self._outstanding - unused)
            self._top_up()
        elif status in ("409", "503"):
            why = headers.get("Description") if status == "409" else "nobody leads the durable"
            logger.info("%s: %s", self._subject, why)
            self._tasks.start(self._retry(self._inbox))

    async def _retry(self, inbox: str) -> None:
        await asyncio.sleep(RETRY_S)
        # On a fresh inbox, as others of our pulls may still be valid; once for all of this inbox.
        if inbox == self._inbox:
            await self.restart()


async def _drain(subscription: Subscription) -> None:
    try:
        await subscription.drain()  # type: ignore[no-untyped-call]
    except nats.errors.Error as error:
        logger.debug("not drained: %s", error)


async def _unsubscribe(subscription: Subscription) -> None:
    try:
        await subscription.unsubscribe()
    except nats.errors.Error:
        logger.debug("already unsubscribed")
