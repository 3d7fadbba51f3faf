"""Puts requests into mailboxes, tells the call what became of it, and asks for its end.

The acknowledgement is awaited beside the answer, not before it: a fast agent answers first. A
call that takes longer than a moment, or that nobody waits for, gets its `stored` frame, from
which anybody can tell where it stands.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from types import MappingProxyType
from typing import Final

from mesh import codec, subjects, tracing
from mesh import headers as h
from mesh.attachments import FileSource, put_body, put_file
from mesh.background import BackgroundTasks
from mesh.callers import Caller, Lineage
from mesh.calls import Call, CallState, StoredCall
from mesh.claims import Claim, claims_in
from mesh.connection import Connection
from mesh.errors import (
    AckLostError,
    BrokerUnreachableError,
    MailboxFullError,
    MeshError,
    PayloadTooLargeError,
    PublishRefusedError,
    StreamMissingError,
    TransportError,
)
from mesh.objects import try_remove
from mesh.pressure import Pressure
from mesh.publisher import PubAck, is_subject_full
from mesh.replies import frame_lifetime_s
from mesh.shared_timer import SharedTimer
from mesh.signatures import sign
from mesh.silence import explain
from mesh.trust.credentials import Credentials
from schemas.frame import CancelBody, FrameKind, StoredBody

logger = logging.getLogger(__name__)

RECORD_AFTER_S: Final = 0.2
"""Fast calls pay nothing; a slow one is put on record once."""
PLACE_PATIENCE_S: Final = 2.0
"""How long a cancel waits for the acknowledgement of its request, which says where it lies."""
LAST_WORDS_S: Final = 1.0


NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
NOT_STORED: Final = (MailboxFullError, PublishRefusedError)
"""What says that the request is in no mailbox."""
OVER: Final = frozenset({CallState.ANSWERED, CallState.CANCELLED, CallState.EXPIRED})
"""How a call has ended of which no attempt is worth anything any more."""


@dataclass(slots=True)
class Request:
    """A message for a mailbox."""

    subject: str
    body: bytes
    headers: dict[str, str]

    @property
    def claims(self) -> list[Claim]:
        """What lies beside it in the object store."""
        return claims_in(self.headers)

    def repeated(self) -> "Request":
        """Return the same request, marked: it may be stored already, and even be answered."""
        return Request(self.subject, self.body, {**self.headers, h.RETRY: "1"})


def compose(
    call: Call,
    body: bytes,
    *,
    content_type: str,
    node: str | None,
    source: Caller,
    lineage: Lineage,
    signer: Credentials | None,
) -> Request:
    """Write the request of a call. Nothing of a client's own gets among the headers.

    With a `signer` it is signed, and from whom the signer speaks for.
    """
    subject = subjects.inbox(call.agent, node)
    call.traceparent = _traceparent(call, subject, lineage)
    headers = {
        h.REPLY_TO: call.reply_subject,
        h.CORRELATION_ID: call.id,
        h.CONTENT_TYPE: content_type,
        h.MSG_ID: call.id,
        h.TTL: h.ttl(call.timeout_s),
        h.TIMEOUT_MS: str(math.ceil(call.timeout_s * 1000)),
        h.SOURCE_AGENT: source.id,
        h.SOURCE_NODE: source.node,
        h.TRACEPARENT: call.traceparent,
    }
    if node:
        headers[h.TARGET_NODE] = node
    if lineage.hops:
        headers[h.HOPS] = ",".join(lineage.hops)
    if lineage.parent:
        headers[h.PARENT] = lineage.parent
    if signer is not None:
        sign(signer, subject, headers, body)
    return Request(subject, body, headers)


def _traceparent(call: Call, subject: str, lineage: Lineage) -> str:
    """Return the trace of a call: that of the call above it, or of the request at a door.

    Never made of the call's id: whoever knows that can answer the call.
    """
    if tracing.is_on():
        call.span = tracing.begin_call(call.agent, subject, call.id, lineage.trace_id)
        return call.span.context.traceparent
    trace_id, is_sampled = lineage.trace_id, lineage.is_sampled
    if not trace_id and (above := tracing.above()) is not None:
        trace_id, is_sampled = above.trace_id, above.is_sampled
    trace_id = trace_id or tracing.new_trace_id()
    return tracing.SpanContext(trace_id, tracing.new_span_id(), is_sampled).traceparent


class Outbox:
    """The sending side of one caller."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client = connection.client
        self._publisher = connection.publisher
        self._pressure = Pressure(connection)
        self._tasks = BackgroundTasks()
        self._slow = SharedTimer()

    async def stow(self, request: Request, file: FileSource | None) -> None:
        """Put beside a request what does not fit into its message; one that fits costs nothing.

        Raises:
            PayloadTooLargeError: it is over the mesh's limit.
            InvalidInputError: the file cannot be read.
            StorageFullError: the object store is full; it has the field `bucket`.
            BrokerUnreachableError: the broker does not acknowledge it.
        """
        if file is None and len(request.body) < self._publisher.limit_bytes // 2:
            return
        call_id = request.headers[h.CORRELATION_ID]
        reader = subjects.parse_inbox(request.subject).agent
        if file is not None:
            claim = await put_file(self._connection, call_id, file, reader=reader)
            request.headers[h.FILE] = str(claim)
            if (signer := self._connection.credentials) is not None:
                sign(signer, request.subject, request.headers, request.body)
        try:
            self._publisher.require_size(request.body, request.headers)
        except PayloadTooLargeError:
            try:
                claim = await put_body(self._connection, call_id, request.body, reader=reader)
            except BaseException:
                self.drop(request)
                raise
            request.body = b""
            request.headers[h.BODY] = str(claim)

    def drop(self, request: Request) -> None:
        """Remove what lies beside a request, which was not sent or is done with."""
        if claims := request.claims:
            self._tasks.start(try_remove(self._connection, claims))

    def drop_at_end(self, call: Call, request: Request) -> None:
        """Remove what lies beside a request as soon as the call has ended for good.

        Where it may go on somewhere, its agent removes it after its answer.
        """

        def end() -> None:
            if call.state in OVER or isinstance(call.failure, NOT_STORED):
                self.drop(request)

        call.on_end(end)

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
        call.on_end(partial(self._slow.end, call.id))
        self._watch(call, request)

    async def store(self, request: Request, agent: str) -> PubAck:
        """Publish a request, and return when it is in the mailbox.

        Raises:
            MailboxFullError: it is not taken, as too many wait already.
            PublishRefusedError: it is not taken for another reason.
            PayloadTooLargeError: it is over the broker's limit.
            AckLostError: no acknowledgement; it may or may not be stored.
        """
        try:
            return await self._publisher.publish(request.subject, request.body, request.headers)
        except TransportError as error:
            told = await self._told(agent, request.subject, error)
            if isinstance(told, NOT_STORED):
                self.drop(request)
            raise told from error

    async def record(self, request: Request, sequence: int) -> None:
        """Write the `stored` frame of a request, and return when JetStream has it.

        Raises:
            AckLostError: it is not taken, or that is not acknowledged; the request is stored.
        """
        found = h.RequestHeaders.read(request.headers)
        timeout_ms = found.timeout_ms or int(h.MAX_TIMEOUT_S * 1000)
        target = subjects.parse_inbox(request.subject)
        body = StoredBody(
            agent=target.agent,
            node=target.node,
            sequence=sequence,
            timeout_ms=timeout_ms,
            body_sha256=fingerprint(request.body, request.headers),
        )
        headers = {
            h.KIND: FrameKind.STORED.value,
            h.CORRELATION_ID: found.call_id,
            h.CONTENT_TYPE: h.JSON,
            h.MSG_ID: f"{found.call_id}.stored",
            h.TTL: h.ttl(frame_lifetime_s(timeout_ms / 1000 + found.keep_s)),
        }
        try:
            await self._publisher.publish(found.reply_to, codec.encode(body), headers)
        except TransportError as error:
            raise AckLostError(f"the request is stored, but not put on record: {error}") from error

    async def cancel(self, call: Call | StoredCall) -> None:
        """Ask for the end of a call, and return when JetStream has that.

        Raises:
            BrokerUnreachableError: no acknowledgement.
        """
        body = codec.encode(CancelBody(sequence=await _place(call)))
        # Without a `Nats-Msg-Id`: a second cancel reaches whoever missed the first.
        headers = {h.CONTENT_TYPE: h.JSON}
        await self._publisher.publish(subjects.cancel(call.agent, call.id), body, headers)

    def abandon(self, call: Call) -> None:
        """Cancel a call that nobody waits for any more, beside whatever comes next."""
        if not call.is_done:
            self._tasks.start(self._try_cancel(call))

    async def _try_cancel(self, call: Call) -> None:
        try:
            await self.cancel(call)
        except MeshError as error:
            logger.warning("call %s goes on, though nobody waits: %s", call.id, error)

    async def _publish(self, call: Call, request: Request) -> None:
        future = await self._publisher.submit(request.subject, request.body, request.headers)
        future.add_done_callback(partial(self._on_ack, call, request))

    def _on_ack(self, call: Call, request: Request, acknowledged: "asyncio.Future[PubAck]") -> None:
        if acknowledged.cancelled():
            return
        error = acknowledged.exception()
        if error is None:
            call.stored(acknowledged.result().sequence)
        elif call.is_done:
            return
        elif isinstance(error, AckLostError):
            repeating = self._tasks.start(self._repeat(call, request.repeated(), error))
            call.on_end(repeating.cancel)
        elif isinstance(error, MeshError):
            self._tasks.start(self._fail(call, request, error))

    async def _repeat(self, call: Call, request: Request, lost: AckLostError) -> None:
        """Send a request again: with the same Nats-Msg-Id it is stored once."""
        try:
            stored = await self._publisher.publish(
                request.subject, request.body, request.headers, give_up_s=call.timeout_s, lost=lost
            )
        except MeshError as error:
            # A call that is worked on is stored, whatever else is not acknowledged.
            if call.state is CallState.SENT:
                await self._fail(call, request, error)
        else:
            call.stored(stored.sequence)

    async def _fail(self, call: Call, request: Request, error: MeshError) -> None:
        call.fail(await self._told(call.agent, request.subject, error))

    async def require_room(self, agent: str, node: str | None, limit: int) -> None:
        """Check that fewer than `limit` requests wait for an agent.

        Raises:
            MailboxFullError: that many wait, or are being worked on.
        """
        inbox = subjects.inbox(agent, node)
        if not await self._pressure.has_room(inbox, limit):
            raise await self._full(agent, inbox)

    async def _told(self, agent: str, inbox: str, error: MeshError) -> MeshError:
        """Return what a caller is told of a request that the broker has not acknowledged."""
        if isinstance(error, StreamMissingError):
            error = await explain(self._client, error, inbox)
        if isinstance(error, BrokerUnreachableError):
            return AckLostError(f"the request is not acknowledged, but may be stored: {error}")
        if isinstance(error, PublishRefusedError) and is_subject_full(error):
            return await self._full(agent, inbox)
        return error

    async def _full(self, agent: str, inbox: str) -> MailboxFullError:
        after_s = await self._pressure.room_in_s(inbox)
        when = f"in {after_s} s" if after_s else "later"
        message = f"the mailbox of agent {agent!r} is full; try again {when}"
        return MailboxFullError(message, agent=agent, retry_after_s=after_s)

    def _watch(self, call: Call, request: Request) -> None:
        self._slow.begin(call.id, RECORD_AFTER_S, partial(self._on_slow, call, request))

    def _on_slow(self, call: Call, request: Request) -> None:
        if call.is_done:
            return
        if call.sequence:
            self._tasks.start(self._try_record(request, call.sequence))
        else:  # Not acknowledged yet.
            self._watch(call, request)

    async def _try_record(self, request: Request, sequence: int) -> None:
        try:
            await self.record(request, sequence)
        except MeshError as error:
            # The call itself does not need it.
            logger.info("call %s is not on record: %s", request.headers[h.MSG_ID], error)

    @asynccontextmanager
    async def sending(self) -> AsyncIterator["Outbox"]:
        """Send, until the end."""
        try:
            yield self
        finally:
            self._slow.stop()
            # Who leaves has just abandoned its calls: their agents are still to be told.
            await self._tasks.join(LAST_WORDS_S)
            await self._tasks.cancel()


async def _place(call: Call | StoredCall) -> int:
    """Return where the request lies: without that, nobody can take it out of the mailbox."""
    deadline = asyncio.get_running_loop().time() + PLACE_PATIENCE_S
    while isinstance(call, Call) and not (call.sequence or call.is_done):
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.02)
    return call.sequence


def fingerprint(body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> str:
    """Return what tells one body from another, wherever it lies, and whatever file is with it."""
    claims = claims_in(headers)
    if h.BODY not in headers:
        claims.insert(0, Claim("", len(body), sha256(body).hexdigest()))
    digests = [one.sha256 for one in claims]
    return digests[0] if len(digests) == 1 else sha256(" ".join(digests).encode()).hexdigest()
