"""Waits for a call that somebody else began: another process, or this one before it was asked.

Hears the call's frames as they are stored, after it has read those that are there. Looks into the
stream again every few seconds, which mends a lost connection and notices a request that expired.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import nats.errors
from nats.aio.msg import Msg

from mesh import headers as h
from mesh import subjects
from mesh.calls import Call, StoredCall
from mesh.connection import Connection
from mesh.errors import BrokerUnreachableError, CallTimeoutError, TransportError
from mesh.frames import Frame
from mesh.history import is_stored_under
from mesh.ledger import is_waiting
from mesh.replies import read_frames
from mesh.streams import REPLY
from schemas.frame import FrameKind

logger = logging.getLogger(__name__)

LOOK_S: Final = 2.0


@asynccontextmanager
async def follow_call(
    connection: Connection, stored: StoredCall, *, has_seen_chunks: bool = False
) -> AsyncIterator[Call]:
    """Give a call that receives all frames of `stored`, from the first one.

    A reader that has seen nothing gets the newest attempt alone. One that has seen chunks must
    not be shown another attempt's: it gets a `StreamRestartedError` when there is one.

    Raises:
        BrokerUnreachableError: what is stored cannot be read.
    """
    call = Call(stored.id, stored.agent, stored.reply_subject, h.MAX_TIMEOUT_S)
    call.stored(stored.sequence)

    async def on_message(message: Msg) -> None:
        if not is_stored_under(message.headers, REPLY, stored.reply_subject):
            return
        frame = Frame.read(stored.id, message.headers, message.data)
        if frame is not None:
            call.receive(frame)

    # Listen first, then read: nothing falls between. What comes meanwhile is put in its order.
    subject = subjects.as_delivered(stored.reply_subject)
    subscription = await connection.client.subscribe(subject, cb=on_message)
    watching = None
    try:
        await _catch_up(connection, call, shows_all=has_seen_chunks)
        watching = asyncio.create_task(_watch(connection, call, stored))
        yield call
    finally:
        if watching is not None:
            watching.cancel()
        call.fail(BrokerUnreachableError("nobody follows this call any more"))
        try:
            await subscription.unsubscribe()
        except nats.errors.Error:
            logger.debug("closed before the follower was")


async def _watch(connection: Connection, call: Call, stored: StoredCall) -> None:
    while not call.is_done:
        try:
            is_open = await is_waiting(connection, stored)
            await _catch_up(connection, call, shows_all=True)
        except TransportError as error:
            logger.info("following call %s: %s", call.id, error)
            is_open = True
        if connection.closed.is_set():
            call.fail(BrokerUnreachableError("the connection to the broker is closed for good"))
        elif not is_open:
            # Acknowledged only after its answer was stored, and that was looked for since.
            call.fail(CallTimeoutError(f"agent {call.agent!r} did not answer by the deadline"))
        await asyncio.sleep(LOOK_S)


async def _catch_up(connection: Connection, call: Call, *, shows_all: bool) -> None:
    frames = await read_frames(
        connection, call.reply_subject, call.id, from_sequence=call.last_sequence + 1
    )
    newest = max((one.attempt for one in frames), default=1)
    for frame in frames:
        if shows_all or frame.kind is not FrameKind.CHUNK or frame.attempt == newest:
            call.receive(frame)
