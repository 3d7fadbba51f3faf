"""Where an agent runs, and what it runs with. What all that runs an agent is given."""

from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mesh.admission import Admission
from mesh.client import MeshClient
from mesh.clock import BrokerClock
from mesh.connection import Connection


@dataclass(frozen=True, slots=True)
class Place:
    """A process on a node, connected to the broker."""

    connection: Connection
    clock: BrokerClock
    admission: Admission
    node: str
    instance: str
    open_client: Callable[[str], Awaitable[MeshClient]]
    """Gives the client with which this process calls as an agent."""
    threads: ThreadPoolExecutor
