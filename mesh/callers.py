"""Who calls: an identity, and the agents above a call.

A process may call as several identities, one for each agent it hosts. Does no I/O.
"""

from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from mesh import headers as h
from mesh.errors import HopLimitError
from schemas.base import is_id


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a call comes from: the agents above it, and the trace it belongs to."""

    hops: tuple[str, ...] = ()
    trace_id: str = ""
    is_sampled: bool = True
    """Whether that trace is one that is told of."""
    parent: str = ""
    """The span of the call in which it is made."""

    def require_room(self, agent: str) -> None:
        """Check that calling `agent` closes no loop and goes not too deep.

        Raises:
            HopLimitError: it would.
        """
        if not self.hops:
            return
        path = " > ".join((*self.hops, agent))
        if agent in self.hops:
            raise HopLimitError(f"agents call each other in a loop: {path}", hops=list(self.hops))
        if len(self.hops) >= h.MAX_HOPS:
            raise HopLimitError(f"more than {h.MAX_HOPS} agents deep: {path}", hops=list(self.hops))


NO_LINEAGE: Final = Lineage()
"""A call that no agent is above."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: an id, the node, and the process."""

    id: str
    node: str
    instance: str


def new_instance_id() -> str:
    """Return an id for this process: 128 random bits, as nobody else may guess its subjects."""
    return uuid4().hex


def known_source(agent: str, node: str, fallback: Caller) -> Caller:
    """Return who a legacy client says it is, as far as it gives valid ids."""
    if not agent and not node:
        return fallback
    return Caller(
        id=agent if is_id(agent) else fallback.id,
        node=node if is_id(node) else fallback.node,
        instance=fallback.instance,
    )
