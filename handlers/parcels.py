"""Removes parcels that are done with: the bodies and files of a secure mesh, which its members may
ask for, and may not purge.
"""

import logging
from typing import Annotated

from faststream import Context, Path
from faststream.nats import NatsMessage, NatsRouter

from handlers.cancel import LINK
from mesh import subjects
from mesh.connection import Connection
from mesh.errors import MeshError
from mesh.parcels import purge
from schemas.object import DiscardReceipt

logger = logging.getLogger(__name__)

router = NatsRouter()


@router.subscriber("registry.discard.{reader}.{nuid}", queue="registrar")
async def on_discard(
    message: NatsMessage,
    connection: Annotated[Connection, Context(LINK)],
    reader: Annotated[str, Path()],
    nuid: Annotated[str, Path()],
) -> DiscardReceipt:
    """Whoever knows a parcel is done with it."""
    try:
        await purge(connection, subjects.parcel_chunks(subjects.parcel(reader, nuid)))
    except MeshError as error:
        logger.info("a parcel for %s is not removed: %s", reader[:32], error)
        return DiscardReceipt(ok=False, message=error.message)
    return DiscardReceipt()
