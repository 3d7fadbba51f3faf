"""Streamed answers: the time to the first words of one, and the memory of a thousand idle ones."""

import asyncio
import statistics
from contextlib import AsyncExitStack
from typing import Final

from scripts.benchmarks import wrk
from scripts.benchmarks.figures import Figure, Limit, Pairs, of_rounds
from scripts.benchmarks.http_client import HttpConnection, connected
from scripts.benchmarks.peers.waiting_agents import END, FIRST, IDS
from scripts.benchmarks.processes import Mesh
from scripts.benchmarks.resources import memory_of
from scripts.benchmarks.wrk import Target

WARM_UP: Final = 20
AT_ONCE: Final = 50
IDLE_S: Final = 3.0


async def first_chunk(reference: Target, mesh: Target, rounds: int, requests: int) -> Figure:
    """Compare how long the first words of an answer take on one connection."""
    pairs: Pairs = []
    async with connected(reference.url) as one, connected(mesh.url) as other:
        asked = {reference: one, mesh: other}
        for target, connection in asked.items():
            await _median_ms(connection, target, WARM_UP)
        for number in range(rounds):
            took = {}
            for target in (reference, mesh) if number % 2 else (mesh, reference):
                took[target] = await _median_ms(asked[target], target, requests // rounds)
            pairs.append((took[reference], took[mesh]))
    return of_rounds("bare ASGI, a stream's first words: p50 ms", pairs, Limit(most=2.0))


async def _median_ms(connection: HttpConnection, target: Target, requests: int) -> float:
    body = wrk.question(target.model, stream=True)
    # Headers and the chunk that only names the role come before it, and do not count.
    word = wrk.QUESTION.split()[0].encode()
    return statistics.median([await connection.time_to(word, body) for _ in range(requests)]) * 1e3


async def idle(mesh: Mesh, count: int) -> list[Figure]:
    """Keep `count` streams open that have begun and say nothing, and look at the memory."""
    base_mb = memory_of(mesh.http_pid).rss_mb
    async with AsyncExitStack() as stack:
        streams: list[HttpConnection] = []
        while len(streams) < count:
            places = range(len(streams), min(len(streams) + AT_ONCE, count))
            streams += await asyncio.gather(*(_begin(stack, mesh, place) for place in places))
        await asyncio.sleep(IDLE_S)
        full_mb = memory_of(mesh.http_pid).rss_mb
        await asyncio.gather(*(_end(mesh, agent) for agent in IDS))
        await asyncio.gather(*(stream.finish() for stream in streams))
    return [
        Figure("memory of the door before, MB", base_mb),
        Figure(f"memory with {count} idle streams, MB", full_mb, Limit(most=150, unit="MB")),
    ]


async def _begin(stack: AsyncExitStack, mesh: Mesh, place: int) -> HttpConnection:
    connection = await stack.enter_async_context(connected(mesh.http_url))
    await connection.begin(wrk.question(IDS[place % len(IDS)], stream=True))
    await connection.read_past(FIRST.encode())
    return connection


async def _end(mesh: Mesh, agent: str) -> None:
    async with connected(mesh.http_url) as connection:
        await connection.begin(wrk.question(agent, END, stream=True))
        await connection.finish()
