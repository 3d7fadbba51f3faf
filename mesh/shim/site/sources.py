"""Where pages read what they show: the registry, the traffic, the tests, and who is present.

All of it is in memory. `version` changes with any of it.
"""

from collections.abc import Hashable, Sequence
from typing import Any

from mesh.directory import Directory
from mesh.shim.connection_test import ConnectionTests
from mesh.shim.door import Door
from mesh.traffic import Traffic, TrafficLog


class Sources:
    """What pages show."""

    def __init__(self, door: Door, tests: ConnectionTests) -> None:
        self._door = door
        self.tests = tests
        self.traffic = Traffic(door.connection)

    @property
    def directory(self) -> Directory:
        """The registry."""
        return self._door.client.directory

    @property
    def log(self) -> TrafficLog:
        """The calls of the last minutes."""
        return self.traffic.log

    @property
    def own_node(self) -> str:
        """Where this door is."""
        return self._door.caller.node

    @property
    def is_connected(self) -> bool:
        """Whether the broker can be reached."""
        return self._door.is_connected

    @property
    def hears_traffic(self) -> bool:
        """Whether calls of others are heard here."""
        return self.traffic.is_visible

    def people(self) -> Sequence[Any]:
        """Return who is present."""
        return ()

    def people_online(self) -> int:
        """Return how many people are online."""
        return 0

    @property
    def version(self) -> Hashable:
        """What is the same as long as nothing has changed, but for the traffic."""
        return (
            self.directory.version,
            self.directory.is_authoritative,
            self.tests.last_run.version,
            self.is_connected,
        )
