"""Agents as NATS micro services: `nats micro ls`, `info` and `stats` see them, and others too.

NATS ADR-32, answered by one process for all its agents with three subscriptions; nats-py's own
service takes nine for each. Calls do not go this way, but through mailboxes, which is said in the
metadata. A machine that has joined a secure mesh has no right to answer here.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.service import (
    INFO_RESPONSE_TYPE,
    PING_RESPONSE_TYPE,
    SEMVER_REGEX,
    STATS_RESPONSE_TYPE,
)

from mesh import codec, subjects
from mesh.agent import Agent
from mesh.connection import Connection
from mesh.execution import Tally
from mesh.nats_client import is_guarded
from schemas.registry import Instance

logger = logging.getLogger(__name__)

SUBJECTS: Final = ("$SRV.*", "$SRV.*.*", "$SRV.*.*.*")
"""`$SRV.PING`, with a name behind it, and with an instance behind that."""
ENDPOINT: Final = "inbox"
NO_VERSION: Final = "0.0.0"
_TYPES: Final = {
    "PING": PING_RESPONSE_TYPE,
    "INFO": INFO_RESPONSE_TYPE,
    "STATS": STATS_RESPONSE_TYPE,
}
_PLAIN: Final = re.compile(r"[^\x20-\x7e]")


class MicroServices:
    """The agents of one process, for whoever asks after services."""

    def __init__(
        self,
        connection: Connection,
        agents: Iterable[Agent],
        instance: Instance,
        tally_of: Callable[[str], Tally],
    ) -> None:
        self._connection = connection
        self._agents = {agent.id: agent for agent in agents}
        self._instance = instance
        self._tally_of = tally_of
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Begin to answer, if these credentials may."""
        if is_guarded(self._connection.client):
            return
        for subject in SUBJECTS:
            one = await self._connection.client.subscribe(subject, cb=self._on_message)
            self._subscriptions.append(one)

    async def stop(self) -> None:
        """Answer no more."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for one in subscriptions:
            with suppress(nats.errors.Error):
                await one.unsubscribe()

    async def _on_message(self, message: Msg) -> None:
        if not message.reply:
            return
        _, verb, *named = message.subject.split(".")
        for agent in self._asked(named):
            if (told := self._told(verb, agent)) is not None:
                with suppress(nats.errors.Error):
                    await self._connection.client.publish(message.reply, codec.dumps(told))

    def _asked(self, named: Sequence[str]) -> Iterator[Agent]:
        """Yield the agents that a question is for: all, those of a name, or one of them here."""
        name, *instance = named or ("",)
        if not name:
            yield from self._agents.values()
        elif name in self._agents and instance in ([], [self._instance.instance]):
            yield self._agents[name]

    def _told(self, verb: str, agent: Agent) -> Mapping[str, Any] | None:
        if verb not in _TYPES:
            return None
        card = agent.card
        found: dict[str, Any] = {
            "type": _TYPES[verb],
            "name": agent.id,
            "id": self._instance.instance,
            "version": card.version if SEMVER_REGEX.match(card.version) else NO_VERSION,
            "metadata": {
                "node": self._instance.node,
                "model": _PLAIN.sub("?", card.model),
                "version": _PLAIN.sub("?", card.version),
                "protocol": "a mailbox: publish, with a reply_to header; see the mesh's docs",
            },
        }
        if verb == "INFO":
            found["description"] = _PLAIN.sub("?", card.description)
            found["endpoints"] = [self._endpoint(agent)]
        elif verb == "STATS":
            found["started"] = _started(self._instance.started_at)
            found["endpoints"] = [{**self._endpoint(agent), **_counted(self._tally_of(agent.id))}]
        return found

    def _endpoint(self, agent: Agent) -> dict[str, Any]:
        return {
            "name": ENDPOINT,
            "subject": subjects.inbox(agent.id),
            "queue_group": agent.id,
            "metadata": {},
        }


def _started(at: str) -> str:
    """Write a time as ADR-32 has it: RFC 3339 in UTC, with a fraction, as nats-py insists."""
    return datetime.fromisoformat(at).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _counted(tally: Tally) -> dict[str, Any]:
    taken_ns = int(tally.taken_s * 1e9)
    return {
        "num_requests": tally.handled,
        "num_errors": tally.failed,
        "last_error": tally.last_error,
        "data": None,
        "processing_time": taken_ns,
        "average_processing_time": taken_ns // tally.handled if tally.handled else 0,
    }
