"""Headers as nats-py writes and reads them, only quicker."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.errors import BadHeaderError

from mesh import headers as h
from mesh.nats_client import (
    NAMES,
    MeshNatsClient,
    _know_tls,
    decode_headers,
    encode_headers,
)

NAME = st.sampled_from(sorted(NAMES)) | st.text(max_size=12)
"""Of the mesh, and of others."""
ODD = st.sampled_from(["\r\n", "\n", "\r", " ", "\t", "\x0b", "\x85", "\xa0", ":", "\x00", "ї"])
VALUE = st.text(max_size=20) | st.lists(st.text(max_size=4) | ODD, max_size=6).map("".join)


class Wire:
    """What a client would send: its command, without a connection."""

    def __init__(self, kind: type[Client]) -> None:
        self.sent = b""
        self.client = kind()
        self.client._send_command = self._take  # type: ignore[assignment,method-assign]

    async def _take(self, command: bytes, priority: bool = False) -> None:
        self.sent += bytes(command)

    async def publish(self, headers: dict[str, Any]) -> bytes:
        """Send a message, and return its bytes, or the name of the error."""
        try:
            await self.client._send_publish("a.b", "reply", b"body", 4, headers)
        except (BadHeaderError, UnicodeEncodeError) as error:
            return type(error).__name__.encode()
        return self.sent


@given(st.dictionaries(NAME, VALUE, max_size=8))
async def test_what_is_sent_is_what_nats_py_sends(headers: dict[str, str]) -> None:
    """Byte for byte, and refused where it refuses."""
    assert await Wire(MeshNatsClient).publish(headers) == await Wire(Client).publish(headers)


@given(
    st.binary(max_size=60)
    | st.lists(st.tuples(NAME, VALUE)).map(
        lambda pairs: "".join(f"{name}: {value}\r\n" for name, value in pairs).encode(
            errors="replace"
        )
    )
)
def test_what_is_read_is_what_nats_py_reads(raw: bytes) -> None:
    """Also of a peer that sends nonsense."""
    assert decode_headers(raw) == Client._parse_header_lines(raw)


def test_the_usual_is_not_left_to_nats_py() -> None:
    """Else nothing would be gained."""
    assert encode_headers(dict.fromkeys(NAMES, "x")) is not None


@pytest.mark.parametrize(
    "name",
    ["_send_publish", "_parse_header_lines", "_send_command", "_flush_pending", "_send_ping"],
)
def test_nats_py_still_has_what_is_replaced(name: str) -> None:
    """Under a new name it would not be called, and nobody would notice."""
    assert hasattr(Client, name)


class _Socket:
    """The transport of a connected client: what was written to it, in order."""

    def __init__(self, protocol: object) -> None:
        self.written = b""
        self._io_writer = SimpleNamespace(transport=self)
        self._protocol = protocol

    def get_extra_info(self, name: str) -> object:
        return name  # Of any: it is there.

    def get_protocol(self) -> object:
        return self._protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.written += data


async def test_a_ping_follows_what_was_published() -> None:
    """Its PONG says that the broker has all of it."""
    client, socket = MeshNatsClient(), _Socket(None)
    client._transport = socket  # type: ignore[assignment]
    client._status = Client.CONNECTED
    client._flush_queue = asyncio.Queue()
    await client.publish("a", b"body", headers={h.HOPS: "1"})
    await client._send_ping()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert socket.written.startswith(b"HPUB a ")
    assert socket.written.endswith(b"body\r\nPING\r\n")


@pytest.mark.parametrize("protocol", [None, SimpleNamespace(_over_ssl=False)])
def test_a_broker_that_hangs_up_while_tls_begins(protocol: SimpleNamespace | None) -> None:
    """Its protocol has gone by then, and there is nobody to tell that TLS is spoken."""
    client = MeshNatsClient()
    client._transport = _Socket(protocol)  # type: ignore[assignment]
    _know_tls(client)
    assert protocol is None or protocol._over_ssl
