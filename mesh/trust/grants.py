"""Who may publish and subscribe to what in secure mode: the table of `schemas/README.md`.

Two accounts. CORE owns JetStream and the control plane; AGENTS has no JetStream, and imports only
what is listed here, so that no reply subject which a client names can point at an API of CORE.
Does not write tokens; see `mesh.trust.jwts`.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mesh import streams, subjects
from mesh.trust.jwts import Border, Crossing

_READ: Final = "$JS.API.DIRECT.GET"
_ACK: Final = "$JS.ACK"

EXPORTS: Final = tuple(
    Border(subject, crossing)
    for crossing, exported in {
        # Captured by streams: what comes back is JetStream's acknowledgement.
        Crossing.SERVICE: (
            *(subjects.ALL_INBOXES, subjects.ALL_PINNED_INBOXES),
            *(subjects.ALL_BARE_REPLIES, subjects.ALL_REPLIES),
            *(subjects.ALL_EVENTS, subjects.ALL_CANCELS, subjects.ALL_DEAD),
            *(subjects.ALL_ANNOUNCEMENTS, subjects.ALL_WITHDRAWALS, subjects.ALL_PARCELS),
            # Answered by the registrar.
            *(subjects.ALL_HEARTBEATS, subjects.ALL_LOOKUPS, subjects.REGISTRY_LIST),
            # Answered by the control plane: frames and mailboxes, as far as they are one's own.
            *(subjects.ALL_JOINS, subjects.ALL_WAITING, subjects.ALL_DISCARDS),
            # By subject only. The form with a body could name any subject: it is not exported, and
            # answers 503 at once.
            f"{_READ}.{streams.REPLY}.>",
            f"{_READ}.{streams.BODIES}.{subjects.ALL_PARCELS}",
            *(f"{_ACK}.{streams.INBOX}.>", f"{_ACK}.{streams.EVENT}.>"),
        ),
        Crossing.ANSWERS: (
            *(f"{subjects.PULL}.{streams.INBOX}.*", f"{subjects.PULL}.{streams.EVENT}.*"),
            f"{_READ}.{streams.REGISTRY}",
            subjects.ALL_HISTORIES,
        ),
        # What JetStream has stored, republished; and that a server of a cluster leads a stream now.
        Crossing.STREAM: (
            *(subjects.ALL_DELIVERED, subjects.REGISTRY_EVENTS),
            subjects.ELECTION_ADVISORIES,
        ),
    }.items()
    for subject in exported
)
"""What CORE lets AGENTS use."""

_AGENT: Final = "{{tag(agent)}}"
_NODE: Final = "{{tag(node)}}"
_CALLER: Final = "{{tag(caller)}}"
_SUBSCRIPTION: Final = "{{tag(on)}}"
_USER: Final = "{{name()}}"

MEMBER_PUBLISH: Final = (
    # Everybody: calls, look-ups.
    *(subjects.ALL_INBOXES, subjects.ALL_PINNED_INBOXES, subjects.ALL_CANCELS),
    *(subjects.ALL_LOOKUPS, subjects.REGISTRY_LIST),
    *(f"{_READ}.{streams.REGISTRY}", f"{_READ}.{streams.REPLY}"),
    # What fits into no message, for whoever it is, and the end of it: its number is the secret,
    # and who knows that could as well write something else over it.
    *(subjects.ALL_PARCELS, subjects.ALL_DISCARDS),
    # Who speaks for a node.
    f"registry.heartbeat.{_NODE}.*",
    # Who is an agent.
    f"registry.announce.{_AGENT}.{_NODE}",
    f"registry.withdraw.{_AGENT}",
    f"agent.{_AGENT}.event.>",
    f"dead.{_AGENT}",
    f"agent.{_AGENT}.reply",
    f"agent.*.reply.*.*.{_AGENT}",
    f"agent.{_AGENT}.reply.*.*.*",
    f"{subjects.PULL}.{streams.INBOX}.{_AGENT}",
    f"{_ACK}.{streams.INBOX}.{_AGENT}.>",
    f"{subjects.PULL}.{streams.INBOX}.{_AGENT}@{_NODE}",
    f"{_ACK}.{streams.INBOX}.{_AGENT}@{_NODE}.>",
    f"{_READ}.{streams.REPLY}.agent.{_AGENT}.reply.>",
    f"{_READ}.{streams.REPLY}.agent.*.reply.*.*.{_AGENT}",
    # Its subscriptions. A durable's name is one token: each one is a tag.
    f"{subjects.PULL}.{streams.EVENT}.{_SUBSCRIPTION}",
    f"{_ACK}.{streams.EVENT}.{_SUBSCRIPTION}.>",
    # Who calls under a name.
    f"agent.{_CALLER}.reply.*.*.*",
    f"{_READ}.{streams.REPLY}.agent.{_CALLER}.reply.>",
    *(f"{_READ}.{streams.BODIES}.body.{one}.*.*" for one in (_AGENT, _CALLER)),
    *(f"registry.history.{one}" for one in (_AGENT, _CALLER)),
    *(f"registry.waiting.{one}" for one in (_AGENT, _CALLER)),
)
MEMBER_SUBSCRIBE: Final = (
    f"_INBOX_{_USER}.>",
    subjects.REGISTRY_EVENTS,
    subjects.ELECTION_ADVISORIES,
    f"delivered.{_AGENT}.>",
    f"delivered.{_CALLER}.>",
)

JOINER_PUBLISH: Final = (f"registry.join.{_USER}",)
JOINER_SUBSCRIBE: Final = (f"_INBOX_{_USER}.>",)


@dataclass(frozen=True, slots=True)
class Grant:
    """What one user may do, and as whom."""

    node: str = ""
    """The node that it speaks for."""
    agents: tuple[str, ...] = ()
    """The agents that it may run there."""
    subscriptions: tuple[str, ...] = ()
    """The durables of the events that they may hear."""
    callers: tuple[str, ...] = ()
    """The names under which it may call, beside those of its agents."""

    @classmethod
    def of_tags(cls, tags: Iterable[str]) -> "Grant":
        """Read what a token says."""
        found = defaultdict[str, list[str]](list)
        for tag in tags:
            kind, _, value = tag.partition(":")
            found[kind].append(value)
        return cls(
            node="".join(found["node"][:1]),
            agents=tuple(found["agent"]),
            subscriptions=tuple(found["on"]),
            callers=tuple(found["caller"]),
        )

    @property
    def tags(self) -> list[str]:
        """How a token says so."""
        node = [f"node:{self.node}"] if self.node else []
        named = {"agent": self.agents, "on": self.subscriptions, "caller": self.callers}
        return node + [f"{tag}:{one}" for tag, values in named.items() for one in values]

    @property
    def speakers(self) -> frozenset[str]:
        """Everybody in whose name it may ask."""
        return frozenset((*self.agents, *self.callers))
