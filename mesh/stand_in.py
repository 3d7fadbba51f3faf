"""Ends a call in the place of its agent, which cannot: with an error frame, and only once.

For whoever takes requests out of mailboxes: `mesh.dead_letters`, and the cancels of the control
plane. Does not take them out.
"""

import logging
from typing import Final

from mesh import headers as h
from mesh import subjects
from mesh.connection import Connection
from mesh.errors import InvalidInputError, MeshError, TransportError
from mesh.history import StoredMessage
from mesh.replies import ReplyAddress, ReplyWriter, is_answered
from schemas.base import is_id

logger = logging.getLogger(__name__)

UNSAID_S: Final = 60.0
"""The deadline of a request that does not say one."""


async def is_settled(connection: Connection, request: StoredMessage) -> bool:
    """Tell whether the call of a request is answered: its agent may have died before its ack.

    Raises:
        TransportError: the reply stream cannot be read.
    """
    headers = h.RequestHeaders.read(request.headers)
    agent = subjects.parse_inbox(request.subject).agent
    if not headers.call_id or not subjects.may_answer_on(headers.reply_to, agent):
        return False  # Nothing is stored of it, or nothing that is only about this call.
    return await is_answered(connection, headers.reply_to, headers.call_id)


async def fail(connection: Connection, request: StoredMessage, error: MeshError) -> None:
    """Tell the caller of a request that is not settled that its call ended with `error`.

    Who named a foreign reply subject is told nothing. When the broker does not take it, that is
    logged: the caller's own deadline ends the call.
    """
    address = _address(request)
    if address is None:
        return
    try:
        await ReplyWriter(connection, address).error(error)
    except (TransportError, InvalidInputError) as failure:
        logger.warning("cannot tell the caller of call %s: %s", address.call_id, failure)


def _address(request: StoredMessage) -> ReplyAddress | None:
    headers = h.RequestHeaders.read(request.headers)
    agent = subjects.parse_inbox(request.subject).agent
    is_core = subjects.is_inbox_reply(headers.reply_to)
    reply_to = headers.reply_to
    if not reply_to and is_id(agent):
        reply_to = subjects.bare_reply(agent)
    elif not (is_core or subjects.may_answer_on(reply_to, agent)):
        return None
    timeout_s = UNSAID_S if headers.timeout_ms is None else headers.timeout_ms / 1000
    return ReplyAddress(
        subjects=(reply_to,),
        call_id=headers.call_id or f"seq-{request.sequence}",
        attempt=1,
        node="",
        instance="",
        lifetime_s=timeout_s + headers.keep_s,
        is_core=is_core,
        is_bare=not headers.reply_to,
    )
