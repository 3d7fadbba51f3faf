"""Tells the servers and the registry who counts, after the keyring has changed.

Servers believe the tokens of the accounts: a revoked user is cut off while they take one in. The
registry tells everybody whose key is whose, so that signed requests can be checked anywhere.
"""

from typing import Final

import nats.errors
import orjson

from mesh import codec, registry
from mesh.connection import Connection, open_connection
from mesh.errors import BrokerUnreachableError, TrustError
from mesh.settings import Settings
from mesh.trust.credentials import Credentials
from mesh.trust.keyring import Keyring
from mesh.trust.login import Login
from mesh.trust.server_tokens import ServerTokens
from mesh.trust.users import SYSTEM

_UPDATE: Final = "$SYS.REQ.CLAIMS.UPDATE"
_TAKEN: Final = 200
TIMEOUT_S: Final = 5.0


async def enrol(settings: Settings, keyring: Keyring) -> None:
    """Tell the registry who stands in the keyring now: whom servers let in, a token itself says.

    Raises:
        BrokerUnreachableError: there is no broker; it reads the keyring when it starts.
        StreamMissingError: there is no registry on it yet.
    """
    async with open_connection(Login.of(settings), name="mesh keys") as connection:
        await tell_registry(connection, keyring)


async def cut_off(settings: Settings, keyring: Keyring) -> None:
    """Tell servers and the registry who counts no more: he is cut off before this returns.

    The processes of the hub are not: a change of their account would cost every agent the pulls
    that wait. Theirs is read at the next start.

    Raises:
        BrokerUnreachableError: there is no broker; it reads the keyring when it starts.
        TrustError: it does not take what it is told.
    """
    path = keyring.credentials_path(SYSTEM)
    ours = Login.of(settings)
    system = Login(ours.url, Credentials.read(path), ours.ca)
    async with open_connection(system, name="mesh keys") as connection:
        await _update(connection, ServerTokens.of(keyring).members)
    await enrol(settings, keyring)


async def _update(connection: Connection, token: str) -> None:
    try:
        answer = await connection.client.request(_UPDATE, token.encode(), timeout=TIMEOUT_S)
    except nats.errors.Error as error:
        raise BrokerUnreachableError(f"the broker does not take the accounts: {error}") from error
    said = orjson.loads(answer.data)
    if said.get("data", {}).get("code") != _TAKEN:
        raise TrustError(f"the broker refuses an account: {said.get('error', said)}")


async def tell_registry(connection: Connection, keyring: Keyring) -> None:
    """Write who counts into the registry, and take out who does not, where that differs.

    Raises:
        StreamMissingError: there is no registry on this broker.
        BrokerUnreachableError: no answer in time.
    """
    wanted = {registry.identity_key(one.key): one for one in keyring.roster.identities()}
    entries = await registry.read_registry(connection, registry.identity_key("*"))
    known = {one.key: one.value for one in entries if one.value is not None}
    for key in known.keys() - wanted.keys():
        await registry.delete(connection, key)
    for key, identity in wanted.items():
        if known.get(key) != codec.encode(identity):
            await registry.put(connection, key, identity)
