"""Tries one cell of the connection test's matrix, and puts what comes of it into words.

Brings the ways over NATS and over HTTP under one limit and one set of states, and does once what
many cells need. What is tried, and how many at a time, is decided by `mesh.probes`.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

import httpx2
import nats.errors

from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.errors import MeshError
from mesh.http_probes import HttpProbes
from mesh.nats_probes import Heartbeats, Mailboxes, NatsProbes, failed, ok, read_heartbeats
from schemas.probe import Method, Outcome, ProbeState
from schemas.registry import AgentView, RegistryView, Role, State

PINGS: Final = (Method.INBOX, Method.ROUTER, Method.DIRECT)
"""The methods that put a ping into an agent's mailbox."""

_FIXES: Final = {
    Method.REGISTRY: "look at the control plane: stopped, or overloaded",
    Method.PRESENCE: "look at the broker: stopped, or overloaded",
    Method.BROKER: "look at the broker: stopped, or overloaded",
    Method.JETSTREAM: "look at the broker: stopped, overloaded, or without a leader",
    Method.ROUTER: "look at the router: stopped, or overloaded",
    Method.MONITORING: "look at the broker: stopped, or overloaded",
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Doors:
    """The HTTP doors of this machine."""

    router_url: str
    node: str
    """Whose router that is, where the router itself does not say it."""
    monitor_url: str = ""
    certificate: Path | None = None
    """Of the router, where it speaks HTTPS."""
    shown: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """The headers by which the router knows who asks."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A method for an agent, for a node, for an agent on a node, or for the mesh."""

    method: Method
    agent: str | None = None
    node: str | None = None


class Prober:
    """The tries of one connection test, which share what they read.

    `registry` is how the mesh stood when the test was planned: cells are of that.
    """

    def __init__(
        self,
        client: MeshClient,
        connection: Connection,
        doors: Doors,
        http: httpx2.AsyncClient,
        *,
        registry: RegistryView,
        limit_s: float,
    ) -> None:
        self._client = client
        self._doors = doors
        self._limit_s = limit_s
        self._agents = {view.card.id: view for view in registry.agents}
        self._nodes = {view.node: view for view in registry.nodes}
        self._mailboxes = Mailboxes(connection, client.directory, limit_s)
        self._nats = NatsProbes(client, connection, limit_s)
        self._http = HttpProbes(
            http,
            router_url=doors.router_url,
            monitor_url=doors.monitor_url,
            shown=dict(doors.shown),
            limit_s=limit_s,
        )
        self._heartbeats = _Shared[Heartbeats](partial(read_heartbeats, connection, limit_s))
        self._listing = _Shared[RegistryView](self._nats.list_registry)
        self._health = _Shared[tuple[Outcome, str]](self._http.health)

    async def __aenter__(self) -> "Prober":
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for one in (self._heartbeats, self._listing, self._health, self._mailboxes):
            await one.close()

    async def try_cell(self, cell: Cell) -> Outcome:
        """Try one cell within the limit."""
        started = perf_counter()
        try:
            outcome = await self._try(cell)
        except TimeoutError:
            return Outcome(
                state=ProbeState.TIMEOUT,
                detail=f"no answer within {self._limit_s:g} s",
                fix=_FIXES.get(cell.method, ""),
            )
        except (MeshError, nats.errors.Error) as error:
            return failed(str(error) or type(error).__name__)
        return _timed(outcome, round((perf_counter() - started) * 1000, 2))

    async def _try(self, cell: Cell) -> Outcome:
        if cell.agent is not None and cell.method in PINGS:
            return await self._ping(cell.agent, cell.node, cell.method)
        async with asyncio.timeout(self._limit_s):
            if cell.agent is not None:
                return await self._try_agent(self._agents[cell.agent], cell.method)
            if cell.node is not None:
                return await self._try_node(cell.node, cell.method)
            return await self._try_mesh(cell.method)

    async def _ping(self, agent: str, node: str | None, method: Method) -> Outcome:
        if self._client.directory.state_on(agent, node) is State.OFFLINE:
            where = ", ".join(self._agents[agent].nodes) or "no node"
            detail = f"not running; it last ran on {where}"
            return Outcome(state=ProbeState.OFFLINE, detail=detail, fix="start it: mesh run")
        match method:
            case Method.ROUTER:
                answer: Coroutine[Any, Any, Outcome] = self._http.router(agent)
            case Method.DIRECT:
                answer = self._http.direct(agent)
            case _:
                node = self._bound(agent, node)
                answer = self._nats.ping(agent, node)
        return await self._mailboxes.ping(agent, node, answer)

    def _bound(self, agent: str, node: str | None) -> str | None:
        """Return the node that a ping is for: none where that would take a durable of its own.

        An agent of a group has one for its work on a node from the first such request on, and a
        test of all agents on all nodes should not be that.
        """
        record = self._client.directory.agent_record(agent)
        return None if record and record.group and node not in record.pins else node

    async def _try_agent(self, view: AgentView, method: Method) -> Outcome:
        if method is Method.PRESENCE:
            return await self._presence(view.state, view.instances)
        return await self._nats.lookup(view.card.id)

    async def _presence(self, state: State, instances: tuple[str, ...]) -> Outcome:
        heartbeats = await self._heartbeats.get()
        return _timed(heartbeats.outcome(state, instances), self._heartbeats.latency_ms)

    async def _try_node(self, node: str, method: Method) -> Outcome:
        match method:
            case Method.PRESENCE:
                return await self._presence(self._nodes[node].state, self._nodes[node].instances)
            case Method.ROUTER:
                return await self._try_router(node)
            case _:
                listing = await self._listing.get()
                states = {one.node: one.state for one in listing.nodes}
                if node not in states:
                    return failed("the registrar does not know it")
                return ok(states[node].value, self._listing.latency_ms)

    async def _try_router(self, node: str) -> Outcome:
        outcome, named = await self._health.get()
        if node == (named or self._doors.node):
            return _timed(outcome, self._health.latency_ms)
        instances = self._client.directory.instances()
        routers = sum(one.role is Role.HTTP and one.node == node for one in instances)
        return Outcome(
            state=ProbeState.NOT_TRIED,
            detail="it may be behind NAT, so its router is not tried from here; "
            f"HTTP processes there, by the registry: {routers}",
        )

    async def _try_mesh(self, method: Method) -> Outcome:
        match method:
            case Method.BROKER:
                return await self._nats.broker()
            case Method.JETSTREAM:
                return await self._nats.jetstream()
            case Method.MONITORING:
                return await self._http.monitoring()
            case Method.ROUTER:
                return _timed((await self._health.get())[0], self._health.latency_ms)
            case _:
                listing = await self._listing.get()
                found = f"{len(listing.agents)} agents, {len(listing.nodes)} nodes"
                return ok(found, self._listing.latency_ms)


def _timed(outcome: Outcome, latency_ms: float | None) -> Outcome:
    """Add how long a good answer took, unless that is known better already."""
    if outcome.state is not ProbeState.OK or outcome.latency_ms is not None:
        return outcome
    return outcome.model_copy(update={"latency_ms": latency_ms})


class _Shared(Generic[T]):
    """Something that many tries need, and that is done once, when the first one asks."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None
        self.latency_ms: float | None = None

    async def _run(self) -> T:
        started = perf_counter()
        found = await self._work()
        self.latency_ms = round((perf_counter() - started) * 1000, 2)
        return found

    async def get(self) -> T:
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        # One who gives up must not end it for the others.
        return await asyncio.shield(self._task)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
