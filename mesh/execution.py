"""One call on the agent's side: from its delivery to its answer.

The order is the promise: the handler runs, the final frame is stored, then the request is
acknowledged. A crash anywhere leads to redelivery, never to loss. Does not pull, see
`mesh.worker`; nor call the handler, see `mesh.handling`.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

from mesh import headers as h
from mesh import log_lines, metrics, tracing
from mesh.admission import Asker
from mesh.agent import Agent
from mesh.attachments import Attachment, read_body
from mesh.calls import CallState
from mesh.claims import Claim, claims_in
from mesh.completions import completion
from mesh.context import CallContext
from mesh.dead_letters import Reason, bury
from mesh.delivery import Delivery
from mesh.errors import (
    AgentBusyError,
    AgentFailedError,
    BrokerUnreachableError,
    CallCancelledError,
    CallTimeoutError,
    HopLimitError,
    InvalidInputError,
    MeshError,
    NotPermittedError,
    PublishRefusedError,
    StorageFullError,
)
from mesh.handling import WORKING_AFTER_S, Handling
from mesh.history import StoredMessage
from mesh.objects import BUCKET, try_remove
from mesh.pings import write_pong
from mesh.place import Place
from mesh.replies import ReplyWriter, is_answered, read_frames
from mesh.requests import Question, read_address, read_question
from mesh.runs import Run, Runs
from mesh.shared_timer import SharedTimer
from mesh.streams import MAX_DELIVER, is_group
from schemas.chat import ChatReply
from schemas.frame import FrameKind

logger = logging.getLogger(__name__)

BARE_DELAY_S: Final = 0.05
"""The guide's client subscribes after it has published: its answer must not come sooner."""


@dataclass(slots=True)
class Tally:
    """What an agent has done in this process, however many others there are."""

    handled: int = 0
    failed: int = 0
    last_error: str = ""
    taken_s: float = 0.0

    def add(self, outcome: CallState, took_s: float) -> None:
        """Count a request."""
        self.handled += 1
        self.taken_s += took_s
        if outcome is not CallState.ANSWERED:
            self.failed += 1
            self.last_error = outcome.value


class Execution:
    """Answers the calls of one agent in one place."""

    def __init__(self, agent: Agent, place: Place) -> None:
        self._agent = agent
        self._place = place
        self._runs = Runs()
        self._slow = SharedTimer()
        self.tally = Tally()

    def cancel(self, call_id: str, sequence: int) -> None:
        """Stop a call, or refuse its request when that comes later; the caller is told.

        A handler in a thread goes on until it looks at `call.cancelled`.
        """
        self._runs.cancel(call_id, sequence)

    async def run(self, delivery: Delivery, *, has_slot: bool = True) -> None:
        """Work on a delivery until it is settled.

        It is left unsettled, and comes again, when the answer cannot be stored. Only a ping can
        be settled without a slot: it is told that there is none.
        """
        clock = self._place.clock
        clock.observe(delivery.stored_ns)
        if not clock.is_asked:
            await clock.wait_asked()
        raw = delivery.headers or {}
        headers = h.RequestHeaders.read(raw)
        left_s = self._left_s(delivery, headers)
        address = read_address(
            delivery,
            headers,
            agent=self._agent.id,
            place=(self._place.node, self._place.instance),
            left_s=h.MAX_TIMEOUT_S if left_s is None else left_s,
        )
        if address is None:
            logger.warning("%s: refused to answer on %r", self._agent.id, headers.reply_to[:120])
            await self._bury(delivery, Reason.REFUSED)
            return
        log_lines.work_on(address.call_id, headers.traceparent)
        writer = ReplyWriter(self._place.connection, address)
        if not headers.is_ping:
            age_s = self._place.clock.age_s(delivery.stored_ns)
            metrics.arrived(self._agent.id, delivery.attempt, age_s)
        # From here on, as a cancel may come while the ledger is read.
        run = self._runs.begin(delivery.sequence, address.call_id)
        try:
            is_repeat = (delivery.attempt > 1 or headers.is_repeatable) and writer.takes_chunks
            ledger = address.subjects[0]
            if is_repeat and await is_answered(self._place.connection, ledger, address.call_id):
                await delivery.ack()
                await try_remove(self._place.connection, claims_in(raw))
                return
            is_last = delivery.attempt >= MAX_DELIVER and not headers.is_ping
            if is_last and await self._is_dead(delivery, writer):
                await self._bury(delivery, Reason.MAX_DELIVERIES)
                return
            if headers.is_ping:
                await self._answer_ping(delivery, headers, writer, has_slot=has_slot)
            else:
                answering = self._answer(delivery, headers, writer, left_s, run)
                await self._measure(answering, delivery, headers, run)
            await delivery.ack()
            if h.BODY in raw or h.FILE in raw:
                await try_remove(self._place.connection, claims_in(raw))
        except NotPermittedError as error:
            logger.warning("%s: %s", self._agent.id, error)
            await delivery.term("no right to answer on reply_to")
        except (PublishRefusedError, BrokerUnreachableError) as error:
            # Not acknowledged: the request comes again, and so does the answer.
            logger.error("%s: the answer of %s is not stored: %s", ledger, address.call_id, error)
        finally:
            self._runs.end(delivery.sequence)

    async def _is_dead(self, delivery: Delivery, writer: ReplyWriter) -> bool:
        """Tell whether every worker before has died of a request, or lost the broker with it.

        What a group delivered may only have been held each time, beside a neighbour that killed the
        process: then it is tried once.
        """
        if not (is_group(delivery.durable) and writer.takes_chunks):
            return True
        address = writer.address
        frames = await read_frames(self._place.connection, address.subjects[0], address.call_id)
        return any(frame.kind is FrameKind.WORKING for frame in frames)

    async def _measure(
        self,
        answering: Coroutine[Any, Any, CallState],
        delivery: Delivery,
        headers: h.RequestHeaders,
        run: Run,
    ) -> None:
        began = time.monotonic()
        if tracing.is_on():
            outcome = await self._trace(answering, delivery, headers, run)
        elif tracing.has_neighbour() and (asked := tracing.SpanContext.of(headers.traceparent)):
            with tracing.inside(asked):
                outcome = await answering
        else:
            outcome = await answering
        took_s = time.monotonic() - began
        self.tally.add(outcome, took_s)
        metrics.handled(self._agent.id, outcome, took_s)

    async def _trace(
        self,
        answering: Coroutine[Any, Any, CallState],
        delivery: Delivery,
        headers: h.RequestHeaders,
        run: Run,
    ) -> CallState:
        span = run.span = tracing.begin_handling(
            self._agent.id,
            delivery.subject,
            headers,
            attempt=delivery.attempt,
            # As our clock would have it: the broker's may be another.
            waited_s=self._place.clock.age_s(delivery.stored_ns),
        )
        told = "not stored"
        try:
            with tracing.inside(span.context):
                outcome = await answering
            told = outcome.value
            return outcome
        finally:
            span.end(told)

    async def _bury(self, delivery: Delivery, reason: Reason) -> None:
        """Give a request up; it comes again when that cannot be stored."""
        request = StoredMessage(
            delivery.subject, delivery.sequence, delivery.headers or {}, delivery.body
        )
        try:
            await bury(self._place.connection, request, reason)
        except MeshError as error:
            logger.error("%s: no dead letter of %d: %s", self._agent.id, delivery.sequence, error)
            return
        logger.warning("%s: dead letter, message %d: %s", self._agent.id, delivery.sequence, reason)
        await delivery.ack()

    async def _answer_ping(
        self, delivery: Delivery, headers: h.RequestHeaders, writer: ReplyWriter, *, has_slot: bool
    ) -> None:
        """Answer for the agent, without its handler: the handler may be slow, or cost money."""
        if not headers.reply_to:
            await self._settle_bare(delivery)
        if has_slot:
            await write_pong(writer, self._agent.id)
            return
        message = f"agent {self._agent.id!r} has no free slot on {self._place.node!r}"
        await writer.error(AgentBusyError(f"{message}; a call would wait for one"))

    def _left_s(self, delivery: Delivery, headers: h.RequestHeaders) -> float | None:
        if headers.timeout_ms is None:
            return None
        return headers.timeout_ms / 1000 - self._place.clock.age_s(delivery.stored_ns)

    async def _answer(
        self,
        delivery: Delivery,
        headers: h.RequestHeaders,
        writer: ReplyWriter,
        left_s: float | None,
        run: Run,
    ) -> CallState:
        """Run the handler, and write what it says or why it failed; return how it ended."""
        try:
            if left_s is not None and left_s <= 0:
                raise _too_late(self._agent.id, headers)
            if h.BODY in (delivery.headers or {}):
                await self._fetch_body(delivery, headers, left_s, run)
            question = read_question(delivery, headers)
            source = question.source_agent or headers.source_agent
            agent, admission = self._agent, self._place.admission
            asker = await admission.require(agent.id, agent.callers, delivery, headers, source)
            context = self._context(delivery, headers, asker, left_s, writer)
            with run:
                reply = await self._handle(question, context, left_s, writer, run)
            as_json = question.wants_json and bool(headers.reply_to)
            body, content_type = self._encode(reply, context, as_json=as_json)
        except TimeoutError as error:
            failure: MeshError | None = self._failure(_timeout(self._agent.id, error, headers), run)
        except MeshError as error:
            failure = self._failure(error, run)
        else:
            failure = None
        if not headers.reply_to:
            await self._settle_bare(delivery)
        if failure is None:
            failure = await self._write(writer, body, content_type, run)
        if failure is None:
            return CallState.ANSWERED
        await writer.error(failure)
        return CallState.of_error(failure)

    async def _handle(
        self,
        question: Question,
        context: CallContext,
        left_s: float | None,
        writer: ReplyWriter,
        run: Run,
    ) -> ChatReply:
        """Return what the handler says; a file that it gives is stored by then."""
        if left_s is not None and left_s <= WORKING_AFTER_S:
            run.stop_at(asyncio.get_running_loop().time() + left_s)
        handling = Handling(self._agent, self._place, self._slow, writer, run)
        reply = await handling.reply(question, context)
        if reply.file is not None:
            await writer.attach(reply.file)
        return reply

    async def _write(
        self, writer: ReplyWriter, body: bytes, content_type: str, run: Run
    ) -> MeshError | None:
        """Write the answer; return why it cannot be written, if that will not change."""
        if run.span is not None:
            run.span.replying()
        try:
            await writer.final(body, content_type, is_held=True)
        except InvalidInputError as error:  # The answer is over the limit.
            return error
        except StorageFullError as error:
            if BUCKET not in error.fields:
                raise
            return error
        if run.span is not None:
            run.span.replied()
        return None

    async def _fetch_body(
        self, delivery: Delivery, headers: h.RequestHeaders, left_s: float | None, run: Run
    ) -> None:
        """Get the body of a request that fits into no message: in a secure mesh, no stranger's."""
        if self._place.connection.is_secure:
            agent, source = self._agent, headers.source_agent
            await self._place.admission.require(agent.id, agent.callers, delivery, headers, source)
        with run:
            if left_s is not None:
                run.stop_at(asyncio.get_running_loop().time() + left_s)
            delivery.body = await read_body(
                self._place.connection, (delivery.headers or {})[h.BODY]
            )

    def _failure(self, error: MeshError, run: Run) -> MeshError:
        """Return what the caller is told: of a cancelled call that, whatever its handler said."""
        if run.is_cancelled:
            return CallCancelledError(f"the call to agent {self._agent.id!r} was cancelled")
        return error

    def _encode(
        self, reply: ChatReply, context: CallContext, *, as_json: bool
    ) -> tuple[bytes, str]:
        try:
            if as_json:
                return completion(context.id, self._agent.id, self._place.node, reply), h.JSON
            return reply.text.encode(), h.TEXT
        except (TypeError, UnicodeEncodeError) as error:  # Lone surrogates, objects in tool calls.
            raise AgentFailedError(f"the answer cannot be encoded: {error}") from error

    async def _settle_bare(self, delivery: Delivery) -> None:
        age_s = self._place.clock.age_s(delivery.stored_ns)
        await asyncio.sleep(max(0.0, BARE_DELAY_S - age_s))

    def _context(
        self,
        delivery: Delivery,
        headers: h.RequestHeaders,
        asker: Asker,
        left_s: float | None,
        writer: ReplyWriter,
    ) -> CallContext:
        agent = self._agent.id
        call_id = headers.call_id or f"seq-{delivery.sequence}"
        if agent in headers.hops or len(headers.hops) > h.MAX_HOPS:
            path = " > ".join((*headers.hops, agent))
            raise HopLimitError(f"agents call each other in a loop: {path}", hops=headers.hops)
        loop = asyncio.get_running_loop()
        raw = delivery.headers or {}
        file = None
        if h.FILE in raw:
            file = Attachment(self._place.connection, Claim.read(raw[h.FILE]))
        return CallContext(
            id=call_id,
            agent=agent,
            source_agent=asker.agent,
            source_node=asker.node,
            is_proven=asker.is_proven,
            attempt=delivery.attempt,
            hops=headers.hops,
            traceparent=headers.traceparent,
            open_client=self._place.open_client,
            deadline=None if left_s is None else loop.time() + left_s,
            file=file,
            writer=writer,
        )


def _too_late(agent: str, headers: h.RequestHeaders) -> CallTimeoutError:
    timeout_s = (headers.timeout_ms or 0) / 1000
    return CallTimeoutError(
        f"the deadline of {timeout_s:g} s was over before agent {agent!r} could begin",
        timeout_s=timeout_s,
    )


def _timeout(agent: str, error: TimeoutError, headers: h.RequestHeaders) -> CallTimeoutError:
    if isinstance(error, CallTimeoutError):
        return error
    timeout_s = (headers.timeout_ms or 0) / 1000
    return CallTimeoutError(
        f"agent {agent!r} was stopped at the deadline of {timeout_s:g} s", timeout_s=timeout_s
    )
