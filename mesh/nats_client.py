"""nats-py's client, which writes and reads the headers of the mesh in a third of the time, writes
to the socket without a task of its own, and closes what it opened.

What goes over the wire, and what comes out of it, is what nats-py does: a test compares them on
whatever hypothesis can think of. Anything unusual is left to nats-py. A message of the mesh has
ten headers, which were a seventh of a call's time.
"""

import asyncio
from typing import Any, Final

from nats import errors
from nats.aio.client import DEFAULT_INBOX_PREFIX, PING_PROTO, Client

from mesh import headers as h

NAMES: Final = frozenset(
    value
    for name, value in vars(h).items()
    if name.isupper() and isinstance(value, str) and name not in ("JSON", "TEXT")
) | {"Nats-Last-Sequence"}
"""The headers of the mesh, and what JetStream puts beside them: names that need no check."""

NEAR_BYTES: Final = 4096
"""Left free under `max_payload` for what the broker adds. A message over the limit, headers
included, closes a nats-py client for ever."""

_BLANKS: Final = " \t\n\r\x0b\x0c"
"""What nats-py strips: of bytes, only ASCII is white space."""


class MeshNatsClient(Client):
    """A nats-py client. With `must_encrypt` it says nothing to a broker that offers no TLS."""

    def __init__(self, *, must_encrypt: bool = False) -> None:
        super().__init__()
        self._must_encrypt = must_encrypt
        self._is_flush_due = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self._must_encrypt:
            _require_tls(self, info)
        await super()._process_info(info, initial_connection)

    async def _process_connect_init(self) -> None:
        await super()._process_connect_init()
        _know_tls(self)

    async def _connect_to_server(self, s: Any) -> None:
        # nats-py 2.16 forgets the socket of a handshake that failed: one more for each attempt to
        # reconnect, until the garbage collector finds it.
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)

    async def _send_publish(
        self,
        subject: str,
        reply: str,
        payload: bytes,
        payload_size: int,
        headers: dict[str, Any] | None,
    ) -> None:
        message = encode_message(subject, payload, reply, headers)
        if message is None:
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        await self._send_command(message)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def post(
        self, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None
    ) -> bool:
        """Publish where nothing has to be waited for; see `post`."""
        if self._status != Client.CONNECTED:
            return False
        message = encode_message(subject, payload, reply, headers)
        if message is None:
            return False
        is_large = len(message) > self._max_payload - NEAR_BYTES
        if is_large or self._pending_data_size + len(message) > self._max_pending_size:
            return False
        self._pending.append(message)
        self._pending_data_size += len(message)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(payload)
        self._flush_soon()
        return True

    async def _flush_pending(self, force_flush: bool = False) -> None:
        if force_flush or not self.is_connected:
            await super()._flush_pending(force_flush)
        else:
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            # What is published in the same turn of the loop goes out together.
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def _send_ping(self, future: "asyncio.Future[bool] | None" = None) -> None:
        if not self.is_connected:
            await super()._send_ping(future)
            return
        # nats-py 2.16 writes its PING at once, before what was published and still waits: `flush`
        # would return before the broker has seen that.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    def _flush(self) -> None:
        self._is_flush_due = False
        if not self.is_connected or not self._pending:
            return
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None and not writer.transport.get_write_buffer_size():
            writer.transport.write(b"".join(self._pending))
            self._pending = []
            self._pending_data_size = 0
        elif self._flush_queue is not None and self._flush_queue.empty():
            # The socket is full, or is a WebSocket: nats-py's task waits for it.
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        return decode_headers(raw)


def post(
    client: Client,
    subject: str,
    payload: bytes,
    reply: str = "",
    headers: dict[str, str] | None = None,
) -> bool:
    """Publish at once where that can be done without waiting; tell whether it was done.

    What it cannot do, because of the client, the connection, or a message that comes near the
    broker's limit, `Client.publish` does, or says why not: through six coroutines, which are 2 us.
    """
    return isinstance(client, MeshNatsClient) and client.post(subject, payload, reply, headers)


def insist_on_tls(client: Client) -> None:
    """Let a client that somebody else has made say nothing more to a broker that offers no TLS.

    It is connected over TLS, or should be.

    Raises:
        nats.errors.Error: it is connected to one.
    """
    _require_tls(client, client._server_info)
    _know_tls(client)
    process, begin = client._process_info, client._process_connect_init

    async def begin_encrypted() -> None:
        await begin()
        _know_tls(client)

    async def process_encrypted(info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection:
            _require_tls(client, info)
        await process(info, initial_connection)

    client._process_info = process_encrypted  # type: ignore[method-assign]
    client._process_connect_init = begin_encrypted  # type: ignore[method-assign]


def _know_tls(client: Client) -> None:
    # nats-py 2.16 does not tell asyncio's protocol that it speaks TLS now. At the end of every
    # connection it would warn: "returning true from eof_received() has no effect when using ssl".
    transport = getattr(getattr(client._transport, "_io_writer", None), "transport", None)
    if transport is None or transport.get_extra_info("sslcontext") is None:
        return
    # A broker that refuses us may have hung up by now: then there is no protocol any more.
    if (protocol := transport.get_protocol()) is not None:
        protocol._over_ssl = True


def _require_tls(client: Client, info: dict[str, Any]) -> None:
    # nats-py 2.16 does what the server asks for, also where the URL says tls://: whoever sits in
    # between could take the encryption away.
    is_wss = client._current_server is not None and client._current_server.uri.scheme == "wss"
    if not info.get("tls_required") and not is_wss:
        raise errors.Error("nats: the broker offers no TLS, which the URL asks for")


def discard_pending(client: Client, subject_prefix: str) -> None:
    """Take back what was published on some subjects, and waits for a connection."""
    start = f"PUB {subject_prefix}".encode()
    client._pending = [one for one in client._pending if not one.startswith(start)]
    client._pending_data_size = sum(map(len, client._pending))


def is_guarded(client: Client) -> bool:
    """Tell whether a client logged in as a user: there may be a border between accounts on its way.

    Its inboxes are its own then, see `mesh.connection`.
    """
    return bytes(client._inbox_prefix) != DEFAULT_INBOX_PREFIX


def is_clustered(client: Client) -> bool:
    """Tell whether the broker is one server of several. Known once the client is connected."""
    return bool(client._server_info.get("cluster"))


def encode_message(
    subject: str, payload: bytes, reply: str, headers: dict[str, Any] | None
) -> bytes | None:
    """Return a message as it is published; None where nats-py must look at it."""
    size = len(payload)
    if headers is None and subject:
        return b"".join((f"PUB {subject} {reply} {size}\r\n".encode(), payload, b"\r\n"))
    block = encode_headers(headers) if headers and subject else None
    if block is None:
        return None
    head = f"HPUB {subject} {reply} {len(block)} {len(block) + size}\r\n".encode()
    return b"".join((head, block, payload, b"\r\n"))


def encode_headers(headers: dict[str, Any]) -> bytes | None:
    """Return the header block of a message; None where nats-py must look at it."""
    if not headers.keys() <= NAMES:
        return None
    lines = [f"{name}: {value.strip()}\r\n" for name, value in headers.items()]
    text = "".join(lines)
    if text.count("\n") != len(lines) or text.count("\r") != len(lines):
        return None  # A line break in a value.
    return b"NATS/1.0\r\n" + text.encode() + b"\r\n"


def decode_headers(raw: bytes) -> dict[str, str]:
    """Return the headers of a block without its first line."""
    found = {}
    for line in raw.decode("utf-8", "replace").split("\r\n"):
        name, has_value, value = line.partition(":")
        if not has_value:
            continue
        if name not in NAMES:
            name = name.strip(_BLANKS)
            if not name.isascii() or any(map(str.isspace, name)):
                continue
        found[name] = value.strip(_BLANKS)
    return found
