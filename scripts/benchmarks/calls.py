"""Measures calls through the mesh beside bare nats-py on the same streams, in one run.

Bare is the same round trip by hand: a request into INBOX, pulled with credits, its reply stored
in REPLY and acknowledged before the request is, heard by the caller through the republish.
Caller, agent and broker are processes of their own, on loopback. Rounds of both alternate, since
machines are noisy: trust the medians and the ratios.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import nats
import orjson
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from mesh import Agent, ChatRequest
from mesh.broker import embedded_broker
from mesh.callers import Caller, new_instance_id
from mesh.client import open_client
from mesh.connection import open_connection
from mesh.directory import follow_directory
from mesh.errors import BrokerUnreachableError
from mesh.provision import ensure_streams
from mesh.runtime import AgentHost
from mesh.settings import Settings
from scripts.benchmarks import hand
from scripts.benchmarks.processes import BenchError, Spoken, python, running

CREDITS = hand.CREDITS
BARE = "bare"
DESCRIPTION = "Calls through the mesh, beside the same round trip by hand in nats-py."
BODY = orjson.dumps({"model": "bench", "messages": [{"role": "user", "content": "hello"}]})
ANSWER = orjson.dumps({"choices": [{"message": {"role": "assistant", "content": "hello"}}]})


async def answer_by_hand(stream: JetStreamContext, message: Msg) -> None:
    """Store the same reply to every request."""
    headers = message.headers or {}
    call = headers["correlation_id"]
    reply = {"correlation_id": call, "Nats-Msg-Id": f"{call}.final"}
    await stream.publish(headers["reply_to"], ANSWER, headers=reply)


async def run_mesh_agent(url: str) -> None:
    """Answer with the mesh's runtime."""
    agent = Agent("bench", concurrency=CREDITS)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return request.last_text

    settings = Settings(nats_url=url)
    async with open_connection(url, name="bench agent", patience_s=10) as connection:
        host = AgentHost(connection, [agent], node="node1", settings=settings)
        running = asyncio.create_task(host.run(asyncio.Event()))
        await host.ready.wait()
        print("ready", flush=True)
        await running


Ask = Callable[[], Awaitable[None]]


@asynccontextmanager
async def bare_caller(url: str) -> AsyncIterator[Ask]:
    """Ask by hand."""
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
        await stream.publish_async("agent.bare.inbox", BODY, headers=headers)
        await asyncio.wait_for(future, 30)

    try:
        yield ask
    finally:
        await client.close()


@asynccontextmanager
async def mesh_caller(url: str) -> AsyncIterator[Ask]:
    """Ask with the mesh's client."""
    async with (
        open_connection(url, name="bench caller") as connection,
        follow_directory(connection) as directory,
        open_client(connection, directory, Caller("bencher", "node1", new_instance_id())) as client,
    ):

        async def ask() -> None:
            call = await client.start("bench", BODY, timeout_s=30)
            await call.result()

        yield ask


async def run_caller(kind: str, url: str, calls: int, in_flight: int) -> None:
    """Make `calls` calls, `in_flight` at once, and print what they took."""
    caller = bare_caller if kind == "bare" else mesh_caller
    took: list[float] = []

    async def work(ask: Ask, count: int) -> None:
        for _ in range(count):
            start = time.perf_counter()
            await ask()
            took.append(time.perf_counter() - start)

    async with caller(url) as ask:
        await asyncio.gather(*(work(ask, 5) for _ in range(in_flight)))
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


async def prepare(url: str) -> None:
    """Declare the mesh's streams, and the durable of the agent by hand."""
    async with open_connection(url, name="bench") as connection:
        await ensure_streams(connection, Settings(nats_url=url))
    await hand.declare_mailbox(url, BARE)


def control_plane(url: str) -> AbstractAsyncContextManager[Spoken]:
    """Run the registrar, which makes the mesh agent's mailbox."""
    return running("control plane", python("handlers.app"), MESH_NATS_URL=url)


async def measure(
    url: str, rounds: int, calls: dict[int, int]
) -> dict[tuple[str, int], list[dict[str, float]]]:
    """Alternate rounds of bare and mesh, for every number of calls in flight."""
    results: dict[tuple[str, int], list[dict[str, float]]] = {}
    for number in range(rounds):
        for in_flight, count in calls.items():
            for kind in ("bare", "mesh") if number % 2 else ("mesh", "bare"):
                async with child("caller", kind, url, str(count), str(in_flight)) as caller:
                    line = await caller.says("^{.*}$", within_s=120)
                results.setdefault((kind, in_flight), []).append(json.loads(line))
    return results


def table(results: dict[tuple[str, int], list[dict[str, float]]]) -> str:
    """Render medians, and the median of the ratios round by round."""
    lines = [
        "| in flight | figure | bare nats-py | mesh | mesh / bare |",
        "|---|---|---|---|---|",
    ]
    for in_flight in sorted({key[1] for key in results}):
        bare, mesh = results["bare", in_flight], results["mesh", in_flight]
        for figure, label in (("rate", "calls/s"), ("p50_ms", "p50 ms"), ("p99_ms", "p99 ms")):
            a = statistics.median(one[figure] for one in bare)
            b = statistics.median(one[figure] for one in mesh)
            ratio = statistics.median(
                two[figure] / one[figure] for one, two in zip(bare, mesh, strict=True)
            )
            lines.append(f"| {in_flight} | {label} | {a:.2f} | {b:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


async def run_bench(rounds: int, scale: float) -> None:
    """Start everything, measure, print the table."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=Path(folder))
        async with embedded_broker(settings) as broker:
            url = broker.url
            await prepare(url)
            async with control_plane(url), child("agent", "bare", url) as bare:
                await bare.says("ready")
                async with child("agent", "mesh", url) as mesh:
                    await mesh.says("ready")
                    calls = {1: int(1_000 * scale), 64: int(10_000 * scale)}
                    results = await measure(url, rounds, calls)
            print(f"nats-server {broker.version}, {rounds} rounds, medians\n")
            print(table(results))


def main(arguments: list[str]) -> None:
    """Read the arguments: without a role, run the whole bench."""
    parser = argparse.ArgumentParser(prog="scripts/bench calls", description=DESCRIPTION)
    parser.add_argument("role", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of calls")
    options = parser.parse_args(arguments)
    match options.role:
        case []:
            work = run_bench(options.rounds, options.scale)
        case ["agent", "bare", url]:
            work = hand.run_agent(url, BARE, answer_by_hand)
        case ["agent", "mesh", url]:
            work = run_mesh_agent(url)
        case ["caller", kind, url, calls, in_flight]:
            work = run_caller(kind, url, int(calls), int(in_flight))
        case _:
            parser.error("no such role")
    try:
        asyncio.run(work)
    except (BrokerUnreachableError, BenchError) as error:
        sys.exit(str(error))
