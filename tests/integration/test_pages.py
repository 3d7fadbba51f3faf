"""The pages without a browser: what stands on them, for whom, and what comes to an open one."""

import asyncio
import gzip
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import httpx2
import orjson
import pytest

from mesh import Agent, CallContext, ChatRequest
from mesh.access import Access
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.shim.rules import Rules
from mesh.shim.site.snippets import Address, snippets
from tests.conftest import Running, until
from tests.htmlpage import Page
from tests.shim import online, replier, serving

PAGES = ("/", "/agents/connections", "/flow", "/agent/{id}")
HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>\u202e'\"{{7*7}}"


@pytest.fixture(scope="module")
async def http(connection: Connection, directory: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """A door."""
    async with (
        serving(connection, directory) as url,
        httpx2.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client


@asynccontextmanager
async def followed(
    http: httpx2.AsyncClient, path: str
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Open a page as a browser keeps it open: the changes, the first being everything."""
    accept = {"accept": "text/event-stream"}
    async with http.stream("GET", path, headers=accept) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")

        async def changes() -> AsyncIterator[dict[str, Any]]:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    yield orjson.loads(line[6:])

        async with aclosing(changes()) as found:  # type: ignore[type-var]
            yield found


async def change(changes: AsyncIterator[dict[str, Any]], pattern: str) -> str:
    """Return the HTML that a change brings and that matches."""
    async with asyncio.timeout(20):
        async for one in changes:
            pieces = [*one["elements"].values()]
            pieces += [html for rows in one["lists"].values() for html in rows["rows"].values()]
            for html in pieces:
                if re.search(pattern, html):
                    return str(html)
    raise AssertionError(f"nothing came that matches {pattern}")


async def rows_within(changes: AsyncIterator[dict[str, Any]], for_s: float) -> dict[str, str]:
    """Return the rows of lists that come within a time."""
    found: dict[str, str] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(for_s):
            async for one in changes:
                for rows in one["lists"].values():
                    found |= rows["rows"]
    return found


@pytest.mark.parametrize("path", PAGES)
async def test_a_page(
    http: httpx2.AsyncClient, running: Running, directory: Directory, agent_id: str, path: str
) -> None:
    """It is whole HTML, says its policy, and every address on it leads somewhere on this server."""
    async with online(running, directory, replier(agent_id)):
        address = path.format(id=agent_id)
        answer = await http.get(address)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"].split("; ")
        assert policy[0] == "default-src 'none'"
        assert not [one for one in policy if "unsafe" in one]
        page = Page(answer.text)
        assert not page.open
        assert len(set(page.ids)) == len(page.ids)
        assert not [one for one in page.attributes if one == "style" or one.startswith("on")]
        assert page.tags.count("h1") == page.tags.count("main") == 1
        relative = {one for one in page.addresses if not one.startswith("#")}
        assert all(one.startswith(("./", "../")) for one in relative)
        for one in relative:
            found = await http.get(str(httpx2.URL(f"{http.base_url}{address}").join(one)))
            assert found.status_code == 200, one


async def test_what_an_agent_says_is_text(
    http: httpx2.AsyncClient, running: Running, directory: Directory, agent_id: str
) -> None:
    """On every page, and in what comes to an open one."""
    agent = Agent(agent_id, description=HOSTILE, version="<b>1</b>", model="<script>")

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return "x"

    async with online(running, directory, agent):
        for path in PAGES:
            text = (await http.get(path.format(id=agent_id))).text
            assert "<script>alert" not in text
            assert "<img src=x" not in text
            assert "<b>1" not in text
        async with followed(http, f"/agent/{agent_id}") as changes:
            assert "&lt;b&gt;1" in await change(changes, "Version")


async def test_an_agent_that_nobody_knows(http: httpx2.AsyncClient) -> None:
    """Is told on a page, with its status."""
    for name in ("nobody-at-all", "No.Id", "%3Cscript%3E"):
        answer = await http.get(f"/agent/{name}")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert not Page(answer.text).open
        assert "<script>" not in answer.text


async def test_a_death_is_seen_on_an_open_page(
    http: httpx2.AsyncClient, running: Running, directory: Directory, agent_id: str
) -> None:
    """Within a second of the registry knowing it, and only what has changed is sent."""
    async with followed(http, f"/agents/connections?q={agent_id}") as changes:
        async with online(running, directory, replier(agent_id)):
            row = await change(changes, f'id="row-{agent_id}.node1"')
            assert "online" in row
        await until(lambda: directory.agent(agent_id).state == "offline")
        known_at = time.monotonic()
        row = await change(changes, f'id="row-{agent_id}.node1"')
        assert time.monotonic() - known_at < 1.0
        assert "offline" in row


async def test_filters_stand_in_the_address(
    http: httpx2.AsyncClient, running: Running, directory: Directory, agent_id: str
) -> None:
    """And what is none is said."""
    other = f"x{agent_id}"
    async with online(running, directory, replier(agent_id), replier(other)):
        shown = (await http.get(f"/agents/connections?q={other}&state=online&node=node1")).text
        assert f'id="row-{other}.node1"' in shown
        assert f'id="row-{agent_id}.node1"' not in shown
        assert f'value="{other}"' in shown
        assert (await http.get("/agents/connections?node=nowhere")).status_code == 200
        wrong = await http.get("/agents/connections?nod=node1")
        assert wrong.status_code == 400
        assert "did you mean node?" in wrong.text
    for path, told in (
        ("/agents/connections?state=asleep", "none of online, busy, draining"),
        ("/flow?window=10y", "none of 30s, 1m, 5m"),
    ):
        wrong = await http.get(path)
        assert wrong.status_code == 400
        assert told in wrong.text


async def test_the_test_is_seen_by_everybody(
    http: httpx2.AsyncClient, running: Running, directory: Directory, agent_id: str
) -> None:
    """Whoever runs it: its results come to every open page, as they come."""
    async with (
        online(running, directory, replier(agent_id)),
        followed(http, f"/agents/connections?q={agent_id}") as changes,
    ):
        report = (await http.get(f"/api/agents/connection-test?agent={agent_id}")).json()
        assert report["summary"]["state"] == "ok"
        await change(changes, rf'(?s)id="row-{agent_id}\.node1"(.*try ok){{3}}')


async def test_calls_are_seen(
    http: httpx2.AsyncClient,
    running: Running,
    directory: Directory,
    client: MeshClient,
    agent_id: str,
) -> None:
    """On the agent's page and on the map: who asked, where it was answered, how long it took."""
    async with (
        online(running, directory, replier(agent_id)),
        followed(http, f"/agent/{agent_id}") as cabinet,
        followed(http, "/flow") as flow,
    ):
        await change(flow, "strip")
        await client.ask(agent_id, "hello")
        line = await change(cabinet, r"(?s)<tr.*tester.*answered")
        assert re.search(r"\d ms", line)
        assert "on node1" in line
        edge = await change(flow, rf"(?s)<tr.*tester.*{agent_id}")
        assert '<td class="number">1</td>' in edge


async def test_a_call_that_waits_is_seen_where_it_is_held(
    http: httpx2.AsyncClient,
    running: Running,
    directory: Directory,
    client: MeshClient,
    agent_id: str,
) -> None:
    """In the agent's mailbox, at the broker."""
    free = asyncio.Event()
    agent = Agent(agent_id, concurrency=1)

    @agent.chat
    async def answer(request: ChatRequest, call: CallContext) -> str:
        await free.wait()
        return "done"

    async with online(running, directory, agent), followed(http, "/flow") as flow:
        asking = [asyncio.create_task(client.ask(agent_id, "hello")) for _ in range(3)]
        try:
            drawn = await change(flow, r"(?s)<svg.*1 running, 2 waiting")
            assert "mailbox held" in drawn
        finally:
            free.set()
            await asyncio.gather(*asking)


async def test_a_key_for_some_agents_shows_no_others(
    connection: Connection, directory: Directory, running: Running, agent_id: str
) -> None:
    """On no page; nor any traffic."""
    hidden = f"hidden-{agent_id}"
    rules = Rules(requires_keys=True)
    async with (
        online(running, directory, replier(agent_id), replier(hidden)),
        serving(connection, directory, rules) as url,
        httpx2.AsyncClient(base_url=url) as http,
    ):
        assert (await http.get("/")).status_code == 401
        issued = await Access(connection).create("x", agents=[agent_id])
        http.headers["authorization"] = f"Bearer {issued.token}"
        for path in ("/", "/agents/connections", "/flow", f"/agent/{agent_id}"):
            answer = await http.get(path)
            assert answer.status_code == 200
            assert hidden not in answer.text
        refused = await http.get(f"/agent/{hidden}")
        assert refused.status_code == 403
        assert "MESH_API_KEY" in (await http.get(f"/agent/{agent_id}")).text


async def test_five_hundred_agents(
    http: httpx2.AsyncClient, running: Running, directory: Directory, agent_id: str
) -> None:
    """A page is there within 150 ms, and has less than 60 KB with all that it needs."""
    agents = [replier(f"{agent_id}-{number}") for number in range(500)]
    async with online(running, directory, *agents):
        for path in PAGES:
            address = path.format(id=f"{agent_id}-7")
            times = []
            for _ in range(5):
                started = time.perf_counter()
                answer = await http.get(address)
                times.append(time.perf_counter() - started)
            assert sorted(times)[2] < 0.15, (address, times)
            weight = len(gzip.compress(answer.content))
            for asset in {one for one in Page(answer.text).addresses if "static" in one}:
                got = await http.get(str(httpx2.URL(f"{http.base_url}{address}").join(asset)))
                weight += len(gzip.compress(got.content))
            assert weight < 60_000, (address, weight)


async def test_an_open_page_costs_nothing_while_nothing_happens(
    http: httpx2.AsyncClient, running: Running, directory: Directory, agent_id: str
) -> None:
    """Nothing is sent, although every process beats."""
    async with (
        online(running, directory, replier(agent_id)),
        followed(http, f"/agents/connections?q={agent_id}") as changes,
    ):
        await change(changes, f"row-{agent_id}")
        assert await rows_within(changes, 7.0) == {}


@pytest.mark.parametrize("way", ["mesh", "curl", "direct", "python", "nats-py"])
async def test_a_snippet_works_when_pasted(
    http: httpx2.AsyncClient,
    running: Running,
    directory: Directory,
    nats_url: str,
    agent_id: str,
    way: str,
) -> None:
    """As it stands on the page."""
    async with online(running, directory, replier(agent_id)):
        at = Address(str(http.base_url).rstrip("/"), nats_url)
        (snippet,) = [one for one in snippets(agent_id, at) if one.id == way]
        page = Page((await http.get(f"/agent/{agent_id}")).text)
        if way != "nats-py":
            assert snippet.text in page.commands
        command = [sys.executable, "-c", snippet.text]
        if way in ("mesh", "curl", "direct"):
            command = [
                "sh",
                "-c",
                snippet.text.replace("mesh send", f"{sys.executable} -m mesh send"),
            ]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "MESH_NATS_URL": nats_url, "HOME": "/nonexistent"},
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0
        assert out.strip()
