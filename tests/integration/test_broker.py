"""The embedded nats-server: started, used, stopped, killed."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from mesh.broker import EmbeddedBroker, embedded_broker, find_server
from mesh.errors import DataDirError, EmbeddedBrokerError, PortInUseError, ServerBinaryError
from mesh.settings import Settings
from tests.conftest import until

REPOSITORY = Path(__file__).parents[2]
NATS_SERVER = find_server(Settings())

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a feature of the Linux kernel")


@pytest.fixture
def any_ports(tmp_path: Path) -> Settings:
    """A broker of its own, on any free ports."""
    return Settings(nats_port=0, nats_monitor_port=0, data_dir=tmp_path / "data")


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wrapper(path: Path, script: str) -> str:
    """Write a script that stands for nats-server, but for `-v`, which it passes on."""
    path.write_text(f'#!/bin/sh\n[ "$1" = -v ] && exec {NATS_SERVER} -v\n{script}\n')
    path.chmod(0o755)
    return str(path)


def with_server(settings: Settings, server: str) -> Settings:
    return Settings(
        nats_server=server, nats_port=0, nats_monitor_port=0, data_dir=settings.data_dir
    )


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def varz(broker: EmbeddedBroker) -> Any:
    def get() -> Any:
        with urllib.request.urlopen(f"{broker.monitor_url}/varz", timeout=5) as answer:
            return json.load(answer)

    return await asyncio.to_thread(get)


async def open_and_close(settings: Settings) -> None:
    async with embedded_broker(settings):
        pass


async def test_a_broker_is_ready_to_store(any_ports: Settings) -> None:
    """What the context gives is a running nats-server whose JetStream accepts a message."""
    async with embedded_broker(any_ports) as broker:
        client = await nats.connect(broker.url)
        jetstream = client.jetstream()
        await jetstream.add_stream(name="S", subjects=["s"])
        assert (await jetstream.publish("s", b"x")).seq == 1
        await client.close()
        assert is_running(broker.pid)
        assert re.fullmatch(r"2\.\d+\.\d+\S*", broker.version)
    assert not is_running(broker.pid), "the server must be reaped when the context ends"


async def test_the_configuration_reaches_the_server(tmp_path: Path) -> None:
    """Ports, name, sync interval and a hostile data directory pass through the environment."""
    port, monitor_port = free_port(), free_port()
    data_dir = tmp_path / 'a "b" \\c\td\n$HOME # ü'
    settings = Settings(
        nats_port=port,
        nats_monitor_port=monitor_port,
        data_dir=data_dir,
        node="2m",
        sync_interval="90s",
    )
    async with embedded_broker(settings) as broker:
        assert broker.url == f"nats://127.0.0.1:{port}"
        assert broker.monitor_url == f"http://127.0.0.1:{monitor_port}"
        found = await varz(broker)
    assert found["server_name"] == "2m"
    assert (found["host"], found["http_host"]) == ("127.0.0.1", "127.0.0.1")
    assert found["feature_flags"]["js_ack_fc_v2"] is False
    jetstream = found["jetstream"]["config"]
    assert jetstream["store_dir"] == str(data_dir / "jetstream")
    assert jetstream["sync_interval"] == 90_000_000_000
    assert jetstream["strict"] is True
    assert data_dir.stat().st_mode & 0o777 == 0o700


async def test_the_sync_interval_may_be_always(any_ports: Settings) -> None:
    """`always` is a value of the sync interval, though it is no duration."""
    settings = Settings(
        nats_port=0, nats_monitor_port=0, data_dir=any_ports.data_dir, sync_interval="always"
    )
    async with embedded_broker(settings) as broker:
        assert (await varz(broker))["jetstream"]["config"]["sync_always"] is True


async def test_the_readme_starts_a_server_by_hand(tmp_path: Path) -> None:
    """The commands in nats/README.md run the same configuration."""
    text = (REPOSITORY / "nats" / "README.md").read_text()
    found = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert found is not None
    monitor_port = free_port()
    commands = found[1].replace("4222", str(free_port())).replace("8222", str(monitor_port))
    search = f"{NATS_SERVER.parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_shell(
        commands.replace("\nnats-server", "\nexec nats-server"),
        cwd=REPOSITORY,
        env={"PATH": search, "HOME": str(tmp_path)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        by_hand = EmbeddedBroker("", f"http://127.0.0.1:{monitor_port}", process.pid, "", process)

        async def answers() -> bool:
            try:
                return bool(await varz(by_hand))
            except OSError:
                return False

        await until(answers)
        store_dir = (await varz(by_hand))["jetstream"]["config"]["store_dir"]
        assert store_dir == str(tmp_path / "mesh hub" / "jetstream")
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("is_killed", [False, True])
async def test_data_survives_a_restart(any_ports: Settings, is_killed: bool) -> None:
    """A stored message is there again after a stop, and after kill -9 of the server."""
    async with embedded_broker(any_ports) as broker:
        client = await nats.connect(broker.url)
        await client.jetstream().add_stream(name="S", subjects=["s"])
        await client.jetstream().publish("s", b"kept")
        await client.close()
        if is_killed:
            os.kill(broker.pid, signal.SIGKILL)
            assert await broker.wait() == -signal.SIGKILL
    async with embedded_broker(any_ports) as broker:
        client = await nats.connect(broker.url)
        assert (await client.jetstream().get_last_msg("S", "s")).data == b"kept"
        await client.close()


async def test_log_lines_are_told(any_ports: Settings) -> None:
    """Every line of the server's log is told as level and message, without process id and date."""
    lines: list[tuple[str, str]] = []
    async with embedded_broker(any_ports, on_log=lambda *line: lines.append(line)) as broker:
        await until(lambda: ("INF", "Server is ready") in lines)
        _, writer = await asyncio.open_connection("127.0.0.1", int(broker.url.split(":")[-1]))
        writer.write(b"NONSENSE")
        await until(lambda: any(level == "ERR" and "parser" in text for level, text in lines))
        writer.close()
    assert lines[-1] == ("INF", "Server Exiting..")
    assert not [line for line in lines if re.search(r"^\[\d+\]|\d{4}/\d\d/\d\d", line[1])]


async def test_a_broken_listener_does_not_stop_the_server(
    any_ports: Settings, tmp_path: Path
) -> None:
    """What `on_log` raises is raised at the end; until then the log is read on."""
    more_than_a_pipe_holds = "yes '[1] [INF] line' | head -c 4000000"
    server = wrapper(tmp_path / "server", f'{more_than_a_pipe_holds}; exec {NATS_SERVER} "$@"')
    was_ready = False

    def fail(level: str, message: str) -> None:
        raise ZeroDivisionError(message)

    async def run() -> None:
        nonlocal was_ready
        settings = with_server(any_ports, server)
        async with embedded_broker(settings, on_log=fail, ready_timeout_s=5):
            was_ready = True

    with pytest.raises(ZeroDivisionError, match="line"):
        await run()
    assert was_ready


@pytest.mark.parametrize("variable", ["MESH_NATS_PORT", "MESH_NATS_MONITOR_PORT"])
async def test_a_taken_port_is_named(tmp_path: Path, taken_port: int, variable: str) -> None:
    """A port that another program listens on is an error with the port and what to set."""
    ports = (taken_port, 0) if variable == "MESH_NATS_PORT" else (0, taken_port)
    settings = Settings(nats_port=ports[0], nats_monitor_port=ports[1], data_dir=tmp_path)
    with pytest.raises(PortInUseError) as caught:
        await open_and_close(settings)
    assert caught.value.port == taken_port
    assert f"port {taken_port} cannot be used (Address already in use)" in str(caught.value)
    assert f"set {variable} to another one" in str(caught.value)
    assert "MESH_NATS_URL" in str(caught.value)


@pytest.mark.parametrize("option", ["nats_port", "nats_monitor_port"])
async def test_a_port_that_is_lost_to_another_program_is_named(tmp_path: Path, option: str) -> None:
    """A port taken between our look and the server's start is the same error."""
    port = free_port()
    # The script listens itself, and then becomes the server, which finds the port taken.
    thief = tmp_path / "thief"
    thief.write_text(
        f"#!{sys.executable} -S\n"
        "import os, socket, sys\n"
        "if sys.argv[1] != '-v':\n"
        f"    listener = socket.create_server(('127.0.0.1', {port}))\n"
        "    listener.set_inheritable(True)\n"
        f"os.execv({str(NATS_SERVER)!r}, ['nats-server', *sys.argv[1:]])\n"
    )
    thief.chmod(0o755)
    settings = Settings(
        nats_server=str(thief),
        nats_port=port if option == "nats_port" else 0,
        nats_monitor_port=port if option == "nats_monitor_port" else 0,
        data_dir=tmp_path / "data",
    )
    with pytest.raises(PortInUseError, match=f"port {port} ") as caught:
        await open_and_close(settings)
    assert caught.value.port == port


async def test_two_brokers_never_share_a_data_directory(any_ports: Settings) -> None:
    """The second broker is refused, and told who holds the directory; then it is free again."""
    async with embedded_broker(any_ports) as broker:
        with pytest.raises(DataDirError) as caught:
            await open_and_close(any_ports)
    assert caught.value.path == str(any_ports.data_dir)
    assert f"process {os.getpid()}, nats-server {broker.pid}" in str(caught.value)
    assert "MESH_DATA_DIR" in str(caught.value)
    await open_and_close(any_ports)


@pytest.mark.parametrize("name", ["file/data", "file", "folder"])
async def test_an_unusable_data_directory_is_named(tmp_path: Path, name: str) -> None:
    """A data directory that cannot be made or written is an error with its path."""
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "lock").mkdir(parents=True)
    settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=tmp_path / name)
    with pytest.raises(DataDirError, match=r"cannot be used \(.+\): set MESH_DATA_DIR") as caught:
        await open_and_close(settings)
    assert caught.value.path == str(tmp_path / name)


async def test_a_server_that_ends_at_its_start_tells_why(any_ports: Settings) -> None:
    """The last complaint of a server that does not come up is the error."""
    any_ports.data_dir.mkdir()
    (any_ports.data_dir / "jetstream").touch()
    with pytest.raises(EmbeddedBrokerError, match=r"at its start: Can't .*: .* not a dir"):
        await open_and_close(any_ports)


async def test_an_error_in_the_configuration_is_told(any_ports: Settings, tmp_path: Path) -> None:
    """What the server prints outside its log is told as well."""
    (tmp_path / "bad.conf").write_text("no_such_option: 1\n")
    server = wrapper(tmp_path / "server", f"exec {NATS_SERVER} -c {tmp_path}/bad.conf")
    with pytest.raises(EmbeddedBrokerError, match='unknown field "no_such_option"'):
        await open_and_close(with_server(any_ports, server))


@pytest.mark.parametrize(
    "config", ["jetstream {}; feature_flags { js_ack_fc_v2: true }", "max_payload: 1MB"]
)
async def test_a_server_that_runs_otherwise_is_refused(
    any_ports: Settings, tmp_path: Path, config: str
) -> None:
    """A server with the flag that breaks KV watches, or without JetStream, is not used."""
    config = config.replace("{}", f'{{ store_dir: "{tmp_path}/other" }}')
    (tmp_path / "other.conf").write_text(
        f"host: 127.0.0.1\nport: -1\nhttp_port: -1\n{config.replace('; ', chr(10))}\n"
    )
    server = wrapper(
        tmp_path / "server", f'shift 2; exec {NATS_SERVER} -c {tmp_path}/other.conf "$@"'
    )
    with pytest.raises(ServerBinaryError, match="js_ack_fc_v2 on or JetStream off"):
        await open_and_close(with_server(any_ports, server))


async def test_a_server_that_is_never_ready_is_given_up(
    any_ports: Settings, tmp_path: Path
) -> None:
    """A server that does not become ready in time is an error, and its process is ended."""
    server = wrapper(tmp_path / "server", f"echo $$ > {tmp_path}/pid; sleep 60")
    with pytest.raises(EmbeddedBrokerError, match=r"not ready in 0\.3 s"):
        async with embedded_broker(with_server(any_ports, server), ready_timeout_s=0.3):
            pass
    assert not is_running(int((tmp_path / "pid").read_text()))


async def test_a_server_behind_a_wrapper_is_stopped(any_ports: Settings, tmp_path: Path) -> None:
    """A script that starts nats-server as its child is no way to leave one behind."""
    server = wrapper(tmp_path / "server", f'{NATS_SERVER} "$@" & echo $! > {tmp_path}/pid; wait')
    await open_and_close(with_server(any_ports, server))
    pid = int((tmp_path / "pid").read_text())
    await until(lambda: not is_running_for_real(pid))


def is_running_for_real(pid: int) -> bool:
    """Tell whether a process runs that is not our child: a zombie does not."""
    listed = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip()[:1] not in ("", "Z")


async def test_a_cancel_while_it_stops_takes_the_grace(any_ports: Settings) -> None:
    """A server that does not react to SIGTERM is killed at once when the stop is cancelled."""
    brokers: list[EmbeddedBroker] = []

    async def run() -> None:
        async with embedded_broker(any_ports) as broker:
            brokers.append(broker)
            os.kill(broker.pid, signal.SIGSTOP)

    task = asyncio.create_task(run())
    await until(lambda: bool(brokers))
    # SIGTERM stays pending in a stopped process.
    await asyncio.wait({task}, timeout=0.1)
    assert is_running(brokers[0].pid)
    task.cancel()
    await asyncio.wait({task}, timeout=2)
    assert task.cancelled()
    assert not is_running(brokers[0].pid)


PARENT = """
import asyncio, sys
from pathlib import Path
from mesh.broker import embedded_broker
from mesh.settings import Settings

async def main():
    settings = Settings(nats_port=0, nats_monitor_port=0, data_dir=Path(sys.argv[1]))
    async with embedded_broker(settings) as broker:
        print(broker.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def start_parent(settings: Settings) -> tuple[asyncio.subprocess.Process, int]:
    """Run a broker in another process, and return that and the server's process id."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, settings.data_dir),
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    return process, int(await process.stdout.readline())


@linux_only
async def test_the_server_never_outlives_its_parent(any_ports: Settings) -> None:
    """After kill -9 of the parent the server ends, and its data can be used at once."""
    parent, pid = await start_parent(any_ports)
    parent.kill()
    await parent.wait()
    await open_and_close(any_ports)
    assert not is_running_for_real(pid)


@linux_only
async def test_a_server_that_still_closes_its_streams_is_waited_for(any_ports: Settings) -> None:
    """The data directory belongs to the server of a killed parent until that has ended."""
    parent, pid = await start_parent(any_ports)
    os.kill(pid, signal.SIGSTOP)
    parent.kill()
    await parent.wait()
    opening = asyncio.create_task(open_and_close(any_ports))
    done, _ = await asyncio.wait({opening}, timeout=0.3)
    assert not done, "the old server is still there"
    os.kill(pid, signal.SIGCONT)
    await opening
