"""The HTTP process: its connection, its ports, its place in the registry, its end.

What is answered stands in `mesh.shim.app`, how uvicorn runs in `mesh.shim.listener`. The registrar
may be away: this process serves at once and announces itself in the background.
"""

import asyncio
import errno
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Final

from mesh import otlp, registry
from mesh.background import BackgroundTasks
from mesh.callers import Caller
from mesh.client import open_client
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory
from mesh.errors import (
    PortInUseError,
    SettingsError,
    StreamMissingError,
    TransportError,
)
from mesh.exposition import watch_lag_forever
from mesh.heartbeat import beat_forever
from mesh.nats_client import is_guarded
from mesh.presence import People, follow_people
from mesh.runtime import describe_process
from mesh.settings import Settings
from mesh.shim.app import create_app
from mesh.shim.door import Door
from mesh.shim.listener import HttpServer, connection_limit
from mesh.shim.matrix import MatrixBridge
from mesh.shim.rules import rules_for
from mesh.trust.login import Login
from schemas.registry import Heartbeat, Instance, Role

logger = logging.getLogger(__name__)

CALLER_ID: Final = "http"
PATIENCE_S: Final = 15.0
"""How long a start waits for the broker, and for the control plane's streams on it."""
DRAIN_S: Final = 2.0
"""How long answers in progress may take when the process stops; then they are told."""
ANNOUNCE_PAUSE_S: Final = 1.0
BACKLOG: Final = 2048

OnReady = Callable[[list[int]], None]
"""Is told the ports that are listened on."""


async def serve(
    settings: Settings, *, on_ready: OnReady, stop: asyncio.Event | None = None
) -> None:
    """Answer HTTP until SIGTERM or SIGINT, or until `stop` is set when it is given.

    Raises:
        PortInUseError: another program listens on a port of ours.
        SettingsError: there is no such address to listen on.
        BrokerUnreachableError: there is no broker, or the connection is closed for good.
        StreamMissingError: the broker has no mesh on it.
    """
    certificate_of(settings)  # Before anything else: it is told at once.
    with _listening(settings) as sockets:
        async with open_connection(
            Login.of(settings), name=f"mesh http {settings.node}", patience_s=PATIENCE_S
        ) as connection:
            await serve_on(connection, sockets, settings, on_ready=on_ready, stop=stop)


async def serve_on(
    connection: Connection,
    sockets: list[socket.socket],
    settings: Settings,
    *,
    on_ready: OnReady,
    stop: asyncio.Event | None = None,
) -> None:
    """Answer HTTP on sockets and a connection that are open. Raises what `serve` raises."""
    async with AsyncExitStack() as stack:
        _require_own_node(connection, settings)
        await stack.enter_async_context(otlp.exporting("mesh-door", settings.node))
        directory = await _follow(stack, connection)
        instance = describe_process(settings.node, Role.HTTP)
        caller = Caller(connection.caller(CALLER_ID), settings.node, instance.instance)
        client = await stack.enter_async_context(open_client(connection, directory, caller))
        people = await _people(stack, connection, directory)
        matrix = MatrixBridge(settings.matrix_url) if settings.matrix_url else None
        if matrix is not None:
            stack.push_async_callback(matrix.close)
        tasks = BackgroundTasks()
        stack.push_async_callback(_leave, connection, instance)
        stack.push_async_callback(tasks.cancel)
        tasks.start(watch_lag_forever())
        tasks.start(_announce(connection, instance))
        tasks.start(_beat(connection, instance, settings.heartbeat_s))
        door = Door(
            client,
            connection,
            caller,
            monitor_url=settings.nats_monitor_url,
            certificate=settings.http_cert,
            people=people,
            matrix=matrix,
            public_url=settings.http_public_url,
            body_max_bytes=settings.http_body_max_bytes,
        )
        rules = rules_for(settings, [one.getsockname()[0] for one in sockets])
        if rules.requires_keys:
            require_hub_for_keys(connection)
            logger.info("API keys are required here: `mesh keys create NAME` makes one")
        server = HttpServer(
            create_app(door, rules),
            on_started=lambda: on_ready(ports_of(sockets)),
            max_connections=connection_limit(),
            certificate=certificate_of(settings),
        )
        if stop is None:
            stop = asyncio.Event()
            stack.enter_context(_set_by_signals(stop))
        await _run(server, sockets, door, [stop, connection.closed])
        is_lost = connection.closed.is_set() and not stop.is_set()
    if is_lost:
        raise connection.ending()


def certificate_of(settings: Settings) -> tuple[Path, Path] | None:
    """Return the files of the certificate and its key, once they are seen to be some.

    Raises:
        SettingsError: they are none, or do not fit.
    """
    if settings.http_cert is None and settings.http_key is None:
        return None
    if settings.http_cert is None or settings.http_key is None:
        raise SettingsError(
            "a certificate needs its key: set both MESH_HTTP_CERT and MESH_HTTP_KEY",
            variable="MESH_HTTP_CERT",
        )
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.http_cert, settings.http_key)
    except OSError as error:  # An `ssl.SSLError` is one, too.
        raise SettingsError(
            f"MESH_HTTP_CERT={settings.http_cert} and MESH_HTTP_KEY={settings.http_key} cannot be "
            f"used: {error.strerror or error}",
            variable="MESH_HTTP_CERT",
        ) from None
    return settings.http_cert, settings.http_key


def _require_own_node(connection: Connection, settings: Settings) -> None:
    """A broker says nothing to what it does not allow: better to be told here."""
    node = connection.credentials.grant.node if connection.credentials else ""
    if node not in ("", settings.node):
        raise SettingsError(
            f"this is node {settings.node!r}, and the credentials are of node {node!r}: leave "
            "MESH_NODE away, or set it to that",
            variable="MESH_NODE",
        )


def require_hub_for_keys(connection: Connection) -> None:
    """Check that API keys can be read here.

    Raises:
        SettingsError: they cannot: this machine has joined.
    """
    if is_guarded(connection.client):
        raise SettingsError(
            "API keys are kept at the hub, where this machine may not read them: let the door of "
            "this machine listen on loopback, and others use the hub's",
            variable="MESH_HTTP_HOST",
        )


async def _run(
    server: HttpServer, sockets: list[socket.socket], door: Door, ends: list[asyncio.Event]
) -> None:
    """Serve until one of `ends`; then let answers finish for a while, and tell the rest."""
    serving = asyncio.create_task(server.serve(sockets=sockets))
    waiting = [asyncio.create_task(one.wait()) for one in ends]
    try:
        await asyncio.wait([serving, *waiting], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await asyncio.wait({serving}, timeout=DRAIN_S)
    finally:
        door.close()
        server.should_exit = True
        for one in waiting:
            one.cancel()
        await serving


@contextmanager
def _listening(settings: Settings) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(listen_on(settings.http_host, port)) for port in settings.http_ports
        ]


def listen_on(host: str, port: int) -> socket.socket:
    """Listen, for whoever closes it.

    Raises:
        SettingsError: this machine has no such address.
        PortInUseError: another program listens there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named for asyncio: only then does it switch Nagle's algorithm off, which
    # would hold every answer back for 40 ms. `socket.create_server` names none.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise SettingsError(
                f"MESH_HTTP_HOST={host!r} is no address of this machine ({reason})",
                variable="MESH_HTTP_HOST",
            ) from error
        raise PortInUseError(
            f"port {port} cannot be used ({reason}); perhaps `mesh up` already runs: set "
            "MESH_HTTP_PORTS to others (0: any free one)",
            port=port,
        ) from error
    return listener


def ports_of(sockets: list[socket.socket]) -> list[int]:
    """Return the ports that sockets listen on."""
    return [one.getsockname()[1] for one in sockets]


@contextmanager
def _set_by_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for one in signals:
        loop.add_signal_handler(one, stop.set)
    try:
        yield
    finally:
        for one in signals:
            loop.remove_signal_handler(one)


async def _follow(stack: AsyncExitStack, connection: Connection) -> Directory:
    """Follow the registry as soon as it is there: the control plane may start beside us."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            return await stack.enter_async_context(follow_directory(connection))
        except StreamMissingError:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(0.2)


async def _people(
    stack: AsyncExitStack, connection: Connection, directory: Directory
) -> People | None:
    if is_guarded(connection.client):
        return None  # Who of the people is there, the hub knows.
    try:
        return await stack.enter_async_context(follow_people(connection, directory.clock))
    except StreamMissingError:
        # An older control plane has made the streams. Everything else works without.
        logger.warning("the mesh has no bucket of presence: start its control plane again")
        return None


async def _announce(connection: Connection, instance: Instance) -> None:
    was_heard = True
    while True:
        try:
            await registry.announce_node(connection, instance)
        except TransportError as error:
            if was_heard:
                logger.warning("cannot announce node %s yet: %s", instance.node, error)
            was_heard = False
            await asyncio.sleep(ANNOUNCE_PAUSE_S)
        else:
            return


async def _beat(connection: Connection, instance: Instance, interval_s: float) -> None:
    async def announce_again() -> None:
        await registry.announce_node(connection, instance)

    await beat_forever(
        connection, lambda: instance, interval_s=interval_s, on_forgotten=announce_again
    )


async def _leave(connection: Connection, instance: Instance) -> None:
    if not connection.client.is_connected:
        return
    try:
        await registry.beat(connection, Heartbeat(instance=instance, leaving=True), timeout_s=1.0)
    except TransportError as error:
        logger.info("left without a word to the registrar: %s", error)
