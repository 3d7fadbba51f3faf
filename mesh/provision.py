"""Puts the declared streams and durables on a broker.

An existing one is compared, never silently rewritten: an operator's change is reported as a
difference. What is declared stands in `mesh.streams`.
"""

from dataclasses import dataclass, fields
from typing import Any

import nats.errors
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import APIError, NotFoundError
from nats.js.manager import JetStreamManager

from mesh.connection import Connection
from mesh.errors import BrokerUnreachableError, StreamConfigError
from mesh.settings import Settings
from mesh.streams import control_consumers, stream_configs


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting of an existing stream that is not the declared one."""

    stream: str
    setting: str
    declared: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.stream}.{self.setting} is {self.found!r}, declared {self.declared!r}"


async def ensure_streams(connection: Connection, settings: Settings) -> list[Difference]:
    """Create what is missing, and return how what exists differs from what is declared.

    Raises:
        BrokerUnreachableError: the broker does not answer, or has no JetStream.
        StreamConfigError: the broker refuses a declaration.
    """
    manager = connection.client.jsm(timeout=20.0)
    differences: list[Difference] = []
    try:
        for config in stream_configs(settings):
            differences += await _ensure_stream(manager, config)
        for stream, consumer in control_consumers():
            await ensure_consumer(manager, stream, consumer)
    except APIError as error:
        raise StreamConfigError(
            f"the broker refuses the mesh's streams: {error.description}",
            differences=[error.description],
        ) from error
    except nats.errors.Error as error:
        raise BrokerUnreachableError(
            f"the broker does not answer about streams ({error}); does it run with JetStream?"
        ) from error
    return differences


async def check_streams(connection: Connection, settings: Settings) -> list[Difference]:
    """Return how the broker's streams differ from the declared ones, a missing one included."""
    manager = connection.client.jsm(timeout=20.0)
    differences = []
    for config in stream_configs(settings):
        name = str(config.name)
        try:
            found = (await manager.stream_info(name)).config
            differences += _compare(config, found)
        except NotFoundError:
            differences.append(Difference(name, "stream", "present", "missing"))
    return differences


async def _ensure_stream(manager: JetStreamManager, config: StreamConfig) -> list[Difference]:
    name = str(config.name)
    try:
        found = (await manager.stream_info(name)).config
    except NotFoundError:
        await manager.add_stream(config)
        return []
    return _compare(config, found)


def _compare(declared: StreamConfig, found: StreamConfig) -> list[Difference]:
    differences = []
    for field in fields(StreamConfig):
        wanted = getattr(declared, field.name)
        actual = getattr(found, field.name)
        # What is not declared is the server's to choose.
        if wanted == field.default or field.name == "sources" or wanted == actual:
            continue
        differences.append(Difference(str(declared.name), field.name, wanted, actual))
    return differences


async def ensure_consumer(manager: JetStreamManager, stream: str, config: ConsumerConfig) -> None:
    """Create a durable unless it exists. An existing one keeps its settings and its place."""
    try:
        await manager.consumer_info(stream, str(config.durable_name))
    except NotFoundError:
        await manager.add_consumer(stream, config)
