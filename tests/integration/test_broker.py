"""The embedded nats-server: configured, started, used, listened to, stopped."""

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import nats
import pytest

from mesh.broker import EmbeddedBroker, embedded_broker
from mesh.settings import Settings
from tests.brokers import NATS_SERVER, free_port, open_and_close, own_settings, varz, wrapper
from tests.children import REPOSITORY, is_reaped, is_running
from tests.conftest import until


@pytest.fixture
def any_ports(tmp_path: Path) -> Settings:
    """A broker of its own, on any free ports."""
    return own_settings(tmp_path / "data")


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
    assert is_reaped(broker.pid), "the server must be reaped when the context ends"


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
        found = await varz(broker.monitor_url)
    assert found["server_name"] == "2m"
    assert (found["host"], found["http_host"]) == ("127.0.0.1", "127.0.0.1")
    assert found["feature_flags"]["js_ack_fc_v2"] is False
    jetstream = found["jetstream"]["config"]
    assert jetstream["store_dir"] == str(data_dir / "jetstream")
    assert jetstream["sync_interval"] == 90_000_000_000
    assert jetstream["strict"] is True
    assert data_dir.stat().st_mode & 0o777 == 0o700


async def test_a_misspelt_field_is_an_error(any_ports: Settings) -> None:
    """An API request with a field that the server does not know is refused, not half obeyed."""
    request = {"name": "S", "subjects": ["s"], "max_mesages": 1}
    async with embedded_broker(any_ports) as broker:
        client = await nats.connect(broker.url)
        answer = await client.request("$JS.API.STREAM.CREATE.S", json.dumps(request).encode())
        await client.close()
    assert json.loads(answer.data)["error"]["err_code"] == 10025


async def test_the_sync_interval_may_be_always(any_ports: Settings) -> None:
    """`always` is a value of the sync interval, though it is no duration."""
    settings = Settings(
        nats_port=0, nats_monitor_port=0, data_dir=any_ports.data_dir, sync_interval="always"
    )
    async with embedded_broker(settings) as broker:
        assert (await varz(broker.monitor_url))["jetstream"]["config"]["sync_always"] is True


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
        monitor_url = f"http://127.0.0.1:{monitor_port}"

        async def answers() -> bool:
            try:
                return bool(await varz(monitor_url))
            except OSError:
                return False

        await until(answers)
        store_dir = (await varz(monitor_url))["jetstream"]["config"]["store_dir"]
        assert store_dir == str(tmp_path / "mesh hub" / "jetstream")
    finally:
        process.terminate()
        await process.wait()


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
        settings = own_settings(any_ports.data_dir, server)
        async with embedded_broker(settings, on_log=fail, ready_timeout_s=5):
            was_ready = True

    with pytest.raises(ZeroDivisionError, match="line"):
        await run()
    assert was_ready


async def test_a_server_behind_a_wrapper_is_stopped(any_ports: Settings, tmp_path: Path) -> None:
    """A script that starts nats-server as its child is no way to leave one behind."""
    server = wrapper(tmp_path / "server", f'{NATS_SERVER} "$@" & echo $! > {tmp_path}/pid; wait')
    await open_and_close(own_settings(any_ports.data_dir, server))
    pid = int((tmp_path / "pid").read_text())
    await until(lambda: not is_running(pid))


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
    assert is_reaped(brokers[0].pid)
