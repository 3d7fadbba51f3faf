"""The pieces of a large body: how large they are, how patiently they are asked for, and what is
said when some are gone. What they are pieces of, see `mesh.objects` and `mesh.parcels`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from mesh.claims import Claim
from mesh.connection import Connection
from mesh.errors import BodyLostError, BrokerUnreachableError
from mesh.nats_client import is_clustered

Answer = TypeVar("Answer")

CHUNK_BYTES: Final = 128 * 1024
"""As the object store has them."""
WINDOW: Final = 8
"""Chunks on their way: a megabyte, which is what an upload holds, and a download twice."""
LAG_S: Final = 5.0
LAG_PAUSE_S: Final = 0.02
PATIENCE_S: Final = 20.0
"""As long as a publisher goes on."""
RETRY_PAUSE_S: Final = 0.5


async def patiently(connection: Connection, ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask again while the broker is away for a moment: a reader may be far into a large file.

    Raises what `ask` raises, and:
        BrokerUnreachableError: no answer for 20 s.
    """
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            return await ask()
        except BrokerUnreachableError:
            if connection.closed.is_set() or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(RETRY_PAUSE_S)


async def settled(
    connection: Connection, ask: Callable[[], Awaitable[Answer | None]]
) -> Answer | None:
    """Ask, and on a cluster again while nothing is found: the replica that answers may lag.

    Raises what `patiently` raises.
    """
    deadline = asyncio.get_running_loop().time() + LAG_S
    while True:
        found = await patiently(connection, ask)
        is_late = asyncio.get_running_loop().time() > deadline
        if found or is_late or not is_clustered(connection.client):
            return found
        await asyncio.sleep(LAG_PAUSE_S)


def lost(claim: Claim, why: str) -> BodyLostError:
    """Return what is raised of an object that is not what was claimed."""
    return BodyLostError(
        f"the body of this message lies in the object store, and object {claim.name} {why}",
        name=claim.name,
        size_bytes=claim.size_bytes,
    )
