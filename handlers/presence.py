"""Heartbeats of people's clients: `presence.heartbeat.<user>`."""

import logging
from typing import Annotated, Final

from faststream import Context, Path
from faststream.nats import NatsRouter

from handlers.cancel import LINK
from mesh import presence
from mesh.connection import Connection
from mesh.errors import MeshError
from mesh.presence import People, user_token
from schemas.presence import PresenceHeartbeat, PresenceReceipt

logger = logging.getLogger(__name__)

router = NatsRouter()
PEOPLE: Final = "people"
"""Name of the presence bucket in the context of FastStream."""
Link = Annotated[Connection, Context(LINK)]


@router.subscriber("presence.heartbeat.{user}", queue="registrar")
async def on_heartbeat(
    said: PresenceHeartbeat,
    connection: Link,
    people: Annotated[People, Context(PEOPLE)],
    user: Annotated[str, Path()],
) -> PresenceReceipt:
    """A client of a person says how it is."""
    if user != user_token(said.user):
        return PresenceReceipt(ok=False, message="the subject is of another user")
    known = people.client(said.user, said.client)
    if known is not None and not people.is_silent(known) and 0 < said.seq <= known.said.seq:
        return PresenceReceipt(is_late=True)
    try:
        if known is None and (oldest := people.oldest_client(said.user)) is not None:
            await presence.forget(connection, said.user, oldest)
        await presence.keep(connection, said)
    except MeshError as error:
        logger.warning("presence cannot be kept: %s", error)
        return PresenceReceipt(ok=False, message=error.message)
    return PresenceReceipt()
