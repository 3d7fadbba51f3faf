"""The workers of one process: those of its agents, and of the events they hear.

Starts them once their durables exist, looks after them, and follows the registrar when it gives an
agent another durable. Announces nothing; see `mesh.runtime`.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from functools import partial

from nats.aio.msg import Msg

from mesh import codec, subjects
from mesh.agent import Agent
from mesh.directory import Directory
from mesh.errors import ProtocolError
from mesh.events import EventWorker
from mesh.execution import Tally
from mesh.group_pull import GroupPull
from mesh.grouping import Team, one_by_one
from mesh.nats_client import is_guarded
from mesh.place import Place
from mesh.worker import AgentWorker
from schemas.registry import OpenQuestion, OpenRequests

logger = logging.getLogger(__name__)


class Workforce:
    """Everybody who works in this process."""

    def __init__(self, place: Place, directory: Directory) -> None:
        self._place = place
        self._client = place.connection.client
        self._directory = directory
        self._agents: dict[str, AgentWorker] = {}
        self._events: list[EventWorker] = []
        self._groups: list[GroupPull] = []

    @property
    def agents(self) -> frozenset[str]:
        """Who works here."""
        return frozenset(self._agents)

    def teams(self) -> list[Team]:
        """Return who pulls with whom."""
        found: dict[str, list[str]] = {}
        for agent, worker in self._agents.items():
            found.setdefault(worker.group, []).append(agent)
        alone = one_by_one(found.pop("", ()))
        return [*(Team(tuple(one), group) for group, one in found.items()), *alone]

    async def listen(self) -> None:
        """Answer which requests are open here, to the end of the connection.

        Nobody asks in a secure mesh, where no agents share a durable.
        """
        if not is_guarded(self._client):
            subject = subjects.open_requests(self._place.instance)
            await self._client.subscribe(subject, cb=self._on_open_question)

    async def start(self, agents: Sequence[Agent], group: str = "") -> None:
        """Let agents work that have durables of their own, or share that of `group`."""
        pull = GroupPull(self._place.connection, group) if group else None
        if pull is not None:
            self._groups.append(pull)
        # All of them first: what the group brings may be for any.
        workers = [AgentWorker(agent, self._place, pull) for agent in agents]
        for worker in workers:
            agent = worker.agent
            agent.bind(partial(self._publish_event, agent.id))
            for subscription, handler in agent.subscriptions.items():
                events = EventWorker(agent.id, subscription, handler, self._place)
                self._events.append(events)
                await events.start()
            # Also without a chat handler: who asks is told so, instead of waiting in vain.
            self._agents[agent.id] = worker
            await worker.start()

    async def _publish_event(self, agent: str, name: str, body: bytes) -> None:
        client = await self._place.open_client(agent)
        await client.publish_event(agent, name, body)

    async def stop(self, grace_s: float) -> None:
        """Pull nothing more, and let what runs come to its end, for at most `grace_s`."""
        # First all of them pull no more: what a group still brings may be for any.
        await asyncio.gather(*(worker.take_no_more() for worker in self._agents.values()))
        await asyncio.gather(*(worker.stop(grace_s) for worker in self._everybody()))
        for worker in self._agents.values():
            worker.agent.bind(None)

    async def tick(self) -> None:
        """Look after everybody. To be called every second or so."""
        for pull in self._groups:
            await pull.tick()
        for agent, worker in list(self._agents.items()):
            if (record := self._directory.agent_record(agent)) is not None:
                await worker.follow(record)
        for one in list(self._everybody()):
            await one.tick()

    def tally_of(self, agent: str) -> Tally:
        """Return what an agent has done here so far."""
        worker = self._agents.get(agent)
        return Tally() if worker is None else worker.tally

    @property
    def is_working(self) -> bool:
        """Whether anything is being worked on."""
        return any(worker.running for worker in self._everybody())

    @property
    def busy(self) -> tuple[str, ...]:
        """The agents that have no free slot."""
        return tuple(agent for agent, worker in self._agents.items() if worker.is_busy)

    @property
    def crowded(self) -> tuple[str, ...]:
        """The agents that hold up the others of their group."""
        return tuple(agent for pull in self._groups for agent in pull.crowded())

    def _everybody(self) -> Iterator[AgentWorker | EventWorker]:
        yield from self._events
        yield from self._agents.values()

    async def _on_open_question(self, message: Msg) -> None:
        try:
            asked = codec.decode(OpenQuestion, message.data, subject=message.subject)
        except ProtocolError as error:
            logger.warning("a question that is none: %s", error)
            return
        if message.reply:
            worker = self._agents.get(asked.agent)
            told = OpenRequests(sequences=() if worker is None else worker.open_sequences)
            await self._client.publish(message.reply, codec.encode(told))
