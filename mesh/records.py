"""What the registry's bucket holds, key by key, and when each process was last heard.

An in-memory copy, kept up to date by whoever follows the bucket. What the records mean together,
who is online, is worked out by `mesh.directory`.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from mesh import codec, registry
from mesh.clock import BrokerClock
from mesh.errors import ProtocolError
from mesh.history import iso_time
from mesh.streams import durable
from schemas.base import WireModel
from schemas.registry import AgentRecord, Identity, Instance, NodeRecord, Placement, Reign, Role

logger = logging.getLogger(__name__)

MODELS: Final[dict[str, type[WireModel]]] = {
    "agent": AgentRecord,
    "node": NodeRecord,
    "instance": Instance,
    "placement": Placement,
    "reign": Reign,
    "identity": Identity,
}


@dataclass(frozen=True, slots=True)
class Sign:
    """The newest sign of life of a process, or its last."""

    stored_ns: int
    """By the broker's clock; 0 where that was not told."""
    heard_at: float
    """By the local monotonic clock: never before it was stored."""
    time: str
    """`stored_ns` for people, in ISO 8601."""

    @classmethod
    def of(cls, entry: registry.Entry) -> "Sign":
        """Read the sign that an entry is."""
        return cls(entry.stored_ns, time.monotonic(), iso_time(entry.stored_ns))


class Records:
    """The registry's records."""

    def __init__(self) -> None:
        self.version = 0
        """Changes with every record, but not with a heartbeat that only says "still here": what
        was made of the same version is still true."""
        self._revisions: dict[str, int] = {}
        self._recent: dict[str, registry.Entry] | None = None
        self._agents: dict[str, AgentRecord] = {}
        self._nodes: dict[str, NodeRecord] = {}
        self._instances: dict[str, Instance] = {}
        self._placements: dict[str, dict[str, Placement]] = {}
        """By agent, then by instance: a call looks up one agent, however many there are."""
        self._identities: dict[str, Identity] = {}
        self._registrars: set[str] = set()
        self._signs: dict[str, Sign] = {}
        """By instance, of the live ones."""
        self._last_signs: dict[str, Sign] = {}
        """By key of an agent or node that has lost a process."""
        self._watched = Sign(0, 0.0, "")
        """When a registrar last looked at the whole registry."""
        self._clock = BrokerClock()
        self._newest = (0, 0)
        """Revision and time of the newest change."""

    def is_of_another_bucket(self, entry: registry.Entry) -> bool:
        """Tell whether a change is later than what we know, and has an earlier revision.

        Then the bucket was deleted and made again: all that we know is of the old one, and would
        hide what is in the new one.
        """
        revision, stored_ns = self._newest
        return entry.revision < revision and entry.stored_ns > stored_ns

    def apply(self, entry: registry.Entry) -> None:
        """Take in one change, unless a newer one of the same key is known."""
        if entry.revision < self._revisions.get(entry.key, 0):
            return
        self._revisions[entry.key] = entry.revision
        if entry.stored_ns:
            self._newest = max(self._newest, (entry.revision, entry.stored_ns))
        if self._recent is not None:
            self._recent[entry.key] = entry
        if entry.stored_ns:
            self._clock.observe(entry.stored_ns)
        kind, _, rest = entry.key.partition(".")
        model = MODELS.get(kind)
        if model is None:
            return
        try:
            record = entry.value and codec.decode(model, entry.value, subject=entry.key)
        except ProtocolError as error:
            logger.warning("the registry holds a bad record under %s: %s", entry.key, error)
            record = None
        self._put(rest, record, entry) if record else self._drop(kind, rest)

    def revision(self, key: str) -> int:
        """Return the revision of a key, 0 where there is none."""
        return self._revisions.get(key, 0)

    def begin_reading(self) -> None:
        """Remember the changes from here on: a full reading may be older than some of them."""
        self._recent = {}

    def replace(self, entries: Iterable[registry.Entry]) -> None:
        """Take in a full reading: what it does not name is gone, unless it came since it began."""
        recent, self._recent = self._recent, None
        for records in (
            *(self._agents, self._nodes, self._instances, self._placements),
            self._identities,
        ):
            records.clear()
        self._revisions.clear()
        self._registrars.clear()
        self._signs.clear()
        self._last_signs.clear()
        self._watched = Sign(0, 0.0, "")
        self._newest = (0, 0)
        # The broker may be another machine by now, with a clock of its own.
        self._clock.reset()
        self.version += 1
        for entry in (*entries, *(recent or {}).values()):
            self.apply(entry)

    @property
    def clock(self) -> BrokerClock:
        """The broker's clock, as this reader hears it by every heartbeat."""
        return self._clock

    @property
    def is_authoritative(self) -> bool:
        """Whether a registrar is alive, so that silence means offline."""
        return bool(self._registrars)

    def instances(self) -> list[Instance]:
        """Return the live processes."""
        return list(self._instances.values())

    def silent_instances(self, longer_than_s: float) -> list[str]:
        """Return the processes whose key was not written for so long: it should have expired."""
        limit = time.monotonic() - longer_than_s
        return [instance for instance, sign in self._signs.items() if sign.heard_at < limit]

    def silence_s(self, instance: str) -> float:
        """Return how long ago a live process was last heard, by the broker's clock.

        Never too long, and too short by no more than the age of the newest entry that this
        reader has seen.
        """
        sign = self._signs.get(instance)
        if sign is None:
            return 0.0
        if sign.stored_ns:
            return self._clock.age_s(sign.stored_ns)
        return time.monotonic() - sign.heard_at

    def placements(self) -> list[Placement]:
        """Return all placements, those of dead processes included."""
        return [one for group in self._placements.values() for one in group.values()]

    def agent_record(self, agent: str) -> AgentRecord | None:
        """Return the record of an agent, or None for an unknown one."""
        return self._agents.get(agent)

    def durable(self, agent: str, node: str | None) -> str:
        """Name the durable that delivers an agent's requests, or those bound to a node."""
        record = self._agents.get(agent)
        return (record and not node and record.group) or durable(agent, node)

    def groups(self) -> dict[str, set[str]]:
        """Return who shares a durable with whom, and is to do so, by its name."""
        found: dict[str, set[str]] = {}
        for agent, record in self._agents.items():
            if record.group and not record.is_leaving:
                found.setdefault(record.group, set()).add(agent)
        return found

    def leaving(self) -> dict[str, AgentRecord]:
        """Return the records of those that are about to leave their groups."""
        return {agent: record for agent, record in self._agents.items() if record.is_leaving}

    def node_record(self, node: str) -> NodeRecord | None:
        """Return the record of a node, or None for an unknown one."""
        return self._nodes.get(node)

    def identity(self, public: str) -> Identity | None:
        """Return whose key this is, or None where it is nobody's, or nobody's any more."""
        return self._identities.get(public)

    def has_node(self, node: str) -> bool:
        """Whether a node of this id was ever announced."""
        return node in self._nodes

    def has_instance(self, instance: str) -> bool:
        """Whether this process is alive."""
        return instance in self._instances

    def is_on_record(self, instance: Instance) -> bool:
        """Whether all that a process has announced is there, and none of it counts as ended."""
        node = self._nodes.get(instance.node)
        return (node is not None and not node.last_seen) and all(
            (record := self._agents.get(agent)) is not None
            and not record.last_seen
            and instance.instance in self._placements.get(agent, ())
            for agent in instance.agents
        )

    def _put(self, rest: str, record: WireModel | bytes, entry: registry.Entry) -> None:
        match record:
            case AgentRecord():
                self._set(self._agents, rest, record)
            case NodeRecord():
                self._set(self._nodes, rest, record)
            case Placement():
                self._set(self._placements.setdefault(record.agent, {}), record.instance, record)
            case Instance():
                self._set(self._instances, rest, record)
                self._hear(record, entry)
            case Identity(key=key) if key == rest:
                self._identities[rest] = record
            case Reign():
                self._watched = max(self._watched, Sign.of(entry), key=_stored_ns)

    def _hear(self, instance: Instance, entry: registry.Entry) -> None:
        name = instance.instance
        kept = self._registrars.add if instance.role is Role.REGISTRAR else self._registrars.discard
        kept(name)
        known = self._signs.get(name)
        if known is None or entry.stored_ns:
            self._signs[name] = Sign.of(entry)
        else:
            # A write of our own: when it was stored is told by its event, a moment later.
            self._signs[name] = replace(known, heard_at=time.monotonic())

    def _set(self, records: dict[str, Any], name: str, record: WireModel) -> None:
        if records.get(name) != record:
            records[name] = record
            self.version += 1

    def _drop(self, kind: str, rest: str) -> None:
        match kind:
            case "agent":
                found = self._agents.pop(rest, None) is not None
            case "node":
                found = self._nodes.pop(rest, None) is not None
            case "placement":
                found = self._drop_placement(*rest.partition(".")[::2])
            case "instance":
                found = self._drop_instance(rest)
            case "identity":
                found = self._identities.pop(rest, None) is not None
            case _:
                found = False
        self.version += found

    def _drop_placement(self, agent: str, instance: str) -> bool:
        if sign := self._signs.get(instance):
            self._remember(f"agent.{agent}", sign)
        return self._placements.get(agent, {}).pop(instance, None) is not None

    def _drop_instance(self, instance: str) -> bool:
        self._registrars.discard(instance)
        sign = self._signs.pop(instance, None)
        ended = self._instances.pop(instance, None)
        if sign is None or ended is None:
            return False
        self._remember(f"node.{ended.node}", sign)
        for agent in ended.agents:
            # Anybody can say that he runs a thousand agents; only the known ones are kept.
            if agent in self._agents:
                self._remember(f"agent.{agent}", sign)
        return True

    def _remember(self, key: str, sign: Sign) -> None:
        self._last_signs[key] = max(sign, self._last_signs.get(key, sign), key=_stored_ns)


def _stored_ns(sign: Sign) -> int:
    return sign.stored_ns
