"""The answers of one process as one caller: one subscription, for its whole life.

Frames come from the reply stream's republish, so that what is seen is stored. After a reconnect,
and when the stream has a new leader, the stream itself is read for every call in progress: what was
republished meanwhile, or should have been, is not sent again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import nats.errors
from nats.aio.msg import Msg

from mesh import metrics, subjects
from mesh.background import BackgroundTasks
from mesh.calls import Call
from mesh.connection import Connection
from mesh.dispatch import Prompt
from mesh.errors import (
    BrokerUnreachableError,
    CallTimeoutError,
    ProtocolError,
    StreamMissingError,
    TransportError,
)
from mesh.frames import Frame
from mesh.history import is_stored_under
from mesh.replies import read_frames, read_last_frame
from mesh.shared_timer import SharedTimer
from mesh.streams import REPLY

logger = logging.getLogger(__name__)

RETRY_PAUSE_S: Final = 0.5
LAST_LOOK_S: Final = 0.8
"""At the deadline the reply stream is read once more; an answer ends within deadline + 1 s."""


class ReplyInbox:
    """Brings frames to the calls that wait for them."""

    def __init__(self, connection: Connection, caller: str, instance: str) -> None:
        self._connection = connection
        self._caller = caller
        self._instance = instance
        # The ids are checked once, for the life of the inbox; a call id is always ours.
        whole = subjects.reply(caller, instance, "0", caller)
        self._reply_prefix = whole.removesuffix(f"0.{caller}")
        self._calls: dict[str, Call] = {}
        self._deadlines = SharedTimer()
        self._tasks = BackgroundTasks()

    def reply_subject(self, call_id: str, agent: str) -> str:
        """Return where `agent` is to answer call `call_id`."""
        return f"{self._reply_prefix}{call_id}.{agent}"

    def expect(self, call: Call, *, is_counted: bool = True) -> None:
        """Bring the frames of `call` until it ends, and end it at its deadline."""
        self._calls[call.id] = call
        self._deadlines.begin(call.id, call.timeout_s, partial(self._expire, call))
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        metrics.CALLS_IN_FLIGHT.begin()

        def forget() -> None:
            self._deadlines.end(call.id)
            self._calls.pop(call.id, None)
            metrics.CALLS_IN_FLIGHT.end()
            if is_counted:
                metrics.called(call.agent, call.state, loop.time() - sent_at)

        call.on_end(forget)

    def _expire(self, call: Call) -> None:
        self._tasks.start(self._last_look(call))

    async def _last_look(self, call: Call) -> None:
        try:
            await asyncio.wait_for(self._catch_up(call), LAST_LOOK_S)
        except (TimeoutError, TransportError, nats.errors.Error) as error:
            logger.debug("no last look for call %s: %s", call.id, error)
        finally:
            # Whatever the reply stream holds, a call ends.
            call.fail(_timeout(call))

    async def _catch_up(self, call: Call) -> None:
        start = call.last_sequence + 1
        try:
            frames = await read_frames(
                self._connection, call.reply_subject, call.id, from_sequence=start
            )
        except (StreamMissingError, BrokerUnreachableError):
            # Behind an account boundary it takes the control plane to read them all. The newest
            # frame, which is the answer where there is one, can be read without.
            frames = await read_last_frame(self._connection, call.reply_subject, call.id)
        for frame in frames:
            call.receive(frame)

    async def _catch_up_all(self) -> None:
        """Catch up with every call; again after a failure, unless the connection is lost again."""
        waiting = list(self._calls.values())
        while waiting and self._connection.client.is_connected:
            try:
                if not waiting[-1].is_done:
                    await self._catch_up(waiting[-1])
                waiting.pop()
            except TransportError as error:
                logger.warning("reading the answers that were missed: %s", error)
                await asyncio.sleep(RETRY_PAUSE_S)

    def _on_message(self, message: Msg) -> None:
        call_id = message.subject.rsplit(".", 2)[1]
        call = self._calls.get(call_id)
        # Only JetStream's republish counts. A reply subject that somebody names in a request of
        # his own can bring other messages here: the broker checks no rights on those.
        if call is None or not is_stored_under(message.headers, REPLY, call.reply_subject):
            return
        frame = Frame.read(call_id, message.headers, message.data)
        if frame is None:
            return
        call.receive(frame)
        if call.misses_chunks:
            self._tasks.start(self._read_missing(call))

    async def _read_missing(self, call: Call) -> None:
        try:
            await self._catch_up(call)
        except TransportError as error:
            logger.warning("reading the missing chunks of call %s: %s", call.id, error)
            return
        if call.misses_chunks:
            call.fail(ProtocolError("chunks are missing in the stream itself", call_id=call.id))

    async def _fail_when_closed(self) -> None:
        await self._connection.closed.wait()
        for call in list(self._calls.values()):
            call.fail(self._connection.ending())

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["ReplyInbox"]:
        """Subscribe, until the end."""
        subject = subjects.delivered(self._caller, self._instance)
        subscription = await self._connection.client.subscribe(subject, cb=Prompt(self._on_message))
        self._connection.on_reconnect(self._catch_up_all)
        self._connection.elections.on_leader(REPLY, self._catch_up_all)
        self._tasks.start(self._fail_when_closed())
        try:
            yield self
        finally:
            self._connection.drop_hook(self._catch_up_all)
            self._connection.elections.drop(REPLY, self._catch_up_all)
            await self._tasks.cancel()
            for call in list(self._calls.values()):
                call.fail(BrokerUnreachableError("the client was closed before the answer came"))
            try:
                await subscription.unsubscribe()
            except nats.errors.Error:
                logger.debug("closed before the inbox was")


def _timeout(call: Call) -> CallTimeoutError:
    return CallTimeoutError(
        f"agent {call.agent!r} did not answer within {call.timeout_s:g} s "
        f"(the request was {call.state.value})",
        timeout_s=call.timeout_s,
    )
