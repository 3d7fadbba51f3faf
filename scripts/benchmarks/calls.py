"""Measures calls through the mesh beside bare nats-py on the same streams, in one run.

Bare is the same round trip by hand: a request into INBOX, pulled with credits, its reply stored
in REPLY and acknowledged before the request is, heard by the caller through the republish.
Caller, agent and broker are processes of their own, on loopback. Rounds of both alternate, since
machines are noisy: trust the medians and the ratios. The same is also done by hand with all the
headers that the mesh writes, deadlines among them: the floor under whatever keeps its promises.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from mesh import heap
from mesh.broker import embedded_broker
from mesh.callers import Caller, new_instance_id
from mesh.client import open_client
from mesh.connection import open_connection
from mesh.directory import follow_directory
from mesh.provision import ensure_streams
from mesh.runtime import AgentHost
from mesh.settings import Settings
from mesh.trust.credentials import Credentials
from mesh.trust.grants import Grant
from mesh.trust.keyring import Keyring
from mesh.trust.login import Login
from schemas.registry import UserRole
from scripts.benchmarks import hand, trees
from scripts.benchmarks.figures import Limit, Row, report
from scripts.benchmarks.loads import LABELS, Ask, load
from scripts.benchmarks.options import complete, parser
from scripts.benchmarks.peers import plain_agent
from scripts.benchmarks.peers.plain_caller import BODY
from scripts.benchmarks.processes import SPARING, BenchError, Spoken, python, running, tell, told_by
from scripts.benchmarks.rounds import Measured, beside, in_turns

BARE, MESH, SECURE = "bare", "mesh", "secure"
FULL = "bare-full"
"""By hand, with the headers that the mesh writes: what the promises cost on the wire alone."""
Results = dict[tuple[str, int], list[Measured]]
"""What the rounds have measured, by site and number of calls in flight."""
DESCRIPTION = "Calls through the mesh, beside the same round trip by hand in nats-py."
ANSWER = orjson.dumps({"choices": [{"message": {"role": "assistant", "content": "hello"}}]})


async def answer_by_hand(stream: JetStreamContext, message: Msg) -> None:
    """Store the same reply to every request."""
    await hand.answer_with(stream, message, ANSWER)


async def answer_in_full(stream: JetStreamContext, message: Msg) -> None:
    """Store the same, with all that an answer of the mesh says."""
    await hand.answer_with(stream, message, ANSWER, hand.REPLY_HEADERS)


async def run_mesh_agent(url: str, creds: str = "") -> None:
    """Answer with the mesh's runtime."""
    settings = Settings(nats_url=url)
    async with open_connection(login(url, creds), name="bench agent", patience_s=10) as connection:
        host = AgentHost(connection, [plain_agent.agent], node="node1", settings=settings)
        running = asyncio.create_task(host.run(asyncio.Event()))
        await host.ready.wait()
        heap.settle()  # As `mesh run` does.
        print("ready", flush=True)
        await running


@asynccontextmanager
async def bare_caller(url: str, agent: str = BARE) -> AsyncIterator[Ask]:
    """Ask an agent by hand."""
    more = hand.REQUEST_HEADERS if agent == FULL else hand.NO_MORE
    async with hand.calling(url, more) as caller:

        async def ask() -> None:
            await caller.ask(agent, BODY)

        yield ask


def login(url: str, creds: str) -> Login:
    """Return how a process of the bench logs in; without credentials in an open mesh."""
    return Login(url, Credentials.read(Path(creds)) if creds else None)


@asynccontextmanager
async def mesh_caller(url: str, agent: str = "bench", creds: str = "") -> AsyncIterator[Ask]:
    """Ask with the mesh's client."""
    async with (
        open_connection(login(url, creds), name="bench caller") as connection,
        follow_directory(connection) as directory,
        open_client(connection, directory, Caller("bencher", "node1", new_instance_id())) as client,
    ):

        async def ask() -> None:
            call = await client.start(agent, BODY, timeout_s=30)
            await call.result()

        yield ask


async def run_caller(kind: str, url: str, calls: int, in_flight: int, creds: str = "") -> None:
    """Make `calls` calls, `in_flight` at once, and print what they took."""
    by_hand = kind in (BARE, FULL)
    opening = bare_caller(url, kind) if by_hand else mesh_caller(url, creds=creds)
    async with opening as ask:
        # It settles as a door does; by hand it is the same.
        tell(await load(ask, calls, in_flight, heap.settle))


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
async def open_broker(folder: Path) -> AsyncIterator[str]:
    """Run a broker with the mesh's streams, without keys; gives its URL."""
    settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=folder)
    async with embedded_broker(settings) as broker:
        async with open_connection(broker.url, name="bench") as connection:
            await ensure_streams(connection, settings)
        yield broker.url


@asynccontextmanager
async def open_mesh(folder: Path) -> AsyncIterator[str]:
    """Run a broker and a control plane; gives the broker's URL."""
    async with open_broker(folder) as url, control_plane(url):
        yield url


@asynccontextmanager
async def open_site(folder: Path) -> AsyncIterator[list[Site]]:
    """Run an open mesh with its agent, and two agents by hand on the same broker."""
    async with open_mesh(folder) as url, AsyncExitStack() as stack:
        for kind in (BARE, FULL):
            await hand.declare_mailbox(url, kind)
        for kind in (BARE, FULL, MESH):
            agent = await stack.enter_async_context(child("agent", kind, url))
            await agent.says("ready")
        yield [Site(kind, url) for kind in (BARE, FULL, MESH)]


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
    environ |= {"MESH_NATS_URL": url, **SPARING}
    return running("control plane", python("handlers.app"), **environ)


async def measure(sites: Sequence[Site], rounds: int, calls: dict[int, int]) -> Results:
    """Alternate rounds of all sites, for every number of calls in flight."""
    results: Results = {}
    for in_flight, count in calls.items():

        async def call(site: Site, in_flight: int = in_flight, count: int = count) -> Measured:
            arguments = ("caller", site.kind, site.url, str(count), str(in_flight), site.creds)
            async with child(*arguments) as caller:
                return await told_by(caller)

        for site, measured in (await in_turns(sites, rounds, call)).items():
            results[site.kind, in_flight] = measured
    return results


CALLS: Final = {1: 1_000, 8: 4_000, 64: 10_000, 512: 10_000}
LIMITS: Final = {
    (MESH, 1): {"p50_ms": Limit(most=1.2)},
    (MESH, 64): {"rate": Limit(least=0.85)},
    (SECURE, 64): {"rate": Limit(least=0.6)},
}


def rows_of(results: Results) -> list[Row]:
    """Compare the mesh with bare nats-py, and a secure mesh with an open one, round by round."""
    rows: list[Row] = []
    for ours, reference, name in (
        (MESH, BARE, "beside bare nats-py"),
        (MESH, FULL, "beside bare nats-py with the same headers"),
        (SECURE, MESH, "secure beside open"),
    ):
        for in_flight in sorted({key[1] for key in results}):
            measured = results[reference, in_flight], results[ours, in_flight]
            limits = LIMITS.get((ours, in_flight), {})
            rows += beside(f"{name}, {in_flight} in flight", *measured, LABELS, limits)
    return rows


async def run_bench(rounds: int, calls: dict[int, int]) -> list[Row]:
    """Start everything, and measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            open_site(folder / "open") as sites,
            secure_site(folder / "secure") as secure,
        ):
            return rows_of(await measure((*sites, secure), rounds, calls))


def main(arguments: list[str]) -> None:
    """Run, and print the table; or play a role in it."""
    reading = parser("calls", DESCRIPTION, rounds=5)
    reading.add_argument(
        "--against", metavar="DIR", type=Path, help="compare with another checkout instead"
    )
    options = reading.parse_args(arguments)
    if options.role:
        complete(role(options.role))
        return
    rounds, scale = (1, 0.05) if options.quick else (options.rounds, options.scale)
    if options.against is None:
        wanted = {one: max(one, int(count * scale)) for one, count in CALLS.items()}
        rows = complete(run_bench(rounds, wanted))
    else:
        least = 1 if options.quick else trees.LEAST_ROUNDS
        rows = complete(trees.run_bench(options.against, max(rounds, least), scale))
    report(rows, judge=not options.quick, as_json=options.json)


def role(named: list[str]) -> Coroutine[Any, Any, None]:
    """Return the work of one process of the bench."""
    match named:
        case ["agent", kind, url] if kind == BARE:
            return hand.run_agent(url, BARE, answer_by_hand)
        case ["agent", kind, url] if kind == FULL:
            return hand.run_agent(url, FULL, answer_in_full)
        case ["agent", _, url, *creds]:
            return run_mesh_agent(url, *creds)
        case ["caller", kind, url, calls, in_flight, *creds]:
            return run_caller(kind, url, int(calls), int(in_flight), *creds)
        case _:
            raise BenchError(f"no such role: {' '.join(named)}")
