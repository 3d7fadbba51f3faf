"""Who of the people is there: a bucket of what their clients last said, and what that means now.

Each tab of a browser is a client. A person is online as long as one of the tabs is; away when
nobody has touched any for five minutes; offline when all are closed, hidden, or silent. No timer
runs for that: a reader works it out of the times at which the broker has stored what was said.
"""

import base64
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from nats.aio.msg import Msg

from mesh import codec, registry, subjects
from mesh import headers as h
from mesh.clock import BrokerClock
from mesh.connection import Connection
from mesh.errors import BrokerUnreachableError, ProtocolError, TransportError
from mesh.history import is_stored_under, iso_time, read_history
from mesh.streams import PRESENCE
from schemas.presence import (
    PersonView,
    PresenceHeartbeat,
    PresenceReceipt,
    PresenceState,
    PresenceStatus,
)

logger = logging.getLogger(__name__)

SILENT_S: Final = 90.0
"""Browsers let a hidden tab run once a minute: three heartbeats of 30 s, and it is gone."""
AWAY_S: Final = 300.0
KEPT_S: Final = 86_400.0
"""For so long somebody is shown as offline, and when last seen."""
MAX_CLIENTS: Final = 20
"""Of one person; the one that is silent for the longest makes room."""
ASK_S: Final = 2.0
_KEY: Final = f"$KV.{subjects.PRESENCE_BUCKET}."
_EVENT: Final = "presence.event."
_RANK: Final = {PresenceState.OFFLINE: 0, PresenceState.AWAY: 1, PresenceState.ONLINE: 2}


@dataclass(frozen=True, slots=True)
class Client:
    """What a client of a person last said, and when the broker stored it."""

    said: PresenceHeartbeat
    stored_ns: int

    def state(self, age_s: float) -> PresenceState:
        """Return what it means `age_s` seconds later."""
        if self.said.status is PresenceStatus.OFFLINE or age_s > SILENT_S:
            return PresenceState.OFFLINE
        is_idle = self.said.idle_ms / 1_000 + age_s >= AWAY_S
        if self.said.status is PresenceStatus.UNAVAILABLE or is_idle:
            return PresenceState.AWAY
        return PresenceState.ONLINE


class People:
    """What the bucket holds. Who is how, is asked at a moment."""

    def __init__(self, clock: BrokerClock) -> None:
        self._clients: dict[str, dict[str, Client]] = {}
        self._clock = clock

    def apply(self, entry: registry.Entry) -> None:
        """Take in one change of the bucket."""
        user, _, client = entry.key.partition(".")
        known = self._clients.setdefault(user, {})
        known.pop(client, None)
        try:
            if entry.value is not None:
                said = codec.decode(PresenceHeartbeat, entry.value, subject=entry.key)
                known[client] = Client(said, entry.stored_ns)
        except ProtocolError as error:
            logger.warning("the presence bucket holds a bad record: %s", error)
        if not known:
            del self._clients[user]

    def replace(self, entries: Iterable[registry.Entry]) -> None:
        """Take in a full reading."""
        self._clients.clear()
        for entry in entries:
            self.apply(entry)

    def client(self, user: str, client: str) -> Client | None:
        """Return what a client last said."""
        return self._clients.get(user_token(user), {}).get(client)

    def oldest_client(self, user: str) -> str | None:
        """Return which client has to make room for another one, if any has."""
        known = self._clients.get(user_token(user), {})
        if len(known) < MAX_CLIENTS:
            return None
        return min(known, key=lambda one: known[one].stored_ns)

    def is_silent(self, client: Client) -> bool:
        """Tell whether a client has said nothing for so long that it counts as gone."""
        return self._clock.age_s(client.stored_ns) > SILENT_S

    def state_with(self, said: PresenceHeartbeat) -> PresenceState:
        """Return how a person is once this has been said."""
        others = self._clients.get(user_token(said.user), {})
        states = [self._state(one) for name, one in others.items() if name != said.client]
        return max([*states, Client(said, 0).state(0.0)], key=_RANK.__getitem__)

    def views(self) -> list[PersonView]:
        """Return everybody as of now, by id."""
        found = [self._view(list(clients.values())) for clients in self._clients.values()]
        return sorted(found, key=lambda one: one.matrix_user_id)

    def _state(self, client: Client) -> PresenceState:
        return client.state(self._clock.age_s(client.stored_ns))

    def _view(self, clients: list[Client]) -> PersonView:
        newest = max(clients, key=lambda one: one.stored_ns)
        active_ns = max(one.stored_ns - one.said.idle_ms * 1_000_000 for one in clients)
        return PersonView(
            matrix_user_id=newest.said.user,
            state=max(map(self._state, clients), key=_RANK.__getitem__),
            status_msg=newest.said.message,
            last_active=iso_time(active_ns),
            last_seen=iso_time(newest.stored_ns),
        )


def user_token(user: str) -> str:
    """Return a user id as one token of a subject."""
    return base64.urlsafe_b64encode(user.encode()).decode().rstrip("=")


async def say(connection: Connection, said: PresenceHeartbeat) -> PresenceReceipt:
    """Report how a client is.

    Raises:
        BrokerUnreachableError: no control plane answers.
    """
    subject = subjects.presence_heartbeat(user_token(said.user))
    receipt = await registry.ask(connection, subject, said, PresenceReceipt, timeout_s=ASK_S)
    if not receipt.ok:
        raise BrokerUnreachableError(f"presence cannot be kept now: {receipt.message}")
    return receipt


async def keep(connection: Connection, said: PresenceHeartbeat) -> None:
    """Write down how a client is. Only the control plane does.

    Raises:
        TransportError: the broker does not take it.
    """
    key = f"{_KEY}{user_token(said.user)}.{said.client}"
    await connection.publisher.publish(key, codec.encode(said), {h.TTL: h.ttl(KEPT_S)})


async def forget(connection: Connection, user: str, client: str) -> None:
    """Take a client out. Raises what `keep` raises."""
    headers = {registry.OPERATION: registry.DELETED, h.TTL: h.ttl(SILENT_S)}
    await connection.publisher.publish(f"{_KEY}{user_token(user)}.{client}", b"", headers)


async def read_people(connection: Connection, clock: BrokerClock) -> People:
    """Read the bucket once. The clock is that of somebody who hears the broker all the time.

    Raises:
        StreamMissingError: there is none on this broker.
        BrokerUnreachableError: no answer in time.
    """
    people = People(clock)
    await _read(connection, people)
    return people


async def _read(connection: Connection, people: People) -> None:
    stored = await read_history(connection, PRESENCE, f"{_KEY}>")
    people.replace(
        registry.Entry.read(one.subject.removeprefix(_KEY), one.headers, one.body, one.sequence)
        for one in stored
    )


@asynccontextmanager
async def follow_people(connection: Connection, clock: BrokerClock) -> AsyncIterator[People]:
    """Read the bucket, and keep up with its changes until the end.

    Raises what `read_people` raises.
    """
    people = People(clock)

    async def on_event(message: Msg) -> None:
        key, headers = message.subject.removeprefix(_EVENT), message.headers or {}
        # As with the registry: only the bucket's own republish counts.
        if is_stored_under(headers, PRESENCE, _KEY + key):
            revision = int(headers.get(h.SEQUENCE, 0))
            people.apply(registry.Entry.read(key, headers, message.data, revision))

    async def read_again() -> None:
        try:
            await _read(connection, people)
        except TransportError as error:
            logger.warning("reading who is present again: %s", error)

    subscription = await connection.client.subscribe(subjects.PRESENCE_EVENTS, cb=on_event)
    connection.on_reconnect(read_again)
    try:
        await _read(connection, people)
        yield people
    finally:
        connection.drop_hook(read_again)
        if not connection.client.is_closed:
            await subscription.unsubscribe()
