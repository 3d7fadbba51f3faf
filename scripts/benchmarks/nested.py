"""Measures calls that lead to others: through one, two and three agents, beside the same by hand.

Once all agents are in one process, and once each is in its own. By hand an agent asks the next as
a caller does, over the connection that it has; the broker, its streams and the caller are those of
`scripts/bench calls`.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

from nats.aio.msg import Msg
from nats.js import JetStreamContext

from mesh import heap
from scripts.benchmarks import calls, hand
from scripts.benchmarks.calls import ANSWER, BARE, MESH
from scripts.benchmarks.figures import Row, report
from scripts.benchmarks.hand import Answer, HandCaller
from scripts.benchmarks.loads import load
from scripts.benchmarks.options import complete, parser
from scripts.benchmarks.peers.chain_agents import LENGTH, ids_of
from scripts.benchmarks.peers.plain_caller import BODY
from scripts.benchmarks.processes import BenchError, mesh_run, python, running, tell, told_by
from scripts.benchmarks.rounds import Measured, beside, in_turns

DESCRIPTION: Final = "Calls through chains of agents, beside the same by hand."
MODULE: Final = "scripts.benchmarks.peers.chain_agents"
CALLS: Final = {1: 600, 64: 6_000}
"""Through one agent, by how many are in flight; through n agents an n-th."""
LABELS: Final = {1: {"p50_ms": "p50 ms"}, 64: {"rate": "calls/s"}}
JOINED, APART = "joined", "apart"
WHERE: Final = {JOINED: "in one process", APART: "in processes apart"}


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of agents to be asked."""

    kind: str
    url: str
    name: str
    """What their ids begin with."""


def hand_chain(name: str) -> str:
    """Return what the ids of a chain by hand begin with."""
    return f"hand_{name}"


async def run_links(url: str, wanted: list[str]) -> None:
    """Run links of a chain by hand, all over one connection."""
    below = {above: agent for name in WHERE for agent, above in pairwise(ids_of(hand_chain(name)))}
    async with hand.calling(url) as caller:
        links = (caller.serve(one, link(caller, below.get(one))) for one in wanted)
        await asyncio.gather(*links)


def link(caller: HandCaller, below: str | None) -> Answer:
    """Return what answers as one agent of a chain."""

    async def answer(stream: JetStreamContext, message: Msg) -> None:
        body = ANSWER if below is None else await caller.ask(below, BODY)
        await hand.answer_with(stream, message, body)

    return answer


@asynccontextmanager
async def open_chains(folder: Path) -> AsyncIterator[list[Chain]]:
    """Run all chains on one broker."""
    async with calls.open_mesh(folder) as url, AsyncExitStack() as stack:
        targets = {JOINED: ids_of(JOINED)} | {one: [one] for one in ids_of(APART)}
        for target, ids in targets.items():
            await stack.enter_async_context(mesh_run(url, f"{MODULE}:{target}", *ids))
        for ids in (ids_of(hand_chain(JOINED)), *([one] for one in ids_of(hand_chain(APART)))):
            await stack.enter_async_context(links_by_hand(url, ids))
        yield [
            *(Chain(BARE, url, hand_chain(name)) for name in WHERE),
            *(Chain(MESH, url, name) for name in WHERE),
        ]


@asynccontextmanager
async def links_by_hand(url: str, ids: list[str]) -> AsyncIterator[None]:
    """Run links of a chain by hand in a process, and wait until they answer."""
    for one in ids:
        await hand.declare_mailbox(url, one)
    command = python("scripts.benchmarks", "nested", "links", url, *ids)
    async with running(" ".join(ids), command) as said:
        for one in ids:
            await said.says(f"^{one} is ready")
        yield


async def run_caller(kind: str, url: str, agent: str, count: int, in_flight: int) -> None:
    """Call one agent, and print what that took."""
    opening = calls.bare_caller(url, agent) if kind == BARE else calls.mesh_caller(url, agent)
    async with opening as ask:
        tell(await load(ask, count, in_flight, heap.settle))


async def measure(chain: Chain, depth: int, in_flight: int, scale: float) -> Measured:
    """Call through `depth` agents, in a process of its own."""
    count = max(in_flight, int(CALLS[in_flight] / depth * scale))
    agent = ids_of(chain.name)[depth - 1]
    arguments = ("caller", chain.kind, chain.url, agent, str(count), str(in_flight))
    command = python("scripts.benchmarks", "nested", *arguments)
    async with running(f"caller of {agent}", command) as said:
        return await told_by(said)


async def run_bench(rounds: int, scale: float) -> list[Row]:
    """Start everything, and measure."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        async with open_chains(Path(folder)) as chains:
            for depth in range(1, LENGTH + 1):
                for in_flight, labels in LABELS.items():
                    turn = partial(measure, depth=depth, in_flight=in_flight, scale=scale)
                    found = await in_turns(chains, rounds, turn)
                    measured = {chain.name: taken for chain, taken in found.items()}
                    for name, where in WHERE.items():
                        pair = measured[hand_chain(name)], measured[name]
                        title = f"{depth} deep, {where}, {in_flight} in flight"
                        rows += beside(title, *pair, labels)
    return rows


def main(arguments: list[str]) -> None:
    """Run, and print the table; or play a role in it."""
    options = parser("nested", DESCRIPTION, rounds=5).parse_args(arguments)
    match options.role:
        case []:
            rounds, scale = (1, 0.1) if options.quick else (options.rounds, options.scale)
            rows = complete(run_bench(rounds, scale))
            report(rows, judge=not options.quick, as_json=options.json)
        case ["links", url, *ids]:
            complete(run_links(url, ids))
        case ["caller", kind, url, agent, count, in_flight]:
            complete(run_caller(kind, url, agent, int(count), int(in_flight)))
        case _:
            raise BenchError(f"no such role: {options.role}")
