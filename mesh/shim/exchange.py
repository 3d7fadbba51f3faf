"""One question over HTTP, from the request to its last byte, whatever API words it.

Starts the call or joins it, waits beside the client, and passes on what comes. How an answer looks
is the `Dialect`'s to say; what is asked was read before.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Send

from mesh import log_lines
from mesh.callers import Caller
from mesh.calls import Call, StoredCall
from mesh.errors import MeshError, ProtocolError
from mesh.followers import follow_call
from mesh.frames import Frame
from mesh.shim.door import Door
from mesh.shim.http import CALL_ID, send_json
from mesh.shim.idempotency import call_id_of, find_call
from mesh.shim.sse import EventStream
from mesh.shim.status import Failure, failure
from mesh.shim.target import Target
from mesh.shim.terms import OnLeave, Terms
from mesh.shim.waiting import beside, settle

LOCATION: Final = "location"


@dataclass(slots=True)
class Asked:
    """A question: to whom, what, from whom, and how."""

    target: Target
    body: bytes
    """What travels: an OpenAI chat request."""
    is_streamed: bool
    source: Caller
    terms: Terms
    owner: str = ""
    """The API key that was shown: idempotency keys of two owners have nothing in common."""


class Dialect(Protocol):
    """How one HTTP API words an answer."""

    @property
    def accepted_status(self) -> int:
        """The HTTP status of a background call that is stored."""

    def answer(self, call: Call, frame: Frame) -> bytes:
        """Return the body of a whole answer.

        Raises:
            ProtocolError: the frame is none.
        """

    def events(self, call: Call) -> AsyncGenerator[bytes, None]:
        """Yield the answer as encoded server-sent events, the one that ends it included.

        Raises:
            MeshError: the call failed.
        """

    def failed_event(self, call: Call, told: Failure) -> bytes:
        """Return the encoded event that ends a stream which has failed."""

    def accepted(self, call: StoredCall) -> bytes:
        """Return the body that answers a background call at once."""


class Exchange:
    """Asks agents for HTTP clients."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def run(self, asked: Asked, dialect: Dialect, receive: Receive, send: Send) -> None:
        """Ask, and answer. What fails before the call is sent is raised as a `MeshError`."""
        if asked.terms.is_background:
            stored = await self._store(asked)
            where = {CALL_ID: stored.id, LOCATION: f"/v1/calls/{stored.id}"}
            body = dialect.accepted(stored)
            await send_json(send, dialect.accepted_status, body, where)
            return
        if asked.terms.key:
            stored = await self._store(asked)
            async with follow_call(self._door.connection, stored, is_counted=True) as call:
                await self._serve(call, asked, dialect, receive, send)
            return
        call = await self._door.client.start(
            asked.target.agent,
            asked.body,
            node=asked.target.node,
            timeout_s=asked.terms.timeout_s,
            wait=asked.terms.waits,
            source=asked.source,
            is_ping=asked.terms.is_ping,
        )
        await self._serve(call, asked, dialect, receive, send)

    async def _serve(
        self, call: Call, asked: Asked, dialect: Dialect, receive: Receive, send: Send
    ) -> None:
        log_lines.work_on(call.id, call.traceparent)
        with self._door.waiting(receive) as over:
            try:
                if asked.is_streamed:
                    await self._stream(call, dialect, send, over)
                else:
                    await self._answer(call, dialect, send, over)
            except ClientDisconnect:
                if asked.terms.on_leave is OnLeave.CANCEL:
                    self._door.client.abandon(call)
                raise

    async def _store(self, asked: Asked) -> StoredCall:
        """Put the call into JetStream, or find it there under its key."""
        call_id = ""
        if asked.terms.key:
            call_id = await call_id_of(self._door, asked.owner, asked.terms.key)
            known = await find_call(self._door, call_id, asked.target, asked.body)
            if known is not None:
                return known
        return await self._door.client.submit(
            asked.target.agent,
            asked.body,
            node=asked.target.node,
            timeout_s=asked.terms.timeout_s,
            wait=asked.terms.waits,
            source=asked.source,
            call_id=call_id,
        )

    async def _answer(
        self, call: Call, dialect: Dialect, send: Send, over: "asyncio.Future[None]"
    ) -> None:
        call.on_end(partial(settle, over))
        if call.is_done:
            settle(over)
        try:
            await over
            body = dialect.answer(call, await call.result())
        except MeshError as error:
            await _send_failure(send, error, call)
        else:
            await send_json(send, 200, body, {CALL_ID: call.id})

    async def _stream(
        self, call: Call, dialect: Dialect, send: Send, over: "asyncio.Future[None]"
    ) -> None:
        stream = EventStream(send, {CALL_ID: call.id}, pace=self._door.pace)
        try:
            await beside(over, stream.relay(dialect.events(call)))
        except MeshError as error:
            if isinstance(error, ProtocolError):
                # The call has not ended, but nobody can be shown what is still to come.
                self._door.client.abandon(call)
            if stream.has_begun:
                told = failure(error, sent_to=call.agent)
                await stream.fail(dialect.failed_event(call, told))
            else:
                await _send_failure(send, error, call)


async def _send_failure(send: Send, error: MeshError, call: Call) -> None:
    told = failure(error, sent_to=call.agent)
    await send_json(send, told.status, told.body, {CALL_ID: call.id, **told.headers})
