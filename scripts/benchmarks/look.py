"""Measures what it costs calls to be counted and traced, in one run.

The same mesh three times, each with a broker, an agent and callers of its own: without counting,
as it is, and with every call told to a collector, which throws it away. Rounds alternate.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import web

from mesh import metrics, otlp
from mesh.broker import embedded_broker
from mesh.connection import open_connection
from mesh.errors import BrokerUnreachableError
from mesh.provision import ensure_streams
from mesh.settings import Settings
from scripts.benchmarks import calls
from scripts.benchmarks.calls import Site
from scripts.benchmarks.figures import Limit, Row, of_rounds, report
from scripts.benchmarks.processes import BenchError, Spoken, python, running

PLAIN, COUNTED, TRACED = "plain", "counted", "traced"
COUNTED_LEAST: Final = 0.95
TRACED_LEAST: Final = 0.85


def count_nothing() -> None:
    """Take the counting out of this process, to measure what it costs."""

    def nothing(*_: object) -> None:
        """In the place of each function that a call goes through."""

    metrics.called = metrics.handled = metrics.arrived = nothing


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
    settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=folder / kind)
    async with embedded_broker(settings) as broker:
        async with open_connection(broker.url, name="bench") as connection:
            await ensure_streams(connection, Settings(nats_url=broker.url))
        async with (
            calls.control_plane(broker.url),
            child(kind, "agent", broker.url, told=told) as agent,
        ):
            await agent.says("ready")
            yield Site(kind, broker.url)


async def run_bench(rounds: int, scale: float) -> list[Row]:
    """Start everything, and measure."""
    wanted = {1: int(1_000 * scale), 64: int(10_000 * scale)}
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        told = await stack.enter_async_context(collector())
        sites = [
            await stack.enter_async_context(open_site(folder, kind, told))
            for kind in (PLAIN, COUNTED, TRACED)
        ]
        for number in range(rounds):
            for in_flight, count in wanted.items():
                for site in sites if number % 2 else sites[::-1]:
                    arguments = (site.url, str(count), str(in_flight))
                    async with child(site.kind, "caller", *arguments, told=told) as caller:
                        line = await caller.says("^{.*}$", within_s=120)
                    found.setdefault((site.kind, in_flight), []).append(json.loads(line))
    return [
        *_rows(found, PLAIN, COUNTED, COUNTED_LEAST),
        *_rows(found, COUNTED, TRACED, TRACED_LEAST),
    ]


def _rows(
    found: dict[tuple[str, int], list[dict[str, float]]], reference: str, ours: str, least: float
) -> list[Row]:
    """Compare two of the three, round by round."""
    rows: list[Row] = []
    for in_flight in (1, 64):
        pairs = list(zip(found[reference, in_flight], found[ours, in_flight], strict=True))
        name = f"{ours} beside {reference}, {in_flight} in flight"
        rates = [(one["rate"], other["rate"]) for one, other in pairs]
        rows.append(of_rounds(f"{name}: calls/s", rates, Limit(least=least)))
    return rows


def main(arguments: list[str]) -> None:
    """Run, and print the table; or play a role in it."""
    parser = argparse.ArgumentParser(prog="scripts/bench look", description=__doc__)
    parser.add_argument("role", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of calls")
    parser.add_argument("--quick", action="store_true", help="a smoke run: nothing is judged")
    parser.add_argument("--json", action="store_true", help="print plain data")
    options = parser.parse_args(arguments)
    try:
        match options.role:
            case []:
                quick = options.quick
                rows = asyncio.run(
                    run_bench(1, 0.1) if quick else run_bench(options.rounds, options.scale)
                )
                report(rows, judge=not quick, as_json=options.json)
            case ["agent", kind, url]:
                asyncio.run(run_agent(kind, url))
            case ["caller", kind, url, count, in_flight]:
                asyncio.run(run_caller(kind, url, int(count), int(in_flight)))
            case _:
                parser.error("no such role")
    except (BrokerUnreachableError, BenchError) as error:
        sys.exit(str(error))
