"""Real processes through the command line: `mesh up`, `mesh run`, `mesh send`."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import until

ROOT = Path(__file__).parent.parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder."""
    for item in items:
        if Path(item.fspath).parent.name == "acceptance":
            item.add_marker(pytest.mark.acceptance)


@dataclass(slots=True)
class Process:
    """A process and what it has printed so far, both streams together."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All that was printed."""
        return "\n".join(self.lines)

    async def says(self, what: str, *, within_s: float = 60.0) -> str:
        """Wait until a line matches, and return the match's first group or the whole."""

        def has_said() -> bool:
            return re.search(what, self.text) is not None or self.process.returncode is not None

        try:
            await until(has_said, within_s=within_s)
        except AssertionError:
            raise AssertionError(f"did not say {what!r}:\n{self.text}") from None
        found = re.search(what, self.text)
        assert found, f"ended without saying {what!r}:\n{self.text}"
        return found[found.lastindex or 0]

    async def read(self) -> None:
        """Keep what is printed."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())

    async def stop(self, number: signal.Signals = signal.SIGTERM, within_s: float = 60.0) -> int:
        """Send a signal and wait for the end."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), within_s)


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str
    first_byte_s: float


@dataclass(slots=True)
class Mesh:
    """A running `mesh up`, and commands in its environment."""

    environ: dict[str, str]
    up: Process
    nats_url: str
    http_url: str
    """Of the OpenAI door, with its `/v1`."""
    registry_url: str
    monitor_url: str
    """The three doors have different ports."""
    varz_url: str

    async def run(self, *arguments: str, stdin: bytes = b"", **environ: str) -> Finished:
        """Run a command to its end."""
        return await run_mesh(*arguments, stdin=stdin, environ={**self.environ, **environ})

    def start(self, *arguments: str, **environ: str) -> AbstractAsyncContextManager[Process]:
        """Start a long-running command."""
        return start_mesh(*arguments, environ={**self.environ, **environ})


async def run_mesh(
    *arguments: str, environ: dict[str, str], stdin: bytes = b"", prefix: tuple[str, ...] = ()
) -> Finished:
    """Run `mesh` to its end, with the time of its first byte; `prefix` is what runs it."""
    start = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-m", "mesh", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environ,
        cwd=environ.get("TEST_CWD", ROOT),
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(stdin)
    process.stdin.close()
    first = await process.stdout.read(1)
    first_byte_s = time.monotonic() - start
    out, err = await asyncio.gather(process.stdout.read(), process.stderr.read())
    code = await process.wait()
    return Finished(code, (first + out).decode(), err.decode(), first_byte_s)


@asynccontextmanager
async def start_mesh(
    *arguments: str, environ: dict[str, str], prefix: tuple[str, ...] = ()
) -> AsyncIterator[Process]:
    """Start `mesh`, and end it at the end; `prefix` is what runs it."""
    process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-m", "mesh", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environ,
        cwd=environ.get("TEST_CWD", ROOT),
    )
    started = Process(process)
    reading = asyncio.create_task(started.read())
    try:
        yield started
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                process.kill()
                await process.wait()
        await reading


def clean_environ(data_dir: Path, **extra: str) -> dict[str, str]:
    """Return an environment with nothing of the mesh but free ports and a folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "MESH_DATA_DIR": str(data_dir),
        "MESH_NATS_PORT": "0",
        "MESH_NATS_MONITOR_PORT": "0",
        "MESH_HTTP_PORTS": "0,0,0",
        "MESH_NODE": "node1",
        "MESH_HEARTBEAT_S": "3",
        "MESH_UNKNOWN_AGENT_GRACE_S": "5",
        **extra,
    }


@asynccontextmanager
async def running_mesh(environ: dict[str, str]) -> AsyncIterator[Mesh]:
    """Run `mesh up` until the end."""
    async with start_mesh("up", environ=environ) as up:
        await up.says("Ctrl-C stops")
        nats_url = await up.says(r"NATS +(\S+)")
        yield Mesh(
            environ={**environ, "MESH_NATS_URL": nats_url},
            up=up,
            nats_url=nats_url,
            http_url=await up.says(r"OpenAI +(\S+)"),
            registry_url=await up.says(r"registry +(\S+)/api/v1/agents"),
            monitor_url=await up.says(r"monitor +(\S+)/api/agents/connection-test"),
            varz_url=await up.says(r"broker +(\S+)/varz"),
        )


@pytest.fixture(scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """One `mesh up` for all tests that do not kill it, with an echo agent."""
    environ = clean_environ(tmp_path_factory.mktemp("mesh"))
    async with (
        running_mesh(environ) as running,
        running.start("run", "handlers.echo:agent") as host,
    ):
        await host.says("agent echo runs")
        yield running


OwnMesh = Callable[..., AbstractAsyncContextManager[Mesh]]


@pytest.fixture
def own_mesh(tmp_path: Path) -> OwnMesh:
    """Make a `mesh up` for one test that will hurt it, with settings of its own."""
    return lambda **environ: running_mesh(clean_environ(tmp_path / "data", **environ))


SLOW_AGENT = """
import asyncio, os
from mesh import Agent, CallContext, ChatRequest

agent = Agent("slow", concurrency=1)

@agent.chat
async def answer(request: ChatRequest, call: CallContext) -> str:
    print(f"working attempt {call.attempt}", flush=True)
    if os.environ.get("STUCK"):
        await asyncio.sleep(60)
    return f"answered by {os.environ['WHO']}, attempt {call.attempt}"
"""


@pytest.fixture
def agents(tmp_path: Path) -> dict[str, str]:
    """A folder with an agent that can hang."""
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "slow_agent.py").write_text(SLOW_AGENT)
    return {"TEST_CWD": str(folder)}
