"""Where pages read what they show: the registry, the traffic, the tests, and who is present.

All of it is in memory. `version` changes with any of it.
"""

import time
from collections.abc import Hashable, Sequence
from typing import Final

from mesh.directory import Directory
from mesh.shim.connection_test import ConnectionTests
from mesh.shim.door import Door
from mesh.traffic import Traffic
from mesh.traffic_log import TrafficLog
from schemas.presence import PersonView

PEOPLE_S: Final = 0.2
"""How old the list of people may be: many pages ask for it."""


class Sources:
    """What pages show."""

    def __init__(self, door: Door, tests: ConnectionTests) -> None:
        self._door = door
        self._people: tuple[float, tuple[PersonView, ...]] = (0.0, ())
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

    def people(self) -> Sequence[PersonView]:
        """Return who was there within a day, as of this moment or the one before."""
        read_at, people = self._people
        if (now := time.monotonic()) - read_at > PEOPLE_S:
            people = tuple(self._door.people.views())
            self._people = (now, people)
        return people

    @property
    def version(self) -> Hashable:
        """What is the same as long as nothing has changed, but for the traffic."""
        people = tuple((one.matrix_user_id, one.state, one.status_msg) for one in self.people())
        return (
            self.directory.version,
            self.directory.is_authoritative,
            self.tests.last_run.version,
            self.is_connected,
            people,
        )
