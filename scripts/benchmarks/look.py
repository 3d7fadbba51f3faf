"""Measures what it costs calls to be counted and traced, in one run.

The same mesh three times, each with a broker, an agent and callers of its own: without counting,
as it is, and with every call told to a collector, which throws it away. Rounds alternate.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import web

from mesh import metrics, otlp
from scripts.benchmarks import calls
from scripts.benchmarks.calls import Site
from scripts.benchmarks.figures import Limit, Row, report
from scripts.benchmarks.loads import LABELS
from scripts.benchmarks.options import complete, parser
from scripts.benchmarks.processes import BenchError, Spoken, python, running, told_by
from scripts.benchmarks.rounds import Measured, beside, in_turns

PLAIN, COUNTED, TRACED = "plain", "counted", "traced"
DESCRIPTION: Final = "What it costs calls to be counted and traced."
RATE: Final = {"rate": LABELS["rate"]}
COUNTED_LIMITS: Final = {"rate": Limit(least=0.95)}
TRACED_LIMITS: Final = {"rate": Limit(least=0.85)}


def count_nothing() -> None:
    """Take the counting out of this process, to measure what it costs."""

    def nothing(*_: object) -> None:
        """In the place of each function that a call goes through."""

    for one in ("called", "handled", "arrived"):
        setattr(metrics, one, nothing)


async def run_agent(kind: str, url: str) -> None:
    """Answer, in one of the three ways."""
    if kind == PLAIN:
        count_nothing()
    await calls.run_mesh_agent(url)


async def run_caller(kind: str, url: str, count: int, in_flight: int) -> None:
    """Call, in one of the three ways."""
    if kind == PLAIN:
        count_nothing()
    async with otlp.exporting("bench", "node1"):
        await calls.run_caller(calls.MESH, url, count, in_flight)


@asynccontextmanager
async def collector() -> AsyncIterator[str]:
    """Take spans, and throw them away; gives the address."""

    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({})

    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0])
    finally:
        await runner.cleanup()


def child(
    kind: str, role: str, *arguments: str, told: str = ""
) -> AbstractAsyncContextManager[Spoken]:
    """Run this bench in another process, in another role."""
    environ = {otlp.ENDPOINT: told} if kind == TRACED else {}
    return running(
        f"{role} {kind}", python("scripts.benchmarks", "look", role, kind, *arguments), **environ
    )


@asynccontextmanager
async def open_site(folder: Path, kind: str, told: str) -> AsyncIterator[Site]:
    """Run a mesh with an agent."""
    async with (
        calls.open_mesh(folder / kind) as url,
        child(kind, "agent", url, told=told) as agent,
    ):
        await agent.says("ready")
        yield Site(kind, url)


async def run_bench(rounds: int, scale: float) -> list[Row]:
    """Start everything, and measure."""
    wanted = {1: int(1_000 * scale), 64: int(10_000 * scale)}
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        told = await stack.enter_async_context(collector())
        sites = [
            await stack.enter_async_context(open_site(folder, kind, told))
            for kind in (PLAIN, COUNTED, TRACED)
        ]
        for in_flight, count in wanted.items():

            async def call(site: Site, count: int = count, in_flight: int = in_flight) -> Measured:
                arguments = (site.url, str(count), str(in_flight))
                async with child(site.kind, "caller", *arguments, told=told) as caller:
                    return await told_by(caller)

            plain, counted, traced = (await in_turns(sites, rounds, call)).values()
            where = f"{in_flight} in flight"
            rows += beside(f"counted beside plain, {where}", plain, counted, RATE, COUNTED_LIMITS)
            rows += beside(f"traced beside counted, {where}", counted, traced, RATE, TRACED_LIMITS)
    return rows


def main(arguments: list[str]) -> None:
    """Run, and print the table; or play a role in it."""
    options = parser("look", DESCRIPTION, rounds=7).parse_args(arguments)
    match options.role:
        case []:
            rounds, scale = (1, 0.1) if options.quick else (options.rounds, options.scale)
            rows = complete(run_bench(rounds, scale))
            report(rows, judge=not options.quick, as_json=options.json)
        case ["agent", kind, url]:
            complete(run_agent(kind, url))
        case ["caller", kind, url, count, in_flight]:
            complete(run_caller(kind, url, int(count), int(in_flight)))
        case _:
            raise BenchError(f"no such role: {options.role}")
