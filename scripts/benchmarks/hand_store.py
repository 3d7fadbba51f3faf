"""Large bodies by hand: nats-py's own object store, and a message that says what lies in it.

One object for each body, removed by whoever has read it. Nothing checks that it is the one that was
meant, beyond what nats-py does by itself.
"""

from typing import Final
from uuid import uuid4

from nats.aio.client import Client
from nats.js.object_store import ObjectStore

BUCKET: Final = "by-hand"
MARK: Final = b"lies in the store: "
FITS_BYTES: Final = 1_000_000
"""In a message, with its headers: the broker's limit is 1 MiB."""


class Bodies:
    """Bodies as they travel: in a message if they fit, and else beside it."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    async def opened(cls, client: Client) -> "Bodies":
        """Open the store of a connection, or make it."""
        return cls(await client.jetstream().create_object_store(BUCKET))

    async def pack(self, body: bytes) -> bytes:
        """Return what goes into the message."""
        if len(body) <= FITS_BYTES:
            return body
        name = uuid4().hex
        await self._store.put(name, body)
        return MARK + name.encode()

    async def unpack(self, message: bytes) -> bytes:
        """Return the body that a message has, or says where it is."""
        if not message.startswith(MARK):
            return message
        name = message.removeprefix(MARK).decode()
        found = await self._store.get(name)
        await self._store.delete(name)
        return found.data or b""
