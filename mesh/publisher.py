"""Publishes to JetStream and matches its acknowledgements.

One subscription for all acknowledgements of a connection. nats-py's own `publish_async` cannot
be used: its future never ends when JetStream refuses a message (`APIError.from_error` raises
inside the callback that should set it, nats-py 2.16.0), and a full mailbox must be told at once.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh import headers as h
from mesh.errors import (
    AckLostError,
    BrokerUnreachableError,
    PayloadTooLargeError,
    PublishRefusedError,
    StreamMissingError,
    TransportError,
)

ACK_TIMEOUT_S: Final = 5.0
HEADROOM_BYTES: Final = 4096
"""Left free under `max_payload` for what the broker adds. A message over the limit, headers
included, closes a nats-py client for ever."""

MAILBOX_FULL: Final = 10077
"""JetStream error code: maximum messages (of this subject) exceeded."""


@dataclass(frozen=True, slots=True)
class PubAck:
    """JetStream has stored the message."""

    stream: str
    sequence: int
    is_duplicate: bool


class Publisher:
    """The publishing half of a connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._prefix = client.new_inbox()
        self._tokens = count()
        self._waiting: dict[str, asyncio.Future[PubAck]] = {}

    async def start(self) -> None:
        """Subscribe to the acknowledgements."""
        await self._client.subscribe(f"{self._prefix}.*", cb=self._on_ack)

    @property
    def limit_bytes(self) -> int:
        """Body and headers of a message together must not be larger than this."""
        return self._client.max_payload - HEADROOM_BYTES

    def require_size(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Check that a message fits.

        Raises:
            PayloadTooLargeError: it does not.
        """
        size = len(body) + h.encoded_size(headers)
        if size > self.limit_bytes:
            raise PayloadTooLargeError(
                f"the message has {size} bytes with its headers; the broker takes "
                f"{self.limit_bytes}: send less, or a link to it",
                actual_bytes=size,
                limit_bytes=self.limit_bytes,
            )

    async def submit(
        self, subject: str, body: bytes, headers: dict[str, str]
    ) -> asyncio.Future[PubAck]:
        """Send a message and return the future of its acknowledgement.

        The future raises `PublishRefusedError`, `StreamMissingError`, or `AckLostError` after a
        lost connection. It has no time limit of its own.

        Raises:
            PayloadTooLargeError: the message is over the broker's limit; nothing was sent.
            BrokerUnreachableError: the connection is closed, or its buffer is full.
        """
        self.require_size(body, headers)
        token = str(next(self._tokens))
        future: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        future.add_done_callback(lambda _: self._waiting.pop(token, None))
        try:
            await self._client.publish(
                subject, body, reply=f"{self._prefix}.{token}", headers=headers
            )
        except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError) as error:
            future.cancel()
            raise BrokerUnreachableError(f"cannot publish: {error}") from error
        return future

    async def publish(
        self, subject: str, body: bytes, headers: dict[str, str], *, give_up_s: float = 20.0
    ) -> PubAck:
        """Send a message until it is acknowledged.

        A repeat carries the same `Nats-Msg-Id`, so that JetStream stores it once: give one.

        Raises:
            PublishRefusedError: JetStream does not take it.
            StreamMissingError: no stream captures `subject`.
            BrokerUnreachableError: no acknowledgement within `give_up_s`.
            PayloadTooLargeError: it is over the broker's limit.
        """
        deadline = asyncio.get_running_loop().time() + give_up_s
        while True:
            remaining = deadline - asyncio.get_running_loop().time()
            if remaining <= 0:
                raise BrokerUnreachableError(
                    f"the broker acknowledged nothing on {subject} for {give_up_s:g} s"
                )
            try:
                future = await self.submit(subject, body, headers)
                return await asyncio.wait_for(future, min(ACK_TIMEOUT_S, remaining))
            except (TimeoutError, AckLostError):
                headers = {**headers, h.RETRY: "1"}
            except BrokerUnreachableError:
                # The connection is being re-made, and its buffer is full: wait for either end.
                if self._client.is_closed:
                    raise
                await asyncio.sleep(min(0.2, remaining))

    def forget_unacknowledged(self) -> None:
        """Fail what waits for an acknowledgement: after a reconnect most would wait in vain."""
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(AckLostError("the connection was lost before the answer"))
                future.exception()  # Nobody may be waiting: not an unretrieved exception.

    async def _on_ack(self, message: Msg) -> None:
        future = self._waiting.get(message.subject.rpartition(".")[2])
        if future is None or future.done():
            return
        outcome = _read_ack(message)
        if isinstance(outcome, PubAck):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
            future.exception()


def _read_ack(message: Msg) -> PubAck | TransportError:
    if message.headers and message.headers.get("Status") == "503":
        return StreamMissingError(
            "no stream takes this subject: the mesh is not set up on this broker; run `mesh up`"
        )
    try:
        body = orjson.loads(message.data)
    except orjson.JSONDecodeError:
        return TransportError("the broker sent an acknowledgement that is not JSON")
    if error := body.get("error"):
        description = error.get("description", "refused")
        return PublishRefusedError(description, err_code=error.get("err_code", 0))
    return PubAck(body["stream"], body["seq"], bool(body.get("duplicate")))
