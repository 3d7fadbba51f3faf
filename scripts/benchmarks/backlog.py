"""Measures a mailbox that very many calls wait in: for an agent that is offline, and then is not.

The calls are requests as any NATS client may write them, with headers: the caller keeps nothing of
a call but a bit, so that what is measured is the broker and the agent.
"""

import asyncio
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nats.aio.msg import Msg

from mesh import headers as h
from mesh import subjects
from mesh.broker import EmbeddedBroker, embedded_broker
from mesh.connection import Connection, open_connection
from mesh.dispatch import Prompt
from mesh.provision import ensure_streams
from mesh.publisher import PubAck
from mesh.settings import Settings
from scripts.benchmarks import calls
from scripts.benchmarks.figures import Figure, Row, report
from scripts.benchmarks.options import complete, parser
from scripts.benchmarks.processes import BenchError, Spoken
from scripts.benchmarks.resources import memory_of

DESCRIPTION: Final = "A backlog of very many calls for an agent that is offline."
AGENT: Final = "bench"
CALLER: Final = "backlog"
INSTANCE: Final = "i"
WINDOW: Final = 4_000
"""Requests that are sent and not acknowledged yet."""
DEADLINE_S: Final = 3_600.0
STALL_S: Final = 60.0
LOOK_S: Final = 0.5
BODY: Final = b'{"model":"bench","messages":[{"role":"user","content":"hello"}]}'


@dataclass(slots=True)
class Answers:
    """Which calls were answered, and whether one was twice."""

    waiting: bytearray
    count: int = 0
    twice: int = 0
    failed: int = 0

    def take(self, message: Msg) -> None:
        """Take in a frame."""
        headers = message.headers or {}
        if headers.get(h.KIND) not in ("final", "error"):
            return
        number = int(message.subject.rsplit(".", 2)[1], 16)
        self.twice += not self.waiting[number]
        self.failed += headers[h.KIND] == "error"
        self.count += self.waiting[number]
        self.waiting[number] = 0


async def fill(connection: Connection, count: int) -> float:
    """Write `count` requests into the mailbox, and return the seconds that took."""
    start = time.perf_counter()
    sent: deque[asyncio.Future[PubAck]] = deque()
    for number in range(count):
        sent.append(await connection.publisher.submit(*request(number)))
        if len(sent) >= WINDOW:
            await sent.popleft()
    while sent:
        await sent.popleft()
    return time.perf_counter() - start


def request(number: int) -> tuple[str, bytes, dict[str, str]]:
    """Write one request: its subject, body and headers."""
    call = f"{number:032x}"
    headers = {
        h.REPLY_TO: subjects.reply(CALLER, INSTANCE, call, AGENT),
        h.CORRELATION_ID: call,
        h.CONTENT_TYPE: h.JSON,
        h.MSG_ID: call,
        h.TTL: h.ttl(DEADLINE_S),
        h.TIMEOUT_MS: str(int(DEADLINE_S * 1000)),
        h.SOURCE_AGENT: CALLER,
        h.SOURCE_NODE: "node1",
    }
    return subjects.inbox(AGENT), BODY, headers


async def drain(
    answers: Answers, agent: Spoken, broker: EmbeddedBroker
) -> tuple[float, float, float]:
    """Wait for all answers; return the seconds, and the most memory of the agent and the broker.

    Raises:
        BenchError: none comes for a minute.
    """
    start = moved_at = time.perf_counter()
    count, agent_mb, broker_mb = 0, 0.0, 0.0
    while any_left := answers.waiting.count(1):
        await asyncio.sleep(LOOK_S)
        agent_mb = max(agent_mb, memory_of(agent.pid).rss_mb)
        broker_mb = max(broker_mb, memory_of(broker.pid).rss_mb)
        if answers.count > count:
            count, moved_at = answers.count, time.perf_counter()
        if time.perf_counter() - moved_at > STALL_S:
            raise BenchError(f"{any_left} calls are not answered, and none was for {STALL_S:g} s")
    return time.perf_counter() - start, agent_mb, broker_mb


@asynccontextmanager
async def site(folder: Path, count: int) -> AsyncIterator[tuple[EmbeddedBroker, Connection]]:
    """Run a mesh whose mailboxes are large enough, with an agent that is known and offline."""
    settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=folder, mailbox_max=count)
    async with (
        embedded_broker(settings) as broker,
        open_connection(broker.url, name="bench backlog") as connection,
    ):
        await ensure_streams(connection, settings)
        async with calls.control_plane(broker.url):
            async with calls.child("agent", calls.MESH, broker.url) as agent:
                await agent.says("ready")
            yield broker, connection


async def run_bench(count: int) -> list[Row]:
    """Fill a mailbox, start the agent, and wait until it is empty."""
    with tempfile.TemporaryDirectory() as folder:
        async with site(Path(folder), count) as (broker, connection):
            empty_mb = memory_of(broker.pid).rss_mb
            answers = Answers(bytearray(b"\x01" * count))
            heard = subjects.delivered(CALLER, INSTANCE)
            await connection.client.subscribe(heard, cb=Prompt(answers.take))
            fill_s = await fill(connection, count)
            full_mb = memory_of(broker.pid).rss_mb
            async with calls.child("agent", calls.MESH, broker.url) as agent:
                await agent.says("ready")
                drain_s, agent_mb, broker_mb = await drain(answers, agent, broker)
            if answers.twice or answers.failed:
                raise BenchError(f"{answers.twice} answered twice, {answers.failed} with an error")
            name = f"{count:,} waiting calls"
            return [
                Figure(f"{name}: stored, calls/s", count / fill_s),
                Figure(f"{name}: answered by one process, calls/s", count / drain_s),
                Figure("broker, nothing waiting: RSS, MB", empty_mb),
                Figure("broker, all of them waiting: RSS, MB", full_mb),
                Figure("broker, most while they are answered: RSS, MB", broker_mb),
                Figure("agent, most while it answers: RSS, MB", agent_mb),
            ]


def main(arguments: list[str]) -> None:
    """Run, and print the table."""
    reader = parser("backlog", DESCRIPTION)
    reader.add_argument("--calls", type=int, default=1_000_000)
    options = reader.parse_args(arguments)
    count = 2_000 if options.quick else int(options.calls * options.scale)
    rows = complete(run_bench(count))
    report(rows, judge=not options.quick, as_json=options.json)
