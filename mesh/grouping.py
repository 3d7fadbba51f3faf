"""Which of its agents a process announces together, to share a durable, and which alone.

Replicas of a process come to the same groups without a word between them: from what the registry
says, and for the rest from the ids alone.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mesh.directory import Directory
from mesh.streams import GROUP_MOST, group_name
from schemas.registry import State

ALONE_MOST: Final = 20
"""A process of no more agents gives each a durable of its own: replicas then share by free slots
exactly, from the first request on."""


@dataclass(frozen=True, slots=True)
class Team:
    """Agents that are announced together, and pull from the durable of a group; or one alone."""

    agents: tuple[str, ...]
    group: str = ""

    def __str__(self) -> str:
        first = self.agents[0]
        return f"{first} and {len(self.agents) - 1} more" if len(self.agents) > 1 else first

    def is_on_record(self, directory: Directory, node: str) -> bool:
        """Tell whether the registry says that all its durables are there, and nobody else's."""
        records = [directory.agent_record(one) for one in self.agents]
        if not self.group:
            return all(one is not None and not one.group and node in one.nodes for one in records)
        return directory.groups().get(self.group) == set(self.agents)

    def without(self, alone: Collection[str]) -> Iterator["Team"]:
        """Yield who is left of it when some are to be alone, and then each of those."""
        if left := tuple(one for one in self.agents if one not in alone):
            yield Team(left, self.group)
        yield from (Team((one,)) for one in self.agents if one in alone)


def one_by_one(agents: Iterable[str]) -> list[Team]:
    """Group nobody."""
    return [Team((one,)) for one in sorted(agents)]


def teams(agents: Iterable[str], directory: Directory) -> list[Team]:
    """Group the agents of one process.

    Who is in a group stays there, as long as most of it is here. Who runs elsewhere under a durable
    of his own keeps it.
    """
    known = directory.groups()
    groups: dict[str, list[str]] = {}
    rest, alone = list[str](), list[str]()
    for agent in sorted(agents):
        record = directory.agent_record(agent)
        if record is not None and record.group and not record.is_leaving:
            groups.setdefault(record.group, []).append(agent)
        elif record is None or (
            not record.is_leaving and directory.state_on(agent, None) is State.OFFLINE
        ):
            rest.append(agent)
        else:
            alone.append(agent)
    for group, here in list(groups.items()):
        if 2 * len(here) <= len(known[group]):
            alone += groups.pop(group)
    if len(rest) <= ALONE_MOST:
        alone, rest = alone + rest, []
    for start in range(0, len(rest), GROUP_MOST):
        one = rest[start : start + GROUP_MOST]
        groups[group_name(one)] = one
    return [*(Team(tuple(one), name) for name, one in groups.items()), *one_by_one(alone)]
