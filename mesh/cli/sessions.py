"""The short-lived client behind `send`, `agents` and the others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mesh import otlp
from mesh.callers import Caller, new_instance_id
from mesh.client import MeshClient, open_client
from mesh.connection import open_connection
from mesh.directory import load_directory
from mesh.errors import CredentialsError
from mesh.settings import Settings
from mesh.trust.login import Login

DEFAULT_CALLER = "cli"


@asynccontextmanager
async def open_session(
    settings: Settings, *, caller: str = DEFAULT_CALLER
) -> AsyncIterator[MeshClient]:
    """Connect, read the registry once, and close at the end.

    Raises:
        BrokerUnreachableError: there is no broker.
        StreamMissingError: the broker has no mesh on it.
        InvalidIdError: `caller` is no id.
        CredentialsError: it is somebody whom these credentials do not speak for.
    """
    async with open_connection(Login.of(settings), name=f"mesh {caller}") as connection:
        name = connection.caller(caller)
        if name != caller != DEFAULT_CALLER:
            raise CredentialsError(
                f"these credentials do not allow to call as {caller}, but as {name}", path=""
            )
        identity = Caller(name, settings.node, new_instance_id())
        directory = await load_directory(connection)
        async with (
            otlp.exporting(f"mesh-cli {name}", settings.node),
            open_client(connection, directory, identity) as client,
        ):
            yield client
