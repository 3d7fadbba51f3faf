"""The HTTP door and bytes that no library sends: each has one answer, and harms nobody else."""

import asyncio
import logging
from collections.abc import AsyncIterator

import httpx2
import pytest

from mesh.connection import Connection
from mesh.directory import Directory
from mesh.settings import DEFAULT_HTTP_BODY_MAX_BYTES
from mesh.shim.protocol import MAX_HEADER_BYTES
from tests.conftest import Running
from tests.rawhttp import RawClient, raw, request
from tests.shim import CHAT, ask, online, replier, serving

AGENT = "raw-agent"
LIVE = "/health/live"
GET = request("GET", LIVE)
BODY = httpx2.Request("POST", "http://x", json=ask(AGENT)).content
POST = request("POST", CHAT, BODY)
JSON = "content-type: application/json"
CHUNKED = "transfer-encoding: chunked"


@pytest.fixture(scope="module")
async def url(connection: Connection, directory: Directory, running: Running) -> AsyncIterator[str]:
    """A door with an agent behind it."""
    async with online(running, directory, replier(AGENT)), serving(connection, directory) as base:
        yield base


@pytest.fixture
async def client(url: str, connection: Connection) -> AsyncIterator[RawClient]:
    """One connection. When its test is over, the door and its broker are as good as before."""
    async with raw(url) as opened:
        yield opened
    assert connection.client.is_connected
    async with raw(url) as other:
        await other.send(POST)
        assert (await other.answer()).status == 200


def chunked(body: bytes, *headers: str) -> bytes:
    """Return a chunked request, with the chunks as they are given."""
    return request("POST", CHAT, b"", CHUNKED, JSON, *headers) + body


REFUSED = {
    "nothing HTTP": (b"\0" * 100 + b"\r\n\r\n", 400, "malformed_request"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed_request"),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", 400, "malformed_request"),
    "HTTP/0.9": (b"GET /health/live\r\n\r\n", 400, "malformed_request"),
    "empty lines first": (b"\r\n\r\n" + GET, 400, "malformed_request"),
    "no Host": (b"GET /health/live HTTP/1.1\r\n\r\n", 400, "malformed_request"),
    "two Hosts": (request("GET", LIVE, b"", "host: localhost"), 400, "malformed_request"),
    "space before the colon": (request("GET", LIVE, b"", "x : y"), 400, "malformed_request"),
    "a header without a name": (request("GET", LIVE, b"", ": y"), 400, "malformed_request"),
    "a header without a colon": (request("GET", LIVE, b"", "x y"), 400, "malformed_request"),
    "NUL in a header": (request("GET", LIVE, b"", "x: a\0b"), 400, "malformed_request"),
    "CR in a header": (request("GET", LIVE, b"", "x: a\rb"), 400, "malformed_request"),
    "NUL in the target": (request("GET", "/hea\0lth"), 400, "malformed_request"),
    "a target that is not ASCII": (request("GET", "/ä"), 400, "malformed_request"),
    "a space in the target": (request("GET", "/a b"), 400, "malformed_request"),
    "two lengths": (POST.replace(JSON.encode(), b"content-length: 3"), 400, "malformed_request"),
    "two lengths in one": (
        request("POST", CHAT, b"", "content-length: 5, 6"),
        400,
        "malformed_request",
    ),
    "a negative length": (request("POST", CHAT, b"", "content-length: -1"), 400, None),
    "a length with a sign": (request("POST", CHAT, b"", "content-length: +5"), 400, None),
    "a length in hexadecimal": (request("POST", CHAT, b"", "content-length: 0x5"), 400, None),
    "an endless length": (request("POST", CHAT, b"", f"content-length: {'9' * 30}"), 400, None),
    "a length and chunks": (
        chunked(b"0\r\n\r\n", f"content-length: {len(GET)}") + GET,
        400,
        "malformed_request",
    ),
    "chunks and no length": (chunked(b"0\r\n\r\n", "content-length: 0") + GET, 400, None),
    "chunks in HTTP/1.0": (
        request("POST", CHAT, b"", CHUNKED, JSON, version="1.0") + b"0\r\n\r\n",
        400,
        "malformed_request",
    ),
    "another coding": (
        request("POST", CHAT, b"", "transfer-encoding: xchunked"),
        501,
        "unsupported_transfer_encoding",
    ),
    "two codings": (
        request("POST", CHAT, b"", "transfer-encoding: gzip, chunked"),
        501,
        "unsupported_transfer_encoding",
    ),
    "chunked twice": (request("POST", CHAT, b"", CHUNKED, CHUNKED), 501, None),
    "a chunk without a size": (chunked(b"zz\r\nhello\r\n"), 400, "malformed_request"),
    "a negative chunk": (chunked(b"-5\r\nhello\r\n0\r\n\r\n"), 400, "malformed_request"),
    "a chunk longer than it says": (chunked(b"5\r\nhelloXX"), 400, "malformed_request"),
    "an endless chunk size": (chunked(b"f" * 40_000 + b"\r\n"), 400, None),
    "a long header": (
        request("GET", LIVE, b"", f"x: {'a' * 65_536}"),
        431,
        "headers_too_large",
    ),
    "a long target": (request("GET", f"/{'a' * 65_536}"), 431, "headers_too_large"),
    "many headers": (request("GET", LIVE, b"", *["a: b"] * 10_000), 431, "headers_too_large"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_with_the_connection(
    client: RawClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a request ends can no longer be told: one answer in our envelope, and the end.

    The log stays as it is: who sends such things could fill it.
    """
    data, status, code = REFUSED[name]
    await client.send(data)
    answer = await client.answer()
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert answer.error["code"] == code or code is None
    assert "bytearray" not in answer.error["message"]
    assert await client.is_closed()
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING] == []


SERVED = {
    "GET": (GET, 200),
    "HTTP/1.0": (b"GET /health/live HTTP/1.0\r\n\r\n", 200),
    "bare line feeds": (GET.replace(b"\r\n", b"\n"), 200),
    "a folded header": (request("GET", LIVE, b"", "x: a", " b"), 200),
    "an absolute target": (request("GET", "http://localhost/health/live", host="x.test"), 200),
    "an absolute target with a slash": (request("GET", "HTTP://127.0.0.1/health/live/"), 200),
    "an absolute target elsewhere": (request("GET", "http://evil.test/health/live"), 421),
    "an absolute target without a path": (request("GET", "http://localhost"), 200),
    "an absolute target with a user": (request("GET", "http://a:b@localhost/health"), 421),
    "another scheme": (request("GET", "ftp://localhost/health"), 404),
    "a path in a path": (request("GET", "//localhost/health/live"), 404),
    "dots": (request("GET", "/health/../health/live"), 404),
    "escaped dots": (request("GET", "/v1/models/%2e%2e/%2e%2e/health/live"), 404),
    "an escape that is no UTF-8": (request("GET", "/v1/models/%ff%fe%00"), 404),
    "half an escape": (request("GET", "/v1/models/%e"), 404),
    "a target of a question mark": (request("GET", "?x"), 404),
    "asterisk": (request("OPTIONS", "*"), 404),
    "OPTIONS": (request("OPTIONS", CHAT), 405),
    "TRACE": (request("TRACE", LIVE), 405),
    "CONNECT": (request("CONNECT", "localhost:443"), 404),
    "a method of nobody": (request("FROBNICATE", CHAT), 405),
    "a method in small letters": (request("get", LIVE), 405),
    "a websocket": (
        request(
            "GET", LIVE, b"", "connection: upgrade", "upgrade: websocket", "sec-websocket-key: x"
        ),
        200,
    ),
    "HTTP/2 on the same port": (
        request("GET", LIVE, b"", "connection: upgrade, http2-settings", "upgrade: h2c"),
        200,
    ),
    "the same length twice": (request("POST", CHAT, BODY, f"content-length: {len(BODY)}"), 200),
    "chunks": (chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)), 200),
    "chunks with extensions and trailers": (
        chunked(b"%x;a=b\r\n%b\r\n0\r\nx: y\r\n\r\n" % (len(BODY), BODY)),
        200,
    ),
    "a body that nobody reads": (request("GET", LIVE, b"x" * 100_000), 200),
    "an expectation of nobody": (request("POST", CHAT, BODY, "expect: 200-ok"), 200),
    "a wrong host": (request("GET", LIVE, host="evil.test"), 421),
    "many small headers": (request("GET", LIVE, b"", *["a: b"] * 4_000), 200),
    "a header like the broker's": (
        request("POST", CHAT, BODY, "Nats-Msg-Id: x", "Nats-TTL: 1"),
        200,
    ),
    "headers that are not ASCII": (request("POST", CHAT, BODY, "x-a: \xff\xfe\x80"), 200),
    "an empty header": (request("POST", CHAT, BODY, "x-mesh-agent:", "x-mesh-source-agent: "), 200),
}


@pytest.mark.parametrize("name", SERVED)
async def test_what_is_odd_but_clear(client: RawClient, name: str) -> None:
    """It is answered, and the connection serves the next request if HTTP lets it."""
    data, status = SERVED[name]
    await client.send(data)
    answer = await client.answer()
    assert answer.status == status
    assert answer.headers["x-request-id"]
    if status >= 400:
        assert answer.error
    if answer.headers.get("connection") == "close":
        assert name == "HTTP/1.0"
        assert await client.is_closed()
    else:
        await client.send(POST)
        assert (await client.answer()).status == 200


async def test_an_absolute_target_names_the_server(client: RawClient) -> None:
    """Addresses in an answer are of the host that was checked, not of one that was not."""
    asked = "http://localhost/api/v1/agents?limit=1"
    await client.send(request("GET", asked, host="evil.test"))
    answer = await client.answer()
    assert answer.status == 200
    assert b"http://localhost/api/agent/" in answer.body
    assert b"evil.test" not in answer.body


async def test_head_has_no_body(client: RawClient) -> None:
    """The headers of GET, also of what is refused."""
    for target, status in ((LIVE, 200), (CHAT, 405), ("/nowhere", 404)):
        await client.send(request("HEAD", target))
        answer = await client.answer(is_head=True)
        assert answer.status == status
        assert int(answer.headers["content-length"]) > 0
    await client.send(GET)
    assert (await client.answer()).body == b'{"status":"ok"}'


async def test_pipelined_requests_are_answered_in_order(client: RawClient) -> None:
    """One after the other, whatever the one before was answered with."""
    await client.send(
        POST + GET + request("GET", "/nowhere") + request("GET", LIVE, host="x.y") + POST
    )
    statuses = [(await client.answer()).status for _ in range(5)]
    assert statuses == [200, 200, 404, 421, 200]


async def test_a_pipelined_flood_ends_where_it_breaks(client: RawClient) -> None:
    """What follows a request that is none is not read: nobody can smuggle behind it."""
    await client.send(GET * 500 + b"\0\r\n\r\n" + GET)
    statuses = [(await client.answer()).status for _ in range(501)]
    assert statuses == [200] * 500 + [400]
    assert await client.is_closed()


async def test_who_waits_for_100_gets_it(client: RawClient) -> None:
    """Before the body is sent; then the answer, and the end of the connection."""
    length = f"content-length: {len(BODY)}"
    await client.send(request("POST", CHAT, b"", "expect: 100-continue", length, JSON))
    assert (await client.answer()).status == 100
    await client.send(BODY)
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await client.is_closed()


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        (CHAT, ("content-length: 50",), 415),
        (CHAT, (f"content-length: {DEFAULT_HTTP_BODY_MAX_BYTES + 1}", JSON), 413),
        ("/nowhere", ("content-length: 50", JSON), 404),
    ],
)
async def test_who_waits_for_100_and_is_refused(
    client: RawClient, target: str, headers: tuple[str, ...], status: int
) -> None:
    """The next bytes may be the body or a request: nobody must have to guess."""
    await client.send(request("POST", target, b"", "Expect: 100-Continue", *headers) + GET)
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert await client.is_closed()


async def test_a_body_that_breaks_after_the_answer(client: RawClient) -> None:
    """The answer is not followed by another: it could be taken for that of the next request."""
    sent, left = DEFAULT_HTTP_BODY_MAX_BYTES + 1_000_000, 3_000_000
    await client.send(chunked(b"%x\r\n" % (sent + left) + b"x" * sent))
    assert (await client.answer()).status == 413
    await client.send(b"x" * left + b"no chunk")
    assert await client.is_closed()


async def test_a_header_of_the_longest_length(client: RawClient) -> None:
    """A little under the limit is served, in one piece and in many."""
    data = request("GET", LIVE, b"", f"x: {'a' * (MAX_HEADER_BYTES - 200)}")
    await client.send(data)
    assert (await client.answer()).status == 200
    for start in range(0, len(data), 1_000):
        await client.send(data[start : start + 1_000])
        await asyncio.sleep(0)
    assert (await client.answer()).status == 200


async def test_a_client_that_leaves_half_way(url: str, client: RawClient) -> None:
    """In the headers, in the body, before the answer: nothing is logged as our failure."""
    for part in (GET[:10], POST[:-5], POST, chunked(b"5\r\nhe")):
        async with raw(url) as leaver:
            await leaver.send(part)
    await client.send(GET)
    assert (await client.answer()).status == 200


async def test_garbage_leaves_no_traceback(
    client: RawClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger must not be able to make us log our own failure."""
    with caplog.at_level(logging.DEBUG):
        await client.send(chunked(b"zz\r\n") + b"more")
        assert (await client.answer()).status == 400
        assert await client.is_closed()
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR or one.exc_info]
