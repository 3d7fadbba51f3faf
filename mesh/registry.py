"""The registry bucket: its keys, its values, and the messages that ask the registrar to change it.

Only the registrar writes (`handlers.registrar`); everybody reads. What the values mean together,
who is online, is worked out by `mesh.directory`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import nats.errors
from nats.aio.msg import Msg

from mesh import codec, subjects
from mesh import headers as h
from mesh.codec import Model
from mesh.connection import Connection
from mesh.errors import (
    BrokerUnreachableError,
    CardRefusedError,
    ProtocolError,
    StreamMissingError,
    TransportError,
)
from mesh.history import read_history, stored_ns
from mesh.streams import REGISTRY
from schemas.base import WireModel
from schemas.registry import (
    Announcement,
    Heartbeat,
    Instance,
    Receipt,
    Withdrawal,
)

KEY_PREFIX: Final = f"$KV.{subjects.REGISTRY_BUCKET}."
EVENT_PREFIX: Final = "registry.event."
OPERATION: Final = "KV-Operation"
DELETED: Final = "DEL"
_MARKER: Final = "Nats-Marker-Reason"
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
CHANGED: Final = 10071
"""JetStream error code: the key has another revision than the writer expected."""


_PASSING: Final = frozenset(
    one.code for one in (TransportError, BrokerUnreachableError, StreamMissingError)
)
"""What a registrar says of the broker, not of the card: it passes."""
TOMBSTONE_S: Final = 3600.0
"""How long a deletion stays to be read; instance ids are never used again, so none must stay."""


def agent_key(agent: str) -> str:
    """Key of a card."""
    return f"agent.{subjects.require_id(agent)}"


def node_key(node: str) -> str:
    """Key of a node."""
    return f"node.{subjects.require_id(node, 'node')}"


def instance_key(instance: str) -> str:
    """Key of a live process."""
    return f"instance.{instance}"


def placement_key(agent: str, instance: str) -> str:
    """Key of an agent on a process."""
    return f"placement.{subjects.require_id(agent)}.{instance}"


def reign_key(node: str) -> str:
    """Key of a registrar's last look at the whole."""
    return f"reign.{subjects.require_id(node, 'node')}"


def identity_key(public: str) -> str:
    """Key of whose key a public one is."""
    return f"identity.{public}"


def is_end(headers: Mapping[str, str]) -> bool:
    """Tell whether a message of a bucket says that its key is gone: deleted, or expired."""
    return OPERATION in headers or _MARKER in headers


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value, or with None where it was deleted or has expired."""

    key: str
    value: bytes | None
    revision: int
    stored_ns: int = 0
    """When the broker stored it, by the broker's clock; 0 where that was not told."""

    @classmethod
    def read(cls, key: str, headers: Mapping[str, str], body: bytes, revision: int) -> "Entry":
        """Read a stored or republished message of the bucket."""
        is_gone = is_end(headers)
        return cls(key, None if is_gone else body, revision, stored_ns(headers))


async def read_registry(connection: Connection, filter_key: str = ">") -> list[Entry]:
    """Read every entry under `filter_key` (wildcards allowed), deletions included.

    Raises:
        StreamMissingError: there is no registry on this broker.
        BrokerUnreachableError: no answer in time.
    """
    stored = await read_history(connection, REGISTRY, KEY_PREFIX + filter_key)
    return [
        Entry.read(one.subject.removeprefix(KEY_PREFIX), one.headers, one.body, one.sequence)
        for one in stored
    ]


async def require_registry(connection: Connection, *, patience_s: float) -> None:
    """Wait until there is a registry: a broker that has just started may have no streams yet.

    Raises:
        StreamMissingError: there is none within `patience_s`.
        BrokerUnreachableError: no answer in time.
    """
    deadline = asyncio.get_running_loop().time() + patience_s
    while True:
        try:
            await read_registry(connection, "reign.*")  # As members of a secure mesh may read it.
            return
        except StreamMissingError:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(0.1)


async def put(
    connection: Connection,
    key: str,
    value: WireModel,
    *,
    ttl_s: float | None = None,
    expected_revision: int | None = None,
) -> Entry:
    """Write a key. With `ttl_s` (whole seconds, rounded up) it expires unless written again.

    Raises:
        PublishRefusedError: `err_code` is `CHANGED`: the key is no longer at
            `expected_revision`, when that is given.
        BrokerUnreachableError: the broker does not acknowledge it.
    """
    headers = {h.TTL: h.ttl(ttl_s)} if ttl_s is not None else {}
    if expected_revision is not None:
        headers[_EXPECTED] = str(expected_revision)
    body = codec.encode(value)
    ack = await connection.publisher.publish(KEY_PREFIX + key, body, headers)
    return Entry(key, body, ack.sequence)


async def delete(connection: Connection, key: str) -> Entry:
    """Delete a key. Watchers see it."""
    ack = await connection.publisher.publish(
        KEY_PREFIX + key, b"", {OPERATION: DELETED, h.TTL: h.ttl(TOMBSTONE_S)}
    )
    return Entry(key, None, ack.sequence)


async def announce(
    connection: Connection, announcement: Announcement, *, timeout_s: float = 5.0
) -> Receipt:
    """Announce an agent, and wait until the registrar has made its mailbox.

    Raises:
        CardRefusedError: the registrar does not accept the card.
        BrokerUnreachableError: no registrar answers within `timeout_s`. The announcement is
            stored, and one that starts within ten minutes will still read it.
    """
    agent, instance = announcement.card.id, announcement.instance
    subject = subjects.announce(agent, instance.node)
    reply_to = subjects.reply(agent, instance.instance, uuid4().hex, agent)
    receipt = await _ask_registrar(connection, subject, announcement, reply_to, timeout_s)
    if receipt.code in _PASSING:
        raise BrokerUnreachableError(f"the registrar cannot register now: {receipt.message}")
    if not receipt.ok:
        raise CardRefusedError(receipt.message, agent=announcement.card.id, reason=receipt.code)
    return receipt


async def announce_node(
    connection: Connection, instance: Instance, *, timeout_s: float = 5.0
) -> Receipt:
    """Announce the node this process runs on.

    Raises:
        BrokerUnreachableError: no registrar answers within `timeout_s`.
    """
    return await beat(connection, Heartbeat(instance=instance), timeout_s=timeout_s)


async def withdraw(connection: Connection, agent: str, instance: str) -> None:
    """Tell that this process no longer hosts `agent`. Stored, so it works without a registrar."""
    body = codec.encode(Withdrawal(instance=instance))
    await connection.publisher.publish(subjects.withdraw(agent), body, {}, give_up_s=2.0)


async def beat(connection: Connection, heartbeat: Heartbeat, *, timeout_s: float = 2.0) -> Receipt:
    """Send one heartbeat.

    Raises:
        BrokerUnreachableError: no registrar answers.
    """
    subject = subjects.heartbeat(heartbeat.instance.node, heartbeat.instance.instance)
    try:
        return await ask(connection, subject, heartbeat, Receipt, timeout_s=timeout_s)
    except BrokerUnreachableError as error:
        raise BrokerUnreachableError(f"no registrar answers heartbeats: {error}") from error


async def ask(
    connection: Connection, subject: str, body: WireModel, model: type[Model], *, timeout_s: float
) -> Model:
    """Ask the control plane something that nobody has to keep, and return what it says.

    Raises:
        BrokerUnreachableError: it does not answer.
        ProtocolError: its answer is garbled.
    """
    try:
        answer = await connection.client.request(subject, codec.encode(body), timeout=timeout_s)
    except nats.errors.Error as error:
        raise BrokerUnreachableError(str(error) or type(error).__name__) from error
    return codec.decode(model, answer.data, subject=subject)


async def _ask_registrar(
    connection: Connection, subject: str, body: WireModel, reply_to: str, timeout_s: float
) -> Receipt:
    # The answer goes to a `reply_to` header: on a captured subject, NATS's own reply subject
    # would bring JetStream's acknowledgement instead. And it goes through the reply stream, since
    # nothing that the registrar publishes to an inbox would reach another account.
    client = connection.client
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def on_answer(message: Msg) -> None:
        if not answer.done():
            answer.set_result(message.data)

    delivered = subjects.as_delivered(reply_to)
    subscription = await client.subscribe(delivered, cb=on_answer, max_msgs=1)
    try:
        await connection.publisher.publish(
            subject, codec.encode(body), {h.REPLY_TO: reply_to, h.CONTENT_TYPE: h.JSON}
        )
        data = await asyncio.wait_for(answer, timeout_s)
        return codec.decode(Receipt, data, subject=subject)
    except TimeoutError:
        raise BrokerUnreachableError(
            f"no registrar answered within {timeout_s:g} s; is the control plane running?"
        ) from None
    except ProtocolError as error:
        raise BrokerUnreachableError(f"the registrar's answer is garbled: {error}") from error
    finally:
        if not client.is_closed:
            await subscription.unsubscribe()
