"""What every endpoint works with.

Opens nothing; `mesh.shim.server` does. Knows no HTTP status and no OpenAI shape.
"""

from functools import cached_property
from pathlib import Path
from typing import Final

from starlette.types import Receive

from mesh.access import Access
from mesh.callers import Caller
from mesh.client import MeshClient
from mesh.clock import BrokerClock
from mesh.connection import Connection
from mesh.presence import People
from mesh.settings import DEFAULT_HTTP_BODY_MAX_BYTES
from mesh.shim.http import BodyRoom
from mesh.shim.matrix import MatrixBridge
from mesh.shim.sse import PACE, Pace
from mesh.shim.waiting import Patrol, Waiting

LARGE_AT_ONCE: Final = 16
"""So many bodies of the largest size a door holds; it takes several times as much for each."""


class Door:
    """The way from HTTP into the mesh: one client, and everybody who waits for an answer."""

    def __init__(
        self,
        client: MeshClient,
        connection: Connection,
        caller: Caller,
        *,
        monitor_url: str = "",
        certificate: Path | None = None,
        pace: Pace = PACE,
        people: People | None = None,
        matrix: MatrixBridge | None = None,
        public_url: str = "",
        body_max_bytes: int = DEFAULT_HTTP_BODY_MAX_BYTES,
    ) -> None:
        self.client = client
        self.connection = connection
        self.caller = caller
        """Who calls when a client does not say who it is."""
        self.access = Access(connection)
        """The API keys."""
        self.people = people or People(BrokerClock())
        """Who of the people is there."""
        self.matrix = matrix
        """The way to a homeserver; None where none is named."""
        self.public_url = public_url.rstrip("/")
        """By which address clients reach it; empty: by the one that they name."""
        self._body_max_bytes = body_max_bytes
        self.body_room = BodyRoom(LARGE_AT_ONCE * body_max_bytes)
        self.pace = pace
        """Of streamed answers."""
        self.monitor_url = monitor_url
        """Where the broker's monitoring answers; empty where it is not known."""
        self.certificate = certificate
        """Of this door; None where it speaks HTTP in the clear."""
        self._patrol = Patrol()
        self._is_closing = False

    @property
    def is_connected(self) -> bool:
        """Whether the broker can be reached right now."""
        return self.connection.client.is_connected

    @cached_property
    def limit_bytes(self) -> int:
        """The longest body that is taken: of those that can travel."""
        return min(self._body_max_bytes, self.connection.body_max_bytes)

    def waiting(self, receive: Receive) -> Waiting:
        """Wait for an answer beside a client; the request's body has been read."""
        return Waiting(self._patrol, receive, is_late=self._is_closing)

    def close(self) -> None:
        """End all waiting, and whatever begins from now on."""
        self._is_closing = True
        self._patrol.interrupt()
