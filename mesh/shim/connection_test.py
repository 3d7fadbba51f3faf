"""`GET /api/agents/connection-test`: runs the connection test, and tells what it found.

As one JSON report, or, for who accepts `text/event-stream`, result by result. Reads the query and
writes the answer; what is tried stands in `mesh.probes`. Requests that ask for the same at the
same time share one test, which ends with the last of them.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from mesh import codec
from mesh.errors import (
    AgentNotFoundError,
    InvalidInputError,
    MeshError,
    NotAllowedError,
    RegistryError,
)
from mesh.http_probes import local_url
from mesh.probe_report import ReportBuilder
from mesh.prober import Doors
from mesh.probes import (
    DEFAULT_LIMIT_S,
    MAX_LIMIT_S,
    MIN_LIMIT_S,
    ConnectionTest,
    Selection,
)
from mesh.shim.cookie import cookie_name, read_cookie
from mesh.shim.door import Door
from mesh.shim.guard import require_agent, sees_everybody, shown_token
from mesh.shim.http import read_headers, send_json
from mesh.shim.operations import Answer, Events, Operation, Parameter, Tag
from mesh.shim.sse import EventStream, event
from mesh.shim.status import failure
from mesh.shim.target import ID_SCHEMA
from mesh.shim.waiting import beside
from schemas.probe import ConnectionReport, Method, ProbeEnd, ProbePlan, ProbeResult

_NO_STORE: Final = {"cache-control": "no-store"}
_EVENTS: Final = "text/event-stream"
_LIMIT: Final = {"type": "number", "minimum": MIN_LIMIT_S, "maximum": MAX_LIMIT_S}
TESTS_AT_ONCE: Final = 4
"""Each has up to 64 tries in flight, and anybody may ask for another one; the rest wait."""
_SECONDS: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,3})?")


class ConnectionTests:
    """The endpoint, and the tests that run for it."""

    operations = (
        Operation(
            "testConnections",
            "GET",
            "/api/agents/connection-test",
            Tag.REGISTRY,
            "Test every connection",
            description="Tries each way to each agent and node, and says what to do about what "
            "does not work. With the header `Accept: text/event-stream`, result by result: a plan, "
            "the results, and the end.",
            parameters=(
                Parameter("agent", "query", "Only this agent.", ID_SCHEMA),
                Parameter("node", "query", "Only what is on this node.", ID_SCHEMA),
                Parameter(
                    "method", "query", "Only this way.", {"type": "string", "enum": [*Method]}
                ),
                Parameter("timeout", "query", "Seconds for each try.", _LIMIT),
            ),
            answers=(
                Answer(
                    200,
                    "What was found.",
                    ConnectionReport,
                    events=Events((ProbePlan, ProbeResult, ProbeEnd)),
                ),
            ),
            failures=(NotAllowedError,),
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door
        self._running: dict[tuple[Doors, Selection], _SharedTest] = {}
        self._turns = asyncio.Semaphore(TESTS_AT_ONCE)
        self.last_run = LastRun()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. A query that cannot be is raised as an `InvalidInputError`."""
        headers = read_headers(scope)
        selection = read_selection(scope["query_string"])
        _require_right(scope, selection)
        # The address on which this request came in: it leads here, whatever the settings say.
        host, port = scope["server"]
        doors = Doors(
            router_url=local_url(host, port, scheme=scope["scheme"]),
            certificate=self._door.certificate,
            node=self._door.caller.node,
            monitor_url=self._door.monitor_url,
            shown=_shown(scope, host, port),
        )
        async with self._joined(doors, selection) as test:
            with self._door.waiting(receive) as over:
                if _EVENTS in headers.get("accept", ""):
                    await _stream(test, send, over)
                else:
                    await _answer(test, send, over)

    @asynccontextmanager
    async def _joined(self, doors: Doors, selection: Selection) -> "AsyncIterator[_SharedTest]":
        """Take part in a test that is running, or begin it; the last who leaves ends it."""
        key = (doors, selection)
        test = self._running.get(key)
        if test is None or test.is_over:
            client, connection = self._door.client, self._door.connection
            trying = ConnectionTest(client, connection, doors, selection)
            test = _SharedTest(trying, self._turns, self.last_run)
            self._running[key] = test
        test.watchers += 1
        try:
            yield test
        finally:
            test.watchers -= 1
            if not test.watchers:
                if self._running.get(key) is test:
                    del self._running[key]
                await test.stop()


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is said of the newest test as a whole."""

    started_at: str = ""
    """Empty where none has run yet."""
    is_running: bool = False
    planned: int = 0
    done: int = 0
    took_ms: float | None = None
    """None as long as it runs."""
    state: str = ""
    """What it came to."""


class LastRun:
    """What tests have found since this door was opened, each way's newest result."""

    def __init__(self) -> None:
        self.version = 0
        self.facts = RunFacts()
        self.results: dict[tuple[Method, str | None, str | None], ProbeResult] = {}

    def begin(self, started_at: str, planned: int) -> None:
        """A test begins."""
        self._tell(RunFacts(started_at, is_running=True, planned=planned))

    def add(self, result: ProbeResult) -> None:
        """A way was tried."""
        self.results[result.method, result.agent_id, result.node] = result
        self._tell(replace(self.facts, done=self.facts.done + 1))

    def end(self, end: ProbeEnd | None) -> None:
        """The test is over; None: nobody waited for its end."""
        took_ms, state = (end.took_ms, end.summary.state.value) if end else (None, "")
        self._tell(replace(self.facts, is_running=False, took_ms=took_ms, state=state))

    def _tell(self, facts: RunFacts) -> None:
        self.facts = facts
        self.version += 1


class _SharedTest:
    """A test that runs, and whoever watches it.

    Raises:
        InvalidInputError: what is selected is not known.
    """

    def __init__(self, test: ConnectionTest, turns: asyncio.Semaphore, run: LastRun) -> None:
        try:
            self.planned = len(test.cells())
        except RegistryError as error:
            field = "agent" if isinstance(error, AgentNotFoundError) else "node"
            raise InvalidInputError(error.message, field=field) from None
        self.watchers = 0
        self.builder = ReportBuilder()
        self.is_over = False
        self._news = asyncio.Event()
        self._turns = turns
        self._run_shown = run
        self._task = asyncio.create_task(self._run(test))

    async def _run(self, test: ConnectionTest) -> ProbeEnd:
        end = None
        try:
            async with self._turns, aclosing(test.run()) as results:
                self._run_shown.begin(self.builder.started_at, self.planned)
                async for result in results:
                    self.builder.add(result)
                    self._run_shown.add(result)
                    self._tell()
            end = self.builder.end()
            return end
        finally:
            self._run_shown.end(end)
            self.is_over = True
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def results(self) -> AsyncGenerator[ProbeResult, None]:
        """Yield every result, those from before now too."""
        seen = 0
        while True:
            is_over, news = self.is_over, self._news
            for result in self.builder.results[seen:]:
                seen += 1
                yield result
            if is_over:
                return
            await news.wait()

    async def end(self) -> ProbeEnd:
        """Wait for the last result, and return what it all comes to."""
        return await asyncio.shield(self._task)

    async def stop(self) -> None:
        """End it, if it has not ended."""
        self._task.cancel()
        await asyncio.wait({self._task})


async def _answer(test: _SharedTest, send: Send, over: "asyncio.Future[None]") -> None:
    end = await beside(over, test.end())
    await send_json(send, 200, codec.encode(test.builder.report(end)), _NO_STORE)


async def _stream(test: _SharedTest, send: Send, over: "asyncio.Future[None]") -> None:
    stream = EventStream(send, {})
    try:
        await beside(over, stream.relay(_events(test)))
    except MeshError as error:
        if not stream.has_begun:
            raise
        await stream.fail(event(failure(error).body))


async def _events(test: _SharedTest) -> AsyncGenerator[bytes, None]:
    plan = ProbePlan(started_at=test.builder.started_at, planned=test.planned)
    yield event(codec.encode(plan))
    async for result in test.results():
        yield event(codec.encode(result))
    yield event(codec.encode(await test.end()))


def _require_right(scope: Scope, selection: Selection) -> None:
    if sees_everybody(scope):
        return
    if selection.agent is None:
        raise NotAllowedError("this API key is for some agents: name one of them, ?agent=ID")
    require_agent(scope, selection.agent)


def read_selection(query: bytes) -> Selection:
    """Read what a request wants to be tested. An empty parameter counts as missing.

    Raises:
        InvalidInputError: a parameter is given twice, or cannot be; `field` names it.
    """
    given = parse_qs(query.decode("latin-1"))
    return Selection(
        agent=_one(given, "agent"),
        node=_one(given, "node"),
        method=_read_method(_one(given, "method")),
        limit_s=_read_limit(_one(given, "timeout")),
    )


def _one(given: dict[str, list[str]], name: str) -> str | None:
    values = given.get(name, [])
    if len(values) > 1:
        raise InvalidInputError(f"{name}: give it once", field=name)
    return values[0] if values else None


def _read_method(text: str | None) -> Method | None:
    if text is None or text in set(Method):
        return Method(text) if text else None
    known = ", ".join(Method)
    raise InvalidInputError(f"method: {text[:40]!r} is none; give one of {known}", field="method")


def _read_limit(text: str | None) -> float:
    if text is None:
        return DEFAULT_LIMIT_S
    limit_s = float(text) if _SECONDS.fullmatch(text) else 0.0
    if MIN_LIMIT_S <= limit_s <= MAX_LIMIT_S:
        return limit_s
    raise InvalidInputError(
        f"timeout: {text[:40]!r} cannot be; give seconds from {MIN_LIMIT_S:g} to {MAX_LIMIT_S:g}",
        field="timeout",
    )


def _shown(scope: Scope, host: str, port: int) -> tuple[tuple[str, str], ...]:
    """Return the headers by which this door knows who asks, for a request that we make to it."""
    headers = dict(scope["headers"])
    if token := shown_token(headers):
        return (("Authorization", f"Bearer {token}"),)
    if seal := read_cookie(headers):
        own = local_url(host, port, scheme=scope["scheme"])
        name = cookie_name(f":{port}".encode())
        return (("cookie", f"{name}={seal}"), ("origin", own))
    return ()
