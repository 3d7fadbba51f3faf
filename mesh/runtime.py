"""Runs agents: one process, one connection, one heartbeat, whatever it hosts.

Announces, pulls, and leaves in order. The registrar may be away: an agent whose durable exists
works at once and announces itself in the background.
"""

import asyncio
import datetime
import logging
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from typing import Final

from mesh import otlp, registry
from mesh.admission import Admission
from mesh.agent import Agent
from mesh.background import BackgroundTasks
from mesh.callers import Caller, new_instance_id
from mesh.client import MeshClient, open_client
from mesh.clock import BrokerClock
from mesh.connection import Connection
from mesh.directory import Directory, follow_directory
from mesh.errors import BrokerUnreachableError, InvalidInputError, MeshError, TransportError
from mesh.events import EventWorker
from mesh.execution import Tally
from mesh.exposition import exposing
from mesh.heartbeat import beat_forever
from mesh.micro import MicroServices
from mesh.place import Place
from mesh.settings import Settings
from mesh.version import VERSION
from mesh.worker import AgentWorker
from schemas.registry import Announcement, Heartbeat, Instance, Role

logger = logging.getLogger(__name__)

TICK_S: Final = 1.0
ANNOUNCE_PAUSE_S: Final = 1.0
STOP_GRACE_S: Final = 30.0


def describe_process(node: str, role: Role, agents: Sequence[str] = ()) -> Instance:
    """Describe this process for the registry, under a new instance id."""
    return Instance(
        instance=new_instance_id(),
        node=node,
        role=role,
        agents=tuple(agents),
        host=platform.node(),
        pid=os.getpid(),
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        mesh_version=VERSION,
    )


class AgentHost:
    """The agents of one process.

    Raises:
        InvalidInputError: there is no agent, or two have the same id.
    """

    def __init__(
        self, connection: Connection, agents: Sequence[Agent], *, node: str, settings: Settings
    ) -> None:
        ids = [agent.id for agent in agents]
        if not ids or len(set(ids)) < len(ids):
            raise InvalidInputError(f"agents must be one or more, with different ids: {ids}")
        self._connection = connection
        self._agents = agents
        self._settings = settings
        self.instance = describe_process(node, Role.HOST, ids)
        self.ready = asyncio.Event()
        """Set when every agent pulls."""
        self._clock = BrokerClock()
        self._stack = AsyncExitStack()
        self._clients: dict[str, MeshClient] = {}
        self._clients_lock = asyncio.Lock()
        self._workers: list[AgentWorker | EventWorker] = []
        self._is_draining = False
        self._tasks = BackgroundTasks()

    async def run(self, stop: asyncio.Event, *, grace_s: float = STOP_GRACE_S) -> None:
        """Serve until `stop` is set, then finish what runs and leave.

        Raises:
            CardRefusedError: the registrar does not accept a card.
            BrokerUnreachableError: the connection is closed for good.
        """
        async with self._stack:
            await self._stack.enter_async_context(exposing(self._settings))
            service = f"mesh-host {' '.join(self.instance.agents[:3])}"
            await self._stack.enter_async_context(otlp.exporting(service, self.instance.node))
            directory = await self._stack.enter_async_context(follow_directory(self._connection))
            place = self._place(directory)
            services = MicroServices(self._connection, self._agents, self.instance, self._tally_of)
            self._stack.push_async_callback(services.stop)
            await services.start()
            self._connection.on_reconnect(self._reconnected)
            await self._set_clock()
            # It beats until the last call is done: a host that drains is not dead.
            heart = asyncio.create_task(self._beat())
            try:
                await self._serve_until(stop, place, directory)
            except* MeshError as failures:
                raise failures.exceptions[0] from None
            finally:
                self._connection.drop_hook(self._reconnected)
                await self._finish(grace_s)
                heart.cancel()
                await self._leave()
        if self._connection.closed.is_set() and not stop.is_set():
            raise self._connection.ending()

    async def _serve_until(self, stop: asyncio.Event, place: Place, directory: Directory) -> None:
        async with asyncio.TaskGroup() as group:
            serving = [
                group.create_task(self._serve(one, place, directory)) for one in self._agents
            ]
            group.create_task(self._watch(stop, serving))

    def _place(self, directory: Directory) -> Place:
        slots = sum(agent.card.concurrency for agent in self._agents)
        threads = ThreadPoolExecutor(max_workers=min(slots, 64), thread_name_prefix="handler")
        self._stack.callback(threads.shutdown, wait=False, cancel_futures=True)

        async def client_of(agent: str) -> MeshClient:
            async with self._clients_lock:
                if agent not in self._clients:
                    caller = Caller(agent, self.instance.node, self.instance.instance)
                    opened = open_client(self._connection, directory, caller)
                    self._clients[agent] = await self._stack.enter_async_context(opened)
                return self._clients[agent]

        return Place(
            connection=self._connection,
            clock=self._clock,
            admission=Admission(self._connection, directory),
            node=self.instance.node,
            instance=self.instance.instance,
            open_client=client_of,
            threads=threads,
        )

    async def _serve(self, agent: Agent, place: Place, directory: Directory) -> None:
        """Pull as soon as the mailbox exists, whether or not a registrar answers."""
        record = directory.agent_record(agent.id)
        # The registrar makes the durables before it writes the record.
        if record is not None and self.instance.node in record.nodes:
            await self._start_workers(agent, place)
            self._tasks.start(self._announce(agent))
        else:
            await self._announce(agent)
            await self._start_workers(agent, place)
        logger.info("agent %s runs on %s", agent.id, self.instance.node)

    async def _start_workers(self, agent: Agent, place: Place) -> None:
        client = await place.open_client(agent.id)

        async def publish(name: str, body: bytes) -> None:
            await client.publish_event(agent.id, name, body)

        agent.bind(publish)
        workers: list[AgentWorker | EventWorker] = [
            EventWorker(agent.id, subscription, handler, place)
            for subscription, handler in agent.subscriptions.items()
        ]
        # Also without a chat handler: who asks is told so, instead of waiting in vain.
        workers.append(AgentWorker(agent, place))
        for worker in workers:
            await worker.start()
        self._workers += workers

    async def _announce(self, agent: Agent) -> None:
        announcement = Announcement(card=agent.card, instance=self._described())
        was_heard = True
        while True:
            try:
                await registry.announce(self._connection, announcement)
            except TransportError as error:
                if was_heard:
                    logger.warning("cannot announce %s yet: %s", agent.id, error)
                was_heard = False
                await asyncio.sleep(ANNOUNCE_PAUSE_S)
            else:
                return

    async def _announce_again(self) -> None:
        logger.info("the registry does not know this process; announcing again")
        for agent in self._agents:
            await self._announce(agent)

    async def _watch(self, stop: asyncio.Event, serving: list["asyncio.Task[None]"]) -> None:
        """Tick, and end the group when it is time to stop."""
        self._tasks.start(self._set_ready(serving))
        ends = [asyncio.create_task(one.wait()) for one in (stop, self._connection.closed)]
        try:
            while not any(one.done() for one in ends):
                await asyncio.wait(ends, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
                for worker in list(self._workers):
                    await worker.tick()
        finally:
            for task in (*ends, *serving):
                task.cancel()

    async def _set_ready(self, serving: list["asyncio.Task[None]"]) -> None:
        await asyncio.wait(serving)
        if all(not one.cancelled() and one.exception() is None for one in serving):
            self.ready.set()

    async def _reconnected(self) -> None:
        self._clock.reset()
        await self._set_clock()

    async def _set_clock(self) -> None:
        """Ask for the broker's time before any work: what waited in a mailbox must not look new."""
        agent = self._agents[0].id
        try:
            await self._clock.ask(self._connection, agent, self.instance.instance)
        except BrokerUnreachableError as error:
            # Lost again, mostly: the next reconnect asks again.
            logger.warning("%s; ages are counted from the first message", error)

    async def _beat(self) -> None:
        await beat_forever(
            self._connection,
            self._described,
            interval_s=self._settings.heartbeat_s,
            on_forgotten=self._announce_again,
        )

    async def _finish(self, grace_s: float) -> None:
        """Pull nothing more, and let what runs come to its end."""
        stopping = [worker.stop(grace_s) for worker in self._workers]
        await asyncio.gather(*stopping, self._tell_draining())
        await self._tasks.cancel()
        for agent in self._agents:
            agent.bind(None)

    def _tally_of(self, agent: str) -> Tally:
        workers = (one for one in self._workers if isinstance(one, AgentWorker))
        return next((one.tally for one in workers if one.agent.id == agent), Tally())

    async def _tell_draining(self) -> None:
        """Let others see why this process is there and takes nothing, if that takes a moment."""
        self._is_draining = True
        if any(worker.running for worker in self._workers):
            with suppress(TransportError):
                await registry.beat(self._connection, Heartbeat(instance=self._described()))

    def _described(self) -> Instance:
        """Describe this process as it is now."""
        workers = (one for one in self._workers if isinstance(one, AgentWorker))
        busy = tuple(one.agent.id for one in workers if one.is_busy)
        return self.instance.model_copy(update={"busy": busy, "draining": self._is_draining})

    async def _leave(self) -> None:
        """Tell the registry."""
        if not self._connection.client.is_connected:
            return
        try:
            for agent in self._agents:
                await registry.withdraw(self._connection, agent.id, self.instance.instance)
            await registry.beat(
                self._connection, Heartbeat(instance=self.instance, leaving=True), timeout_s=1.0
            )
        except TransportError as error:
            logger.info("left without a word to the registrar: %s", error)
