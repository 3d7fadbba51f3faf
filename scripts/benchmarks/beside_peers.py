"""Measures calls through the mesh beside what others would build with: the A2A SDK and FastStream.

Each peer runs in the environment of `scripts/setup peers`, as its own documentation sets it up, its
agent and its caller processes of their own, and all do the same in the same run: an echo. The A2A
SDK speaks JSON-RPC to a server that keeps nothing; FastStream takes from core NATS, or from a
stream on the mesh's broker and answers on core NATS. The mesh stores request and answer. Nobody
logs what it is asked.

With many calls at once it is the A2A SDK's client that is slow, for its HTTP client is. Hence its
server is asked by wrk as well, which takes next to nothing: what a better client could reach.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from urllib.request import Request, urlopen

import orjson

from scripts.benchmarks import calls, wrk
from scripts.benchmarks.figures import Limit, Row, report
from scripts.benchmarks.loads import LABELS
from scripts.benchmarks.notes import not_run
from scripts.benchmarks.options import complete, parser
from scripts.benchmarks.processes import BenchError, python, running, told_by
from scripts.benchmarks.references import LISTENING, environment
from scripts.benchmarks.rounds import Measured, beside, in_turns

DESCRIPTION: Final = "Calls through the mesh, beside the A2A SDK and FastStream."
VENV: Final = ".venv-peers"
IN_FLIGHT: Final = (1, 64)
A2A, A2A_BY_WRK = "the A2A SDK", "the A2A SDK's server, asked by wrk"
GOAL: Final = {"rate": Limit(least=10)}
LIMITS: Final = {(A2A, 64): GOAL, (A2A_BY_WRK, 64): GOAL}
A2A_HEADER: Final = "a2a-version: 1.0"
A2A_MESSAGE: Final = {"messageId": "m1", "role": "ROLE_USER", "parts": [{"text": "hello"}]}
A2A_REQUEST: Final = {
    "jsonrpc": "2.0",
    "id": "1",
    "method": "SendMessage",
    "params": {"message": A2A_MESSAGE},
}
WRK_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody who is called."""

    name: str
    measure: Callable[[int, float], Awaitable[Measured]]
    """Makes calls; takes how many are in flight, and how much less than usual is enough."""


def called_by(name: str, command: Sequence[str], counts: Mapping[int, int]) -> Peer:
    """Return who is called by a process; `counts` are calls that take some seconds."""

    async def measure(in_flight: int, scale: float) -> Measured:
        count = max(in_flight, int(counts[in_flight] * scale))
        async with running(f"caller of {name}", (*command, str(count), str(in_flight))) as said:
            return await told_by(said)

    return Peer(name, measure)


def asked_by_wrk(name: str, target: wrk.Target) -> Peer:
    """Return who is asked by wrk."""

    async def measure(in_flight: int, scale: float) -> Measured:
        return asdict(await wrk.measure(target, in_flight, WRK_S * scale))

    return Peer(name, measure)


@asynccontextmanager
async def open_peers(folder: Path) -> AsyncIterator[tuple[Peer, ...]]:
    """Run everybody; the mesh comes first."""
    async with (
        calls.open_mesh(folder) as url,
        calls.child("agent", calls.MESH, url) as agent,
        running("A2A server", peer("a2a_server")) as a2a,
        running("FastStream", peer("faststream_app", url)) as faststream,
    ):
        await agent.says("ready")
        await faststream.says("ready")
        a2a_url = await a2a.says(LISTENING)
        by_mesh = python("scripts.benchmarks", "calls", "caller", calls.MESH, url)
        by_request, by_jetstream = (
            peer("faststream_client", how, url) for how in ("request", "jetstream")
        )
        peers = [
            called_by("the mesh", by_mesh, {1: 1_000, 64: 10_000}),
            called_by(A2A, peer("a2a_client", a2a_url), {1: 400, 64: 1_280}),
            called_by("FastStream, request", by_request, {1: 500, 64: 5_000}),
            called_by("FastStream, JetStream", by_jetstream, {1: 500, 64: 3_200}),
        ]
        if wrk.is_installed():
            body = orjson.dumps(A2A_REQUEST)
            target = wrk.Target(a2a_url, "", A2A_HEADER, "/", body)
            await asyncio.to_thread(require_answer, target)
            peers.append(asked_by_wrk(A2A_BY_WRK, target))
        yield tuple(peers)


def require_answer(target: wrk.Target) -> None:
    """Look once whether the A2A server understands what wrk sends: it says 200 to anything.

    Raises:
        BenchError: it does not.
    """
    name, _, value = target.header.partition(": ")
    headers = {"content-type": "application/json", name: value}
    request = Request(target.url + target.path, target.body, headers)
    with urlopen(request, timeout=10) as answer:
        body: bytes = answer.read()
    if b"ROLE_AGENT" not in body:
        raise BenchError(f"the A2A server says: {body.decode(errors='replace')}")


def peer(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a peer's module in their environment."""
    return tuple(python(f"scripts.benchmarks.peers.{module}", *arguments, venv=VENV))


async def run_bench(rounds: int, scale: float) -> list[Row]:
    """Start everything, and measure."""
    await environment("peers")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        async with open_peers(Path(name)) as peers:
            for in_flight in IN_FLIGHT:

                async def turn(one: Peer, in_flight: int = in_flight) -> Measured:
                    return await one.measure(in_flight, scale)

                (_, mesh), *others = (await in_turns(peers, rounds, turn)).items()
                for other, measured in others:
                    where = f"{other.name}, {in_flight} in flight"
                    limits = LIMITS.get((other.name, in_flight), {})
                    rows += beside(where, measured, mesh, LABELS, limits)
    if not wrk.is_installed():
        rows.append(not_run(A2A_BY_WRK, wrk.MISSING))
    return rows


def main(arguments: list[str]) -> None:
    """Run, and print the table; without the environment of the peers, end with the reason."""
    options = parser("peers", DESCRIPTION, rounds=5).parse_args(arguments)
    rounds, scale = (1, 0.2) if options.quick else (options.rounds, options.scale)
    rows = complete(run_bench(rounds, scale))
    report(rows, judge=not options.quick, as_json=options.json)
