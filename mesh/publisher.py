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
from mesh.dispatch import Prompt
from mesh.errors import (
    AckLostError,
    BrokerUnreachableError,
    NotPermittedError,
    PayloadTooLargeError,
    PublishRefusedError,
    StorageFullError,
    StreamMissingError,
    TransportError,
)
from mesh.nats_client import NEAR_BYTES, is_clustered, post
from mesh.silence import LEADERLESS, STALLED, explain, is_alive

ACK_TIMEOUT_S: Final = 5.0
EXPIRY_CHECK_S: Final = 1.0
RETRY_PAUSE_S: Final = 0.2

STALLED_AFTER: Final = 2
"""So many times a broker that is there may leave a message unacknowledged."""
NOT_STORED: Final = 10077
"""JetStream error code: the stream does not take the message; the description says why."""
NO_RESOURCES: Final = frozenset({10023, 10047})
"""JetStream error codes: what the server may store in all its streams is used up."""
IN_PROCESS: Final = 10158
"""JetStream error code, on a cluster: the same message is being stored at the moment."""
_OF_ONE_SUBJECT: Final = "per subject exceeded"


@dataclass(slots=True)
class PubAck:
    """JetStream has stored the message."""

    stream: str
    sequence: int
    is_duplicate: bool


class Publisher:
    """The publishing half of a connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._prefix = ""
        self._tokens = count()
        self._waiting: dict[str, _Waiting] = {}
        """In the order of sending, so that the oldest come first."""
        self._looking: asyncio.Future[bool] | None = None
        self._is_over = False

    async def start(self) -> None:
        """Subscribe to the acknowledgements."""
        # Not before: the client learns its inbox prefix when it connects.
        self._prefix = self._client.new_inbox()
        await self._client.subscribe(f"{self._prefix}.*", cb=Prompt(self._on_ack))

    async def expire_forever(self) -> None:
        """Fail what was not acknowledged in time, until cancelled. One clock for all of it.

        Once it is cancelled nothing is waited for any more: nobody would end the waiting.
        """
        try:
            await self._expire()
        finally:
            self._is_over = True
            self._fail_waiting("the connection was closed before the acknowledgement")

    async def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while True:
            await asyncio.sleep(EXPIRY_CHECK_S)
            # Acknowledgements that came while we stood still have not been read yet.
            is_late = loop.time() - looked_at > 2 * EXPIRY_CHECK_S
            looked_at = loop.time()
            overdue = looked_at - ACK_TIMEOUT_S
            for token, waiting in list(self._waiting.items()):
                if waiting.sent_at > overdue:
                    break
                self._waiting.pop(token, None)
                _fail(
                    waiting.future,
                    AckLostError(
                        f"no acknowledgement for {ACK_TIMEOUT_S:g} s",
                        is_overdue=self._client.is_connected and not is_late,
                    ),
                )

    @property
    def limit_bytes(self) -> int:
        """Body and headers of a message together must not be larger than this."""
        return self._client.max_payload - NEAR_BYTES

    def require_size(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Check that a message fits.

        Raises:
            PayloadTooLargeError: it does not.
        """
        if len(body) + h.size_at_most(headers) <= self.limit_bytes:
            return
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

        The future raises `PublishRefusedError`, `StreamMissingError`, or `AckLostError` after
        5 s or a lost connection. Nobody has to await it.

        Raises:
            PayloadTooLargeError: the message is over the broker's limit; nothing was sent.
            BrokerUnreachableError: the connection is closed, or its buffer is full.
        """
        if self._is_over:
            raise BrokerUnreachableError("cannot publish: the connection is being closed")
        token = str(next(self._tokens))
        loop = asyncio.get_running_loop()
        future: asyncio.Future[PubAck] = loop.create_future()
        self._waiting[token] = _Waiting(future, loop.time(), subject)
        try:
            reply = f"{self._prefix}.{token}"
            if not post(self._client, subject, body, reply, headers):
                self.require_size(body, headers)
                await self._client.publish(subject, body, reply=reply, headers=headers)
        except PayloadTooLargeError:
            del self._waiting[token]
            raise
        except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError) as error:
            self._waiting.pop(token, None)
            raise BrokerUnreachableError(f"cannot publish: {error}") from error
        return future

    async def publish(
        self,
        subject: str,
        body: bytes,
        headers: dict[str, str],
        *,
        give_up_s: float = 20.0,
        lost: AckLostError | None = None,
    ) -> PubAck:
        """Send a message until it is acknowledged.

        A repeat carries the same `Nats-Msg-Id`, so that JetStream stores it once: give one.
        `lost` is what became of it when it was sent before.

        Raises:
            PublishRefusedError: JetStream does not take it.
            StreamMissingError: no stream captures `subject`.
            BrokerUnreachableError: no acknowledgement within `give_up_s`, or a few seconds more;
                or none twice, though the broker answers otherwise.
            PayloadTooLargeError: it is over the broker's limit.
        """
        deadline = asyncio.get_running_loop().time() + give_up_s
        strikes = 0
        while True:
            if lost is not None:
                headers = {**headers, h.RETRY: "1"}
                strikes = strikes + 1 if await self._is_ignored(lost) else 0
                if strikes >= STALLED_AFTER:
                    raise BrokerUnreachableError(STALLED) from lost
                await self._wait_connected(deadline)
            try:
                return await (await self.submit(subject, body, headers))
            except StreamMissingError as error:
                raise await explain(self._client, error, subject) from error
            except AckLostError as error:
                lost = error
            except BrokerUnreachableError as error:
                if self._client.is_closed or self._is_over:
                    raise
                lost = AckLostError(f"not sent: {error}")
            if asyncio.get_running_loop().time() > deadline:
                raise BrokerUnreachableError(
                    f"the broker acknowledged nothing on {subject} for {give_up_s:g} s"
                )

    async def _wait_connected(self, deadline: float) -> None:
        """Wait for either end: what is sent meanwhile would only fill the buffer."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(RETRY_PAUSE_S)
            if self._client.is_connected or self._client.is_closed or loop.time() > deadline:
                return

    async def _is_ignored(self, lost: AckLostError) -> bool:
        """Tell whether the broker answers, though it has not acknowledged a message in time."""
        if not lost.fields.get("is_overdue") or is_clustered(self._client):
            return False
        # One look for all that is overdue.
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(is_alive(self._client))
        return await asyncio.shield(self._looking)

    def forget_unacknowledged(self) -> None:
        """Fail what waits for an acknowledgement: after a reconnect most would wait in vain."""
        self._fail_waiting("the connection was lost before the acknowledgement")

    def _fail_waiting(self, message: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            _fail(one.future, AckLostError(message))

    def deny(self, subject: str) -> bool:
        """Fail what waits on a subject that the broker has refused; nats-py tells it lowered.

        Returns whether anything did.
        """
        before = len(self._waiting)
        for token, waiting in list(self._waiting.items()):
            if waiting.subject.lower() == subject:
                del self._waiting[token]
                message = f"the broker lets this user not publish to {waiting.subject}"
                _fail(waiting.future, NotPermittedError(message, subject=waiting.subject))
        return len(self._waiting) < before

    def _on_ack(self, message: Msg) -> None:
        waiting = self._waiting.pop(message.subject.rpartition(".")[2], None)
        if waiting is None or waiting.future.done():
            return
        outcome = _read_ack(message)
        if isinstance(outcome, StreamMissingError) and is_clustered(self._client):
            # Only the leader of a stream listens, and between two leaders nobody does.
            outcome = AckLostError(LEADERLESS)
        if isinstance(outcome, PubAck):
            waiting.future.set_result(outcome)
        else:
            _fail(waiting.future, outcome)


@dataclass(slots=True)
class _Waiting:
    future: "asyncio.Future[PubAck]"
    sent_at: float
    subject: str


def _fail(future: "asyncio.Future[PubAck]", error: TransportError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # Nobody may be waiting: not an unretrieved exception.


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
        return _refusal(error.get("err_code", 0), error.get("description", "refused"))
    return PubAck(body["stream"], body["seq"], bool(body.get("duplicate")))


def _refusal(err_code: int, description: str) -> TransportError:
    if err_code == IN_PROCESS:
        return AckLostError(f"not acknowledged yet: {description}")
    is_full = err_code == NOT_STORED and description.endswith(" exceeded")
    if err_code in NO_RESOURCES or (is_full and _OF_ONE_SUBJECT not in description):
        message = f"the broker has no room left ({description}): free some, or give it more"
        return StorageFullError(message, err_code=err_code)
    return PublishRefusedError(description, err_code=err_code)


def is_subject_full(error: PublishRefusedError) -> bool:
    """Tell whether there is no room under this one subject."""
    return error.fields.get("err_code") == NOT_STORED and _OF_ONE_SUBJECT in error.message
