"""Waits for a call that somebody else began: another process, or this one before it was asked.

Hears the call's frames as they are stored, after it has read those that are there. Looks into the
stream again every few seconds, and after a lost connection; so it also notices a request that
expired.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import nats.errors
from nats.aio.msg import Msg

from mesh import codec, metrics, subjects
from mesh import headers as h
from mesh.background import BackgroundTasks
from mesh.calls import Call, StoredCall
from mesh.connection import Connection
from mesh.errors import BrokerUnreachableError, CallTimeoutError, ProtocolError, TransportError
from mesh.frames import Frame
from mesh.history import (
    StoredMessage,
    is_stored_under,
    read_history,
    read_settled_history,
)
from mesh.ledger import is_waiting
from mesh.streams import REPLY
from schemas.frame import FrameKind, StoredBody

logger = logging.getLogger(__name__)

LOOK_S: Final = 2.0


@asynccontextmanager
async def follow_call(
    connection: Connection,
    stored: StoredCall,
    *,
    has_seen_chunks: bool = False,
    is_counted: bool = False,
) -> AsyncIterator[Call]:
    """Give a call that receives all frames of `stored`, from the first one.

    A reader that has seen nothing gets the newest attempt alone. One that has seen chunks must
    not be shown another attempt's: it gets a `StreamRestartedError` when there is one. Counted is
    the wait of a call's own caller, if it sees the end.

    Raises:
        BrokerUnreachableError: what is stored cannot be read.
    """
    call = Call(stored.id, stored.agent, stored.reply_subject, h.MAX_TIMEOUT_S, connection)
    call.stored(stored.sequence)
    follower = _Follower(connection, call, shows_all=has_seen_chunks)
    began = time.monotonic()
    async with follower.following():
        try:
            yield call
        finally:
            if is_counted and call.is_done:
                metrics.called(call.agent, call.state.value, time.monotonic() - began)
            call.fail(BrokerUnreachableError("nobody follows this call any more"))


class _Follower:
    """Brings the frames of one call."""

    def __init__(self, connection: Connection, call: Call, *, shows_all: bool) -> None:
        self._connection = connection
        self._call = call
        self._shows_all = shows_all
        self._early: list[Frame] | None = []
        """What was heard while the past was still being read."""
        self._tasks = BackgroundTasks()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Listen first, then read: nothing falls between."""
        subject = subjects.as_delivered(self._call.reply_subject)
        try:
            subscription = await self._connection.client.subscribe(subject, cb=self._on_message)
        except nats.errors.Error as error:
            raise BrokerUnreachableError(f"cannot follow call {self._call.id}: {error}") from error
        self._connection.on_reconnect(self._catch_up)
        try:
            await self._catch_up()
            early, self._early = self._early, None
            for frame in early or ():
                self._receive(frame)
            self._tasks.start(self._watch())
            yield
        finally:
            self._connection.drop_hook(self._catch_up)
            await self._tasks.cancel()
            try:
                await subscription.unsubscribe()
            except nats.errors.Error:
                logger.debug("closed before the follower was")

    async def _on_message(self, message: Msg) -> None:
        call = self._call
        if not is_stored_under(message.headers, REPLY, call.reply_subject):
            return
        frame = Frame.read(call.id, message.headers, message.data)
        if frame is None:
            return
        # A final frame that came before its chunks would end the call without them.
        if self._early is not None:
            self._early.append(frame)
        else:
            self._receive(frame)

    def _receive(self, frame: Frame) -> None:
        if frame.kind is FrameKind.STORED and not self._call.sequence:
            try:
                self._call.stored(codec.decode(StoredBody, frame.body).sequence)
            except ProtocolError as error:
                logger.debug("call %s: %s", self._call.id, error)
        self._call.receive(frame)

    async def _catch_up(self) -> None:
        call = self._call
        self._take(
            await read_history(
                self._connection, REPLY, call.reply_subject, from_sequence=call.last_sequence + 1
            )
        )

    def _take(self, messages: Sequence[StoredMessage]) -> None:
        """Take in what is stored. Frames that were seen before change nothing."""
        read = (Frame.read(self._call.id, one.headers, one.body, one.sequence) for one in messages)
        frames = [one for one in read if one is not None]
        shown = _attempt_to_show(frames)
        for frame in frames:
            if self._shows_all or frame.kind is not FrameKind.CHUNK or frame.attempt == shown:
                self._receive(frame)

    async def _watch(self) -> None:
        while True:
            await self._look()
            # nats-py's requests may swallow a cancel (`asyncio.wait_for` before Python 3.12).
            if self._call.is_done:
                return
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        call, connection = self._call, self._connection
        try:
            if await is_waiting(connection, call.reply_subject, call.sequence):
                await self._catch_up()
            else:
                # Acknowledged only after its answer was stored: what is not here will never come.
                self._take(await read_settled_history(connection, REPLY, call.reply_subject))
                call.fail(CallTimeoutError(f"agent {call.agent!r} did not answer by the deadline"))
        except TransportError as error:
            logger.info("following call %s: %s", call.id, error)
        if connection.closed.is_set():
            call.fail(self._connection.ending())


def _attempt_to_show(frames: Sequence[Frame]) -> int:
    """The attempt that answered, or else the newest: a slow first one may win after all."""
    answered = (one.attempt for one in frames if one.kind is FrameKind.FINAL)
    return next(answered, max((one.attempt for one in frames), default=1))
