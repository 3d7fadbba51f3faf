"""Who may use the HTTP door: hosts, pages of browsers, content types, API keys."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest

from mesh.access import Access, IssuedKey
from mesh.connection import Connection, open_connection
from mesh.directory import Directory
from mesh.settings import Settings
from mesh.shim.rules import Rules
from mesh.shim.server import serve
from tests.conftest import Running, until
from tests.shim import CHAT, HELLO, ask, error_of, online, replier, serving

AGENT = "guarded-agent"
OTHER = "other-agent"
JSON = {"content-type": "application/json"}
PAGE = "https://chat.example.org"


@pytest.fixture(scope="module", autouse=True)
async def agents(running: Running, directory: Directory) -> AsyncIterator[None]:
    """Two agents to call."""
    async with online(running, directory, replier(AGENT), replier(OTHER)):
        yield


@pytest.fixture(scope="module")
async def http(connection: Connection, directory: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a door on loopback."""
    async with (
        serving(connection, directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
    ):
        yield client


@pytest.fixture(scope="module")
async def keyed(connection: Connection, directory: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """A client, without a key, of a door that requires one."""
    async with (
        serving(connection, directory, Rules(requires_keys=True)) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
    ):
        yield client


@pytest.fixture(scope="module")
async def paged(connection: Connection, directory: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a door that requires keys, and that pages of one origin may call."""
    rules = Rules(requires_keys=True, cors_origins=(PAGE,))
    async with (
        serving(connection, directory, rules) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
    ):
        yield client


@pytest.fixture
async def issued(connection: Connection) -> IssuedKey:
    """A key for one agent."""
    return await Access(connection).create("test", agents=[AGENT])


def bearer(issued: IssuedKey) -> dict[str, str]:
    """Return the header that shows a key."""
    return {"authorization": f"Bearer {issued.token}"}


async def test_a_rebound_name_is_refused(http: httpx2.AsyncClient) -> None:
    """The page of a name that was made to point here reads nothing and calls nobody."""
    headers = {"host": "evil.test:9102"}
    for answer in (
        await http.get("/v1/models", headers=headers),
        await http.post(CHAT, json=ask(AGENT), headers=headers),
        await http.get("/health", headers=headers),
    ):
        assert answer.status_code == 421
        error = error_of(answer)
        assert error["code"] == "misdirected_host"
        assert "MESH_HTTP_ALLOWED_HOSTS" in error["message"]
    assert (await http.get("/v1/models", headers={"host": "localhost:1"})).status_code == 200


async def test_an_odd_host_breaks_nothing(keyed: httpx2.AsyncClient, issued: IssuedKey) -> None:
    """Where hosts are not checked, a header that is none reaches the application."""
    for host in ("[", "a b", "\x7f", "x" * 5_000):
        answer = await keyed.get("/nowhere", headers={**bearer(issued), "host": host})
        assert (answer.status_code, error_of(answer)["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json; profile=x",
        "application/vnd.api+json",
    ],
)
async def test_json_is_taken(http: httpx2.AsyncClient, content_type: str) -> None:
    """In every spelling of its type."""
    body = httpx2.Request("POST", "http://x", json=ask(AGENT)).content
    answer = await http.post(CHAT, content=body, headers={"content-type": content_type})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": ""},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/jsonp"},
        {"content-type": "text/json"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "text/plain; application/json"},
        {"content-type": "application"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-type": "application/json", "content-encoding": "br, identity"},
    ],
)
async def test_what_is_not_said_to_be_json_is_refused(
    http: httpx2.AsyncClient, headers: dict[str, str]
) -> None:
    """A form on a foreign page can send text without asking, and no browser lets it send JSON."""
    body = httpx2.Request("POST", "http://x", json=ask(AGENT)).content
    for content in (body, _in_parts(body)):
        answer = await http.post(CHAT, content=content, headers=headers)
        assert answer.status_code == 415
        error = error_of(answer)
        assert error["code"] == "unsupported_media_type"
        assert "content-type: application/json" in error["message"] or "encoding" in str(headers)


async def _in_parts(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def test_no_body_needs_no_type(http: httpx2.AsyncClient) -> None:
    """What is refused is the empty body itself, by the endpoint."""
    answer = await http.post(CHAT)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "body")
    assert (await http.delete(CHAT)).status_code == 405


@pytest.mark.parametrize("origin", ["http://evil.test", "null", "http://localhost:1", "file://"])
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
async def test_a_foreign_page_changes_nothing(
    http: httpx2.AsyncClient, origin: str, method: str
) -> None:
    """Whatever the method, and also with the right content type."""
    answer = await http.request(
        method, CHAT, json=ask(AGENT), headers={"origin": origin, "host": "localhost:9102"}
    )
    assert answer.status_code == 403
    assert error_of(answer)["code"] == "origin_not_allowed"


async def test_a_page_of_ours_may_call(http: httpx2.AsyncClient) -> None:
    """Its origin is the host it calls, also behind a proxy that ends TLS."""
    for origin in (str(http.base_url).rstrip("/"), f"https://{http.base_url.netloc.decode()}"):
        answer = await http.post(CHAT, json=ask(AGENT), headers={"origin": origin})
        assert answer.status_code == 200


async def test_nobody_is_told_that_he_may_read(http: httpx2.AsyncClient) -> None:
    """Without the option there is no CORS header, on no answer, and no preflight succeeds."""
    headers = {"origin": PAGE, "access-control-request-method": "POST"}
    for answer in (
        await http.get("/v1/models", headers={"origin": PAGE}),
        await http.options(CHAT, headers=headers),
    ):
        assert not [one for one in answer.headers if one.startswith("access-control")]
    assert answer.status_code == 405


async def test_a_named_page_may_ask_and_read(paged: httpx2.AsyncClient, issued: IssuedKey) -> None:
    """The preflight needs no key; the call does; its answer shows our headers."""
    wanted = "authorization,content-type,idempotency-key,x-mesh-agent,x-stainless-os"
    preflight = await paged.options(
        CHAT,
        headers={
            "origin": PAGE,
            "access-control-request-method": "POST",
            "access-control-request-headers": wanted,
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert preflight.headers["access-control-allow-headers"] == wanted
    assert "access-control-allow-credentials" not in preflight.headers
    refused = await paged.post(CHAT, json=ask(AGENT), headers={"origin": PAGE})
    assert refused.status_code == 401
    answer = await paged.post(CHAT, json=ask(AGENT), headers={"origin": PAGE, **bearer(issued)})
    assert answer.status_code == 200
    for one in (refused, answer):
        assert one.headers["access-control-allow-origin"] == PAGE
        exposed = one.headers["access-control-expose-headers"]
        for name in ("x-request-id", "retry-after", "mesh-call-id"):
            assert name in exposed


async def test_another_page_may_not(paged: httpx2.AsyncClient, issued: IssuedKey) -> None:
    """Its preflight fails, with the envelope; and if it goes on, nothing happens."""
    headers = {"origin": "https://evil.test", "access-control-request-method": "POST"}
    preflight = await paged.options(CHAT, headers=headers)
    assert error_of(preflight)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in preflight.headers
    answer = await paged.post(
        CHAT, json=ask(AGENT), headers={"origin": "https://evil.test", **bearer(issued)}
    )
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer any"},
        {"authorization": "Bearer mesh_unknown_" + "x" * 43},
        {"authorization": "Basic bWVzaDptZXNo"},
        {"authorization": "mesh_unknown_" + "x" * 43},
        {"x-api-key": "any"},
        {"authorization": "Bearer \xff\xfe"},
        {"authorization": "Bearer " + "mesh_" * 2_000},
    ],
)
async def test_without_a_valid_key_nothing_is_shown(
    keyed: httpx2.AsyncClient, headers: dict[str, str]
) -> None:
    """No agent, no path, no method; and the client learns how to say who it is."""
    raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    for answer in (
        await keyed.post(CHAT, json=ask(AGENT), headers=raw),
        await keyed.get("/v1/models", headers=raw),
        await keyed.get(f"/v1/models/{AGENT}", headers=raw),
        await keyed.get("/nowhere", headers=raw),
        await keyed.options(CHAT, headers=raw),
    ):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        error = error_of(answer)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert AGENT not in answer.text


async def test_a_key_in_the_url_is_none(keyed: httpx2.AsyncClient, issued: IssuedKey) -> None:
    """URLs are logged."""
    for name in ("key", "api_key", "api-key", "access_token"):
        answer = await keyed.get("/v1/models", params={name: issued.token})
        assert answer.status_code == 401


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {}"])
async def test_a_key_opens_the_door(
    keyed: httpx2.AsyncClient, issued: IssuedKey, form: str
) -> None:
    """As a bearer token, however that is spelt."""
    headers = {"authorization": form.format(issued.token)}
    answer = await keyed.post(CHAT, json=ask(AGENT), headers=headers)
    assert answer.json()["choices"][0]["message"]["content"] == "You said: hello"


async def test_the_other_header_for_keys(keyed: httpx2.AsyncClient, issued: IssuedKey) -> None:
    """Some clients send `x-api-key`."""
    answer = await keyed.post(CHAT, json=ask(AGENT), headers={"x-api-key": issued.token})
    assert answer.status_code == 200


async def test_a_key_is_for_its_agents(keyed: httpx2.AsyncClient, issued: IssuedKey) -> None:
    """Others cannot be called or seen, by whatever name they are asked for."""
    for body, headers in (
        (ask(OTHER), {}),
        (ask(f"{OTHER}@node1"), {}),
        (ask(AGENT, agent_id=OTHER), {}),
        (ask(AGENT), {"x-mesh-agent": OTHER}),
        (ask(OTHER, stream=True), {}),
        (ask("nobody"), {}),
    ):
        answer = await keyed.post(CHAT, json=body, headers={**bearer(issued), **headers})
        assert answer.status_code == 403, body
        error = error_of(answer)
        assert (error["type"], error["code"]) == ("permission_error", "agent_not_allowed")
    for name in (OTHER, f"{OTHER}@node1", "nobody", "gpt-3.5-turbo"):
        answer = await keyed.get(f"/v1/models/{name}", headers=bearer(issued))
        assert (answer.status_code, error_of(answer)["code"]) == (403, "agent_not_allowed")
    for query in ("", "?all=1"):
        found = (await keyed.get(f"/v1/models{query}", headers=bearer(issued))).json()["data"]
        assert [one["id"] for one in found] == [AGENT]
    assert (await keyed.get(f"/v1/models/{AGENT}", headers=bearer(issued))).status_code == 200


async def test_a_key_for_all_agents(keyed: httpx2.AsyncClient, connection: Connection) -> None:
    """Without a list everybody may be called, and who is unknown is not found."""
    headers = bearer(await Access(connection).create("all"))
    assert (await keyed.post(CHAT, json=ask(OTHER), headers=headers)).status_code == 200
    assert (await keyed.post(CHAT, json=ask("nobody"), headers=headers)).status_code == 404
    found = (await keyed.get("/v1/models", headers=headers)).json()["data"]
    assert {AGENT, OTHER} <= {one["id"] for one in found}


async def test_a_revoked_key_is_refused_within_3_s(
    keyed: httpx2.AsyncClient, connection: Connection, issued: IssuedKey
) -> None:
    """At a door that has just seen it, which nobody told."""
    loop = asyncio.get_running_loop()
    assert (await keyed.get("/v1/models", headers=bearer(issued))).status_code == 200
    await Access(connection).revoke(issued.key.id)
    revoked_at = loop.time()

    async def is_refused() -> bool:
        return (await keyed.get("/v1/models", headers=bearer(issued))).status_code == 401

    await until(is_refused, within_s=10)
    assert loop.time() - revoked_at < 3


async def test_health_is_open_and_says_little(
    keyed: httpx2.AsyncClient, http: httpx2.AsyncClient, issued: IssuedKey
) -> None:
    """A load balancer has no key; what it need not know, it is not told."""
    for headers in ({}, {"authorization": "Bearer any"}):
        answer = await keyed.get("/health", headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert (await keyed.get("/health/live", headers=headers)).status_code == 200
    details = {"status", "node", "broker", "agents_online", "version"}
    assert (await keyed.get("/health", headers=bearer(issued))).json().keys() == details
    assert (await http.get("/health")).json().keys() == details


async def test_the_openai_client_knows_the_errors(
    keyed: httpx2.AsyncClient, issued: IssuedKey
) -> None:
    """As its own classes, and it does not try again."""
    url = f"{str(keyed.base_url).rstrip('/')}/v1"
    messages: Any = HELLO
    async with openai.AsyncOpenAI(base_url=url, api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="mesh_") as wrong:
            await client.chat.completions.create(model=AGENT, messages=messages)
    assert wrong.value.code == "invalid_api_key"
    async with openai.AsyncOpenAI(base_url=url, api_key=issued.token) as client:
        with pytest.raises(openai.PermissionDeniedError) as other:
            await client.chat.completions.create(model=OTHER, messages=messages)
        assert other.value.code == "agent_not_allowed"
        found = await client.chat.completions.create(model=AGENT, messages=messages)
    assert found.choices[0].message.content == "You said: hello"


async def test_no_token_is_logged(
    keyed: httpx2.AsyncClient, issued: IssuedKey, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by any library either, at any level, whatever is wrong with the request."""
    secret = issued.token.rpartition(f"{issued.key.id}_")[2]
    with caplog.at_level(logging.DEBUG):
        for shown in (issued.token, f"{issued.token}x", f"x{issued.token}"):
            headers = {"authorization": f"Bearer {shown}"}
            answers = [
                await keyed.post(CHAT, json=ask(AGENT), headers=headers),
                await keyed.post(CHAT, json=ask(OTHER), headers=headers),
                await keyed.post(CHAT, content=b"{", headers={**headers, **JSON}),
                await keyed.get("/nowhere", headers=headers),
                await keyed.get("/health", headers=headers),
            ]
            assert not any(secret in one.text for one in answers)
    ours = [one for one in caplog.records if not one.name.startswith(("httpx", "httpcore"))]
    assert not any(secret in one.getMessage() for one in ours)


async def test_a_door_that_is_told_to_requires_keys(
    settings: Settings, connection: Connection, issued: IssuedKey
) -> None:
    """`MESH_HTTP_AUTH=keys` on loopback, and any other address without it."""
    for own in (
        replace(settings, http_ports=(0,), http_auth="keys"),
        replace(settings, http_ports=(0,), http_host="0.0.0.0"),
    ):
        ports: list[int] = []
        stop = asyncio.Event()
        task = asyncio.create_task(serve(own, on_ready=ports.extend, stop=stop))
        await until(lambda: bool(ports))  # noqa: B023
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{ports[0]}", timeout=30
        ) as client:
            assert (await client.get("/v1/models")).status_code == 401
            answer = await client.get("/v1/models", headers=bearer(issued))
            assert answer.status_code == 200
        stop.set()
        await task


async def test_without_a_broker_no_key_is_good(
    settings: Settings, directory: Directory, connection: Connection
) -> None:
    """503, and not open; also for a key that was good a moment ago."""
    issued = await Access(connection).create("cut off")
    async with (
        open_connection(settings.nats_url, name="test lost") as lost,
        serving(lost, directory, Rules(requires_keys=True)) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
    ):
        assert (await client.get("/v1/models", headers=bearer(issued))).status_code == 200
        await lost.client.close()

        async def is_away() -> bool:
            answer = await client.get("/v1/models", headers=bearer(issued))
            return answer.status_code == 503 and answer.headers["retry-after"] == "2"

        await until(is_away, within_s=10)
        unknown = {"authorization": "Bearer mesh_unknown_" + "x" * 43}
        assert (await client.get("/v1/models", headers=unknown)).status_code == 503
        health = await client.get("/health", headers=bearer(issued))
        assert health.status_code == 503
        assert "node" not in health.json()
