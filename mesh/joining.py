"""Makes this machine a node of a mesh elsewhere: redeems a join token, and keeps what comes of it.

What is kept, all processes of this machine read (`mesh.settings`): where the broker is, as whom to
log in there, and what the node is called. Connections only go out.
"""

import json
import logging
from pathlib import Path
from typing import Final

from mesh import registry, subjects
from mesh.connection import Connection, open_connection
from mesh.errors import (
    BrokerUnreachableError,
    CredentialsError,
    JoinRefusedError,
    error_from_wire,
)
from mesh.settings import Settings, kept_path
from mesh.trust.credentials import Credentials
from mesh.trust.invites import JoinToken
from mesh.trust.login import Login
from mesh.trust.nkeys import KeyPair, Kind
from mesh.trust.secrets import write_secret
from schemas.registry import JoinReceipt, JoinRequest

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 10.0
_ADVICE: Final = "is the hub up, and does this address lead there? The token is still good"


async def join_with_token(token: JoinToken, data_dir: Path) -> str:
    """Redeem a token, keep what it brings in `data_dir`, and return the node's name.

    Raises:
        JoinRefusedError: it has expired or was used, or nobody at the hub answers.
        BrokerUnreachableError: the hub cannot be reached.
        CredentialsError: what comes of it cannot be kept.
    """
    # What this machine has of a mesh stays as it is until another one has let it in.
    tried = data_dir / "joining-ca.pem"
    write_secret(tried, token.authority)
    key = KeyPair.new(Kind.USER)
    try:
        login = Login(token.url, token.credentials, tried if token.authority else None)
        url, receipt = await _redeem(login, key)
    finally:
        tried.unlink()
    path, ca = data_dir / "joined.creds", data_dir / "joined-ca.pem"
    Credentials.of(receipt.token, key).write(path)
    kept = {"MESH_NATS_URL": url, "MESH_NODE": receipt.node, "MESH_CREDS": str(path)}
    if token.authority:
        write_secret(ca, token.authority)
        kept["MESH_TLS_CA"] = str(ca)
    _keep(data_dir, kept)
    return receipt.node


async def _redeem(login: Login, key: KeyPair) -> tuple[str, JoinReceipt]:
    """Ask to be let in, by the first way that leads to the hub."""
    *others, last = login.ways
    for way in others:
        try:
            return way.url, await _ask_by(way, key)
        except BrokerUnreachableError as error:
            logger.info("%s; trying the next way", error)
    return last.url, await _ask_by(last, key)


async def _ask_by(way: Login, key: KeyPair) -> JoinReceipt:
    try:
        async with open_connection(way, name="mesh join", advice=_ADVICE) as connection:
            receipt = await _ask(connection, way.name, key.public)
    except CredentialsError as error:
        raise JoinRefusedError(
            "the hub does not take this join token: it has expired, or is of another mesh"
        ) from error
    if not receipt.ok:
        raise error_from_wire(receipt.code, receipt.message, {})
    return receipt


async def join_open(url: str, settings: Settings) -> None:
    """Keep where an open mesh is, once that is seen.

    Raises:
        BrokerUnreachableError: there is no broker.
        CredentialsError: it asks for credentials: a token is needed.
    """
    async with open_connection(url, name="mesh join"):
        pass
    _keep(settings.data_dir, {"MESH_NATS_URL": url, "MESH_NODE": settings.node})


async def _ask(connection: Connection, invite: str, public: str) -> JoinReceipt:
    request = JoinRequest(public=public)
    try:
        return await registry.ask(
            connection, subjects.join(invite), request, JoinReceipt, timeout_s=TIMEOUT_S
        )
    except BrokerUnreachableError as error:
        raise JoinRefusedError(
            f"nobody at the hub answers ({error}): is its control plane up (`mesh up`)?"
        ) from error


def _keep(data_dir: Path, variables: dict[str, str]) -> None:
    write_secret(kept_path(data_dir), json.dumps(variables, indent=2))
