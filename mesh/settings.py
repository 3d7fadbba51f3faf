"""Settings of one process: read once, then passed down.

A flag wins over the environment, the environment over what `mesh join` has kept for this machine,
that over the default. Never looked up from inside: whoever needs a setting is given it.
"""

import difflib
import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mesh.errors import SettingsError
from schemas.base import is_id

DEFAULT_NATS_URL: Final = "nats://127.0.0.1:4222"
DEFAULT_TIMEOUT_S: Final = 60.0
"""Deadline of a call from the command line and from Python."""
DEFAULT_HTTP_TIMEOUT_S: Final = 120.0
"""Deadline over HTTP: well under the 600 s that OpenAI clients read for."""
DEFAULT_HTTP_PORTS: Final = (9102, 9205, 8899)
"""Router, registry and monitor. One application answers on all of them."""
DEFAULT_BODY_MAX_BYTES: Final = 128 * 1024**2
MAX_BODY_BYTES: Final = 1024**4
DEFAULT_HTTP_BODY_MAX_BYTES: Final = 16 * 1024**2
"""Lower: a door holds a body in memory several times over, and many at once."""
HEARTBEATS_TO_OFFLINE: Final = 3
EVERY_ADDRESS: Final = ("0.0.0.0", "::")

KNOWN_VARIABLES: Final = {
    "MESH_HTTP_PUBLIC_URL": "address by which clients reach the HTTP door, behind a proxy",
    "MESH_LOG_FORMAT": "'text', or 'json' for one JSON object a line",
    "MESH_METRICS_PORT": "port where this process tells its metrics, if it is no door; 0: nowhere",
    "MESH_METRICS_HOST": "address that it does so on",
    "MESH_NATS_URL": "broker to use, instead of an embedded one",
    "MESH_NATS_SERVER": "path of the nats-server binary",
    "MESH_NATS_HOST": "address the embedded broker listens on",
    "MESH_OPEN_TO_NETWORK": "'yes' lets everybody on the network do everything",
    "MESH_NATS_PORT": "port of the embedded broker (0: any free one)",
    "MESH_NATS_WEBSOCKET_PORT": "port of the embedded broker for WebSockets; 0: none",
    "MESH_NATS_LEAF_PORT": "port of the embedded broker for servers of other sites; 0: none",
    "MESH_NATS_MONITOR_PORT": "monitoring port of the embedded broker (0: any free one)",
    "MESH_NATS_MONITOR_URL": "HTTP address of the broker's monitoring",
    "MESH_API_KEY": "key that `mesh check` gives to the HTTP door",
    "MESH_CREDS": "file of credentials to log in with, in secure mode",
    "MESH_TLS_CA": "file of the authority that signed the broker's certificate",
    "MESH_KEYS_DIR": "folder of the mesh's keys, on the hub: `mesh keys init` makes it",
    "MESH_DATA_DIR": "where the embedded broker keeps its streams",
    "MESH_NODE": "name of this machine in the mesh",
    "MESH_HTTP_HOST": "address the HTTP shim listens on",
    "MESH_HTTP_PORTS": "ports the HTTP shim listens on, with commas",
    "MESH_HTTP_CERT": "file of the HTTP shim's certificate: it speaks HTTPS then",
    "MESH_HTTP_KEY": "file of that certificate's key",
    "MESH_HTTP_AUTH": "'keys' requires API keys everywhere, 'auto' beyond loopback only",
    "MESH_HTTP_ALLOWED_HOSTS": "host names that HTTP clients may ask for, with commas",
    "MESH_HTTP_CORS_ORIGINS": "origins of web pages that may call the HTTP shim, with commas",
    "MESH_REPLICAS": "copies of every stream: 1 on one server, 3 on a cluster",
    "MESH_MATRIX_URL": "Matrix homeserver that people's presence is passed on to",
    "MESH_MAILBOX_MAX": "requests that wait for one agent at most",
    "MESH_BODY_MAX": "bytes of a body or a file at most, also beyond one message",
    "MESH_HTTP_BODY_MAX": "bytes of a request to the HTTP shim at most; never over MESH_BODY_MAX",
    "MESH_HEARTBEAT_S": "seconds between heartbeats",
    "MESH_SYNC_INTERVAL": "how often the embedded broker syncs to disk: a duration, or 'always'",
    "MESH_UNKNOWN_AGENT_GRACE_S": "seconds a request to nobody waits before it is a dead letter",
}
HTTP_AUTH_MODES: Final = ("auto", "keys")
_RESERVED_PREFIXES: Final = ("MESH_TEST_", "MESH_READY_")
"""Variables of the test suite, and of our own child processes."""

_HOST_NAME: Final = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_HOST_EXAMPLE: Final = "host names without ports, such as mesh.example.org,hub.lan"
_ORIGIN: Final = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s,]+")
_ORIGIN_EXAMPLE: Final = "origins such as https://chat.example.org, or * for all"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. The defaults suit one machine."""

    nats_url: str = DEFAULT_NATS_URL
    is_broker_external: bool = False
    """Whether a broker was named, so that none is started."""
    nats_server: str = ""
    nats_host: str = "127.0.0.1"
    is_open_to_network: bool = False
    """Whether somebody has said that everybody who reaches this machine may do everything."""
    nats_port: int = 4222
    websocket_port: int = 0
    """Where the embedded broker takes WebSockets, in secure mode with TLS; 0: nowhere."""
    leaf_port: int = 0
    """Where it takes servers of other sites, likewise."""
    nats_monitor_port: int = 8222
    nats_monitor_url: str = ""
    """Where the broker's monitoring answers; empty where it is not known."""
    api_key: str = field(default="", repr=False)
    """What this process shows to an HTTP door, as its client."""
    data_dir: Path = Path()
    is_joined: bool = False
    """Whether this machine has joined a mesh elsewhere, which has a broker and a control plane."""
    keys_folder: Path | None = None
    creds: Path | None = None
    """What this process logs in with; None in an open mesh."""
    tls_ca: Path | None = None
    node: str = "node1"
    http_host: str = "127.0.0.1"
    http_ports: tuple[int, ...] = DEFAULT_HTTP_PORTS
    http_cert: Path | None = None
    """Certificate of the HTTP shim, and its chain; None: it speaks HTTP in the clear."""
    http_key: Path | None = None
    http_auth: str = "auto"
    http_allowed_hosts: tuple[str, ...] = ()
    http_cors_origins: tuple[str, ...] = ()
    matrix_url: str = ""
    """The homeserver that people's presence is passed on to; empty: none."""
    http_public_url: str = ""
    """By which address clients reach the door behind a proxy; empty: by the one that they name."""
    log_format: str = "text"
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    """Where a process that is no door tells its metrics; 0: nowhere."""
    replicas: int = 1
    mailbox_max: int = 1_000
    body_max_bytes: int = DEFAULT_BODY_MAX_BYTES
    """Of a body or a file that travels beside its message."""
    http_body_max_bytes: int = DEFAULT_HTTP_BODY_MAX_BYTES
    heartbeat_s: float = 5.0
    sync_interval: str = "2m"
    unknown_agent_grace_s: float = 30.0

    @property
    def http_scheme(self) -> str:
        """How the HTTP shim is spoken to."""
        return "https" if self.http_cert else "http"

    @property
    def keys_dir(self) -> Path:
        """Where the keys of the mesh lie, if this is the hub of a secure one."""
        return self.keys_folder or self.data_dir / "keys"

    @property
    def offline_after_s(self) -> float:
        """How long after its last heartbeat a process counts as dead."""
        return self.heartbeat_s * HEARTBEATS_TO_OFFLINE

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read the settings of this process.

        Raises:
            SettingsError: a value cannot be used; `variable` names it.
        """
        data_dir = _data_dir(environ)
        kept = read_kept(data_dir)
        if environ.get("MESH_NATS_URL", "") not in ("", kept.get("MESH_NATS_URL", "")):
            kept = {}  # Another broker is named: what is kept is not of that mesh.
        environ = {**kept, **environ}
        read = _Reader(environ)
        url = environ.get("MESH_NATS_URL", "")
        nats_port = read.integer("MESH_NATS_PORT", 4222, minimum=0, maximum=65_535)
        nats_host = environ.get("MESH_NATS_HOST", "") or "127.0.0.1"
        reached = "127.0.0.1" if nats_host in EVERY_ADDRESS else nats_host
        keys_dir = read.path("MESH_KEYS_DIR") or data_dir / "keys"
        scheme = "tls" if server_certificate(keys_dir).exists() else "nats"
        monitor_port = read.integer("MESH_NATS_MONITOR_PORT", 8222, 0, 65_535)
        # The embedded broker's is known; of another broker's nothing is.
        monitor_url = f"http://127.0.0.1:{monitor_port}" if monitor_port and not url else ""
        return cls(
            nats_url=url or f"{scheme}://{reached}:{nats_port or 4222}",
            is_broker_external=bool(url),
            nats_server=environ.get("MESH_NATS_SERVER", ""),
            nats_host=nats_host,
            is_open_to_network=read.one_of("MESH_OPEN_TO_NETWORK", ("no", "yes")) == "yes",
            nats_port=nats_port,
            websocket_port=read.integer("MESH_NATS_WEBSOCKET_PORT", 0, minimum=0, maximum=65_535),
            leaf_port=read.integer("MESH_NATS_LEAF_PORT", 0, minimum=0, maximum=65_535),
            nats_monitor_port=monitor_port,
            nats_monitor_url=read.http_url("MESH_NATS_MONITOR_URL", monitor_url),
            api_key=environ.get("MESH_API_KEY", ""),
            data_dir=data_dir,
            is_joined=bool(kept),
            keys_folder=keys_dir,
            creds=read.path("MESH_CREDS"),
            tls_ca=read.path("MESH_TLS_CA"),
            node=_node(environ),
            http_host=environ.get("MESH_HTTP_HOST", "127.0.0.1"),
            http_ports=read.ports("MESH_HTTP_PORTS", DEFAULT_HTTP_PORTS),
            http_cert=read.path("MESH_HTTP_CERT"),
            http_key=read.path("MESH_HTTP_KEY"),
            http_auth=read.one_of("MESH_HTTP_AUTH", HTTP_AUTH_MODES),
            http_allowed_hosts=read.several("MESH_HTTP_ALLOWED_HOSTS", _HOST_NAME, _HOST_EXAMPLE),
            http_cors_origins=read.several("MESH_HTTP_CORS_ORIGINS", _ORIGIN, _ORIGIN_EXAMPLE),
            matrix_url=read.http_url("MESH_MATRIX_URL", ""),
            http_public_url=read.http_url("MESH_HTTP_PUBLIC_URL", ""),
            log_format=read.one_of("MESH_LOG_FORMAT", ("text", "json")),
            metrics_host=environ.get("MESH_METRICS_HOST", "") or "127.0.0.1",
            metrics_port=read.integer("MESH_METRICS_PORT", 0, minimum=0, maximum=65_535),
            replicas=read.integer("MESH_REPLICAS", 1, minimum=1, maximum=5),
            mailbox_max=read.integer("MESH_MAILBOX_MAX", 1_000, minimum=1, maximum=1_000_000),
            body_max_bytes=read.integer(
                "MESH_BODY_MAX", DEFAULT_BODY_MAX_BYTES, minimum=1, maximum=MAX_BODY_BYTES
            ),
            http_body_max_bytes=read.integer(
                "MESH_HTTP_BODY_MAX", DEFAULT_HTTP_BODY_MAX_BYTES, minimum=1, maximum=MAX_BODY_BYTES
            ),
            heartbeat_s=read.seconds("MESH_HEARTBEAT_S", 5.0, minimum=0.2),
            sync_interval=read.interval("MESH_SYNC_INTERVAL", "2m"),
            unknown_agent_grace_s=read.seconds("MESH_UNKNOWN_AGENT_GRACE_S", 30.0, minimum=0.5),
        )


def server_certificate(keys_dir: Path) -> Path:
    """Return where the broker's certificate lies: if there is one, the hub speaks TLS."""
    return keys_dir / "tls" / "server.pem"


def authority(keys_dir: Path) -> Path:
    """Return where the certificate of the mesh's own authority lies."""
    return keys_dir / "tls" / "ca.pem"


def kept_path(data_dir: Path) -> Path:
    """Return the file of the settings that `mesh join` keeps for this machine."""
    return data_dir / "joined.json"


def read_kept(data_dir: Path) -> dict[str, str]:
    """Read what `mesh join` has kept for this machine: variables and their values.

    Raises:
        SettingsError: the file is damaged.
    """
    path = kept_path(data_dir)
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict) and all(isinstance(one, str) for one in found.values()):
        return found
    raise SettingsError(f"{path} is damaged: join again, or delete it", variable="MESH_DATA_DIR")


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return a warning for every `MESH_*` variable that nothing reads, with the nearest name."""
    warnings = []
    for name in sorted(environ):
        if (
            not name.startswith("MESH_")
            or name in KNOWN_VARIABLES
            or name.startswith(_RESERVED_PREFIXES)
        ):
            continue
        near = difflib.get_close_matches(name, KNOWN_VARIABLES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        warnings.append(f"{name} is not a setting of the mesh{hint}")
    return warnings


@dataclass(frozen=True, slots=True)
class _Reader:
    environ: Mapping[str, str]

    def integer(self, name: str, default: int, minimum: int, maximum: int) -> int:
        text = self.environ.get(name, "")
        if not text:
            return default
        if text.isascii() and text.isdecimal() and minimum <= int(text) <= maximum:
            return int(text)
        raise _unusable(name, text, f"a whole number from {minimum} to {maximum}")

    def seconds(self, name: str, default: float, minimum: float) -> float:
        text = self.environ.get(name, "")
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if minimum <= value <= 86_400:
            return value
        raise _unusable(name, text, f"seconds from {minimum:g} to 86400")

    def ports(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        text = self.environ.get(name, "")
        if not text:
            return default
        parts = [part.strip() for part in text.split(",")]
        if all(part.isascii() and part.isdecimal() and int(part) <= 65_535 for part in parts):
            ports = tuple(int(part) for part in parts)
            named = [port for port in ports if port]
            if len(set(named)) == len(named):
                return ports
        raise _unusable(name, text, "different ports with commas between them, such as 9102,9205")

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        """Read one of several words; the first is the default."""
        text = self.environ.get(name, "") or choices[0]
        if text in choices:
            return text
        raise _unusable(name, text, " or ".join(choices))

    def several(self, name: str, pattern: re.Pattern[str], wanted: str) -> tuple[str, ...]:
        text = self.environ.get(name, "")
        if not text:
            return ()
        parts = tuple(part.strip().lower() for part in text.split(","))
        if all(pattern.fullmatch(part) for part in parts):
            return parts
        raise _unusable(name, text, wanted)

    def http_url(self, name: str, default: str) -> str:
        text = self.environ.get(name, "") or default
        if not text or re.fullmatch(r"https?://[!-~]+", text):
            return text.rstrip("/")
        raise _unusable(name, text, "an address such as http://127.0.0.1:8222")

    def path(self, name: str) -> Path | None:
        text = self.environ.get(name, "")
        return Path(text).expanduser().absolute() if text else None

    def interval(self, name: str, default: str) -> str:
        text = self.environ.get(name, "") or default
        if text == "always" or re.fullmatch(r"[1-9][0-9]{0,5}(ms|s|m|h)", text):
            return text
        raise _unusable(name, text, "'always', or a duration such as 30s or 2m")


def _unusable(name: str, text: str, wanted: str) -> SettingsError:
    return SettingsError(f"{name}={text!r} cannot be used: give {wanted}", variable=name)


def _node(environ: Mapping[str, str]) -> str:
    name = environ.get("MESH_NODE", "")
    if not name:
        host = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().partition(".")[0].lower())
        return host[:32].strip("-") or "node1"
    if is_id(name):
        return name
    raise _unusable("MESH_NODE", name, "a node id: a-z, 0-9, '-' and '_', 32 characters at most")


def _data_dir(environ: Mapping[str, str]) -> Path:
    if given := environ.get("MESH_DATA_DIR", ""):
        return Path(given).expanduser().absolute()
    state = environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state else Path.home() / ".local" / "state") / "mesh"
