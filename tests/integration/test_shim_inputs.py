"""The HTTP door and what clients send it: broken, too large, for nobody."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from mesh import Agent, ChatRequest
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.shim.app import create_app
from mesh.shim.door import Door
from tests.conftest import Running
from tests.shim import CHAT, HELLO, ask, error_of, online, replier, serving

GOOD = "steady-agent"
LIMIT = 2_000_000


@pytest.fixture(scope="module")
async def http(connection: Connection, directory: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the door of these tests."""
    async with (
        serving(connection, directory, body_max_bytes=LIMIT) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
    ):
        yield client


JSON = {"content-type": "application/json"}
BAD_IDS = [
    *("a.b", "*", ">", "a b", "a\n", "", "x" * 33, ".", "..", "a*", "a>b", "a\tb", "\0", "a\0"),
    *("a\r\nPUB x 1", "ä", "ⅷ", "\u0430gent", "\u202etnega", "agent\u200b", "🌞", "A", "NUL"),
    *("../x", "a/b", "a\\b", "$JS", "$KV", "_INBOX", "_R_", "%2e", "{{name()}}", "-x", "x-", "x_"),
    *("--help", "__proto__", "'; DROP", "<img src=x>", "x" * 64, "x" * 1_000, " agent", "agent "),
]
NOBODYS_IDS = ["y" * 31, "y" * 32, "constructor", "con", "nul", "null", "none", "0", "a--b", "a__b"]
BAD_BODIES: list[tuple[bytes | dict[str, Any], str]] = [
    (b"", "body"),
    (b"not json", "body"),
    (b"\xff\xfe", "body"),
    (b"[1, 2]", "body"),
    ({"model": GOOD}, "messages"),
    ({"model": GOOD, "messages": []}, "messages"),
    ({"model": GOOD, "messages": "hello"}, "messages"),
    ({"model": 7, "messages": HELLO}, "model"),
    ({"model": None, "messages": HELLO}, "model"),
    ({"model": [GOOD], "messages": HELLO}, "model"),
    ({"model": {"id": GOOD}, "messages": HELLO}, "model"),
    ({"messages": HELLO}, "model"),
    (ask(f"{GOOD}@"), "model"),
    (ask("@node1"), "model"),
    (ask(f"{GOOD}@node1@node1"), "model"),
    (ask(GOOD, agent_id=7), "agent_id"),
    (ask(GOOD, target_node=["node1"]), "target_node"),
    (ask(GOOD, source_agent={}), "source_agent"),
    (ask(GOOD, source_node=1.5), "source_node"),
    (ask(GOOD, source_agent="a.b"), "source_agent"),
    (ask(GOOD, stream="perhaps"), "stream"),
    (ask(f"{GOOD}@node1", target_node="node2"), "target_node"),
    *((ask(bad), "model") for bad in BAD_IDS),
    *((ask(GOOD, agent_id=bad), "agent_id") for bad in BAD_IDS),
    *((ask(GOOD, target_node=bad), "target_node") for bad in BAD_IDS if bad),
]


async def test_bad_input_is_blamed_and_harms_nobody(
    http: httpx2.AsyncClient, connection: Connection, running: Running, directory: Directory
) -> None:
    """Each bad request gets its 400 with the field, and the next good one its answer."""
    async with online(running, directory, replier(GOOD)):
        for body, param in BAD_BODIES:
            if isinstance(body, bytes):
                answer = await http.post(CHAT, content=body, headers=JSON)
            else:
                answer = await http.post(CHAT, json=body)
            assert answer.status_code == 400, body
            error = error_of(answer)
            assert (error["type"], error["param"]) == ("invalid_request_error", param), body
            assert connection.client.is_connected
        assert (await http.post(CHAT, json=ask(GOOD))).status_code == 200


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ({"X-Mesh-Agent": "a.b"}, "X-Mesh-Agent"),
        ({"X-Mesh-Target-Node": ">"}, "X-Mesh-Target-Node"),
        ({"X-Mesh-Source-Agent": "a b"}, "X-Mesh-Source-Agent"),
        ({"X-Mesh-Timeout": "0"}, "X-Mesh-Timeout"),
        ({"X-Mesh-Timeout": "soon"}, "X-Mesh-Timeout"),
        ({"X-Mesh-Timeout": "nan"}, "X-Mesh-Timeout"),
        ({"X-Mesh-Timeout": "-1"}, "X-Mesh-Timeout"),
        ({"X-Mesh-Timeout": "1e3"}, "X-Mesh-Timeout"),
        ({"X-Mesh-Timeout": "99999"}, "X-Mesh-Timeout"),
        ({"X-Mesh-Timeout": "9" * 5_000}, "X-Mesh-Timeout"),
        ({"X-Mesh-Agent": "_INBOX"}, "X-Mesh-Agent"),
        ({"X-Mesh-Agent": "\xe4"}, "X-Mesh-Agent"),
        ({"X-Mesh-Agent": "x" * 5_000}, "X-Mesh-Agent"),
        ({"X-Mesh-Source-Node": "../x"}, "X-Mesh-Source-Node"),
    ],
)
async def test_bad_headers_are_blamed(
    http: httpx2.AsyncClient, headers: dict[str, str], param: str
) -> None:
    """A header that cannot be is named as the parameter."""
    raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    answer = await http.post(CHAT, json=ask(GOOD), headers=raw)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


async def test_several_answers_are_not_served(http: httpx2.AsyncClient) -> None:
    """`n` above one is told from a broken request."""
    answer = await http.post(CHAT, json=ask(GOOD, n=2))
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("unsupported_parameter", "n")


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_over_the_limit(
    http: httpx2.AsyncClient,
    connection: Connection,
    running: Running,
    directory: Directory,
    is_chunked: bool,
) -> None:
    """What is longer than the door takes is refused, with a length or without."""
    size = LIMIT * 2

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(size // 65_536):
            yield b" " * 65_536

    content = parts() if is_chunked else b" " * size
    answer = await http.post(CHAT, content=content, headers=JSON)
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "payload_too_large"
    assert connection.client.is_connected
    async with online(running, directory, replier(GOOD)):
        assert (await http.post(CHAT, json=ask(GOOD))).status_code == 200


async def test_large_bodies_that_are_answered_leave_room(
    connection: Connection, running: Running, directory: Directory
) -> None:
    """However many come one after the other, by every door, refused ones among them."""
    agent_id = "roomy-agent"
    body = ask(agent_id) | {"messages": [{"role": "user", "content": "x" * 1_500_000}]}
    message = {"message": "x" * 1_500_000}
    async with (
        serving(connection, directory, body_max_bytes=LIMIT) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
        online(running, directory, replier(agent_id)),
    ):
        for _ in range(12):
            assert (await client.post(CHAT, json=body)).status_code == 200
            direct = await client.post(f"/api/agent/{agent_id}/chat", json=message)
            assert direct.status_code == 200
            refused = await client.post(CHAT, json=body | {"model": "nobody-at-all"})
            assert refused.status_code == 404


@pytest.mark.parametrize("size", [1_040_000, 1_046_528, LIMIT])
async def test_a_body_at_the_limit_is_carried(
    http: httpx2.AsyncClient, running: Running, directory: Directory, size: int
) -> None:
    """Beside the broker's limit for a message, whatever the headers say, and at the door's own."""
    long_id = "x" * 32
    bare = len(httpx2.Request("POST", "http://x", json=ask(f"{long_id}@node1")).content)
    said = HELLO[0]["content"] + "x" * (size - bare)
    body = ask(f"{long_id}@node1") | {"messages": [{"role": "user", "content": said}]}
    agent = Agent(long_id)

    @agent.chat
    async def repeat(request: ChatRequest) -> str:
        return request.last_text

    headers = {"X-Mesh-Source-Agent": "s" * 32, "X-Mesh-Source-Node": "n" * 32}
    async with online(running, directory, agent):
        answer = await http.post(CHAT, json=body, headers=headers)
        call = await http.get(f"/v1/calls/{answer.headers['mesh-call-id']}")
        body["messages"][0]["content"] += "x" * (LIMIT + 1 - size)
        too_long = await http.post(CHAT, json=body, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == said
    assert call.json()["result"] == answer.json()
    assert too_long.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "unknown_url"),
        ("GET", "/agents", 404, "unknown_url"),
        ("POST", "/v1/completions", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_supported"),
        ("DELETE", "/v1/models", 405, "method_not_supported"),
        ("OPTIONS", CHAT, 405, "method_not_supported"),
    ],
)
async def test_what_the_router_refuses(
    http: httpx2.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    """Framework errors wear the envelope too."""
    answer = await http.request(method, path)
    assert answer.status_code == status
    error = error_of(answer)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert (status == 405) == ("allow" in answer.headers)


async def test_a_bug_of_ours_wears_the_envelope(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets an id to quote, the log the traceback."""
    broken: Any = None
    transport = httpx2.ASGITransport(create_app(Door(broken, broken, broken)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.get("/v1/models", headers={"x-request-id": "quote-me"})
    assert answer.status_code == 500
    error = error_of(answer)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "quote-me" in error["message"]
    assert "NoneType" not in answer.text
    assert "quote-me" in caplog.text
    assert "AttributeError" in caplog.text


async def test_who_is_not_there(
    http: httpx2.AsyncClient, running: Running, directory: Directory
) -> None:
    """Unknown agents, unknown nodes, and nodes where the agent never ran are not found."""
    async with (
        online(running, directory, replier(GOOD)),
        online(running, directory, replier("elsewhere"), node="node2"),
    ):
        for target in ("nobody", f"{GOOD}@node9", f"{GOOD}@node2", *NOBODYS_IDS):
            answer = await http.post(CHAT, json=ask(target))
            assert answer.status_code == 404, target
            error = error_of(answer)
            assert (error["code"], error["param"]) == ("model_not_found", "model")
            assert "mesh-call-id" not in answer.headers
