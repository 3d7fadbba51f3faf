"""Logging in with an API key, as a browser does it, and what nobody gets by it."""

import asyncio
import re
from collections.abc import AsyncIterator

import httpx2
import pytest

from mesh.access import STALE_S, Access, IssuedKey
from mesh.connection import Connection, open_connection
from mesh.directory import Directory
from mesh.shim.rules import Rules
from tests.conftest import Running
from tests.htmlpage import Page
from tests.shim import CHAT, ask, error_of, online, replier, serving

FRIEND = "https://friend.example"
RULES = Rules(requires_keys=True, cors_origins=(FRIEND,))
PAGES = ("/", "/agents/connections", "/flow", "/agent/{id}")


@pytest.fixture
async def http(connection: Connection, directory: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """A door that requires keys."""
    async with (
        serving(connection, directory, RULES) as url,
        httpx2.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client


@pytest.fixture
async def issued(connection: Connection) -> IssuedKey:
    """A key."""
    return await Access(connection).create("somebody's browser")


async def log_in(
    http: httpx2.AsyncClient, key: str, page: str = "", **headers: str
) -> httpx2.Response:
    """Send the form."""
    origin = str(http.base_url).rstrip("/")
    said = {"origin": origin, **headers}
    return await http.post("/login", data={"key": key, "page": page}, headers=said)


@pytest.mark.parametrize("path", [*PAGES, "/agent/nobody-at-all"])
async def test_a_stranger_is_asked_for_a_key(
    http: httpx2.AsyncClient, running: Running, directory: Directory, agent_id: str, path: str
) -> None:
    """In the place of the page, and learns nothing: not even whether there is such an agent."""
    async with online(running, directory, replier(agent_id)):
        answer = await http.get(f"{path.format(id=agent_id)}?q=x")
        assert answer.status_code == 401
        assert answer.headers["cache-control"] == "no-store"
        page = Page(answer.text)
        assert not page.open
        assert "<h1>Log in</h1>" in answer.text
        assert answer.text.count(agent_id) == ("{id}" in path)
        live = await http.get(path.format(id=agent_id), headers={"accept": "text/event-stream"})
        assert live.status_code == 401
        assert error_of(live)["code"] == "invalid_api_key"


async def test_logging_in_leads_back(
    http: httpx2.AsyncClient,
    running: Running,
    directory: Directory,
    agent_id: str,
    issued: IssuedKey,
) -> None:
    """To the page that was asked for, with its query; then all pages and the API are there."""
    async with online(running, directory, replier(agent_id)):
        form = (await http.get("/agents/connections?q=a%26b&state=online")).text
        (page,) = re.findall('name="page" value="([^"]*)"', form)
        page = page.replace("&amp;", "&")
        answer = await log_in(http, f" {issued.token}\n", page)
        assert answer.status_code == 303
        assert answer.headers["location"] == "./agents/connections?q=a%26b&state=online"
        kept = answer.headers["set-cookie"]
        assert "HttpOnly" in kept
        assert "SameSite=Lax" in kept
        assert "Secure" not in kept
        assert "Path" not in kept
        for path in PAGES:
            shown = await http.get(path.format(id=agent_id))
            assert shown.status_code == 200
            assert "Log out" in shown.text
        assert "Log out" in (await http.get("/docs")).text
        assert (await http.get("/v1/models")).status_code == 200
        report = (await http.get(f"/api/agents/connection-test?agent={agent_id}")).json()
        assert report["summary"]["state"] == "ok"


async def test_a_key_that_is_none(http: httpx2.AsyncClient, issued: IssuedKey) -> None:
    """Is told on the form, which still leads back."""
    for wrong in ("", "hello", issued.token[:-1] + "é", issued.token.replace("mesh_", "mesh_x")):
        answer = await log_in(http, wrong, "flow")
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert 'role="alert"' in answer.text
        assert 'name="page" value="flow"' in answer.text


@pytest.mark.parametrize(
    "page",
    [
        "//evil.example/",
        "https://evil.example/",
        "/\\evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "flow\r\nset-cookie: a=b",
        "../../x",
        "\u202eflow",
    ],
)
async def test_nobody_is_led_elsewhere(
    http: httpx2.AsyncClient, issued: IssuedKey, page: str
) -> None:
    """By a page that somebody else has written into the form."""
    answer = await log_in(http, issued.token, page)
    assert answer.status_code == 303
    there = httpx2.URL(str(http.base_url)).join("/login").join(answer.headers["location"])
    assert (there.scheme, there.host) == ("http", "127.0.0.1")
    assert answer.headers.get_list("set-cookie")[0].startswith("mesh_login")
    assert len(answer.headers.get_list("set-cookie")) == 1


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", FRIEND])
async def test_no_other_page_logs_somebody_in(
    http: httpx2.AsyncClient, issued: IssuedKey, origin: str
) -> None:
    """With a key of its own choice, to see what he does then."""
    answer = await log_in(http, issued.token, origin=origin)
    assert answer.status_code == 403
    assert error_of(answer)["code"] == "origin_not_allowed"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "status"),
    [("", 401), ("null", 403), ("https://evil.example", 403), (FRIEND, 401), ("own", 200)],
)
async def test_what_a_browser_keeps_counts_on_our_pages_only(
    http: httpx2.AsyncClient,
    running: Running,
    directory: Directory,
    agent_id: str,
    issued: IssuedKey,
    origin: str,
    status: int,
) -> None:
    """For whatever changes something; not even a page that may call with a key of its own may."""
    async with online(running, directory, replier(agent_id)):
        await log_in(http, issued.token)
        own = str(http.base_url).rstrip("/")
        said = {"origin": own if origin == "own" else origin} if origin else {}
        answer = await http.post(CHAT, json=ask(agent_id), headers=said)
        assert answer.status_code == status
        assert answer.headers.get("access-control-allow-credentials") is None


async def test_logging_out(http: httpx2.AsyncClient, issued: IssuedKey) -> None:
    """Lets the browser forget."""
    await log_in(http, issued.token)
    assert (await http.get("/")).status_code == 200
    own = {"origin": str(http.base_url).rstrip("/")}
    answer = await http.post("/logout", headers=own)
    assert answer.status_code == 303
    assert (await http.get("/")).status_code == 401
    assert (await http.post("/logout", headers={"origin": FRIEND[:-1]})).status_code == 403


async def test_an_open_page_ends_with_its_key(
    http: httpx2.AsyncClient, connection: Connection, issued: IssuedKey
) -> None:
    """Within seconds of its revocation."""
    await log_in(http, issued.token)
    async with (
        asyncio.timeout(15),
        http.stream("GET", "/", headers={"accept": "text/event-stream"}) as answer,
    ):
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        await Access(connection).revoke(issued.key.id)
        rest = [one async for one in lines]
    assert rest[-2:] == [": unauthenticated", ""]
    again = await http.get("/")
    assert again.status_code == 401
    assert "no longer valid" in again.text


async def test_a_log_in_through_tls_stays_there(
    http: httpx2.AsyncClient, issued: IssuedKey
) -> None:
    """A proxy that ends TLS before us passes the host on, and the browser says its origin."""
    said = {"host": "mesh.example", "origin": "https://mesh.example"}
    kept = (await log_in(http, issued.token, **said)).headers["set-cookie"]
    assert kept.startswith(f"mesh_login={issued.key.id}.")
    assert kept.endswith("; Secure")


async def test_what_is_kept_is_no_key(
    http: httpx2.AsyncClient, connection: Connection, issued: IssuedKey
) -> None:
    """Nor can it be made, or made to last: another server of the host may see it."""
    kept = (await log_in(http, issued.token)).headers["set-cookie"]
    name, _, seal = kept.partition(";")[0].partition("=")
    secret = issued.token.rpartition("_")[2]
    assert secret not in kept
    async with httpx2.AsyncClient(base_url=str(http.base_url)) as stranger:
        for shown in (f"Bearer {seal}", f"Bearer mesh_{issued.key.id}_{seal}"):
            answer = await stranger.get("/v1/models", headers={"authorization": shown})
            assert answer.status_code == 401
        key_id, until, mac = seal.split(".")
        other = await Access(connection).create("other")
        for forged in (
            f"{other.key.id}.{until}.{mac}",
            f"{key_id}.{int(until) + 1}.{mac}",
            f"{key_id}.{until}.{'0' * 64}",
            f"{key_id}.{until}",
            "x" * 5_000,
        ):
            answer = await stranger.get("/v1/models", headers={"cookie": f"{name}={forged}"})
            assert answer.status_code == 401
        good = await stranger.get("/v1/models", headers={"cookie": f"{name}={seal}"})
        assert good.status_code == 200
        over = await Access(connection).seal(issued.key, -1)
        answer = await stranger.get("/v1/models", headers={"cookie": f"{name}={over}"})
        assert answer.status_code == 401


@pytest.mark.parametrize(
    "odd", ['prefs={"x":1}', "x=a b", "bad[name]=1", "u=J\xf6rg", "no_equals", "=", ";;", "a=b=c"]
)
async def test_cookies_of_others_do_no_harm(
    http: httpx2.AsyncClient, issued: IssuedKey, odd: str
) -> None:
    """Whatever another server of the same host has set."""
    kept = (await log_in(http, issued.token)).headers["set-cookie"].partition(";")[0]
    async with httpx2.AsyncClient(base_url=str(http.base_url)) as browser:
        for cookies in (f"{odd}; {kept}", f"{kept}; {odd}"):
            answer = await browser.get("/", headers=[(b"cookie", cookies.encode("latin-1"))])
            assert answer.status_code == 200


async def test_a_broker_that_is_away_logs_nobody_out(
    connection: Connection, directory: Directory, issued: IssuedKey
) -> None:
    """The page says what is the matter, and not that the key is bad."""
    async with (
        open_connection(connection_url(connection), name="own door") as own,
        serving(own, directory, RULES) as url,
        httpx2.AsyncClient(base_url=url) as http,
    ):
        await log_in(http, issued.token)
        assert (await http.get("/")).status_code == 200
        await own.client.close()
        await asyncio.sleep(STALE_S)
        answer = await http.get("/")
        assert answer.status_code == 503
        assert "Log in" not in answer.text
        live = await http.get("/", headers={"accept": "text/event-stream"})
        assert live.status_code == 503


def connection_url(connection: Connection) -> str:
    """Return where a connection goes."""
    url = connection.client.connected_url
    assert url is not None
    return str(url.geturl())


async def test_doors_of_one_machine_do_not_log_each_other_out(
    http: httpx2.AsyncClient, connection: Connection, directory: Directory, issued: IssuedKey
) -> None:
    """Browsers keep one jar of cookies for all ports."""
    async with serving(connection, directory, RULES) as other:
        await log_in(http, issued.token)
        assert (await http.get("/")).status_code == 200
        assert (await http.get(f"{other}/")).status_code == 401
        await http.post(f"{other}/login", data={"key": issued.token}, headers={"origin": other})
        assert (await http.get(f"{other}/")).status_code == 200
        assert (await http.get("/")).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"), [(b"key=%ff%fe", 400), (b"k" * 9_000, 413), (b"\xff", 400), (b"", 401)]
)
async def test_a_form_that_is_none(http: httpx2.AsyncClient, body: bytes, status: int) -> None:
    """Is refused."""
    said = {
        "origin": str(http.base_url).rstrip("/"),
        "content-type": "application/x-www-form-urlencoded",
    }
    answer = await http.post("/login", content=body, headers=said)
    assert answer.status_code == status


async def test_a_door_without_keys_has_no_log_in(
    connection: Connection, directory: Directory
) -> None:
    """Who comes there goes on."""
    async with (
        serving(connection, directory) as url,
        httpx2.AsyncClient(base_url=url) as http,
    ):
        answer = await http.get("/login")
        assert (answer.status_code, answer.headers["location"]) == (303, "./")
        assert "Log out" not in (await http.get("/")).text
