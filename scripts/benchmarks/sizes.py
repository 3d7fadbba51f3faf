"""Measures calls whose question or answer is large, beside the same round trip by hand in nats-py.

Text in and text out on both sides: who asks makes a chat request of a text, the agent takes the
text out of it, and so with the answer. The two ways are measured apart, since an echo would hide
which of them is dear. What fits into no message lies in an object store: by hand in nats-py's own.
"""

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import orjson
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from mesh import connect, heap
from scripts.benchmarks import hand
from scripts.benchmarks.calls import open_mesh
from scripts.benchmarks.figures import Row, report
from scripts.benchmarks.hand_store import Bodies
from scripts.benchmarks.loads import Ask, load
from scripts.benchmarks.options import complete, parser
from scripts.benchmarks.peers.sized_agent import GIVE, answer_to, text_of
from scripts.benchmarks.processes import BenchError, mesh_run, python, running, tell, told_by
from scripts.benchmarks.rounds import Measured, beside, in_turns

DESCRIPTION: Final = "Calls with large bodies, beside the same round trip by hand in nats-py."
AGENT: Final = "scripts.benchmarks.peers.sized_agent:agent"
BARE, MESH = "hand_sized", "sized"
QUESTION, ANSWER = "question", "answer"
KB: Final = 1_000
FITTING: Final = {
    1: (800, 3_000),
    10: (800, 3_000),
    100: (600, 1_600),
    500: (200, 320),
    900: (120, 160),
}
"""KB, and how many calls with them: one at a time, and eight."""
BESIDE: Final = {1_500: 40, 16_000: 4}
"""What fits into no message; one call at a time."""
IN_FLIGHT: Final = (1, 8)
LABELS: Final = {"rate": "calls/s", "mb_per_s": "MB/s", "p50_ms": "p50 ms"}


@dataclass(frozen=True, slots=True)
class Point:
    """What is asked, and how often."""

    large: str
    """Which of the two is large: question or answer."""
    kb: int
    in_flight: int
    calls: int

    @property
    def text(self) -> str:
        """What is asked."""
        return text_of(self.kb * KB) if self.large == QUESTION else f"{GIVE}{self.kb * KB}"

    @property
    def longer(self) -> int:
        """How many characters an answer has at least."""
        return self.kb * KB if self.large == ANSWER else 1

    def __str__(self) -> str:
        return f"{self.large} of {self.kb:,} KB, {self.in_flight} in flight"


def points(scale: float) -> list[Point]:
    """Return all of them."""
    fitting = [
        (kb, count, many)
        for kb, counts in FITTING.items()
        for many, count in zip(IN_FLIGHT, counts, strict=True)
    ]
    wanted = [*fitting, *((kb, count, 1) for kb, count in BESIDE.items())]
    return [
        Point(large, kb, many, max(many, int(count * scale)))
        for large in (QUESTION, ANSWER)
        for kb, count, many in wanted
    ]


async def run_hand_agent(url: str) -> None:
    """Answer by hand: parse the request, and write an answer as JSON."""
    async with hand.opened(url) as client:
        bodies = await Bodies.opened(client)

        async def answer(stream: JetStreamContext, message: Msg) -> None:
            asked = orjson.loads(await bodies.unpack(message.data))
            text = answer_to(asked["messages"][-1]["content"])
            said = {"choices": [{"message": {"role": "assistant", "content": text}}]}
            await hand.answer_with(stream, message, await bodies.pack(orjson.dumps(said)))

        await hand.serve(client, BARE, answer)


@asynccontextmanager
async def asking_by_hand(url: str, point: Point) -> AsyncIterator[Ask]:
    """Ask by hand."""
    async with hand.opened(url) as client:
        caller = hand.HandCaller(client)
        await caller.listen()
        bodies = await Bodies.opened(client)

        async def ask() -> None:
            asked = {"model": BARE, "messages": [{"role": "user", "content": point.text}]}
            said = await caller.ask(BARE, await bodies.pack(orjson.dumps(asked)))
            text = orjson.loads(await bodies.unpack(said))["choices"][0]["message"]["content"]
            require_whole(point, text)

        yield ask


@asynccontextmanager
async def asking_mesh(url: str, point: Point) -> AsyncIterator[Ask]:
    """Ask with the mesh's client."""
    async with connect(url, name="bencher", node="node1") as client:

        async def ask() -> None:
            reply = await client.ask(MESH, point.text, timeout_s=30)
            require_whole(point, reply.text)

        yield ask


def require_whole(point: Point, text: str) -> None:
    """Check that the answer is the one that was wanted.

    Raises:
        BenchError: it is shorter.
    """
    if len(text) < point.longer:
        raise BenchError(f"{point}: the answer has {len(text)} characters")


async def run_caller(kind: str, url: str, point: Point) -> None:
    """Make the calls of one point, and print what they took."""
    opening = asking_by_hand if kind == BARE else asking_mesh
    async with opening(url, point) as ask:
        taken = await load(ask, point.calls, point.in_flight, heap.settle)
    tell({**taken, "mb_per_s": taken["rate"] * point.kb * KB / 1e6})


async def measure(kind: str, url: str, point: Point) -> Measured:
    """Call, in a process of its own."""
    numbers = (str(one) for one in (point.kb, point.in_flight, point.calls))
    arguments = ("sizes", "caller", kind, url, point.large, *numbers)
    async with running(f"{kind}: {point}", python("scripts.benchmarks", *arguments)) as caller:
        return await told_by(caller)


@asynccontextmanager
async def open_agents(folder: Path) -> AsyncIterator[str]:
    """Run a mesh with both agents; gives the broker's URL."""
    async with open_mesh(folder) as url, mesh_run(url, AGENT, MESH):
        await hand.declare_mailbox(url, BARE)
        command = python("scripts.benchmarks", "sizes", "agent", url)
        async with running("agent by hand", command) as agent:
            await agent.says("is ready")
            yield url


async def run_bench(rounds: int, wanted: Sequence[Point]) -> list[Row]:
    """Start everything, and measure."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        async with open_agents(Path(folder)) as url:
            for point in wanted:
                turn = partial(measure, url=url, point=point)
                found = await in_turns((BARE, MESH), rounds, turn)
                rows += beside(str(point), found[BARE], found[MESH], LABELS)
    return rows


def main(arguments: list[str]) -> None:
    """Run, and print the table; or play a role in it."""
    options = parser("sizes", DESCRIPTION, rounds=5).parse_args(arguments)
    match options.role:
        case []:
            rounds, scale = (1, 0.05) if options.quick else (options.rounds, options.scale)
            rows = complete(run_bench(rounds, points(scale)))
            report(rows, judge=not options.quick, as_json=options.json)
        case ["agent", url]:
            complete(run_hand_agent(url))
        case ["caller", kind, url, large, kb, in_flight, calls]:
            point = Point(large, int(kb), int(in_flight), int(calls))
            complete(run_caller(kind, url, point))
        case _:
            raise BenchError(f"no such role: {options.role}")
