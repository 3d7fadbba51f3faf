"""A mesh of many agents: announces them to the registrar, and times the list of models."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import orjson

from mesh import registry
from mesh.connection import Connection, open_connection
from mesh.heartbeat import beat_forever
from mesh.runtime import describe_process
from mesh.settings import Settings
from schemas.card import AgentCard
from schemas.registry import Announcement, Instance, Role
from scripts.benchmarks.figures import Figure, Limit
from scripts.benchmarks.http_client import connected
from scripts.benchmarks.loads import quantiles_ms
from scripts.benchmarks.processes import BenchError, Mesh

HOSTS: Final = 10
HEARTBEAT_S: Final = Settings().heartbeat_s
REQUESTS: Final = 100
SEEN_S: Final = 20.0


async def listing(mesh: Mesh, count: int) -> list[Figure]:
    """Register `count` agents, and time `GET /v1/models` on one connection."""
    ids = [f"model{number}" for number in range(count)]
    async with registered(mesh, ids) as took_s:
        await until_listed(mesh, ids)
        figures = await list_times(mesh, count)
    return [*figures, Figure(f"announcing {count} agents, s", took_s)]


async def list_times(mesh: Mesh, count: int) -> list[Figure]:
    """Time `GET /v1/models` on one connection, of a mesh that has `count` agents."""
    times_s = []
    async with connected(mesh.http_url) as connection:
        for _ in range(REQUESTS):
            start = time.perf_counter()
            await connection.get("/v1/models")
            times_s.append(time.perf_counter() - start)
    taken = quantiles_ms(times_s)
    name = f"/v1/models with {count} agents"
    return [
        Figure(f"{name}: p50 ms", taken["p50_ms"], Limit(most=20, unit="ms")),
        Figure(f"{name}: p99 ms", taken["p99_ms"]),
    ]


async def until_listed(mesh: Mesh, ids: list[str]) -> None:
    """Wait until the door lists all of `ids`.

    Raises:
        BenchError: some are still missing after 20 s.
    """
    deadline = time.monotonic() + SEEN_S
    async with connected(mesh.http_url) as connection:
        while True:
            listed = {one["id"] for one in orjson.loads(await connection.get("/v1/models"))["data"]}
            if not (missing := set(ids) - listed):
                return
            if time.monotonic() > deadline:
                raise BenchError(f"not in /v1/models: {sorted(missing)[:5]}, {len(missing)} in all")
            await asyncio.sleep(0.1)


@asynccontextmanager
async def registered(mesh: Mesh, ids: list[str]) -> AsyncIterator[float]:
    """Announce agents as ten hosts that live to the end of the block. Gives the seconds it took."""
    per_host = -(-len(ids) // HOSTS)
    async with open_connection(mesh.nats_url, name="bench registrations") as connection:
        shares = [ids[place : place + per_host] for place in range(0, len(ids), per_host)]
        instances = [describe_process("node1", Role.HOST, share) for share in shares]
        start = time.monotonic()
        beating = [asyncio.create_task(_beat(connection, one)) for one in instances]
        try:
            await asyncio.gather(*(_announce(connection, one) for one in instances))
            yield time.monotonic() - start
        finally:
            for task in beating:
                task.cancel()
            await asyncio.gather(*beating, return_exceptions=True)


async def _announce(connection: Connection, instance: Instance) -> None:
    for agent in instance.agents:
        announcement = Announcement(card=AgentCard(id=agent), instance=instance)
        await registry.announce(connection, announcement, timeout_s=60)


async def _beat(connection: Connection, instance: Instance) -> None:
    async def nothing() -> None:
        """It is being announced."""

    await beat_forever(connection, lambda: instance, interval_s=HEARTBEAT_S, on_forgotten=nothing)
