"""The broker's clock, as seen from here.

Ages and deadlines are counted from stream timestamps. Comparing those with this machine's clock
would let a wrong clock kill or revive work, so the broker's time is estimated from the messages
themselves: none can arrive before it was stored.
"""

import asyncio
import time
from typing import Final
from uuid import uuid4

import nats.errors
from nats.aio.msg import Msg

from mesh import headers as h
from mesh import subjects
from mesh.connection import Connection
from mesh.errors import BrokerUnreachableError
from mesh.history import is_stored_under, stored_ns
from mesh.streams import REPLY

ASK_S: Final = 2.0
"""How long the broker may take to say what time it is."""


class BrokerClock:
    """Estimates the broker's time from message timestamps and the local monotonic clock.

    The estimate is never ahead of the broker's clock, and behind it by no more than the
    fastest delivery so far: an age is never counted too long.
    """

    def __init__(self) -> None:
        self._offset_ns: int | None = None
        self._asked = asyncio.Event()

    def observe(self, stored_ns: int) -> None:
        """Take note of a message that has just arrived, stored at `stored_ns`."""
        offset = stored_ns - time.monotonic_ns()
        if self._offset_ns is None or offset > self._offset_ns:
            self._offset_ns = offset

    def reset(self) -> None:
        """Forget the estimate: after a reconnect the broker may be another machine."""
        self._offset_ns = None
        self._asked.clear()

    async def ask(self, connection: Connection, caller: str, instance: str) -> None:
        """Ask the broker for its time. Without that, a message that has waited looks new.

        Raises:
            BrokerUnreachableError: no answer within `ASK_S`; ages are counted from the first
                message then.
        """
        try:
            self.observe(await read_broker_time(connection, caller, instance))
        finally:
            self._asked.set()

    @property
    def is_asked(self) -> bool:
        """Whether the broker was asked."""
        return self._asked.is_set()

    async def wait_asked(self) -> None:
        """Return when the broker was asked, or when that takes too long."""
        try:
            await asyncio.wait_for(self._asked.wait(), ASK_S)
        except TimeoutError:
            return

    def age_s(self, stored_ns: int) -> float:
        """Return how long ago the broker stored a message. Observe something first."""
        if self._offset_ns is None:
            return 0.0
        return max(0.0, (time.monotonic_ns() + self._offset_ns - stored_ns) / 1e9)


async def read_broker_time(connection: Connection, caller: str, instance: str) -> int:
    """Return the broker's time in nanoseconds, as it was within this call.

    Stores a message among the caller's own replies, where it expires in a second: every caller
    may, also behind an account boundary, where JetStream's API cannot be asked.

    Raises:
        BrokerUnreachableError: no answer within `ASK_S`.
    """
    subject = subjects.reply(caller, instance, uuid4().hex, caller)
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def on_stored(message: Msg) -> None:
        if is_stored_under(message.headers, REPLY, subject) and not told.done():
            told.set_result(stored_ns(message.headers or {}))

    client = connection.client
    try:
        subscription = await client.subscribe(subjects.as_delivered(subject), cb=on_stored)
        try:
            await connection.publisher.submit(subject, b"", {h.TTL: h.ttl(0)})
            return await asyncio.wait_for(told, ASK_S)
        finally:
            if not client.is_closed:
                await subscription.unsubscribe()
    except (TimeoutError, nats.errors.Error) as error:
        raise BrokerUnreachableError(f"the broker does not tell its time: {error}") from error
