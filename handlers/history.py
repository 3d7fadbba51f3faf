"""Reads of replies and mailboxes, for callers behind an account boundary.

The broker lets nobody ask in another's name, and here nobody is shown what is another's.
"""

import logging
from typing import Annotated, Any, Final

import nats.errors
import orjson
from faststream import Context, Path
from faststream.nats import NatsMessage, NatsRouter

from handlers.cancel import LINK
from mesh import codec, streams, subjects
from mesh import headers as h
from mesh.connection import Connection
from mesh.errors import MeshError, NotPermittedError
from mesh.history import BATCH_BYTES, DIRECT_GET, read_at, read_batch
from schemas.frame import HistoryRequest, WaitingReceipt, WaitingRequest

logger = logging.getLogger(__name__)

router = NatsRouter()
_REPLIES: Final = f"{DIRECT_GET}.{streams.REPLY}"
Link = Annotated[Connection, Context(LINK)]


@router.subscriber("registry.history.{caller}", queue="registrar", no_reply=True)
async def on_history(
    message: NatsMessage, connection: Link, caller: Annotated[str, Path()]
) -> None:
    """A caller reads what was answered to it, and is answered as JetStream would."""
    raw: Any = message.raw_message
    client = connection.client
    if not raw.reply:
        return
    try:
        request = codec.decode(HistoryRequest, message.body, subject=raw.subject)
        if not subjects.is_own_reply(request.next_by_subj, caller):
            raise NotPermittedError(f"these are not answers to {caller}", subject=raw.subject)
        # This process holds it; who asked goes on where it ended.
        bounded = {**request.model_dump(), "max_bytes": BATCH_BYTES}
        found = await read_batch(client, _REPLIES, orjson.dumps(bounded))
    except (MeshError, TimeoutError, nats.errors.Error) as error:
        logger.warning("refused a read of answers to %s: %s", caller[:32], error)
        await client.publish(raw.reply, headers={"Status": "403", "Description": "refused"})
        return
    for one in found:
        await client.publish(raw.reply, one.data, headers=one.headers)


@router.subscriber("registry.waiting.{caller}", queue="registrar")
async def on_waiting(
    request: WaitingRequest, connection: Link, caller: Annotated[str, Path()]
) -> WaitingReceipt:
    """A caller asks whether its request is still in a mailbox."""
    try:
        stored = await read_at(connection, streams.INBOX, request.sequence)
    except MeshError as error:
        return WaitingReceipt(is_known=False, message=error.message)
    reply_to = stored.headers.get(h.REPLY_TO, "") if stored else ""
    return WaitingReceipt(is_waiting=subjects.is_own_reply(reply_to, caller))
