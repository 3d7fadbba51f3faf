"""The streams, buckets and durables of the mesh, declared in one place.

The reasons of the settings stand beside them; the subjects are in `mesh.subjects`. Talks to no
broker: `mesh.provision` creates and compares.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace as evolve
from typing import Any, Final

from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RePublish,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamSource,
    SubjectTransform,
)

from mesh import subjects
from mesh.settings import Settings

INBOX: Final = "INBOX"
REPLY: Final = "REPLY"
CONTROL: Final = "CONTROL"
EVENT: Final = "EVENT"
ADVISORY: Final = "ADVISORY"
DEAD: Final = "DEAD"
AUDIT: Final = "AUDIT"
REGISTRY: Final = f"KV_{subjects.REGISTRY_BUCKET}"
ACCESS: Final = f"KV_{subjects.ACCESS_BUCKET}"
PRESENCE: Final = f"KV_{subjects.PRESENCE_BUCKET}"
BODIES: Final = f"OBJ_{subjects.BODIES_BUCKET}"

DAY_S: Final = 86_400.0
GIB: Final = 1024**3
MAX_CONSUMERS: Final = 100_000
"""Without a number of ours the server accepts 1000 durables, and refuses with 10026 after."""

UPLOAD_S: Final = 3_600.0
"""An upload is over by then, or is given up."""
REPLY_DEDUPE_S: Final = 120.0
"""No terminal frame may live shorter, or its call could be answered a second time."""

ACK_BACKOFF_S: Final = (10.0, 10.0, 20.0, 40.0)
"""Waits between deliveries; the first is the ack_wait, so a handler says it is alive every 3 s."""
MAX_DELIVER: Final = 6
GROUP_MOST: Final = 100
"""Agents that share a durable. Taking one out costs the server 0.1 s with 100, and 1.3 s with 1000;
one hub holds some 2000 durables well, for it compares each new one with all others, and all with
each other when it starts."""
GROUP_MARK: Final = "@"
"""Begins the names of shared durables: no id does."""
GROUP_ACK_PENDING: Final = 20_000
"""What its agents may have in work, all together: JetStream would stop at 1000."""
MAX_WAITING: Final = 512
"""JetStream's default, stated: a foreign durable made without it could never be updated."""

REGISTRAR_ANNOUNCE: Final = "registrar-announce"
REGISTRAR_WITHDRAW: Final = "registrar-withdraw"
CANCEL: Final = "cancel"
EXHAUSTED: Final = "dead-exhausted"
TERMINATED: Final = "dead-terminated"


def stream_configs(settings: Settings, *, is_secure: bool = False) -> list[StreamConfig]:
    """Return every stream of the mesh as it should be, of an open one or a secure one."""
    return [
        _mailboxes(settings),
        _replies(settings),
        _stream(
            CONTROL,
            [
                subjects.ALL_CANCELS,
                subjects.ALL_ANNOUNCEMENTS,
                subjects.ALL_WITHDRAWALS,
            ],
            settings,
            max_age=600.0,
            max_bytes=GIB // 4,
            duplicate_window=120.0,
            # A cancel that is heard is a cancel that is stored, as with replies.
            republish=RePublish(
                src=subjects.ALL_CANCELS, dest="delivered.{{wildcard(1)}}.cancel.{{wildcard(2)}}"
            ),
        ),
        _stream(
            EVENT,
            [subjects.ALL_EVENTS],
            settings,
            max_age=7 * DAY_S,
            max_bytes=4 * GIB,
            max_consumers=MAX_CONSUMERS,
        ),
        _stream(
            ADVISORY,
            [subjects.MAX_DELIVERIES_ADVISORIES, subjects.TERMINATED_ADVISORIES],
            settings,
            max_age=14 * DAY_S,
            max_bytes=GIB // 4,
        ),
        _stream(
            DEAD,
            [subjects.ALL_DEAD],
            settings,
            max_age=14 * DAY_S,
            max_bytes=2 * GIB,
            duplicate_window=600.0,
        ),
        _registry(settings),
        _access(settings),
        _presence(settings),
        _bodies(settings, is_secure=is_secure),
        _audit(settings),
    ]


def _mailboxes(settings: Settings) -> StreamConfig:
    """Requests: a work queue, bounded for each agent."""
    return _stream(
        INBOX,
        [subjects.ALL_INBOXES, subjects.ALL_PINNED_INBOXES],
        settings,
        retention=RetentionPolicy.WORK_QUEUE,
        # A full mailbox refuses its own callers, and nobody else's.
        discard=DiscardPolicy.NEW,
        discard_new_per_subject=True,
        max_msgs_per_subject=settings.mailbox_max,
        max_age=DAY_S,
        max_bytes=8 * GIB,
        duplicate_window=600.0,
        # The deadline in the broker. No delete markers: with more than one message a
        # subject, they silently lengthen shorter TTLs to their own.
        allow_msg_ttl=True,
        max_consumers=MAX_CONSUMERS,
    )


def _replies(settings: Settings) -> StreamConfig:
    """Frames: kept for a while, and republished to whoever waits."""
    return _stream(
        REPLY,
        [subjects.ALL_BARE_REPLIES, subjects.ALL_REPLIES],
        settings,
        max_age=DAY_S,
        max_bytes=8 * GIB,
        duplicate_window=REPLY_DEDUPE_S,
        allow_msg_ttl=True,
        allow_direct=True,
        # A reply that is seen is a reply that is stored: callers hear only this.
        republish=RePublish(src="agent.*.>", dest="delivered.{{wildcard(1)}}.>"),
    )


def _audit(settings: Settings) -> StreamConfig:
    """Streams do not capture republished messages, so the history is a source, not a subject."""
    return _stream(
        AUDIT,
        None,
        settings,
        max_age=14 * DAY_S,
        max_bytes=GIB // 2,
        sources=[
            StreamSource(
                name=REGISTRY,
                subject_transforms=[
                    SubjectTransform(src="$KV.registry.>", dest="audit.registry.>")
                ],
            )
        ],
    )


def _stream(
    name: str, captured: list[str] | None, settings: Settings, **options: Any
) -> StreamConfig:
    options.setdefault("retention", RetentionPolicy.LIMITS)
    return StreamConfig(
        name=name,
        subjects=captured,
        storage=StorageType.FILE,
        num_replicas=settings.replicas,
        **options,
    )


def _registry(settings: Settings) -> StreamConfig:
    """The registry bucket."""
    return _bucket(
        REGISTRY,
        subjects.REGISTRY_BUCKET,
        settings,
        max_bytes=GIB // 4,
        # An expired instance leaves a marker, which is what watchers see.
        **_MARKED,
        republish=RePublish(src="$KV.registry.>", dest="registry.event.>"),
    )


def _access(settings: Settings) -> StreamConfig:
    """The API keys: a bucket like the others, but nothing of it is ever broadcast.

    Every door reads the key of a request, and none goes to the leader for it.
    """
    return _bucket(ACCESS, subjects.ACCESS_BUCKET, settings, max_bytes=GIB // 64)


def _presence(settings: Settings) -> StreamConfig:
    """Who of the people is there: written every 30 s by each of their clients."""
    return _bucket(
        PRESENCE,
        subjects.PRESENCE_BUCKET,
        settings,
        max_bytes=GIB // 16,
        **_MARKED,
        republish=RePublish(src="$KV.presence.>", dest="presence.event.>"),
    )


def _bodies(settings: Settings, *, is_secure: bool) -> StreamConfig:
    """An object store, as NATS ADR-20 lays one out: bodies and files that fit into no message.

    Behind an account boundary they lie in it as parcels, under who will read them.
    """
    parcels = [subjects.ALL_PARCELS] if is_secure else []
    return _stream(
        BODIES,
        [subjects.ALL_BODY_CHUNKS, subjects.ALL_BODY_METAS, *parcels],
        settings,
        # Full, it refuses new ones, and never cuts one that somebody has a claim on.
        discard=DiscardPolicy.NEW,
        # Uploaded before the request that needs it, which lives for a day at most.
        max_age=DAY_S + UPLOAD_S,
        max_bytes=3 * GIB,
        duplicate_window=120.0,
        # Those of answers live as long as their frames.
        allow_msg_ttl=True,
        allow_direct=True,
        # Ours are never overwritten; the `nats` command and nats-py ask for it. Where members
        # publish, `Nats-Rollup: all` on a chunk would erase what is everybody's.
        allow_rollup_hdrs=not is_secure,
    )


_MARKED: Final[Mapping[str, Any]] = {"allow_msg_ttl": True, "subject_delete_marker_ttl": 60.0}


def _bucket(name: str, bucket: str, settings: Settings, **options: Any) -> StreamConfig:
    """A KV bucket, as NATS ADR-8 lays one out."""
    return _stream(
        name,
        [f"$KV.{bucket}.>"],
        settings,
        discard=DiscardPolicy.NEW,
        max_msgs_per_subject=1,
        allow_direct=True,
        allow_rollup_hdrs=True,
        deny_delete=True,
        duplicate_window=120.0,
        **options,
    )


def control_consumers() -> list[tuple[str, ConsumerConfig]]:
    """Return the durables of the control plane, with their streams."""
    return [
        (CONTROL, _worker(REGISTRAR_ANNOUNCE, subjects.ALL_ANNOUNCEMENTS)),
        (CONTROL, _worker(REGISTRAR_WITHDRAW, subjects.ALL_WITHDRAWALS)),
        (CONTROL, _worker(CANCEL, subjects.ALL_CANCELS)),
        (ADVISORY, _worker(EXHAUSTED, subjects.MAX_DELIVERIES_ADVISORIES)),
        (ADVISORY, _worker(TERMINATED, subjects.TERMINATED_ADVISORIES)),
    ]


def _worker(durable: str, captured: str | None = None, **options: Any) -> ConsumerConfig:
    options.setdefault("backoff", list(ACK_BACKOFF_S))
    return ConsumerConfig(
        durable_name=durable,
        filter_subject=captured,
        ack_policy=AckPolicy.EXPLICIT,
        max_deliver=MAX_DELIVER,
        max_waiting=MAX_WAITING,
        **options,
    )


def group_name(agents: Iterable[str]) -> str:
    """Name a durable that these agents share: every replica of their process says the same."""
    digest = hashlib.sha256("\n".join(sorted(agents)).encode()).hexdigest()
    return f"{GROUP_MARK}{digest[:16]}"


def is_group(durable: str) -> bool:
    """Tell whether several agents share a durable of the stream of mailboxes."""
    return durable.startswith(GROUP_MARK)


def group_consumer(group: str, agents: Iterable[str]) -> ConsumerConfig:
    """Return the durable that some agents share for what any of their processes may take.

    Agents may be taken out of it, see `without`, but never put into it: of a subject that is added
    later, JetStream does not deliver what is stored before the durable's place (2.15.1).
    """
    # The name of the group stands in for an agent, so that all others can leave.
    captured = [f"agent.{group}.inbox", *sorted(map(subjects.inbox, agents))]
    return _worker(group, filter_subjects=captured, max_ack_pending=GROUP_ACK_PENDING)


def without(config: ConsumerConfig, agents: Iterable[str]) -> ConsumerConfig:
    """Return the durable of a group without some of its agents."""
    gone = set(map(subjects.inbox, agents))
    kept = [one for one in config.filter_subjects or () if one not in gone]
    return evolve(config, filter_subjects=kept)


def pinned_durable(agent: str, node: str) -> str:
    """Name the durable of an agent's work that is bound to one node."""
    return f"{agent}@{node}"


def durable(agent: str, node: str | None) -> str:
    """Name the durable of a mailbox."""
    return pinned_durable(agent, node) if node else agent


def event_durable(agent: str, source: str, name: str) -> str:
    """Name the durable of an agent's subscription. Characters that no id has keep it apart."""
    readable = f"{source}={name}".replace(".", "=").replace("*", "+")
    return f"{agent}@on={readable}"


def mailbox_consumers(agent: str, node: str) -> list[tuple[str, ConsumerConfig]]:
    """Return the durables of an agent that shares none: its mailbox, and its share of a node."""
    return [(INBOX, _worker(agent, subjects.inbox(agent))), pinned_consumer(agent, node)]


def pinned_consumer(agent: str, node: str) -> tuple[str, ConsumerConfig]:
    """Return the durable of an agent's work that is bound to one node."""
    return INBOX, _worker(pinned_durable(agent, node), subjects.inbox(agent, node))


def event_consumers(
    agent: str, events: Iterable[tuple[str, str]]
) -> list[tuple[str, ConsumerConfig]]:
    """Return the durables of an agent's subscriptions: none gets a week of old events at first."""
    return [
        (
            EVENT,
            _worker(
                event_durable(agent, source, name),
                subjects.event_filter(source, name),
                deliver_policy=DeliverPolicy.NEW,
            ),
        )
        for source, name in events
    ]
