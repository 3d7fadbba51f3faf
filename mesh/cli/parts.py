"""The processes that `mesh up` and `mesh demo` run, as commands of this Python."""

import socket
import sys
from collections.abc import Mapping
from dataclasses import replace

from mesh.settings import Settings
from mesh.supervisor import Part


def control(settings: Settings, nats_url: str) -> Part:
    """The registrar and the other handlers."""
    environ = {"MESH_NATS_URL": nats_url, "MESH_NODE": settings.node}
    return Part("control", _mesh("up", "control"), environ)


def http(settings: Settings, nats_url: str, *, name: str = "http", monitor_url: str = "") -> Part:
    """A shim, on the ports of the settings. Without `monitor_url` theirs is the broker's."""
    environ = {
        "MESH_NATS_URL": nats_url,
        "MESH_NODE": settings.node,
        "MESH_HTTP_HOST": settings.http_host,
        "MESH_HTTP_PORTS": ",".join(str(port) for port in settings.http_ports),
        "MESH_NATS_MONITOR_URL": monitor_url or settings.nats_monitor_url,
    }
    return Part(name, _mesh("up", "http"), environ)


def host(name: str, node: str, nats_url: str, *targets: str) -> Part:
    """An agent host."""
    environ = {"MESH_NATS_URL": nats_url, "MESH_NODE": node}
    return Part(name, _mesh("run", *targets), environ)


def _mesh(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "mesh", *arguments)


def with_real_ports(settings: Settings) -> Settings:
    """Replace every HTTP port 0 by one that is free now, so that it can be told to people."""
    ports = tuple(port or _free_port(settings.http_host) for port in settings.http_ports)
    return replace(settings, http_ports=ports)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def describe(settings: Settings, nats_url: str, monitor_url: str = "") -> Mapping[str, str]:
    """Return the addresses that a person needs, by name."""
    shown = {"NATS": nats_url}
    if monitor_url:
        shown["monitor"] = f"{monitor_url}/varz"
    if settings.http_ports:
        shown["OpenAI"] = f"http://{settings.http_host}:{settings.http_ports[0]}/v1"
    return shown
