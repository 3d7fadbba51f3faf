"""The HTTP process: ports, place in the registry, start and end."""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import orjson
import pytest

from mesh import Agent, ChatRequest
from mesh.connection import open_connection
from mesh.directory import Directory
from mesh.errors import BrokerUnreachableError, PortInUseError, SettingsError
from mesh.settings import Settings
from mesh.shim.server import serve, serve_on
from schemas.registry import Role
from tests.brisk import brisk_mesh
from tests.conftest import Running, mesh_environ, until
from tests.pace import stopwatch
from tests.rawhttp import raw
from tests.shim import CHAT, ask, chunks, online, replier

NODE = "http-node"


@dataclass
class Process:
    """A door that runs as `mesh up` runs it."""

    ports: list[int]
    stop: asyncio.Event
    task: "asyncio.Task[None]"


@asynccontextmanager
async def started(settings: Settings, *ports: int) -> AsyncIterator[Process]:
    """Run the HTTP process in this one."""
    process = Process([], asyncio.Event(), asyncio.current_task())  # type: ignore[arg-type]
    own = replace(settings, node=NODE, http_ports=ports or (0,))
    process.task = asyncio.create_task(serve(own, on_ready=process.ports.extend, stop=process.stop))
    await until(lambda: bool(process.ports) or process.task.done())
    try:
        yield process
    finally:
        process.stop.set()
        await process.task


def http_instances(directory: Directory) -> list[str]:
    return [
        one.instance for one in directory.instances() if one.role is Role.HTTP and one.node == NODE
    ]


async def test_all_ports_are_served(tmp_path: Path) -> None:
    """Several sockets, one application; and the node is known while it runs."""
    async with brisk_mesh(tmp_path) as brisk:
        directory, settings = brisk.directory, brisk.settings
        async with started(settings, 0, 0) as process, httpx2.AsyncClient(timeout=30) as client:
            assert len(set(process.ports)) == 2
            for port in process.ports:
                health = await client.get(f"http://127.0.0.1:{port}/health")
                assert health.json()["node"] == NODE
            await until(lambda: bool(http_instances(directory)))
            assert directory.has_node(NODE)
            # Longer than a heartbeat key lives: somebody beats.
            first = http_instances(directory)
            deadline = asyncio.get_running_loop().time() + settings.offline_after_s + 1
            await until(lambda: asyncio.get_running_loop().time() > deadline)
            assert http_instances(directory) == first
        # It said goodbye: by itself the last heartbeat lives for longer.
        await until(lambda: not http_instances(directory), within_s=2 * settings.heartbeat_s)


async def test_calls_go_through(
    settings: Settings, directory: Directory, agent_id: str, running: Running
) -> None:
    """With its own view of the registry."""
    async with (
        online(running, directory, replier(agent_id)),
        started(settings) as process,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{process.ports[0]}", timeout=30) as client,
    ):
        answer = await client.post(CHAT, json=ask(agent_id))
    assert answer.json()["choices"][0]["message"]["content"] == "You said: hello"


async def test_whoever_runs_it_keeps_the_signals(settings: Settings, directory: Directory) -> None:
    """uvicorn would put its own handlers in their place, and raise the signal again at its end."""
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    async with started(settings):
        assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


async def test_answers_are_not_held_back(settings: Settings, directory: Directory) -> None:
    """Headers and body are two writes: Nagle's algorithm would add 40 ms to every answer."""
    async with (
        started(settings) as process,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{process.ports[0]}", timeout=30) as client,
    ):
        with stopwatch() as stretch:
            for _ in range(50):
                await client.get("/health/live")
    assert stretch.took_s < 1, stretch


async def test_a_request_that_was_on_its_way_when_it_stops(
    settings: Settings, directory: Directory
) -> None:
    """It is answered, and told that its connection ends: a client has nothing to repeat."""
    async with started(settings) as process:
        port = process.ports[0]
        async with raw(f"http://127.0.0.1:{port}") as client:
            request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
            await client.send(request)
            assert "connection" not in (await client.answer()).headers
            process.stop.set()
            await until(lambda: not is_listening(port))
            await client.send(request)
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await client.reader.read() == b""


def is_listening(port: int) -> bool:
    """Tell whether a port takes connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def waiter(agent_id: str, begun: asyncio.Event) -> Agent:
    """An agent that begins to stream, and does not end."""
    agent = Agent(agent_id)

    @agent.chat
    async def never(request: ChatRequest) -> AsyncIterator[str]:
        yield "half"
        begun.set()
        await asyncio.Event().wait()

    return agent


async def test_open_answers_are_told_when_it_stops(
    settings: Settings, directory: Directory, agent_id: str, running: Running
) -> None:
    """A stream ends with an error event, a plain call with 503, and both in time."""
    begun = asyncio.Event()
    async with (
        online(running, directory, waiter(agent_id, begun), grace_s=0),
        started(settings) as process,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{process.ports[0]}", timeout=30) as client,
    ):
        asking = [
            asyncio.create_task(client.post(CHAT, json=ask(agent_id, stream=stream)))
            for stream in (True, False)
        ]
        await begun.wait()
        process.stop.set()
        loop = asyncio.get_running_loop()
        stopped_at = loop.time()
        streamed, plain = await asyncio.gather(*asking)
        await process.task
        assert loop.time() - stopped_at < 4
    last = chunks(streamed.text)[-1]
    assert last["error"]["code"] == plain.json()["error"]["code"] == "call_interrupted"
    assert plain.status_code == 503
    assert plain.headers["x-should-retry"] == "false"


async def test_open_looks_are_answered_when_it_stops(
    settings: Settings, directory: Directory, agent_id: str, running: Running
) -> None:
    """Who waits for a call is told how far it came, a reader of its events that it goes on."""
    begun = asyncio.Event()
    async with (
        online(running, directory, waiter(agent_id, begun), grace_s=0),
        started(settings) as process,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{process.ports[0]}", timeout=20) as client,
    ):
        body = ask(agent_id, background=True, stream=True)
        call = (await client.post(CHAT, json=body)).headers["location"]
        await begun.wait()
        looking = asyncio.create_task(client.get(call, params={"wait": 60}))
        reading = asyncio.create_task(client.get(f"{call}/events"))
        # They wait when the door knows them: no answer can tell that from here.
        await asyncio.sleep(0.3)
        process.stop.set()
        loop = asyncio.get_running_loop()
        stopped_at = loop.time()
        looked, read = await asyncio.gather(looking, reading)
        await process.task
        assert loop.time() - stopped_at < 4
    assert (looked.status_code, looked.json()["state"]) == (200, "working")
    last = read.text.rstrip().splitlines()[-1]
    assert orjson.loads(last.removeprefix("data: "))["error"]["code"] == "call_interrupted"


async def test_a_port_that_is_taken(settings: Settings) -> None:
    """One line, with the setting to change, before anything is opened."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortInUseError, match="MESH_HTTP_PORTS") as caught:
            await serve(
                replace(settings, http_ports=(0, port), nats_url="nats://127.0.0.1:1"),
                on_ready=lambda _: None,
            )
    assert caught.value.port == port
    assert "\n" not in caught.value.message


async def test_an_address_that_is_none(settings: Settings) -> None:
    """The setting to change is named."""
    with pytest.raises(SettingsError, match="MESH_HTTP_HOST"):
        await serve(
            replace(settings, http_ports=(0,), http_host="no such host"), on_ready=lambda _: None
        )


async def test_a_connection_that_is_closed_ends_it(
    settings: Settings, directory: Directory
) -> None:
    """Rather than living on deaf."""
    ready = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with open_connection(settings.nats_url, name="test shim") as connection:
            task = asyncio.create_task(
                serve_on(
                    connection,
                    [listener],
                    settings,
                    on_ready=lambda _: ready.set(),
                    stop=asyncio.Event(),
                )
            )
            await ready.wait()
            await connection.client.close()
            with pytest.raises(BrokerUnreachableError, match="closed for good"):
                await asyncio.wait_for(task, 30)


PROGRAM = """
import asyncio
from mesh.settings import Settings
from mesh.shim.server import serve
asyncio.run(serve(Settings.from_env(), on_ready=lambda ports: print(*ports, flush=True)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_the_process_cleanly(
    settings: Settings,
    directory: Directory,
    agent_id: str,
    running: Running,
    number: signal.Signals,
) -> None:
    """Exit code 0, nothing on stderr, and the open stream is told."""
    begun = asyncio.Event()
    environ = {**mesh_environ(settings), "MESH_HTTP_PORTS": "0", "MESH_NODE": NODE}
    async with online(running, directory, waiter(agent_id, begun), grace_s=0):
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM), env=environ, stdout=pipe, stderr=pipe
        )
        try:
            assert process.stdout
            port = int(await asyncio.wait_for(process.stdout.readline(), 30))
            async with httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", timeout=30
            ) as client:
                asking = asyncio.create_task(client.post(CHAT, json=ask(agent_id, stream=True)))
                await begun.wait()
                process.send_signal(number)
                answer = await asking
            _, complaints = await asyncio.wait_for(process.communicate(), 30)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert chunks(answer.text)[-1]["error"]["code"] == "call_interrupted"
    assert process.returncode == 0
    assert complaints == b""
    await until(lambda: not http_instances(directory))


async def test_importing_it_does_not_import_faststream() -> None:
    """The control plane's framework takes a second to load, and the door does not need it."""
    code = "import sys, mesh.shim.server; sys.exit('faststream' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
