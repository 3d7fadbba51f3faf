"""What has broken other servers: each body has its answer, and the broker's link lives on.

The list of `reliability-anchors`, section 5, as far as it travels over HTTP. Ids and headers are
in `test_shim_inputs`, framing in `test_door_raw`.
"""

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx2
import orjson
import pytest
from nats.aio.client import Client

from mesh.connection import Connection
from mesh.directory import Directory
from tests.conftest import Running
from tests.integration.test_shim_inputs import BAD_IDS, NOBODYS_IDS
from tests.shim import CHAT, HELLO, ask, error_of, online, replier, serving

AGENT = "tried-agent"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
async def door(
    connection: Connection, directory: Directory, running: Running
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a door with an agent behind it."""
    async with (
        online(running, directory, replier(AGENT)),
        serving(connection, directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=60) as client,
    ):
        yield client


@pytest.fixture
async def http(
    door: httpx2.AsyncClient, connection: Connection
) -> AsyncIterator[httpx2.AsyncClient]:
    """The client. When its test is over, a good request is answered by the same connection."""
    before = connection.client.stats["reconnects"]
    yield door
    assert connection.client.is_connected
    assert connection.client.stats["reconnects"] == before
    answer = await door.post(CHAT, json=ask(AGENT))
    assert answer.json()["choices"][0]["message"]["content"] == "You said: hello"


def with_member(text: str) -> bytes:
    """Return a good request with one more member."""
    return orjson.dumps(ask(AGENT))[:-1] + b"," + text.encode() + b"}"


def nested(depth: int) -> bytes:
    """Return a good request of a certain depth."""
    return with_member('"x":' + "[" * (depth - 1) + "]" * (depth - 1))


BODIES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "a space": (b" ", 400),
    "null": (b"null", 400),
    "an array": (b"[]", 400),
    "a string": (b'"x"', 400),
    "a number": (b"7", 400),
    "an empty object": (b"{}", 400),
    "half of it": (orjson.dumps(ask(AGENT))[:-10], 400),
    "more than it": (orjson.dumps(ask(AGENT)) + b"x", 400),
    "two of it": (orjson.dumps(ask(AGENT)) * 2, 400),
    "two lines of it": (orjson.dumps(ask(AGENT)) + b"\n" + orjson.dumps(ask(AGENT)), 400),
    "a line feed after it": (orjson.dumps(ask(AGENT)) + b"\n", 200),
    "a byte order mark": (b"\xef\xbb\xbf" + orjson.dumps(ask(AGENT)), 400),
    "UTF-16": (orjson.dumps(ask(AGENT)).decode().encode("utf-16"), 400),
    "a lone surrogate": (with_member(r'"x":"\ud800"'), 400),
    "a lone surrogate as bytes": (with_member('"x":"?"').replace(b"?", b"\xed\xa0\x80"), 400),
    "an overlong NUL": (with_member('"x":"?"').replace(b"?", b"\xc0\x80"), 400),
    "a byte of five": (with_member('"x":"?"').replace(b"?", b"\xf8\x88\x80\x80\x80"), 400),
    "NUL in a string": (with_member(r'"x":"\u0000"'), 200),
    "a raw NUL": (with_member('"x":"\0"'), 400),
    "a raw line feed": (with_member('"x":"\n"'), 400),
    "NaN": (with_member('"x":NaN'), 400),
    "Infinity": (with_member('"x":-Infinity'), 400),
    "a number without end": (with_member('"temperature":1e999'), 400),
    "a number of 400 digits": (with_member(f'"x":{"9" * 400}'), 400),
    "a number of 5000 digits": (with_member(f'"n":{"9" * 5_000}'), 400),
    "a number of 64 bits and more": (with_member(f'"x":{2**64}'), 200),
    "minus zero": (with_member('"x":-0'), 200),
    "a trailing comma": (with_member('"x":1,'), 400),
    "a comment": (b"/* x */" + orjson.dumps(ask(AGENT)), 400),
    "single quotes": (b"{'model': 'x'}", 400),
    "the same member twice": (with_member(f'"model":"{AGENT}"'), 200),
    "another member twice": (with_member('"model":"nobody"'), 404),
    "ten levels": (nested(10), 200),
    "64 levels": (nested(64), 200),
    "65 levels": (nested(65), 400),
    "1000 levels": (nested(1_000), 400),
    "100000 levels": (nested(100_000), 400),
    "100000 levels of objects": (with_member('"x":' + '{"a":' * 100_000), 400),
    "50000 members": (orjson.dumps({**ask(AGENT), **{f"k{n}": n for n in range(50_000)}}), 200),
    "members like attributes": (
        with_member('"__class__":{},"__proto__":{},"model_config":{},"model_extra":1,"self":1'),
        200,
    ),
    "gzip without saying so": (gzip.compress(b"[" * 10_000_000), 400),
    "PNG": (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, 400),
    "a form": (b"model=x&messages=y", 400),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body(http: httpx2.AsyncClient, name: str) -> None:
    """It is taken, or it is the client's fault and the answer says so."""
    body, status = BODIES[name]
    answer = await http.post(CHAT, content=body, headers=JSON)
    assert answer.status_code == status, answer.text[:300]
    if status >= 400:
        assert error_of(answer)["type"] == "invalid_request_error"
        assert len(answer.text) < 1_000


def user(content: Any) -> dict[str, Any]:
    """Return a question with one message."""
    return {"model": AGENT, "messages": [{"role": "user", "content": content}]}


LONG_TEXT = "x" * 300_000
METADATA = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}
CHATS: dict[str, tuple[dict[str, Any], int]] = {
    "no messages": ({"model": AGENT}, 400),
    "empty messages": (ask(AGENT, messages=[]), 400),
    "messages of null": (ask(AGENT, messages=None), 400),
    "messages of text": (ask(AGENT, messages="hello"), 400),
    "messages of an object": (ask(AGENT, messages={"role": "user", "content": "x"}), 400),
    "a message that is text": (ask(AGENT, messages=["hello"]), 400),
    "a message that is null": (ask(AGENT, messages=[None]), 400),
    "a message without a role": (ask(AGENT, messages=[{"content": "x"}]), 400),
    "a message with an empty role": (ask(AGENT, messages=[{"role": "", "content": "x"}]), 400),
    "a role that is a number": (ask(AGENT, messages=[{"role": 1, "content": "x"}]), 400),
    "only a system message": (ask(AGENT, messages=[{"role": "system", "content": "x"}]), 200),
    "a role of nobody": (ask(AGENT, messages=[{"role": "wizard", "content": "x"}]), 200),
    "content of null": (user(None), 200),
    "no content": (ask(AGENT, messages=[{"role": "user"}]), 200),
    "content that is a number": (user(7), 400),
    "content that is an object": (user({"type": "text"}), 400),
    "content that is a list of text": (user(["x"]), 400),
    "content that is an empty list": (user([]), 200),
    "a part without a type": (user([{"text": "x"}]), 200),
    "a part whose text is none": (user([{"type": "text", "text": {"a": 1}}]), 200),
    "an image on the cloud's own address": (user([METADATA]), 200),
    "10000 messages": (ask(AGENT, messages=HELLO * 10_000), 200),
    "tool calls without an id": (
        ask(AGENT, messages=[{"role": "assistant", "tool_calls": [{"function": {}}]}]),
        200,
    ),
    "n of 0": (ask(AGENT, n=0), 400),
    "n of -1": (ask(AGENT, n=-1), 400),
    "n of a billion": (ask(AGENT, n=10**9), 400),
    "n of text": (ask(AGENT, n="many"), 400),
    "n of a half": (ask(AGENT, n=0.5), 400),
    "a hot temperature": (ask(AGENT, temperature="hot"), 200),
    "max_tokens of -1": (ask(AGENT, max_tokens=-1), 200),
    "stream of text": (ask(AGENT, stream="perhaps"), 400),
    "stream of a list": (ask(AGENT, stream=[True]), 400),
    "stream options of text": (ask(AGENT, stream_options="all"), 400),
    "stream options of null": (ask(AGENT, stream_options=None), 200),
    "100000 stops": (ask(AGENT, stop=["x"] * 100_000), 200),
    "large metadata": (ask(AGENT, metadata={f"k{n}": "v" for n in range(50_000)}), 200),
    "a long user": (ask(AGENT, user=LONG_TEXT), 200),
    "a long question": (user(LONG_TEXT), 200),
    "too long a question": (user("x" * 60_000_000), 413),
    "a place to send it to": (ask(AGENT, api_base="http://169.254.169.254/", base_url="x"), 200),
    "a hook": (ask(AGENT, webhook="http://127.0.0.1:1/", callback_url="file:///etc/passwd"), 200),
    "headers in the body": (ask(AGENT, reply_to="$JS.API.STREAM.DELETE.INBOX", headers={}), 200),
    "text like an envelope": (user('{"error":{"code":"x"}}\n\ndata: [DONE]\n\n'), 200),
    "text like NATS": (user("+OK\r\nPUB agent.x.inbox 2\r\nhi\r\n"), 200),
    "text that drives a terminal": (user("\x1b]0;x\x07\x1b[2J"), 200),
    "text of all planes": (user("𝔞\u202e\u0000\uffff\U0010ffff" * 100), 200),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CHATS)
async def test_a_chat(http: httpx2.AsyncClient, name: str, stream: bool) -> None:
    """Plain and streamed: an answer, or a complaint about the request."""
    body, status = CHATS[name]
    answer = await http.post(CHAT, json={"stream": stream, **body})
    assert answer.status_code == status, answer.text[:300]
    if status >= 400:
        assert error_of(answer)["type"] == "invalid_request_error"
    elif stream:
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert "choices" in answer.json()


async def test_no_url_of_a_client_is_fetched(http: httpx2.AsyncClient) -> None:
    """Wherever one may stand in a request: nobody connects to it."""
    connected: list[object] = []
    server = await asyncio.start_server(lambda *both: connected.append(both), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "file", "file_url": url}]
    names = ("api_base", "base_url", "webhook", "callback_url", "image_url", "proxy", "file_url")
    body = {**user(parts), **dict.fromkeys(names, url)}
    headers = {
        "referer": url,
        "x-forwarded-host": url,
        "forwarded": f"host={url}",
        "x-callback": url,
    }
    assert (await http.post(CHAT, json=body, headers=headers)).status_code == 200
    assert (await http.get(f"/v1/models/{quote(url, safe='')}")).status_code == 404
    await http.post(CHAT, json=ask(url))
    server.close()
    await server.wait_closed()
    assert connected == []


@pytest.mark.parametrize("bad", [one for one in BAD_IDS if one] + NOBODYS_IDS)
async def test_a_model_that_cannot_be(http: httpx2.AsyncClient, bad: str) -> None:
    """Looked up by its path, an id that is none is not found, and does not become another path."""
    answer = await http.get(f"/v1/models/{quote(bad, safe='')}")
    if bad in (".", ".."):
        # The client itself takes these out of a path.
        assert answer.status_code in (200, 404)
    else:
        assert answer.status_code == 404
        # The router's wildcard ends at a line break.
        assert error_of(answer)["code"] == (
            "unknown_url" if "\n" in bad[:-1] else "model_not_found"
        )


BROKERS_HEADERS = [
    *(
        "Nats-Msg-Id",
        "Nats-TTL",
        "Nats-Rollup",
        "Nats-Expected-Stream",
        "Nats-Expected-Last-Msg-Id",
    ),
    *("Nats-Expected-Last-Sequence", "Nats-Expected-Last-Subject-Sequence", "Nats-Schedule"),
    *("Nats-Schedule-Target", "Nats-Incr", "Nats-Batch-Id", "Nats-Batch-Commit", "Nats-Trace-Dest"),
    *("Nats-Stream", "Nats-Sequence", "Nats-Subject", "Status", "Description", "KV-Operation"),
    *("reply_to", "correlation_id", "mesh-hops", "mesh-kind", "mesh-retry", "mesh-timeout-ms"),
]
OURS = {"nats-msg-id", "nats-ttl", "reply_to", "correlation_id", "mesh-timeout-ms"}
"""What the door says itself, in its own words."""


@pytest.mark.parametrize("value", ["x", "1", "all", "sub", "never", "\xff", "a,b", "x" * 1_000])
async def test_headers_of_the_broker_do_not_pass(
    http: httpx2.AsyncClient, bare: Client, value: str
) -> None:
    """What a client says under the names of NATS or of the mesh is nobody's business."""
    inbox = await bare.subscribe(f"agent.{AGENT}.inbox")
    headers = {name.encode(): value.encode("latin-1") for name in BROKERS_HEADERS}
    answer = await http.post(CHAT, json=ask(AGENT), headers=headers)
    assert answer.status_code == 200
    sent = (await inbox.next_msg(timeout=30)).headers or {}
    assert value not in sent.values()
    assert {one.lower() for one in sent} & {one.lower() for one in BROKERS_HEADERS} <= OURS


@pytest.mark.parametrize("value", [b"quote-me", b"x" * 128])
async def test_a_request_id_comes_back(http: httpx2.AsyncClient, value: bytes) -> None:
    """If it is short and plain."""
    answer = await http.get("/health/live", headers={b"x-request-id": value})
    assert answer.headers["x-request-id"].encode() == value


@pytest.mark.parametrize("value", [b"", b"a b", b"\xff", b"x" * 129, b"a\tb"])
async def test_a_request_id_that_is_none(http: httpx2.AsyncClient, value: bytes) -> None:
    """Another is given, and nothing of it is repeated."""
    answer = await http.get("/health/live", headers={b"x-request-id": value})
    assert answer.headers["x-request-id"].startswith("req_")
