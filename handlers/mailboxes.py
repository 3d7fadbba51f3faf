"""Looks into the mailboxes now and then, for the metrics of the control plane."""

import asyncio
import logging
import operator
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import nats.errors
from nats.js.errors import APIError

from mesh import metrics, subjects
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.errors import InvalidInputError, TransportError
from mesh.history import read_next, stored_ns
from mesh.standing import Condition
from mesh.streams import INBOX
from schemas.registry import State

logger = logging.getLogger(__name__)

LOOK_S: Final = 5.0
AGED_AT_MOST: Final = 20
"""Mailboxes of which the oldest request is looked up: the fullest. Each takes a request."""


class Mailboxes:
    """Sets the gauges of mailboxes, agents and nodes."""

    def __init__(self, connection: Connection, directory: Directory) -> None:
        self._connection = connection
        self._directory = directory
        self._depths = _Shown(metrics.MAILBOX_DEPTH, operator.add)
        self._ages = _Shown(metrics.MAILBOX_OLDEST_S, max)

    async def watch_forever(self) -> None:
        """Look every 5 s, until cancelled."""
        while True:
            try:
                await self._look()
            except (nats.errors.Error, APIError, TransportError) as error:
                logger.debug("cannot look into the mailboxes: %s", error)
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        conditions = Counter(one.condition() for one in self._directory.standings())
        for condition in Condition:
            metrics.AGENTS.set(conditions[condition], condition.value)
        states = Counter(one.state for one in self._directory.node_standings())
        for state in State:
            metrics.NODES.set(states[state], state.value)
        manager = self._connection.client.jsm()
        info = await manager.stream_info(INBOX, subjects_filter=">")
        depths = _depths(info.state.subjects or {})
        ages = {one: await self._oldest_s(one) for one, _ in depths.most_common(AGED_AT_MOST)}
        self._depths.show(depths)
        self._ages.show(ages)

    async def _oldest_s(self, agent: str) -> float:
        """Return the age of the oldest request that any instance may take."""
        oldest = await read_next(self._connection, INBOX, subjects.inbox(agent), 1)
        # Both by the broker's clock, or nearly: it is mostly on this machine.
        return max(0.0, time.time() - stored_ns(oldest.headers) / 1e9) if oldest else 0.0


def _depths(counted: Mapping[str, int]) -> Counter[str]:
    found = Counter[str]()
    for subject, count in counted.items():
        with suppress(InvalidInputError):
            found[subjects.parse_inbox(subject).agent] += count
    return found


class _Shown:
    """A gauge with a value for each agent; those that are not named any more have none."""

    def __init__(self, gauge: metrics.Gauge, merge: Callable[[float, float], float]) -> None:
        self._gauge = gauge
        self._merge = merge
        self._labels: set[str] = set()

    def show(self, values: Mapping[str, float]) -> None:
        found: dict[str, float] = {}
        for agent, value in values.items():
            label = metrics.agent_label(agent)
            found[label] = self._merge(found.get(label, 0.0), value)
        for label, value in found.items():
            self._gauge.set(value, label)
        for gone in self._labels - found.keys():
            self._gauge.remove(gone)
        self._labels = set(found)
