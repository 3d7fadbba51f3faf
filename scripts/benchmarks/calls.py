"""Measures calls through the mesh beside bare nats-py on the same streams, in one run.

Bare is the same round trip by hand: a request into INBOX, pulled with credits, its reply stored
in REPLY and acknowledged before the request is, heard by the caller through the republish.
Caller, agent and broker are processes of their own, on loopback. Rounds of both alternate, since
machines are noisy: trust the medians and the ratios.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import nats
import orjson
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from mesh import Agent, ChatRequest, heap
from mesh.broker import embedded_broker
from mesh.callers import Caller, new_instance_id
from mesh.client import open_client
from mesh.connection import open_connection
from mesh.directory import follow_directory
from mesh.errors import BrokerUnreachableError
from mesh.provision import ensure_streams
from mesh.runtime import AgentHost
from mesh.settings import Settings
from mesh.trust.credentials import Credentials
from mesh.trust.grants import Grant
from mesh.trust.keyring import Keyring
from mesh.trust.login import Login
from schemas.registry import UserRole
from scripts.benchmarks import hand
from scripts.benchmarks.figures import NO_LIMIT, Limit, Row, of_rounds, report
from scripts.benchmarks.processes import BenchError, Spoken, python, running

CREDITS = hand.CREDITS
BARE, MESH, SECURE = "bare", "mesh", "secure"
Results = dict[tuple[str, int], list[dict[str, float]]]
"""What the rounds have measured, by site and number of calls in flight."""
DESCRIPTION = "Calls through the mesh, beside the same round trip by hand in nats-py."
BODY = orjson.dumps({"model": "bench", "messages": [{"role": "user", "content": "hello"}]})
ANSWER = orjson.dumps({"choices": [{"message": {"role": "assistant", "content": "hello"}}]})


async def answer_by_hand(stream: JetStreamContext, message: Msg) -> None:
    """Store the same reply to every request."""
    headers = message.headers or {}
    call = headers["correlation_id"]
    reply = {"correlation_id": call, "Nats-Msg-Id": f"{call}.final"}
    await stream.publish(headers["reply_to"], ANSWER, headers=reply)


async def run_mesh_agent(url: str, creds: str = "") -> None:
    """Answer with the mesh's runtime."""
    agent = Agent("bench", concurrency=CREDITS)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return request.last_text

    settings = Settings(nats_url=url)
    async with open_connection(login(url, creds), name="bench agent", patience_s=10) as connection:
        host = AgentHost(connection, [agent], node="node1", settings=settings)
        running = asyncio.create_task(host.run(asyncio.Event()))
        await host.ready.wait()
        heap.settle()  # As `mesh run` does.
        print("ready", flush=True)
        await running


Ask = Callable[[], Awaitable[None]]


@asynccontextmanager
async def bare_caller(url: str, agent: str = BARE) -> AsyncIterator[Ask]:
    """Ask an agent by hand."""
    client = await nats.connect(url)
    stream = client.jetstream()
    waiting: dict[str, asyncio.Future[bytes]] = {}

    async def on_reply(message: Msg) -> None:
        future = waiting.pop(message.subject.rpartition(".")[2], None)
        if future is not None:
            future.set_result(message.data)

    await client.subscribe("delivered.hand.reply.x.>", cb=on_reply)

    async def ask() -> None:
        call = uuid4().hex
        future = waiting[call] = asyncio.get_running_loop().create_future()
        headers = {
            "reply_to": f"agent.hand.reply.x.{call}",
            "correlation_id": call,
            "Nats-Msg-Id": call,
        }
        await stream.publish_async(f"agent.{agent}.inbox", BODY, headers=headers)
        await asyncio.wait_for(future, 30)

    try:
        yield ask
    finally:
        await client.close()


def login(url: str, creds: str) -> Login:
    """Return how a process of the bench logs in; without credentials in an open mesh."""
    return Login(url, Credentials.read(Path(creds)) if creds else None)


@asynccontextmanager
async def mesh_caller(url: str, creds: str = "") -> AsyncIterator[Ask]:
    """Ask with the mesh's client."""
    async with (
        open_connection(login(url, creds), name="bench caller") as connection,
        follow_directory(connection) as directory,
        open_client(connection, directory, Caller("bencher", "node1", new_instance_id())) as client,
    ):

        async def ask() -> None:
            call = await client.start("bench", BODY, timeout_s=30)
            await call.result()

        yield ask


async def run_caller(kind: str, url: str, calls: int, in_flight: int, creds: str = "") -> None:
    """Make `calls` calls, `in_flight` at once, and print what they took."""
    opening = bare_caller(url) if kind == BARE else mesh_caller(url, creds)
    took: list[float] = []

    async def work(ask: Ask, count: int) -> None:
        for _ in range(count):
            start = time.perf_counter()
            await ask()
            took.append(time.perf_counter() - start)

    async with opening as ask:
        await asyncio.gather(*(work(ask, 5) for _ in range(in_flight)))
        heap.settle()  # As a door does; by hand it is the same.
        took.clear()
        start = time.perf_counter()
        await asyncio.gather(*(work(ask, calls // in_flight) for _ in range(in_flight)))
        elapsed_s = time.perf_counter() - start
    took.sort()
    result = {
        "rate": len(took) / elapsed_s,
        "p50_ms": took[len(took) // 2] * 1e3,
        "p99_ms": took[int(len(took) * 0.99)] * 1e3,
    }
    print(json.dumps(result), flush=True)


def child(*arguments: str) -> AbstractAsyncContextManager[Spoken]:
    """Run this bench in another process, in another role."""
    command = python("scripts.benchmarks", "calls", *arguments)
    return running(" ".join(arguments[:2]), command)


@dataclass(frozen=True, slots=True)
class Site:
    """A broker with an agent to call."""

    kind: str
    url: str
    creds: str = ""
    """Of the caller."""


@asynccontextmanager
async def open_site(folder: Path) -> AsyncIterator[tuple[Site, Site]]:
    """Run an open mesh with its agent, and an agent by hand on the same broker."""
    settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=folder)
    async with embedded_broker(settings) as broker:
        url = broker.url
        async with open_connection(url, name="bench") as connection:
            await ensure_streams(connection, Settings(nats_url=url))
        await hand.declare_mailbox(url, BARE)
        async with control_plane(url), child("agent", BARE, url) as bare:
            await bare.says("ready")
            async with child("agent", MESH, url) as mesh:
                await mesh.says("ready")
                yield Site(BARE, url), Site(MESH, url)


@asynccontextmanager
async def secure_site(folder: Path) -> AsyncIterator[Site]:
    """Run a secure mesh with its agent: two accounts, and every request signed and checked."""
    keyring = Keyring.create(folder / "keys")
    keyring.issue("bench", UserRole.AGENT, Grant("node1", ("bench",)))
    keyring.issue("bencher", UserRole.PERSON, Grant(callers=("bencher",)))
    settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=folder)
    paths = {name: str(keyring.credentials_path(name)) for name in ("control", "bench", "bencher")}
    async with embedded_broker(settings) as broker:
        url = broker.url
        async with open_connection(login(url, paths["control"]), name="bench") as connection:
            await ensure_streams(connection, settings)
        environ = {"MESH_CREDS": paths["control"], "MESH_DATA_DIR": str(folder)}
        async with (
            control_plane(url, **environ),
            child("agent", MESH, url, paths["bench"]) as mesh,
        ):
            await mesh.says("ready")
            yield Site(SECURE, url, paths["bencher"])


def control_plane(url: str, **environ: str) -> AbstractAsyncContextManager[Spoken]:
    """Run the registrar, which makes the mesh agent's mailbox."""
    return running("control plane", python("handlers.app"), MESH_NATS_URL=url, **environ)


async def measure(sites: Sequence[Site], rounds: int, calls: dict[int, int]) -> Results:
    """Alternate rounds of all sites, for every number of calls in flight."""
    results: Results = {}
    for number in range(rounds):
        for in_flight, count in calls.items():
            for site in sites if number % 2 else sites[::-1]:
                arguments = ("caller", site.kind, site.url, str(count), str(in_flight), site.creds)
                async with child(*arguments) as caller:
                    line = await caller.says("^{.*}$", within_s=120)
                results.setdefault((site.kind, in_flight), []).append(json.loads(line))
    return results


LIMITS: Final = {
    (MESH, 1, "p50_ms"): Limit(most=1.2),
    (MESH, 64, "rate"): Limit(least=0.85),
    (SECURE, 64, "rate"): Limit(least=0.6),
}
LABELS: Final = {"rate": "calls/s", "p50_ms": "p50 ms", "p99_ms": "p99 ms"}


def rows_of(results: Results) -> list[Row]:
    """Compare the mesh with bare nats-py, and a secure mesh with an open one, round by round."""
    rows: list[Row] = []
    for ours, reference, name in (
        (MESH, BARE, "beside bare nats-py"),
        (SECURE, MESH, "secure beside open"),
    ):
        for in_flight in sorted({key[1] for key in results}):
            rounds = list(zip(results[reference, in_flight], results[ours, in_flight], strict=True))
            for field, label in LABELS.items():
                pairs = [(one[field], other[field]) for one, other in rounds]
                limit = LIMITS.get((ours, in_flight, field), NO_LIMIT)
                rows.append(of_rounds(f"{name}, {in_flight} in flight: {label}", pairs, limit))
    return rows


async def run_bench(rounds: int, calls: dict[int, int]) -> list[Row]:
    """Start everything, and measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            open_site(folder / "open") as (bare, mesh),
            secure_site(folder / "secure") as secure,
        ):
            return rows_of(await measure((bare, mesh, secure), rounds, calls))


def bench(options: argparse.Namespace) -> None:
    """Run, and print the table. A missed limit is told, and is no failure: machines are noisy."""
    scale = options.scale * (0.05 if options.quick else 1.0)
    calls = {1: 1_000, 8: 4_000, 64: 10_000, 512: 10_000}
    rounds = 1 if options.quick else options.rounds
    wanted = {one: max(one, int(count * scale)) for one, count in calls.items()}
    rows = asyncio.run(run_bench(rounds, wanted))
    report(rows, judge=not options.quick, as_json=options.json)


def main(arguments: list[str]) -> None:
    """Read the arguments: without a role, run the whole bench."""
    parser = argparse.ArgumentParser(prog="scripts/bench calls", description=DESCRIPTION)
    parser.add_argument("role", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of calls")
    parser.add_argument("--quick", action="store_true", help="a smoke run: nothing is judged")
    parser.add_argument("--json", action="store_true", help="print plain data")
    options = parser.parse_args(arguments)
    try:
        if options.role:
            asyncio.run(role(options.role))
        else:
            bench(options)
    except (BrokerUnreachableError, BenchError) as error:
        sys.exit(str(error))


def role(named: list[str]) -> Coroutine[Any, Any, None]:
    """Return the work of one process of the bench."""
    match named:
        case ["agent", kind, url] if kind == BARE:
            return hand.run_agent(url, BARE, answer_by_hand)
        case ["agent", _, url, *creds]:
            return run_mesh_agent(url, *creds)
        case ["caller", kind, url, calls, in_flight, creds]:
            return run_caller(kind, url, int(calls), int(in_flight), creds)
        case _:
            raise BenchError(f"no such role: {' '.join(named)}")
