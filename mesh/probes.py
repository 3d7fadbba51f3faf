"""The connection test: really tries every method for every node and agent, and says what it found.

Plans what is tried, runs it with bounds, and yields results as they come. How one cell of the
matrix is tried stands in `mesh.prober`. No handler of an agent runs for it.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.errors import NodeNotFoundError
from mesh.http_probes import local_trust
from mesh.prober import Cell, Doors, Prober
from mesh.subjects import require_id
from schemas.probe import Method, Outcome, ProbeResult, ProbeState

DEFAULT_LIMIT_S: Final = 2.0
"""How long one try may take. Why it failed is found out in half a second more."""
MIN_LIMIT_S: Final = 0.1
MAX_LIMIT_S: Final = 10.0
WHOLE_LIMIT_S: Final = 30.0
"""How long a test may take. What was not tried by then is said to be so."""
MAX_IN_FLIGHT: Final = 64
ALONE_S: Final = 0.005
"""How long a try is alone: two together would measure each other. After that it waits for somebody
else, and the next one begins."""

OF_MESH: Final = (Method.BROKER, Method.JETSTREAM, Method.REGISTRY, Method.MONITORING)
OF_NODE: Final = (Method.REGISTRY, Method.PRESENCE, Method.ROUTER)
OF_AGENT: Final = (Method.PRESENCE, Method.REGISTRY, Method.INBOX, Method.ROUTER, Method.DIRECT)


@dataclass(frozen=True, slots=True)
class Selection:
    """What is tested: everything, or one agent, one node, one method."""

    agent: str | None = None
    node: str | None = None
    method: Method | None = None
    limit_s: float = DEFAULT_LIMIT_S


class ConnectionTest:
    """One connection test, of the mesh as it stands when this is made. To be run once."""

    def __init__(
        self, client: MeshClient, connection: Connection, doors: Doors, selection: Selection
    ) -> None:
        self._client = client
        self._connection = connection
        self._doors = doors
        self._selection = selection
        self._registry = client.directory.view()

    def cells(self) -> list[Cell]:
        """Return what is tried, in order: the mesh, its nodes, its agents.

        Raises:
            InvalidIdError: what is selected is no id.
            AgentNotFoundError, NodeNotFoundError, AgentNotOnNodeError: it is not known.
        """
        only = self._selection
        if only.agent is not None:
            self._client.directory.require_target(only.agent, only.node)
        elif only.node is not None:
            self._require_node(only.node)
        found = [*self._of_mesh(), *self._of_nodes(), *self._of_agents()]
        return [one for one in found if only.method in (None, one.method)]

    def _trust(self) -> ssl.SSLContext | bool:
        # To read the certificates stops the loop for 30 ms: only where they are needed.
        if "https:" not in self._doors.router_url + self._doors.monitor_url:
            return False
        return local_trust(self._doors.certificate)

    async def run(self) -> AsyncGenerator[ProbeResult, None]:
        """Try everything, and yield each result as it comes. Raises what `cells` raises."""
        cells = self.cells()
        limit_s = self._selection.limit_s
        async with (
            httpx2.AsyncClient(
                # The limit of a try ends it sooner, and finds out why.
                timeout=2 * limit_s,
                limits=httpx2.Limits(max_connections=MAX_IN_FLIGHT),
                trust_env=False,
                verify=self._trust(),
            ) as http,
            Prober(
                self._client,
                self._connection,
                self._doors,
                http,
                registry=self._registry,
                limit_s=limit_s,
            ) as prober,
            aclosing(bounded(cells, prober.try_cell)) as results,
        ):
            async for result in results:
                yield result

    def _require_node(self, node: str) -> None:
        if not self._client.directory.has_node(require_id(node, "node")):
            known = ", ".join(one.node for one in self._registry.nodes) or "none"
            raise NodeNotFoundError(f"no node {node!r}; known nodes: {known}", node=node)

    def _of_mesh(self) -> Iterator[Cell]:
        for method in OF_MESH:
            yield Cell(method)
        if not self._client.directory.has_node(self._doors.node):
            # Its node has no row that could tell that the router is gone.
            yield Cell(Method.ROUTER)

    def _of_nodes(self) -> Iterator[Cell]:
        only = self._selection
        for view in self._registry.nodes:
            if only.node == view.node or (only.node is None and only.agent is None):
                for method in OF_NODE:
                    yield Cell(method, node=view.node)

    def _of_agents(self) -> Iterator[Cell]:
        only = self._selection
        for view in self._registry.agents:
            agent = view.card.id
            nodes = [one for one in view.nodes if only.node in (None, one)]
            if only.agent not in (None, agent) or (only.node is not None and not nodes):
                continue
            for method in OF_AGENT:
                yield Cell(method, agent)
            for node in nodes:
                yield Cell(Method.INBOX, agent, node)


async def bounded(
    cells: list[Cell], try_cell: Callable[[Cell], Coroutine[Any, Any, Outcome]]
) -> AsyncGenerator[ProbeResult, None]:
    """Try cells one after the other, and side by side with those that are slow to answer.

    All together would be no faster, and their latencies would be those of this process.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WHOLE_LIMIT_S
    waiting = deque(cells)
    running: dict[asyncio.Task[Outcome], Cell] = {}
    try:
        while (waiting or running) and (left_s := deadline - loop.time()) > 0:
            if waiting and len(running) < MAX_IN_FLIGHT:
                cell = waiting.popleft()
                running[asyncio.create_task(try_cell(cell))] = cell
            can_begin = bool(waiting) and len(running) < MAX_IN_FLIGHT
            done, _ = await asyncio.wait(
                running,
                timeout=ALONE_S if can_begin else left_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                yield _result(running.pop(task), task.result())
        for cell in (*running.values(), *waiting):
            yield _result(cell, _LATE)
    finally:
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)


_LATE: Final = Outcome(
    state=ProbeState.NOT_TRIED,
    detail=f"the time of the whole test was over ({WHOLE_LIMIT_S:g} s)",
    fix="test one agent, node or method",
)


def _result(cell: Cell, outcome: Outcome) -> ProbeResult:
    return ProbeResult(**dict(outcome), method=cell.method, agent_id=cell.agent, node=cell.node)
