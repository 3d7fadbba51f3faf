"""The processes that `mesh up` and `mesh demo` run, as commands of this Python."""

import errno
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final

from mesh.cli import exits
from mesh.errors import PortInUseError
from mesh.settings import DEFAULT_HTTP_PORTS, Settings
from mesh.supervisor import Part
from mesh.trust.keyring import Keyring
from mesh.trust.users import CONTROL, DOOR

DOORS: Final = {
    "OpenAI": "/v1",
    "registry": "/api/v1/agents",
    "monitor": "/api/agents/connection-test",
}
"""What the default ports are for, in their order, and where to begin there."""


def control(settings: Settings, nats_url: str) -> Part:
    """The registrar and the other handlers."""
    return Part("control", _mesh("up", "control"), _environ(settings, nats_url, CONTROL))


def http(settings: Settings, nats_url: str, *, name: str = "http", monitor_url: str = "") -> Part:
    """A shim, on the ports of the settings. Without `monitor_url` theirs is the broker's."""
    environ = {
        **_environ(settings, nats_url, DOOR),
        "MESH_HTTP_HOST": settings.http_host,
        "MESH_HTTP_PORTS": ",".join(str(port) for port in settings.http_ports),
        "MESH_HTTP_CERT": str(settings.http_cert or ""),
        "MESH_HTTP_KEY": str(settings.http_key or ""),
        "MESH_NATS_MONITOR_URL": monitor_url or settings.nats_monitor_url,
    }
    return Part(name, _mesh("up", "http"), environ, hopeless=frozenset({exits.NOT_ALLOWED}))


def host(name: str, settings: Settings, nats_url: str, *targets: str) -> Part:
    """An agent host."""
    return Part(name, _mesh("run", *targets), _environ(settings, nats_url))


def _environ(settings: Settings, nats_url: str, user: str = "") -> dict[str, str]:
    """What every part is told: nothing that this machine has of another mesh may get in between.

    On the hub of a secure mesh its own processes log in as `user`.
    """
    creds = logged_in_as(user, settings).creds if user else settings.creds
    return {
        "MESH_NATS_URL": nats_url,
        "MESH_NODE": settings.node,
        "MESH_DATA_DIR": str(settings.data_dir),
        "MESH_KEYS_DIR": str(settings.keys_dir),
        "MESH_CREDS": str(creds or ""),
        "MESH_TLS_CA": str(settings.tls_ca or ""),
    }


def logged_in_as(user: str, settings: Settings) -> Settings:
    """Return the settings of a process of the hub, which in secure mode has credentials there."""
    if not Keyring.exists(settings.keys_dir):
        return settings
    return replace(settings, creds=Keyring.open(settings.keys_dir).credentials_path(user))


def _mesh(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "mesh", *arguments)


@contextmanager
def held_ports(settings: Settings) -> Iterator[Settings]:
    """Replace every HTTP port 0 by one that is free, and keep all of them from others meanwhile.

    Linux gives a port that is bound, and not listened on, to nobody who asks for any; who names it,
    as our door does, can listen there, also when it is started again. Elsewhere two cannot have a
    port at all, so there it is let go before it is used.

    Raises:
        PortInUseError: another program listens on a port of ours. Told before anything starts.
    """
    with ExitStack() as held:
        # All are held until the last is found, or one would be found twice.
        probes = [held.enter_context(_probe(settings.http_host)) for _ in settings.http_ports]
        ports = zip(probes, settings.http_ports, strict=True)
        found = replace(settings, http_ports=tuple(_claim(*one, settings) for one in ports))
        if sys.platform != "linux":
            held.close()
        yield found


def _probe(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)


def _claim(probe: socket.socket, port: int, settings: Settings) -> int:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((settings.http_host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _in_use(port, settings) from error
        # What else is wrong, with the address perhaps, is told by the shim itself.
        return port
    found: int = probe.getsockname()[1]
    return found


def _in_use(port: int, settings: Settings) -> PortInUseError:
    ports = ",".join(str(one) for one in settings.http_ports)
    return PortInUseError(
        f"port {port} is in use, perhaps by a mesh that is up already; else set MESH_HTTP_PORTS "
        f"(now {ports}) without it or to others (0: any free one)",
        port=port,
    )


def doors(settings: Settings) -> dict[str, str]:
    """Return the HTTP addresses that are listened on, by what each is for.

    All ports answer everything. One that is a default keeps its name, the others take the names
    that are left, in their order.
    """
    names = dict(zip(DEFAULT_HTTP_PORTS, DOORS, strict=True))
    named = {names[port]: port for port in settings.http_ports if port in names}
    others = [port for port in settings.http_ports if port not in names]
    named.update(zip((name for name in DOORS if name not in named), others, strict=False))
    host = f"[{settings.http_host}]" if ":" in settings.http_host else settings.http_host
    scheme = settings.http_scheme
    return {
        name: f"{scheme}://{host}:{named[name]}{DOORS[name]}" for name in DOORS if name in named
    }
