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
from functools import partial
from typing import Any, Final

from mesh import grouping, otlp, registry
from mesh.admission import Admission
from mesh.agent import Agent
from mesh.background import BackgroundTasks
from mesh.callers import Caller, new_instance_id
from mesh.client import MeshClient, open_client
from mesh.clock import BrokerClock
from mesh.connection import Connection
from mesh.directory import Directory, follow_directory
from mesh.errors import BrokerUnreachableError, InvalidInputError, MeshError, TransportError
from mesh.exposition import exposing
from mesh.grouping import Team
from mesh.heartbeat import beat_forever
from mesh.micro import MicroServices
from mesh.place import Place
from mesh.settings import Settings
from mesh.version import VERSION
from mesh.workforce import Workforce
from schemas.registry import Announcement, Heartbeat, Instance, Receipt, Role

logger = logging.getLogger(__name__)

TICK_S: Final = 1.0
ANNOUNCE_PAUSE_S: Final = 1.0
ANNOUNCE_S: Final = 5.0
ANNOUNCE_EACH_S: Final = 0.5
"""More for each of a group: before a large mesh that starts at once, a registrar has much to do."""
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
        self._agents = {agent.id: agent for agent in agents}
        self._settings = settings
        self.instance = describe_process(node, Role.HOST, ids)
        self.ready = asyncio.Event()
        """Set when every agent pulls."""
        self._clock = BrokerClock()
        self._stack = AsyncExitStack()
        self._clients: dict[str, MeshClient] = {}
        self._clients_lock = asyncio.Lock()
        self._workforce: Workforce | None = None
        self._is_draining = False
        self._is_told_unheard = False
        self._may_group = connection.credentials is None
        """In a secure mesh a subject proves who announces, and rights are given agent by agent."""
        self._is_announcing = False
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
            workforce = self._workforce = Workforce(place, directory)
            services = MicroServices(
                self._connection, self._agents.values(), self.instance, workforce.tally_of
            )
            self._stack.push_async_callback(services.stop)
            await services.start()
            await workforce.listen()
            self._connection.on_reconnect(self._reconnected)
            await self._set_clock()
            # It beats until the last call is done: a host that drains is not dead.
            heart = asyncio.create_task(self._beat())
            try:
                await self._serve_until(stop, workforce, directory)
            except* MeshError as failures:
                raise failures.exceptions[0] from None
            finally:
                self._connection.drop_hook(self._reconnected)
                await self._finish(workforce, grace_s)
                heart.cancel()
                await self._leave()
        if self._connection.closed.is_set() and not stop.is_set():
            raise self._connection.ending()

    async def _serve_until(
        self, stop: asyncio.Event, workforce: Workforce, directory: Directory
    ) -> None:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(self._serve_all(workforce, directory))
            group.create_task(self._watch(stop, workforce, serving))

    def _place(self, directory: Directory) -> Place:
        slots = sum(agent.card.concurrency for agent in self._agents.values())
        threads = ThreadPoolExecutor(max_workers=min(slots, 64), thread_name_prefix="handler")
        self._stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        return Place(
            connection=self._connection,
            clock=self._clock,
            admission=Admission(self._connection, directory),
            node=self.instance.node,
            instance=self.instance.instance,
            open_client=partial(self._client_of, directory),
            threads=threads,
        )

    async def _client_of(self, directory: Directory, agent: str) -> MeshClient:
        async with self._clients_lock:
            if agent not in self._clients:
                caller = Caller(agent, self.instance.node, self.instance.instance)
                opened = open_client(self._connection, directory, caller)
                self._clients[agent] = await self._stack.enter_async_context(opened)
            return self._clients[agent]

    async def _serve_all(self, workforce: Workforce, directory: Directory) -> None:
        """Bring every agent to work; what the registrar has elsewhere by then is grouped again."""
        while waiting := self._agents.keys() - workforce.agents:
            if not self._may_group:
                teams = grouping.one_by_one(waiting)
            else:
                teams = grouping.teams(waiting, directory)
            try:
                async with asyncio.TaskGroup() as group:
                    for team in teams:
                        group.create_task(self._serve(team, workforce, directory))
            except* MeshError as failures:
                raise failures.exceptions[0] from None

    async def _serve(self, team: Team, workforce: Workforce, directory: Directory) -> None:
        """Pull as soon as the durables exist, whether or not a registrar answers."""
        # The registrar makes them before it writes the records.
        if team.is_on_record(directory, self.instance.node):
            await self._start(team, workforce)
            self._tasks.start(self._announce_at_last(team))
            return
        try:
            receipt = await self._announce(team)
        except TransportError:
            await asyncio.sleep(ANNOUNCE_PAUSE_S)
            return
        if receipt.cards < len(team.agents):
            logger.warning("the registrar knows no groups: each agent gets durables of its own")
            self._may_group = False
            return
        for one in team.without(receipt.alone):
            await self._start(one, workforce)

    async def _start(self, team: Team, workforce: Workforce) -> None:
        await workforce.start([self._agents[one] for one in team.agents], team.group)
        for agent in team.agents:
            logger.info("agent %s runs on %s", agent, self.instance.node)

    async def _announce(self, team: Team) -> Receipt:
        first, *beside = (self._agents[one].card for one in team.agents)
        announcement = Announcement(
            card=first, instance=self._described(), group=team.group, beside=tuple(beside)
        )
        timeout_s = ANNOUNCE_S + ANNOUNCE_EACH_S * len(team.agents)
        try:
            receipt = await registry.announce(self._connection, announcement, timeout_s=timeout_s)
        except TransportError as error:
            if not self._is_told_unheard:
                logger.warning("cannot announce %s yet: %s", team, error)
            self._is_told_unheard = True
            raise
        self._is_told_unheard = False
        return receipt

    async def _announce_at_last(self, team: Team) -> None:
        while True:
            with suppress(TransportError):
                await self._announce(team)
                return
            await asyncio.sleep(ANNOUNCE_PAUSE_S)

    async def _forgotten(self) -> None:
        """Announce again, beside the heartbeats, which must not wait for it."""
        if not self._is_announcing and self._workforce is not None:
            logger.info("the registry does not know this process; announcing again")
            self._is_announcing = True
            self._tasks.start(self._announce_again(self._workforce))

    async def _announce_again(self, workforce: Workforce) -> None:
        try:
            for team in workforce.teams():
                await self._announce_at_last(team)
        finally:
            self._is_announcing = False

    async def _watch(
        self, stop: asyncio.Event, workforce: Workforce, serving: "asyncio.Task[None]"
    ) -> None:
        """Tick, and end the group when it is time to stop."""
        self._tasks.start(self._set_ready(serving))
        ends = [asyncio.create_task(one.wait()) for one in (stop, self._connection.closed)]
        crowded: tuple[str, ...] = ()
        try:
            while not any(one.done() for one in ends):
                await asyncio.wait(ends, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
                await workforce.tick()
                if set(workforce.crowded) - set(crowded):
                    self._tasks.start(self._tell())
                crowded = workforce.crowded
        finally:
            for task in (*ends, serving):
                task.cancel()

    async def _set_ready(self, serving: "asyncio.Task[None]") -> None:
        await asyncio.wait({serving})
        if not serving.cancelled() and serving.exception() is None:
            self.ready.set()

    async def _reconnected(self) -> None:
        self._clock.reset()
        await self._set_clock()

    async def _set_clock(self) -> None:
        """Ask for the broker's time before any work: what waited in a mailbox must not look new."""
        agent = self.instance.agents[0]
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
            on_forgotten=self._forgotten,
        )

    async def _finish(self, workforce: Workforce, grace_s: float) -> None:
        """Pull nothing more, and let what runs come to its end."""
        await asyncio.gather(workforce.stop(grace_s), self._tell_draining(workforce))
        await self._tasks.cancel()

    async def _tell_draining(self, workforce: Workforce) -> None:
        """Let others see why this process is there and takes nothing, if that takes a moment."""
        self._is_draining = True
        if workforce.is_working:
            await self._tell()

    async def _tell(self) -> None:
        """Send a heartbeat now, because something has changed."""
        with suppress(TransportError):
            await registry.beat(self._connection, Heartbeat(instance=self._described()))

    def _described(self) -> Instance:
        """Describe this process as it is now."""
        found: dict[str, Any] = {"draining": self._is_draining}
        if self._workforce is not None:
            found |= {"busy": self._workforce.busy, "crowded": self._workforce.crowded}
        return self.instance.model_copy(update=found)

    async def _leave(self) -> None:
        """Tell the registry."""
        if not self._connection.client.is_connected:
            return
        try:
            await asyncio.gather(
                *(
                    registry.withdraw(self._connection, agent, self.instance.instance)
                    for agent in self._agents
                )
            )
            await registry.beat(
                self._connection, Heartbeat(instance=self.instance, leaving=True), timeout_s=1.0
            )
        except TransportError as error:
            logger.info("left without a word to the registrar: %s", error)
