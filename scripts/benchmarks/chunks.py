"""Measures streamed answers beside the same by hand: the first words, and chunks per second.

One agent of the mesh and one by hand repeat a text word by word, each word a chunk that is stored
and republished; no acknowledgement is waited for before the next. They are read on NATS, and as
server-sent events behind the mesh's door and a bare one. Agents, broker, doors and readers are
processes of their own.
"""

import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import orjson

from mesh import connect, heap
from scripts.benchmarks import hand, references, registrations, wrk
from scripts.benchmarks.door import ECHO, fresh_mesh
from scripts.benchmarks.figures import Figure, Limit, Row, report
from scripts.benchmarks.http_client import connected
from scripts.benchmarks.loads import WARM_UP, load
from scripts.benchmarks.options import complete, parser
from scripts.benchmarks.peers import bare_agent
from scripts.benchmarks.processes import (
    BenchError,
    Spoken,
    mesh_run,
    python,
    running,
    tell,
    told_by,
)
from scripts.benchmarks.resources import cpu_us_of
from scripts.benchmarks.rounds import Measured, beside, in_turns

DESCRIPTION: Final = "Streamed answers, beside the same by hand."
WORD: Final = "word"
CHUNKS_GOAL: Final = Limit(least=10_000, unit="chunks/s")
FIRST_MOST: Final = 2.0
RATE: Final = {"chunks": "chunks/s"}
COSTS: Final = {"agent_us": "CPU µs/chunk of the agent", "broker_us": "CPU µs/chunk of the broker"}


@dataclass(frozen=True, slots=True)
class Case:
    """How much is streamed."""

    name: str
    words: int
    at_once: int
    streams: int


SHORT: Final = Case("a short one", words=5, at_once=1, streams=500)
"""For the time to its first words: an agent that never waits writes a long one in one turn."""
CASES: Final = (SHORT, Case("one at once", 200, 1, 100), Case("16 at once", 200, 16, 320))

Read = Callable[[str], Awaitable[float]]
"""Asks for a text, reads the whole answer, and returns the seconds until its first word."""


@asynccontextmanager
async def by_mesh(url: str) -> AsyncIterator[Read]:
    """Read streams with the mesh's client."""
    async with connect(url, name="bencher", node="node1") as client:

        async def read(text: str) -> float:
            async with aclosing(client.stream("echo", text, timeout_s=60)) as parts:
                return await _drain(parts, text)

        yield read


@asynccontextmanager
async def by_hand(url: str) -> AsyncIterator[Read]:
    """Read streams in nats-py: what the agent by hand says, decoded as far as its text."""
    async with hand.calling(url) as caller:

        async def words(body: bytes) -> AsyncIterator[str]:
            async for chunk in caller.stream(bare_agent.NAME, body):
                if text := orjson.loads(chunk)["choices"][0]["delta"].get("content"):
                    yield text

        async def read(text: str) -> float:
            body = wrk.question(bare_agent.NAME, text, stream=True)
            return await _drain(words(body), text)

        yield read


async def _drain(parts: AsyncIterator[str], text: str) -> float:
    start, count, first_s = time.perf_counter(), 0, 0.0
    async for _ in parts:
        if not count:
            first_s = time.perf_counter() - start
        count += 1
    _require_all(count, text)
    return first_s


@asynccontextmanager
async def by_http(url: str, model: str, at_once: int) -> AsyncIterator[Read]:
    """Read server-sent events, on a connection for each stream at once."""
    async with AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connected(url)) for _ in range(at_once)]

        async def read(text: str) -> float:
            connection = idle.pop()
            start = time.perf_counter()
            await connection.begin(wrk.question(model, text, stream=True))
            # Headers and the chunk that only names the role come before it, and do not count.
            await connection.read_past(WORD.encode())
            first_s = time.perf_counter() - start
            _require_all(1 + (await connection.finish()).count(b'"content":'), text)
            idle.append(connection)
            return first_s

        yield read


def _require_all(count: int, text: str) -> None:
    if count != text.count(WORD):
        raise BenchError(f"{count} words came of {text.count(WORD)}")


async def run_reader(kind: str, url: str, words: int, at_once: int, streams: int) -> None:
    """Read `streams` streams, and print what they took."""
    match kind:
        case "mesh":
            opening = by_mesh(url)
        case "hand":
            opening = by_hand(url)
        case _:
            opening = by_http(url, kind, at_once)
    text = " ".join([WORD] * words)
    firsts_s: list[float] = []

    async with opening as read:

        async def ask() -> None:
            firsts_s.append(await read(text))

        taken = await load(ask, streams, at_once, heap.settle)
    tell(
        {
            "first_ms": statistics.median(firsts_s[WARM_UP * at_once :]) * 1e3,
            "chunks": taken["rate"] * words,
            "made": taken["made"] * words,
        }
    )


@dataclass(frozen=True, slots=True)
class Way:
    """A way to read the streams of an agent."""

    kind: str
    url: str
    agent_pid: int
    broker_pid: int


@asynccontextmanager
async def open_ways() -> AsyncIterator[dict[str, tuple[Way, Way]]]:
    """Run both agents and both doors; gives for each name the way by hand and the mesh's."""
    async with (
        fresh_mesh() as mesh,
        mesh_run(mesh.nats_url, ECHO, "echo") as echo,
        references.bare_agent_of(mesh) as bare,
        references.bare_door_of(mesh) as bare_door,
    ):
        await registrations.until_listed(mesh, ["echo"])

        def way(kind: str, url: str, agent: Spoken) -> Way:
            return Way(kind, url, agent.pid, mesh.broker_pid)

        yield {
            "beside bare nats-py": (
                way("hand", mesh.nats_url, bare),
                way("mesh", mesh.nats_url, echo),
            ),
            "events, beside bare ASGI": (
                way(bare_agent.NAME, bare_door.url, bare),
                way("echo", mesh.http_url, echo),
            ),
        }


async def measure(way: Way, case: Case) -> Measured:
    """Read in a process of its own; the costs are those of all that was read."""
    numbers = (str(case.words), str(case.at_once), str(case.streams))
    arguments = ("streams", "reader", way.kind, way.url, *numbers)
    command = python("scripts.benchmarks", *arguments)
    with cpu_us_of({"agent_us": way.agent_pid, "broker_us": way.broker_pid}) as taken_us:
        async with running(f"reader {way.kind}", command) as reader:
            measured = await told_by(reader)
    return {**measured, **{name: us / measured["made"] for name, us in taken_us.items()}}


async def run_bench(rounds: int, scale: float) -> list[Row]:
    """Start everything, and measure."""
    rows: list[Row] = []
    async with open_ways() as ways:
        for name, (by_hand_way, mesh_way) in ways.items():
            for case in CASES:
                streams = max(case.at_once, int(case.streams * scale))
                turn = partial(measure, case=replace(case, streams=streams))
                found = await in_turns((by_hand_way, mesh_way), rounds, turn)
                rows += rows_of(name, case, found[by_hand_way], found[mesh_way])
    return rows


def rows_of(name: str, case: Case, reference: list[Measured], ours: list[Measured]) -> list[Row]:
    """Compare: of a short one the first words matter, and of long ones how many come."""
    name = f"{name}, {case.name}"
    if case is SHORT:
        limits = {"first_ms": Limit(most=FIRST_MOST)}
        return beside(name, reference, ours, {"first_ms": "first words, p50 ms"}, limits)
    if case.at_once == 1:
        return beside(name, reference, ours, RATE)
    most = statistics.median(one["chunks"] for one in ours)
    return [
        *beside(name, reference, ours, {**RATE, **COSTS}),
        Figure(f"{name}: chunks/s of the agent's process", most, CHUNKS_GOAL),
    ]


def main(arguments: list[str]) -> None:
    """Run, and print the table; or play a role in it."""
    options = parser("streams", DESCRIPTION, rounds=5).parse_args(arguments)
    match options.role:
        case []:
            rounds, scale = (1, 0.1) if options.quick else (options.rounds, options.scale)
            rows = complete(run_bench(rounds, scale))
            report(rows, judge=not options.quick, as_json=options.json)
        case ["reader", kind, url, words, at_once, streams]:
            complete(run_reader(kind, url, int(words), int(at_once), int(streams)))
        case _:
            raise BenchError(f"no such role: {options.role}")
