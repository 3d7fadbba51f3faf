"""Why an embedded nats-server does not come up: taken ports, and servers that are no good."""

import asyncio
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.broker import embedded_broker
from mesh.errors import EmbeddedBrokerError, PortInUseError, ServerBinaryError
from mesh.settings import Settings
from tests.brokers import NATS_SERVER, free_port, open_and_close, own_settings, wrapper
from tests.children import is_reaped
from tests.conftest import until


@pytest.fixture
def any_ports(tmp_path: Path) -> Settings:
    """A broker of its own, on any free ports."""
    return own_settings(tmp_path / "data")


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


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


async def test_one_port_for_two_is_an_error(tmp_path: Path) -> None:
    """The same port for clients and for monitoring is an error that names both settings."""
    port = free_port()
    settings = Settings(nats_port=port, nats_monitor_port=port, data_dir=tmp_path)
    with pytest.raises(PortInUseError) as caught:
        await open_and_close(settings)
    assert caught.value.port == port
    same = f"MESH_NATS_PORT and MESH_NATS_MONITOR_PORT are the same, {port}"
    assert str(caught.value) == f"{same}: set one to another port (0: any free one)"


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
        await open_and_close(own_settings(any_ports.data_dir, server))


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
        await open_and_close(own_settings(any_ports.data_dir, server))


UNHEALTHY = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

data_dir = Path(sys.argv[sys.argv.index("--ports_file_dir") + 1])

class Monitor(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        is_healthy = (data_dir / "healthy").exists()
        print("[1] [INF]", self.path, is_healthy, flush=True)
        self.send_response(200 if is_healthy else 503)
        self.end_headers()
        status = "ok" if is_healthy else "unavailable"
        self.wfile.write(json.dumps({"status": status, "jetstream": {"config": {}}}).encode())

server = HTTPServer(("127.0.0.1", 0), Monitor)
urls = {"nats": ["nats://x"], "monitoring": [f"http://127.0.0.1:{server.server_port}"]}
(data_dir / "x.ports").write_text(json.dumps(urls))
server.serve_forever()
"""


async def test_a_server_that_is_up_but_not_healthy_is_not_ready(
    any_ports: Settings, tmp_path: Path
) -> None:
    """While /healthz is not ok nothing else is asked of the server, and it is waited for."""
    (tmp_path / "unhealthy.py").write_text(UNHEALTHY)
    server = wrapper(tmp_path / "server", f'exec {sys.executable} {tmp_path}/unhealthy.py "$@"')
    settings, told = own_settings(any_ports.data_dir, server), list[str]()

    async def run() -> None:
        async with embedded_broker(settings, on_log=lambda _, line: told.append(line)):
            raise AssertionError("it has no JetStream")

    running = asyncio.create_task(run())
    await until(lambda: told.count("/healthz False") >= 2)
    (any_ports.data_dir / "healthy").touch()
    with pytest.raises(ServerBinaryError, match="JetStream off"):
        await running
    assert told[-2:] == ["/healthz True", "/varz True"]
    assert set(told[:-2]) == {"/healthz False"}


async def test_a_server_that_is_never_ready_is_given_up(
    any_ports: Settings, tmp_path: Path
) -> None:
    """A server that does not become ready in time is an error, and its process is ended."""
    server = wrapper(tmp_path / "server", f"echo $$ > {tmp_path}/pid; sleep 60")
    with pytest.raises(EmbeddedBrokerError, match=r"not ready in 0\.3 s"):
        async with embedded_broker(own_settings(any_ports.data_dir, server), ready_timeout_s=0.3):
            pass
    assert is_reaped(int((tmp_path / "pid").read_text()))
