"""The subjects of the mesh: the only place where one is built or taken apart.

Every builder checks its ids first, so no id can become two tokens or a wildcard.
Does not publish or subscribe; the streams that capture these subjects are in `mesh.streams`.
"""

import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mesh.errors import InvalidIdError, InvalidInputError
from schemas.base import ID_PATTERN, ID_RULE, is_id

ALL_INBOXES: Final = "agent.*.inbox"
ALL_PINNED_INBOXES: Final = "agent.*.inbox.*"
ALL_BARE_REPLIES: Final = "agent.*.reply"
ALL_REPLIES: Final = "agent.*.reply.>"
ALL_CANCELS: Final = "agent.*.cancel.*"
ALL_EVENTS: Final = "agent.*.event.>"
ALL_ANNOUNCEMENTS: Final = "registry.announce.*.*"
ALL_WITHDRAWALS: Final = "registry.withdraw.*"
ALL_HEARTBEATS: Final = "registry.heartbeat.*.*"
ALL_LOOKUPS: Final = "registry.get.*"
ALL_HISTORIES: Final = "registry.history.*"
ALL_WAITING: Final = "registry.waiting.*"
ALL_DISCARDS: Final = "registry.discard.*.*"
ALL_JOINS: Final = "registry.join.*"
REGISTRY_LIST: Final = "registry.list"
REGISTRY_EVENTS: Final = "registry.event.>"
ALL_DELIVERED: Final = "delivered.>"
ALL_INSTANCE_EVENTS: Final = "registry.event.instance.*"
ALL_DEAD: Final = "dead.*"
MAX_DELIVERIES_ADVISORIES: Final = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.INBOX.*"
TERMINATED_ADVISORIES: Final = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.INBOX.*"
ELECTION_ADVISORIES: Final = "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.*"
PULL: Final = "$JS.API.CONSUMER.MSG.NEXT"

ALL_PRESENCE: Final = "presence.heartbeat.*"
PRESENCE_EVENTS: Final = "presence.event.>"
REGISTRY_BUCKET: Final = "registry"
ACCESS_BUCKET: Final = "access"
PRESENCE_BUCKET: Final = "presence"
BODIES_BUCKET: Final = "bodies"
ALL_BODY_CHUNKS: Final = f"$O.{BODIES_BUCKET}.C.>"
ALL_BODY_METAS: Final = f"$O.{BODIES_BUCKET}.M.>"
ALL_PARCELS: Final = "body.*.*.*"
ANY_INSTANCE: Final = "any"
"""Stands for the process in the reply subject of an idempotent call: every replica of a caller
must find the same ledger."""
INVALID_AGENT: Final = "invalid-id"
"""Stands for a token that is no id, in the subjects of dead letters."""

_CALL: Final = r"[A-Za-z0-9_-]{1,64}"
CALL_PATTERN: Final = re.compile(_CALL)
_ID: Final = ID_PATTERN.pattern
_REPLY_PATTERN: Final = re.compile(rf"agent\.{_ID}\.reply(\.{_CALL}\.{_CALL}(\.{_ID})?)?")
_INBOX_PATTERN: Final = re.compile(r"_INBOX[\w-]{0,64}(\.[\w$=+-]{1,64}){1,8}", re.ASCII)
"""Bounded: a subject over the broker's control line closes a nats-py client for ever."""
_UPLOAD: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PARCEL: Final = r"[0-9a-f]{32}"
_PARCEL_PATTERN: Final = re.compile(rf"body\.{_ID}\.{_PARCEL}")
_USER_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,400}")
_EVENT_PATTERN: Final = re.compile(r"[a-z0-9_-]{1,64}(\.[a-z0-9_-]{1,64}){0,3}")


def require_id(text: str, what: str = "agent") -> str:
    """Return `text` when it is a valid id.

    Raises:
        InvalidIdError: it is not. `value` is cut to 80 characters.
    """
    if isinstance(text, str) and is_id(text):
        return text
    shown = str(text)[:80]
    raise InvalidIdError(
        f"{shown!r} is not a valid {what} id: use {ID_RULE}", value=shown, field=what
    )


def _require_call(call_id: str) -> str:
    if CALL_PATTERN.fullmatch(call_id):
        return call_id
    raise InvalidInputError(f"{call_id[:80]!r} is not a call id", field="call_id")


def inbox(agent: str, node: str | None = None) -> str:
    """Requests to any instance of `agent`, or to the one on `node`."""
    subject = f"agent.{require_id(agent)}.inbox"
    return f"{subject}.{require_id(node, 'node')}" if node else subject


def reply(caller: str, instance: str, call_id: str, agent: str) -> str:
    """Frames with which `agent` answers one call of one process of `caller`.

    The last token is who answers: with accounts, the broker lets nobody else write there, and
    lets an agent read back only what it wrote.
    """
    tail = f"{_require_call(instance)}.{_require_call(call_id)}.{require_id(agent)}"
    return f"agent.{require_id(caller, 'caller')}.reply.{tail}"


def any_reply(call_id: str, callers: Iterable[str] = ("*",)) -> tuple[str, ...]:
    """Return what matches the frames of a call, whoever made it: with who answers, and without.

    With `callers`, of theirs.

    Raises:
        InvalidInputError: it cannot be a call id.
    """
    tail = f"reply.*.{_require_call(call_id)}"
    return tuple(f"agent.{one}.{tail}{end}" for one in callers for end in (".*", ""))


def any_idempotent_reply(caller: str, call_id: str) -> str:
    """Return what matches the frames of an idempotent call of `caller`, whoever answers it."""
    call = f"{ANY_INSTANCE}.{_require_call(call_id)}"
    return f"agent.{require_id(caller, 'caller')}.reply.{call}.*"


def answering_agent(reply_subject: str) -> str:
    """Return who answers on a reply subject; empty where it does not say."""
    tokens = reply_subject.split(".")
    return tokens[5] if len(tokens) > 5 else ""


def bare_reply(agent: str) -> str:
    """Answers to messages that named no reply subject."""
    return f"agent.{require_id(agent)}.reply"


def delivered(caller: str, instance: str) -> str:
    """What a calling process subscribes to: its stored frames, republished by the reply stream."""
    return f"delivered.{require_id(caller, 'caller')}.reply.{_require_call(instance)}.>"


def replies_to(caller: str) -> str:
    """Everything that is answered to `caller`, but for bare messages."""
    return f"agent.{require_id(caller, 'caller')}.reply.>"


def cancel(agent: str, call_id: str) -> str:
    """Stops one call."""
    return f"agent.{require_id(agent)}.cancel.{_require_call(call_id)}"


def delivered_cancels(agent: str) -> str:
    """What a process that hosts `agent` subscribes to: cancels, once they are stored."""
    return f"delivered.{require_id(agent)}.cancel.*"


def event(agent: str, name: str) -> str:
    """An event of `agent`. `name` has up to four tokens.

    Raises:
        InvalidInputError: the name is not one.
    """
    return f"agent.{require_id(agent)}.event.{require_event_name(name)}"


def require_event_name(name: str) -> str:
    """Return `name` when it can name an event.

    Raises:
        InvalidInputError: it cannot.
    """
    if _EVENT_PATTERN.fullmatch(name):
        return name
    raise InvalidInputError(
        f"{name[:80]!r} is not an event name: use up to four tokens of a-z, 0-9, '-' and '_', "
        "with dots between them",
        field="event",
    )


def event_filter(source: str, name: str) -> str:
    """The events of `source` called `name`; either may be `*`, for any."""
    agent = source if source == "*" else require_id(source)
    tail = ">" if name == "*" else require_event_name(name)
    return f"agent.{agent}.event.{tail}"


def announce(agent: str, node: str) -> str:
    """A host on `node` announces an agent."""
    return f"registry.announce.{require_id(agent)}.{require_id(node, 'node')}"


def withdraw(agent: str) -> str:
    """A host stops an agent."""
    return f"registry.withdraw.{require_id(agent)}"


def heartbeat(node: str, instance: str) -> str:
    """A process on `node` is alive."""
    return f"registry.heartbeat.{require_id(node, 'node')}.{_require_call(instance)}"


def open_requests(instance: str) -> str:
    """Asks a process which requests it has taken and not settled."""
    return f"registry.open.{_require_call(instance)}"


def history(caller: str) -> str:
    """Reads of what was answered to `caller`, behind an account boundary."""
    return f"registry.history.{require_id(caller, 'caller')}"


def waiting(caller: str) -> str:
    """Asks whether a request of `caller` is still in a mailbox, behind an account boundary."""
    return f"registry.waiting.{require_id(caller, 'caller')}"


def join(invite: str) -> str:
    """Requests of a machine that was invited."""
    return f"registry.join.{require_id(invite, 'invite')}"


def presence_heartbeat(user_token: str) -> str:
    """A client of a person says how it is; the token is the user id in base64url."""
    if not _USER_TOKEN.fullmatch(user_token):
        raise InvalidInputError(f"{user_token[:80]!r} is no user's token", field="user")
    return f"presence.heartbeat.{user_token}"


def body_chunks(upload: str) -> str:
    """The chunks of one upload to the object store, as NATS ADR-20 lays it out.

    Raises:
        InvalidInputError: this is no upload's id.
    """
    if not _UPLOAD.fullmatch(upload):
        raise InvalidInputError(f"{upload[:80]!r} is no upload", field="nuid")
    return f"$O.{BODIES_BUCKET}.C.{upload}"


def body_meta(name: str) -> str:
    """What the object store says of the object `name`: in base64url, so any name is one token."""
    return f"$O.{BODIES_BUCKET}.M.{urlsafe_b64encode(name.encode()).decode()}"


def parcel(reader: str, nuid: str) -> str:
    """What lies behind an account boundary for `reader`: its chunks are one token below.

    A `nuid` is 128 random bits in hexadecimal; who knows it can read, overwrite and discard.

    Raises:
        InvalidIdError: the reader is no id.
        InvalidInputError: this is no such number.
    """
    return require_parcel(f"body.{require_id(reader, 'reader')}.{nuid}")


def require_parcel(name: str) -> str:
    """Return `name` when it is that of a parcel.

    Raises:
        InvalidInputError: it is not.
    """
    if is_parcel(name):
        return name
    raise InvalidInputError(f"{name[:120]!r} is no body of a secure mesh", field="body")


def is_parcel(name: str) -> bool:
    """Tell whether a claim's name is that of a parcel; no object of an open mesh has such a one."""
    return _PARCEL_PATTERN.fullmatch(name) is not None


def reader_of(name: str) -> str:
    """Return for whom a parcel is. Raises what `require_parcel` raises."""
    return require_parcel(name).split(".")[1]


def parcel_chunk(name: str, place: int) -> str:
    """One chunk of a parcel, counted from 0. Raises what `require_parcel` raises."""
    return f"{require_parcel(name)}.{place}"


def parcel_chunks(name: str) -> str:
    """All chunks of a parcel. Raises what `require_parcel` raises."""
    return f"{require_parcel(name)}.*"


def discard(name: str) -> str:
    """Asks the control plane to remove a parcel. Raises what `require_parcel` raises."""
    _, reader, nuid = require_parcel(name).split(".")
    return f"registry.discard.{reader}.{nuid}"


def lookup(agent: str) -> str:
    """Asks the registrar about one agent."""
    return f"registry.get.{require_id(agent)}"


def dead(agent: str) -> str:
    """Requests to `agent` that could not be answered."""
    return f"dead.{agent if is_id(agent) else INVALID_AGENT}"


@dataclass(frozen=True, slots=True)
class InboxSubject:
    """An inbox subject taken apart. The tokens are as they came: raw publishers check nothing."""

    agent: str
    node: str | None

    @property
    def is_valid(self) -> bool:
        """Whether the tokens are ids: then an agent can have this mailbox."""
        return is_id(self.agent) and (self.node is None or is_id(self.node))

    def __str__(self) -> str:
        tail = f".{self.node}" if self.node else ""
        return f"agent.{self.agent}.inbox{tail}"


def parse_inbox(subject: str) -> InboxSubject:
    """Take an inbox subject apart.

    Raises:
        InvalidInputError: it is no inbox subject.
    """
    tokens = subject.split(".")
    if len(tokens) in (3, 4) and tokens[0] == "agent" and tokens[2] == "inbox":
        return InboxSubject(agent=tokens[1], node=tokens[3] if len(tokens) == 4 else None)
    raise InvalidInputError(f"{subject[:120]!r} is not an inbox subject", field="subject")


def parse_election(subject: str) -> str:
    """Return the stream that an election advisory is about."""
    return subject.rpartition(".")[2]


def is_reply(subject: str) -> bool:
    """Tell whether a request may ask for its answer on `subject`.

    Anything else in a `reply_to` header would let a caller make an agent publish where the
    caller itself may not.
    """
    return _REPLY_PATTERN.fullmatch(subject) is not None


def may_answer_on(subject: str, agent: str) -> bool:
    """Tell whether `agent` may be asked to answer on `subject`: not in another agent's name."""
    tokens = subject.split(".")
    return is_reply(subject) and (len(tokens) < 6 or tokens[5] == agent)


def is_reply_to(subject: str, caller: str) -> bool:
    """Tell whether `subject` is a reply subject of `caller`, and of nobody else."""
    return is_reply(subject) and subject.split(".")[1] == caller


def is_own_reply(pattern: str, caller: str) -> bool:
    """Tell whether all that a pattern matches are replies to `caller`."""
    return is_id(caller) and pattern.startswith(f"agent.{caller}.reply.")


def caller_of(reply_pattern: str) -> str:
    """Return to whom the replies go that a pattern matches."""
    return reply_pattern.split(".")[1]


def as_delivered(stored: str) -> str:
    """Return where the reply stream republishes what it has stored under `stored`."""
    return f"delivered.{stored.removeprefix('agent.')}"


def is_inbox_reply(subject: str) -> bool:
    """Tell whether `subject` is a core NATS inbox, which nothing stores."""
    return _INBOX_PATTERN.fullmatch(subject) is not None
