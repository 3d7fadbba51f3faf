"""A real broker, a real control plane, and agents to call. No fake NATS anywhere.

The broker is `MESH_TEST_NATS_URL` if set, a Docker container if `MESH_TEST_BROKER` is
`testcontainers`, and else the embedded one.
"""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path

import hypothesis
import nats
import pytest
from nats.aio.client import Client

from mesh import metrics
from mesh.agent import Agent
from mesh.broker import embedded_broker
from mesh.callers import Caller, new_instance_id
from mesh.client import MeshClient, open_client
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory
from mesh.runtime import AgentHost
from mesh.settings import Settings
from mesh.trust.login import Login
from tests.bare import connect_bare
from tests.limits import Limits

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile(
    "mesh",
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("mesh")

UNKNOWN_AGENT_GRACE_S = 1.0
LONG_ONES = (
    "faults/test_faults.py",
    "acceptance/test_faults.py",
    "acceptance/test_join.py",
    "integration/test_shim_fuzzed.py",
    "acceptance/test_disk.py",
    "integration/test_sites.py",
    "integration/test_presence.py",
    "integration/test_faults.py",
    "integration/test_cluster.py",
)
"""Files that take more than half a minute. They begin first: a file is for one worker, and the
others would wait for it at the end."""

# All tests of a worker are one process, with an agent for each: a label of its own for all of them.
metrics.MAX_AGENTS = 100_000

Running = Callable[..., AbstractAsyncContextManager[AgentHost]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, for the workers of `scripts/test`."""
    here = Path(__file__).parent
    places = {here / one: place for place, one in enumerate(LONG_ONES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


async def until(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]], *, within_s: float = 30.0
) -> None:
    """Wait for a condition, and fail when it does not come true in time."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        holds = condition()
        if not isinstance(holds, bool):
            holds = await holds
        if holds:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not true within {within_s:g} s: {condition}")
        await asyncio.sleep(0.02)


def mesh_environ(settings: Settings) -> dict[str, str]:
    """Return the environment of a process of the tested mesh."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("MESH_")},
        "MESH_NATS_URL": settings.nats_url,
        "MESH_NODE": settings.node,
        "MESH_HEARTBEAT_S": str(settings.heartbeat_s),
        "MESH_UNKNOWN_AGENT_GRACE_S": str(settings.unknown_agent_grace_s),
        "MESH_REPLICAS": str(settings.replicas),
        "MESH_DATA_DIR": str(settings.data_dir),
        "MESH_CREDS": str(settings.creds or ""),
        "MESH_TLS_CA": str(settings.tls_ca or ""),
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }


def pytest_configure(config: pytest.Config) -> None:
    """Let no test hang for ever, and have Ctrl-C end what tests start.

    A shell without job control starts what is behind `&` with SIGINT ignored, and a child of ours
    would go on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(Limits(), "limits")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make what a test has printed fit to be sent between processes: some print lone surrogates.

    A traceback is read with `ast`, which in Python 3.11 may not be entered again (CPython issue
    106905): the garbage collector may end a task whose exception asyncio then logs, likewise.
    """
    gc.disable()
    try:
        report = yield
    finally:
        gc.enable()
    report.sections = [
        (name, text.encode(errors="replace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
async def nats_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The broker of this run."""
    if given := os.environ.get("MESH_TEST_NATS_URL"):
        yield given
    elif os.environ.get("MESH_TEST_BROKER") == "testcontainers":
        # Only here: the module looks for a Docker engine when it is imported.
        from tests.containers import nats_container

        with nats_container() as url:
            yield url
    else:
        data_dir = tmp_path_factory.mktemp("broker")
        settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=data_dir)
        async with embedded_broker(settings) as broker:
            yield broker.url


@pytest.fixture(scope="session")
def settings(nats_url: str) -> Settings:
    """Settings of the tested mesh. Who waits for heartbeats to stop has `tests/brisk.py`."""
    return Settings(
        nats_url=nats_url,
        is_broker_external=True,
        node="node1",
        unknown_agent_grace_s=UNKNOWN_AGENT_GRACE_S,
    )


@asynccontextmanager
async def control_plane(settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the control plane as a process of its own, for the length of the context."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "handlers.app", env=mesh_environ(settings)
    )
    try:
        async with open_connection(Login.of(settings), name="test control") as connection:

            async def answers() -> bool:
                try:
                    await connection.client.request("registry.list", timeout=0.5)
                except nats.errors.Error:
                    return False
                return True

            await until(answers, within_s=60)
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.fixture(scope="session")
async def control(settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    """The control plane of this run, with the streams declared."""
    async with control_plane(settings) as process:
        yield process


@pytest.fixture(scope="session")
async def connection(
    settings: Settings, control: asyncio.subprocess.Process
) -> AsyncIterator[Connection]:
    """A connection of ours."""
    async with open_connection(settings.nats_url, name="test") as opened:
        yield opened


@pytest.fixture
async def bare(nats_url: str, control: asyncio.subprocess.Process) -> AsyncIterator[Client]:
    """A connection of somebody who has only nats-py."""
    client = await connect_bare(nats_url)
    yield client
    await client.close()


@pytest.fixture(scope="session")
async def directory(connection: Connection) -> AsyncIterator[Directory]:
    """The registry as a long-lived process sees it."""
    async with follow_directory(connection) as followed:
        yield followed


@pytest.fixture
async def client(connection: Connection, directory: Directory) -> AsyncIterator[MeshClient]:
    """Calls agents."""
    async with open_client(
        connection, directory, Caller("tester", "node1", new_instance_id())
    ) as c:
        yield c


_numbers = count(1)


@pytest.fixture
def agent_id() -> str:
    """An id that no other test uses."""
    return f"agent-{next(_numbers)}-{os.getpid()}"


@pytest.fixture(scope="session")
def running(settings: Settings, directory: Directory) -> Running:
    """Run agents in this process, on a connection of their own: `async with running(agent)`."""

    @asynccontextmanager
    async def run(
        *agents: Agent, node: str = "node1", grace_s: float = 5.0
    ) -> AsyncIterator[AgentHost]:
        async with open_connection(settings.nats_url, name=f"test host {node}") as connection:
            host = AgentHost(connection, agents, node=node, settings=settings)
            stop = asyncio.Event()
            task = asyncio.create_task(host.run(stop, grace_s=grace_s))
            ready = asyncio.create_task(host.ready.wait())
            await asyncio.wait({task, ready}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
            assert ready.done(), "the host is not ready within 60 s"
            # The followers in this process hear of it a moment later.
            await until(lambda: all(directory.agent_record(one.id) for one in agents))
            try:
                yield host
            finally:
                stop.set()
                await task

    return run
