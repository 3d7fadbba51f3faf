"""Takes cancelled calls out of the mailbox: those that no agent has begun, or that are foreign.

An instance that works on the call hears the same message, and stops its handler; see
`mesh.worker`. Both tell the caller, and the caller hears it once.
"""

import logging
from typing import Annotated, Final

from faststream import AckPolicy, Context, Path
from faststream.nats import JStream, NatsRouter, PullSub
from nats.js.errors import APIError

from mesh import headers as h
from mesh import stand_in, streams, subjects
from mesh.claims import claims_in
from mesh.connection import Connection
from mesh.errors import CallCancelledError
from mesh.history import read_at
from mesh.objects import try_remove
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
    if not await stand_in.is_settled(connection, message):
        error = CallCancelledError(f"the call to agent {agent!r} was cancelled")
        await stand_in.fail(connection, message, error)
    try:
        await connection.client.jsm(timeout=10.0).delete_msg(streams.INBOX, cancel.sequence)
    except APIError as error:
        logger.debug("message %d is gone already: %s", cancel.sequence, error)
    # Who sent it may be gone as well, after Ctrl-C say.
    await try_remove(connection, claims_in(message.headers))
    logger.info("call %s of agent %s is cancelled", call, agent)
