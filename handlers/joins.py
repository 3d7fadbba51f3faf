"""Lets machines in that were invited: on the hub of a secure mesh, which has the keys.

Nobody can ask who was not invited: the broker lets only the owner of an unexpired join token
publish, and only under its own name.
"""

import logging
from typing import Annotated, Final

from faststream import Context, Path
from faststream.nats import NatsRouter

from handlers.cancel import LINK
from mesh.connection import Connection
from mesh.enrolment import tell_registry
from mesh.errors import JoinRefusedError, MeshError
from mesh.trust.keyring import Keyring
from schemas.registry import JoinReceipt, JoinRequest

logger = logging.getLogger(__name__)

router = NatsRouter()
KEYRING: Final = "keyring"
"""Under this name the application gives its keyring, or None."""


@router.subscriber("registry.join.{invite}", queue="registrar")
async def on_join(
    request: JoinRequest,
    connection: Annotated[Connection, Context(LINK)],
    keyring: Annotated[Keyring | None, Context(KEYRING)],
    invite: Annotated[str, Path()],
) -> JoinReceipt:
    """A machine that was invited asks to be let in."""
    try:
        if keyring is None:
            raise JoinRefusedError("this control plane has no keys: ask the one on the hub")
        user = keyring.redeem(invite, request.public)
        await tell_registry(connection, keyring)
    except MeshError as error:
        logger.warning("invite %s is refused: %s", invite[:32], error)
        return JoinReceipt(ok=False, code=error.code, message=error.message)
    logger.info("node %s has joined", user.name)
    return JoinReceipt(node=user.name, token=keyring.token(user))
