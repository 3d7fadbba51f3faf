"""Takes cancelled calls out of the mailbox: those that no agent has begun, or that are foreign.

An instance that works on the call hears the same message, and stops its handler; see
`mesh.worker`. Both tell the caller, and the caller hears it once.
"""

import logging
from collections.abc import Mapping
from typing import Annotated, Final

from faststream import AckPolicy, Context, Path
from faststream.nats import JStream, NatsRouter, PullSub
from nats.js.errors import APIError

from mesh import headers as h
from mesh import streams, subjects
from mesh.connection import Connection
from mesh.errors import CallCancelledError, InvalidInputError, TransportError
from mesh.history import read_at
from mesh.replies import ReplyAddress, ReplyWriter, is_answered
from schemas.frame import CancelBody

logger = logging.getLogger(__name__)

router = NatsRouter()
PULL_TIMEOUT_S: Final = 5.0
LINK: Final = "link"
"""Under this name the application gives its connection."""


@router.subscriber(
    "agent.{agent}.cancel.{call}",
    stream=JStream(streams.CONTROL, declare=False),
    durable=streams.CANCEL,
    pull_sub=PullSub(batch_size=1, timeout=PULL_TIMEOUT_S),
    ack_policy=AckPolicy.NACK_ON_ERROR,
)
async def on_cancel(
    cancel: CancelBody,
    connection: Annotated[Connection, Context(LINK)],
    agent: Annotated[str, Path()],
    call: Annotated[str, Path()],
) -> None:
    """A caller no longer wants an answer."""
    if not cancel.sequence:
        return
    message = await read_at(connection, streams.INBOX, cancel.sequence)
    if message is None:
        return
    # A sender says which message it is; only the message says whose.
    is_of_call = message.headers.get(h.CORRELATION_ID) == call
    if not is_of_call or subjects.parse_inbox(message.subject).agent != agent:
        logger.warning("message %d is not call %s of agent %s", cancel.sequence, call, agent)
        return
    await _tell_caller(connection, agent, message.headers)
    try:
        await connection.client.jsm(timeout=10.0).delete_msg(streams.INBOX, cancel.sequence)
    except APIError as error:
        logger.debug("message %d is gone already: %s", cancel.sequence, error)
    logger.info("call %s of agent %s is cancelled", call, agent)


async def _tell_caller(connection: Connection, agent: str, found: Mapping[str, str]) -> None:
    headers = h.RequestHeaders.read(found)
    is_core = subjects.is_inbox_reply(headers.reply_to)
    if not is_core and not subjects.may_answer_on(headers.reply_to, agent):
        return
    address = ReplyAddress(
        subjects=(headers.reply_to,),
        call_id=headers.call_id,
        attempt=1,
        node="",
        instance="",
        lifetime_s=(headers.timeout_ms or 60_000) / 1000 + headers.keep_s,
        is_core=is_core,
    )
    error = CallCancelledError(f"the call to agent {agent!r} was cancelled")
    try:
        # Its agent may have died between answer and acknowledgement, longer ago than dedupe knows.
        if not is_core and await is_answered(connection, headers.reply_to, headers.call_id):
            return
        await ReplyWriter(connection, address).error(error)
    except (TransportError, InvalidInputError) as failure:
        logger.warning("cannot tell the caller of call %s: %s", headers.call_id, failure)
