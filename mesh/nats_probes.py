"""Tries the ways that go over NATS: mailboxes, the registrar, heartbeats, JetStream, the broker.

Each try returns an outcome, or raises what its transport raises; `mesh.probes` sets the limits and
reads those errors. Latency is counted there, too.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from time import perf_counter
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh import codec, subjects
from mesh import headers as h
from mesh.client import MeshClient
from mesh.completions import read_reply
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.errors import (
    AgentBusyError,
    BrokerUnreachableError,
    MailboxFullError,
    MeshError,
    ProtocolError,
    RegistryError,
)
from mesh.history import read_history
from mesh.nats_client import is_guarded
from mesh.pings import PONG
from mesh.questions import encode_question
from mesh.registry import KEY_PREFIX, instance_key
from mesh.streams import INBOX, REGISTRY
from mesh.uplink import ask_hub
from schemas.probe import Outcome, ProbeState
from schemas.registry import AgentView, RegistryView, State

PING_GRACE_S: Final = 1.0
"""How much longer than the limit a ping lies in a mailbox: who asks why it does finds it there."""
LOOK_S: Final = 0.5

_STREAM_INFO: Final = "$JS.API.STREAM.INFO."
_CONSUMER_INFO: Final = "$JS.API.CONSUMER.INFO."
_CONTROL_FIX: Final = "start a control plane: mesh up control"
_HOST_FIX: Final = "look at its process: stopped, or its event loop is blocked; or restart it"
_OF_THE_HUB: Final = Outcome(
    state=ProbeState.NOT_TRIED,
    detail="these credentials may not look at the mailboxes: `mesh check` at the hub does",
)


def ok(detail: str = "", latency_ms: float | None = None) -> Outcome:
    """Make the outcome of a way that works."""
    return Outcome(state=ProbeState.OK, detail=detail, latency_ms=latency_ms)


def failed(detail: str, fix: str = "") -> Outcome:
    """Make the outcome of a way that does not work."""
    return Outcome(state=ProbeState.FAILED, detail=detail, fix=fix)


def answered(text: str) -> Outcome:
    """Make the outcome of a ping with an answer: a handler that ran is no pong, but an answer."""
    if text == PONG:
        return ok()
    return Outcome(
        state=ProbeState.OK,
        detail="its handler ran: what hosts it does not know pings",
        fix="update the process that hosts it",
    )


class Mailboxes:
    """What stands in mailboxes before the pings of one connection test."""

    def __init__(self, connection: Connection, directory: Directory, limit_s: float) -> None:
        self._connection = connection
        self._directory = directory
        self._limit_s = limit_s
        self._pings: Counter[str] = Counter()
        """Ours without an answer, by durable."""
        self._late: list[asyncio.Task[Outcome]] = []

    async def close(self) -> None:
        """Give up what was not answered. Not before: what is given up leaves its mailbox, and who
        looks at it next would count wrong.
        """
        for one in self._late:
            one.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def ping(
        self, agent: str, node: str | None, answer: Coroutine[Any, Any, Outcome]
    ) -> Outcome:
        """Wait for the answer of a ping, and find out why there is none."""
        durable = self._directory.durable(agent, node)
        self._pings[durable] += 1
        waiting = asyncio.create_task(answer)
        try:
            async with asyncio.timeout(self._limit_s):
                outcome = await asyncio.shield(waiting)
        except TimeoutError:
            if is_guarded(self._connection.client):
                return _timeout(f"no answer within {self._limit_s:g} s", _HOST_FIX)
            return await self._explain(durable, is_pinned=node is not None)
        finally:
            self._late.append(waiting)
        # Only now: one that is late still lies there.
        self._pings[durable] -= 1
        return outcome

    async def _explain(self, durable: str, *, is_pinned: bool) -> Outcome:
        late = f"no answer within {self._limit_s:g} s"
        try:
            info = await _api(self._connection, f"{_CONSUMER_INFO}{INBOX}.{durable}", LOOK_S)
        except (MeshError, nats.errors.Error, TimeoutError) as error:
            return _timeout(f"{late}; its mailbox cannot be looked into: {error}")
        waiting, taken = int(info["num_pending"]), int(info["num_ack_pending"])
        pings = self._pings[durable]
        if not info["num_waiting"] and waiting + taken > pings:
            return Outcome(
                state=ProbeState.BUSY,
                detail=f"no slot is free: {taken} in work, {max(0, waiting - pings)} waiting",
                fix="wait, raise its concurrency, or run it once more",
            )
        if taken:
            return _timeout(f"{late}, though a process took the ping", _HOST_FIX)
        if waiting and is_pinned:
            fix = "a FastStream agent must subscribe to agent.<id>.inbox.<node>, too"
            return _timeout(f"{late}: nobody pulls from its mailbox on this node", fix)
        if waiting:
            return _timeout(f"{late}: nobody pulls from its mailbox", _HOST_FIX)
        return _timeout(late, _HOST_FIX)


class NatsProbes:
    """The tries of one connection test that go over NATS."""

    def __init__(self, client: MeshClient, connection: Connection, limit_s: float) -> None:
        self._client = client
        self._connection = connection
        self._limit_s = limit_s

    async def ping(self, agent: str, node: str | None) -> Outcome:
        """Send a ping into a mailbox, and read its answer."""
        body = encode_question(agent, "ping", stream=False)
        deadline_s = self._limit_s + PING_GRACE_S
        try:
            call = await self._client.start(
                agent, body, node=node, timeout_s=deadline_s, is_ping=True
            )
            frame = await call.result()
        except (AgentBusyError, MailboxFullError) as error:
            return Outcome(state=ProbeState.BUSY, detail=error.message, fix="wait, and try again")
        return answered(read_reply(frame).text)

    async def lookup(self, agent: str) -> Outcome:
        """Ask the registrar about an agent."""
        answer = await self._ask_registrar(subjects.lookup(agent))
        if error := _object(answer).get("error"):
            return failed(f"the registrar says: {error.get('message', error)}")
        view = codec.decode(AgentView, answer.data, subject=answer.subject)
        return ok(f"{view.state.value} on {', '.join(view.nodes)}")

    async def list_registry(self) -> RegistryView:
        """Ask the registrar for the whole registry."""
        answer = await self._ask_registrar(subjects.REGISTRY_LIST)
        return codec.decode(RegistryView, answer.data, subject=answer.subject)

    async def _ask_registrar(self, subject: str) -> Msg:
        try:
            return await self._connection.client.request(subject, timeout=self._limit_s)
        except nats.errors.NoRespondersError:
            raise RegistryError("no registrar listens; start one: mesh up control") from None

    async def broker(self) -> Outcome:
        """Send a message to the broker and hear it.

        Not by a NATS ping: nats-py's `flush` and `rtt` kill its read loop when they time out.
        """
        client = self._connection.client
        if not client.is_connected:
            raise BrokerUnreachableError("not connected to the broker; trying again")
        if is_guarded(client):
            # What it may not publish to itself, it can ask for: a key that is not there.
            await ask_hub(client, self._limit_s)
            return ok(_version(client))
        inbox = client.new_inbox()
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def on_message(message: Msg) -> None:
            if not heard.done():
                heard.set_result(None)

        subscription = await client.subscribe(inbox, cb=on_message)
        started = perf_counter()
        try:
            await client.publish(inbox)
            await heard
            latency_ms = round((perf_counter() - started) * 1000, 2)
        finally:
            if not client.is_closed:
                await subscription.unsubscribe()
        return ok(_version(client), latency_ms)

    async def jetstream(self) -> Outcome:
        """Ask JetStream about the stream of all mailboxes."""
        if is_guarded(self._connection.client):
            return _OF_THE_HUB
        info = await _api(self._connection, _STREAM_INFO + INBOX, self._limit_s)
        return ok(f"{info['state']['messages']} requests in all mailboxes")


@dataclass(frozen=True, slots=True)
class Beat:
    """The newest heartbeat of one process."""

    age_s: float
    ttl_s: float
    """After so long without another one it counts as dead."""


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """The newest heartbeat of every process, by instance; ages by the broker's clock."""

    beats: Mapping[str, Beat]

    def outcome(self, state: State, instances: Iterable[str]) -> Outcome:
        """Tell the presence of what runs in these processes, and is in `state`."""
        if state is State.UNKNOWN:
            return failed("no registrar is alive, so nobody's presence is known", _CONTROL_FIX)
        if state is State.OFFLINE:
            return Outcome(state=ProbeState.OFFLINE, detail="no process has a heartbeat")
        known = [self.beats[one] for one in instances if one in self.beats]
        if not known:
            return failed("its processes are gone from the registry", _HOST_FIX)
        beat = min(known, key=lambda one: one.age_s)
        if beat.age_s > beat.ttl_s:
            detail = f"the last heartbeat was {beat.age_s:.1f} s ago"
            return failed(f"{detail}: after {beat.ttl_s:g} s it counts as dead", _HOST_FIX)
        return ok(f"heartbeat {beat.age_s:.1f} s ago")


async def read_heartbeats(connection: Connection, limit_s: float) -> Heartbeats:
    """Read when every process was last heard.

    Raises:
        TransportError, nats.errors.Error: the registry cannot be read.
    """
    stored = await read_history(connection, REGISTRY, KEY_PREFIX + instance_key("*"))
    if is_guarded(connection.client):
        # Who may not ask the broker for the time takes that of the newest entry.
        now = max((_seconds(one.headers[h.STORED_AT]) for one in stored), default=0.0)
    else:
        now = _seconds((await _api(connection, _STREAM_INFO + REGISTRY, limit_s))["ts"])
    prefix = len(KEY_PREFIX + instance_key(""))
    beats = {
        one.subject[prefix:]: Beat(
            age_s=max(0.0, now - _seconds(one.headers[h.STORED_AT])),
            ttl_s=float(h.number(one.headers.get(h.TTL)) or 0),
        )
        for one in stored
        if one.body
    }
    return Heartbeats(beats)


def _version(client: Client) -> str:
    version = client.connected_server_version
    return f"nats-server {version.major}.{version.minor}.{version.patch}"


def _timeout(detail: str, fix: str = "") -> Outcome:
    return Outcome(state=ProbeState.TIMEOUT, detail=detail, fix=fix)


async def _api(connection: Connection, subject: str, limit_s: float) -> dict[str, Any]:
    body = _object(await connection.client.request(subject, timeout=limit_s))
    if error := body.get("error"):
        raise ProtocolError(f"JetStream says: {error.get('description', error)}", subject=subject)
    return body


def _object(message: Msg) -> dict[str, Any]:
    value = codec.loads(message.data)
    if not isinstance(value, dict):
        raise ProtocolError("the answer is no JSON object", subject=message.subject)
    return value


def _seconds(timestamp: str) -> float:
    """Read RFC 3339, as NATS writes it: with nine digits behind the dot."""
    return datetime.fromisoformat(timestamp).timestamp()
