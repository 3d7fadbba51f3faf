"""HTTP on one TCP connection: what is no HTTP gets the envelope, what is slow gets cut.

uvicorn with h11, which has no limit of time but for idle connections. The clocks here cost
nothing a request: `cut_slow_forever` looks at each connection now and then. Knows no path, no
header and no key; see `mesh.shim.guard`.
"""

import asyncio
import logging
import sys
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any, Final

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from mesh.shim.cork import CorkedTransport
from mesh.shim.http import REQUEST_ID, new_request_id
from mesh.shim.status import (
    BODY_TOO_SLOW,
    HEADERS_TOO_LARGE,
    TOO_MANY_CONNECTIONS,
    Failure,
    refusal,
    unreadable,
)

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES: Final = 32 * 1024
"""Of a request line and its headers. h11 counts what is incomplete, so up to half more may pass."""
MAX_CONNECTIONS: Final = 5_000
SURPLUS: Final = 100
"""So many connections over the limit are told so; more are cut without a word."""
_SLICE_BYTES: Final = MAX_HEADER_BYTES // 2
_CHECK_S: Final = 1.0
LINGER_S: Final = 1.0
"""How long an idle connection stays when the server stops. A request that was on its way is then
answered, and its client told to connect anew; closed at once, it would be lost."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take, in seconds."""

    headers_s: float = 20.0
    """For a request's headers, from the connection's start or the request's first byte."""
    body_s: float = 30.0
    """For a request's body."""
    write_s: float = 30.0
    """For reading anything at all of what we have to send."""

    @property
    def check_s(self) -> float:
        """How often to look."""
        return min(_CHECK_S, min(self.headers_s, self.body_s, self.write_s) / 4)


class _Wait(Enum):
    """What we wait for, when it is the client's turn."""

    HEADERS = auto()
    BODY = auto()
    READING = auto()


class _Unmoved(logging.LoggerAdapter[logging.Logger]):
    """uvicorn's log, without warnings of what any client can send, as often as it likes."""

    @property
    def level(self) -> int:
        """The threshold, which uvicorn reads for each connection."""
        return self.logger.level

    def warning(self, msg: object, *args: object, **_: object) -> None:
        """Say it to who looks for it."""
        self.debug(msg, *args)


class HttpProtocol(H11Protocol):
    """One connection of a client; `limit_concurrency` of the configuration says how many may be."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # It is all of a logger that uvicorn uses.
        self.logger = _Unmoved(self.logger)  # type: ignore[assignment]
        # uvicorn would answer in plain text, and without a Retry-After.
        self._max_connections, self.limit_concurrency = self.limit_concurrency, None
        self._is_surplus = False
        self._is_leaving = False
        self._waited_for: tuple[object, ...] | None = None
        self._waits_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are far too many."""
        super().connection_made(CorkedTransport(transport, self.loop))
        if self._max_connections is not None:
            surplus = len(self.connections) - self._max_connections
            self._is_surplus = surplus > 0
            if surplus > SURPLUS:
                transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes. Long ones piece by piece: h11 counts a header's size between two reads."""
        if self._is_surplus:
            self.refuse(refusal(TOO_MANY_CONNECTIONS, "too many connections: try again soon"))
        elif len(data) <= _SLICE_BYTES or self.conn.their_state is h11.SEND_BODY:
            super().data_received(data)
        else:
            for start in range(0, len(data), _SLICE_BYTES):
                if not self.transport.is_closing():
                    super().data_received(data[start : start + _SLICE_BYTES])

    def handle_events(self) -> None:
        """Begin what the bytes ask for."""
        super().handle_events()
        cycle = self.cycle
        # Answered without a 100, a client may send the body, or the next request in its place:
        # only with the connection's end both mean the same.
        if cycle is not None and (cycle.waiting_for_100_continue or self._is_leaving):
            self._close_after_answer()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP. Called while h11's complaint is handled."""
        complaint = sys.exc_info()[1]
        status = 400
        if isinstance(complaint, h11.RemoteProtocolError):
            # What follows a colon are the bytes themselves.
            status, msg = complaint.error_status_hint, str(complaint).partition(": bytearray")[0]
        message = f"this server does not read such HTTP: {msg}"
        if status == HEADERS_TOO_LARGE.status:
            message = f"request line and headers are over {MAX_HEADER_BYTES} bytes: send less"
        self.refuse(refusal(unreadable(status), message))

    def refuse(self, told: Failure) -> None:
        """Answer in the application's place if nothing was answered yet, and close.

        The application learns of it as of a client that left.
        """
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._write(told)
        self.transport.close()

    def shutdown(self) -> None:
        """End, after the answer in progress, or one to a request that is on its way."""
        self._is_leaving = True
        if self._is_idle():
            self.loop.call_later(LINGER_S, self._leave)
        else:
            self._close_after_answer()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _leave(self) -> None:
        # h11 raises when it is told a second time of an end in anger.
        if self._is_idle() and not self.transport.is_closing():
            super().shutdown()

    def _close_after_answer(self) -> None:
        """Close after this answer, and say so in it, unless it has begun."""
        if self.cycle is not None and self.cycle.keep_alive:
            self.cycle.keep_alive = False
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]

    def cut_if_slow(self, now: float, patience: Patience) -> None:
        """Cut the connection when the client has not done for too long what is its turn to do."""
        waits_for = self._waits_for()
        if waits_for is None or waits_for != self._waited_for:
            self._waited_for, self._waits_since = waits_for, now
            return
        waited_s = now - self._waits_since
        match waits_for[0]:
            case _Wait.HEADERS if waited_s >= patience.headers_s:
                self._abort("headers")
            case _Wait.READING if waited_s >= patience.write_s:
                self._abort("reading")
            case _Wait.BODY if waited_s >= patience.body_s:
                message = f"the body did not come within {patience.body_s:g} s: try again"
                self.refuse(refusal(BODY_TOO_SLOW, message))

    def _waits_for(self) -> tuple[object, ...] | None:
        """Tell what the client has to do, beside what changes when it does it."""
        unsent = self.transport.get_write_buffer_size()
        # Only then nobody adds to it: other numbers mean that the client reads.
        if unsent and (self.flow.write_paused or self.transport.is_closing()):
            return _Wait.READING, unsent, _unacknowledged_bytes(self.transport)
        if self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused:
            return _Wait.BODY, self.cycle
        is_new = self.conn.their_state is h11.IDLE
        if is_new and (self.cycle is None or self.conn.trailing_data[0]):
            return _Wait.HEADERS, self.cycle
        return None

    def _abort(self, missing: str) -> None:
        logger.debug("cut %s: too slow with %s", self.client, missing)
        self.transport.abort()

    def _write(self, told: Failure) -> None:
        name = new_request_id()
        logger.debug("request %s: refused with %d", name, told.status)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(told.body)).encode()),
            (b"connection", b"close"),
            (REQUEST_ID.encode(), name.encode()),
            *((one.encode(), value.encode()) for one, value in told.headers.items()),
        ]
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
        body = b"" if is_head else told.body
        reason = STATUS_PHRASES[told.status]
        response = h11.Response(status_code=told.status, headers=headers, reason=reason)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))

    def _unsupported_upgrade_warning(self) -> None:
        logger.debug("%s asks for another protocol and gets HTTP", self.client)


def _unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """Return what the kernel still holds for a client, 0 where it does not tell.

    It takes no more of our buffer until it got rid of megabytes: a slow reader looks like none.
    """
    try:
        told = ioctl(transport.get_extra_info("socket").fileno(), TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int.from_bytes(told, sys.byteorder)


async def cut_slow_forever(connections: Collection[object], patience: Patience) -> None:
    """Look at `connections` again and again, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(patience.check_s)
        for one in list(connections):
            if isinstance(one, HttpProtocol):
                one.cut_if_slow(loop.time(), patience)
