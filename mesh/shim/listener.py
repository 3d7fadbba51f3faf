"""uvicorn as this house runs it: its options, our protocol, the watch over slow clients.

Opens no port; it is given sockets, or a port to open by `uvicorn.Server` itself.
"""

import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from mesh.background import BackgroundTasks
from mesh.shim.protocol import (
    MAX_CONNECTIONS,
    MAX_HEADER_BYTES,
    SURPLUS,
    HttpProtocol,
    Patience,
    cut_slow_forever,
)

GRACE_S: Final = 3
KEEP_ALIVE_S: Final = 65
"""Longer than clients and proxies keep idle connections, so that they close first: a request on
a connection that the server closes at that moment is lost."""
SPARE_FILES: Final = SURPLUS + 64
"""For the broker, logs, and connections that are told that there are too many."""


def connection_limit() -> int:
    """Return how many connections this process may hold: bounded by its limit of open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(16, min(MAX_CONNECTIONS, files - SPARE_FILES))


def _ignore() -> None:
    """Nobody wants to know."""


class HttpServer(uvicorn.Server):
    """uvicorn that tells when it listens, leaves signals alone, and cuts slow clients."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        on_started: Callable[[], None] = _ignore,
        patience: Patience | None = None,
        max_connections: int = MAX_CONNECTIONS,
        port: int = 0,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                port=port,
                http=HttpProtocol,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                limit_concurrency=max_connections,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
                ssl_certfile=certificate and certificate[0],
                ssl_keyfile=certificate and certificate[1],
            )
        )
        self._on_started = on_started
        self._patience = patience or Patience()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `should_exit` is set."""
        tasks = BackgroundTasks()
        tasks.start(cut_slow_forever(self.server_state.connections, self._patience))
        try:
            await super().serve(sockets)
        finally:
            await tasks.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets=sockets)
        self._on_started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would take the handlers, and raise the signal again."""
        yield
