"""Dead letters: requests that nobody can answer are moved to `dead.<id>`, with the reason.

Here: raw messages to agents that nobody knows. Such a message would lie in the mailbox stream
until it expires, and its sender would never hear why.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

import nats.errors
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError
from nats.js.manager import JetStreamManager

from mesh import headers as h
from mesh import streams, subjects
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.errors import (
    AgentNotFoundError,
    InvalidInputError,
    MeshError,
    PayloadTooLargeError,
    TransportError,
)
from mesh.replies import ReplyAddress, ReplyWriter
from mesh.settings import Settings
from schemas.base import is_id

logger = logging.getLogger(__name__)

UNKNOWN_AGENT: Final = "unknown_agent"
CUT: Final = 1_000_000
BATCH: Final = 200
"""Messages of one subject that one scan moves at most: a flood must not stop the rest."""


class Undertaker:
    """Looks for requests to nobody, and buries them where they can be found."""

    def __init__(self, connection: Connection, directory: Directory, settings: Settings) -> None:
        self._connection = connection
        self._directory = directory
        self._grace_s = settings.unknown_agent_grace_s
        self._seen_at: dict[str, float] = {}

    async def scan_forever(self) -> None:
        """Scan every half grace period until cancelled."""
        while True:
            await asyncio.sleep(self._grace_s / 2)
            try:
                await self.scan()
            except (nats.errors.Error, MeshError) as error:
                logger.warning("the scan for dead letters failed: %s", error)

    async def scan(self) -> int:
        """Move every request to an unknown agent that waited longer than the grace period.

        Returns how many. The grace lets an agent announce itself after its first message came.
        """
        manager = self._connection.client.jsm(timeout=10.0)
        info = await manager.stream_info(streams.INBOX, subjects_filter="agent.*.inbox.>")
        waiting = dict(info.state.subjects or {})
        info = await manager.stream_info(streams.INBOX, subjects_filter=subjects.ALL_INBOXES)
        waiting |= info.state.subjects or {}
        orphans = [subject for subject in waiting if not self._is_known(subject)]
        now = asyncio.get_running_loop().time()
        self._seen_at = {one: self._seen_at.get(one, now) for one in orphans}
        overdue = [one for one in orphans if now - self._seen_at[one] >= self._grace_s]
        return sum([await self._bury_all(manager, subject) for subject in overdue])

    def _is_known(self, subject: str) -> bool:
        return self._directory.agent_record(subjects.parse_inbox(subject).agent) is not None

    async def _bury_all(self, manager: JetStreamManager, subject: str) -> int:
        moved, sequence = 0, 1
        for _ in range(BATCH):
            try:
                message = await manager.get_msg(
                    streams.INBOX, seq=sequence, next=True, subject=subject
                )
            except NotFoundError:
                return moved
            sequence = int(message.seq or 0) + 1
            # The broker takes a publish to the literal `agent.*.inbox`, and then this look-up
            # matches everybody's messages.
            if message.subject == subject and not self._is_known(subject):
                await self._bury(manager, message)
                moved += 1
        return moved

    async def _bury(self, manager: JetStreamManager, message: RawStreamMsg) -> None:
        """Copy, tell the caller, delete: in this order nothing is lost by a crash between."""
        subject, sequence = str(message.subject), int(message.seq or 0)
        agent = subjects.parse_inbox(subject).agent
        # nats-py gives a non-ASCII value as an `email.header.Header`.
        found = {name: str(value) for name, value in (message.headers or {}).items()}
        kept = {name: found[name] for name in _KEPT if name in found}
        headers = {
            **kept,
            h.REASON: UNKNOWN_AGENT,
            h.SUBJECT: subject,
            # A second registrar that buries the same message stores nothing.
            h.MSG_ID: f"dead.{streams.INBOX}.{sequence}",
        }
        body = message.data or b""
        try:
            await self._connection.publisher.publish(subjects.dead(agent), body, headers)
        except PayloadTooLargeError:
            # Raw publishers may fill a message to the last byte: there is no room for our headers.
            headers = {name: value for name, value in headers.items() if name not in _KEPT}
            await self._connection.publisher.publish(subjects.dead(agent), body[:CUT], headers)
        await self._tell_caller(agent, sequence, found)
        try:
            await manager.delete_msg(streams.INBOX, sequence)
        except APIError as error:
            logger.debug("message %d is gone already: %s", sequence, error)
        logger.info("dead letter: %s, message %d: %s", subject, sequence, UNKNOWN_AGENT)

    async def _tell_caller(self, agent: str, sequence: int, found: Mapping[str, str]) -> None:
        headers = h.RequestHeaders.read(found)
        reply_to = headers.reply_to
        is_core = subjects.is_inbox_reply(reply_to)
        if not reply_to and is_id(agent):
            reply_to = subjects.bare_reply(agent)
        elif not (is_core or subjects.is_reply(reply_to)):
            return
        address = ReplyAddress(
            subjects=(reply_to,),
            call_id=headers.call_id or f"seq-{sequence}",
            attempt=1,
            node="",
            instance="",
            lifetime_s=(headers.timeout_ms or 60_000) / 1000,
            is_core=is_core,
            is_bare=not headers.reply_to,
        )
        error = AgentNotFoundError(f"no agent {agent!r} has ever been announced", agent=agent)
        try:
            await ReplyWriter(self._connection, address).error(error)
        except (TransportError, InvalidInputError) as failure:
            logger.warning("cannot tell the caller of message %d: %s", sequence, failure)


_KEPT: Final = (h.REPLY_TO, h.CORRELATION_ID, h.CONTENT_TYPE, h.SOURCE_AGENT, h.SOURCE_NODE)
