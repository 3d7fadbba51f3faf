"""Puts the declared streams and durables on a broker.

An existing one is compared, never silently rewritten: an operator's change is reported as a
difference. Only what members of a secure mesh could erase is guarded first. What is declared
stands in `mesh.streams`.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, fields
from dataclasses import replace as evolve
from typing import Any, Final
from uuid import uuid4

import nats.errors
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError
from nats.js.manager import JetStreamManager

from mesh.connection import Connection
from mesh.errors import BrokerUnreachableError, StreamConfigError
from mesh.nats_client import is_clustered
from mesh.settings import Settings
from mesh.streams import BODIES, control_consumers, stream_configs

logger = logging.getLogger(__name__)

LEADER_PATIENCE_S: Final = 30.0
"""How long a cluster may take to elect a leader, which it does at its start and after a loss."""
LEADER_PAUSE_S: Final = 0.5
NO_STORAGE: Final = 10047
"""JetStream error code: more is reserved than there is."""
NO_PEERS: Final = 10005
"""JetStream error code, on a cluster: no servers for a stream; the description says why."""
IN_USE: Final = 10058
"""JetStream error code: there is such a stream, with other settings."""
SHARES: Final = (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)
"""Of the room that the streams want, which is 28 GB."""
LEAST_MB: Final = 600
"""Free on its disk, of which the broker takes three quarters: enough for the smallest share."""
PROBE: Final = "MESH_ROOM"
ROLLUPS: Final = "allow_rollup_hdrs"
UNAVAILABLE: Final = 503
"""What JetStream answers, on a cluster, as long as nobody leads."""


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

    A cluster that has no leader yet is waited for.

    Raises:
        BrokerUnreachableError: the broker does not answer, or has no JetStream.
        StreamConfigError: the broker refuses a declaration.
    """
    try:
        return await _when_led(connection, settings)
    except APIError as error:
        raise StreamConfigError(
            f"the broker refuses the mesh's streams: {error.description}",
            differences=[error.description],
        ) from error
    except nats.errors.Error as error:
        raise BrokerUnreachableError(
            f"the broker does not answer about streams ({error}); does it run with JetStream?"
        ) from error


async def _when_led(connection: Connection, settings: Settings) -> list[Difference]:
    deadline = asyncio.get_running_loop().time() + LEADER_PATIENCE_S
    while True:
        try:
            return await _declare(connection, settings)
        except (APIError, nats.errors.TimeoutError) as error:
            # A stream without a leader does not answer; nor, without one, does the cluster.
            is_waiting = is_clustered(connection.client) and (
                isinstance(error, nats.errors.TimeoutError | ServiceUnavailableError)
                or error.code == UNAVAILABLE
            )
            if not is_waiting or asyncio.get_running_loop().time() > deadline:
                raise
            logger.info("waiting for the cluster: %s", error)
        await asyncio.sleep(LEADER_PAUSE_S)


async def _declare(connection: Connection, settings: Settings) -> list[Difference]:
    manager = connection.client.jsm(timeout=20.0)
    differences, missing = list[Difference](), list[StreamConfig]()
    for config in stream_configs(settings, is_secure=connection.is_secure):
        found = await _find(manager, config)
        if found is None:
            missing.append(config)
            continue
        if connection.is_secure and config.name == BODIES:
            found = await _guard(manager, config, found)
        differences += _compare(config, found)
    for config in await _fit(manager, missing) if missing else ():
        try:
            await manager.add_stream(config)
        except APIError as error:
            # Another control plane that starts at this moment may have given it more, or less.
            if error.err_code != IN_USE:
                raise
    for stream, consumer in control_consumers():
        await ensure_consumer(manager, stream, consumer)
    return differences


async def _find(manager: JetStreamManager, config: StreamConfig) -> StreamConfig | None:
    try:
        return (await manager.stream_info(str(config.name))).config
    except NotFoundError:
        return None


async def _guard(
    manager: JetStreamManager, declared: StreamConfig, found: StreamConfig
) -> StreamConfig:
    """Let a stream that an older version has made take what members send.

    In one step with the end of rollups: before it nothing captures their subjects, and after it
    none of them can erase what others have sent.
    """
    guarded = evolve(found, subjects=declared.subjects, allow_rollup_hdrs=False)
    if guarded == found:
        return found
    logger.warning("%s takes what members send from now on, and no rollups", found.name)
    return (await manager.update_stream(guarded)).config


async def _fit(manager: JetStreamManager, configs: list[StreamConfig]) -> list[StreamConfig]:
    """Give streams less room, each the same share, where the broker has not enough for them.

    It reserves `max_bytes`, and by default has three quarters of what is free on its disk.
    """
    await _remove_probes(manager)
    for share in SHARES:
        fitted = [evolve(one, max_bytes=int((one.max_bytes or 0) * share)) for one in configs]
        wanted = sum(one.max_bytes or 0 for one in fitted)
        if await _has_room(manager, wanted, configs[0].num_replicas):
            if share < 1:
                logger.warning("the broker has little room: the streams share %d MB", wanted / 1e6)
            return fitted
    raise StreamConfigError(
        f"the broker has too little room for the mesh's streams: give it {LEAST_MB} MB of disk",
        differences=[],
    )


async def _has_room(manager: JetStreamManager, wanted: int, replicas: int | None) -> bool:
    """Tell whether so many bytes can be reserved: only by doing it."""
    name = f"{PROBE}_{uuid4().hex}"
    try:
        await manager.add_stream(StreamConfig(name=name, max_bytes=wanted, num_replicas=replicas))
    except APIError as error:
        if _lacks_room(error):
            return False
        raise
    await _delete(manager, name)
    return True


async def check_streams(connection: Connection, settings: Settings) -> list[Difference]:
    """Return how the broker's streams differ from the declared ones, a missing one included."""
    manager = connection.client.jsm(timeout=20.0)
    differences = []
    for config in stream_configs(settings, is_secure=connection.is_secure):
        found = await _find(manager, config)
        if found is None:
            differences.append(Difference(str(config.name), "stream", "present", "missing"))
        else:
            differences += _compare(config, found)
    return differences


async def _remove_probes(manager: JetStreamManager) -> None:
    """Give back what a probe has reserved whose process was killed."""
    for info in await manager.streams_info():
        if str(info.config.name).startswith(f"{PROBE}_"):
            await _delete(manager, str(info.config.name))


async def _delete(manager: JetStreamManager, name: str) -> None:
    with suppress(NotFoundError):  # Another control plane that starts at this moment was faster.
        await manager.delete_stream(name)


def _lacks_room(error: APIError) -> bool:
    is_full = error.err_code == NO_PEERS and "insufficient storage" in (error.description or "")
    return is_full or error.err_code == NO_STORAGE


def _compare(declared: StreamConfig, found: StreamConfig) -> list[Difference]:
    differences = []
    for field in fields(StreamConfig):
        wanted = getattr(declared, field.name)
        actual = getattr(found, field.name)
        # What is not declared is the server's to choose, but for what lets a sender erase.
        is_free = wanted == field.default and field.name != ROLLUPS
        if is_free or field.name == "sources" or wanted == actual:
            continue
        if field.name == "max_bytes" and actual in [int(wanted * share) for share in SHARES]:
            continue
        differences.append(Difference(str(declared.name), field.name, wanted, actual))
    return differences


async def ensure_consumer(manager: JetStreamManager, stream: str, config: ConsumerConfig) -> None:
    """Create a durable unless it exists. An existing one keeps its settings and its place."""
    try:
        await manager.consumer_info(stream, str(config.durable_name))
    except NotFoundError:
        await manager.add_consumer(stream, config)
