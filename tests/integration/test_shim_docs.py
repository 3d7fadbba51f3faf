"""The page of the HTTP API: what stands on it works, and nothing on it comes from elsewhere."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator

import httpx2
import pytest

from mesh.access import Access
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.shim.rules import Rules
from tests.conftest import Running
from tests.htmlpage import Page
from tests.shim import online, replier, serving, speaker

AGENT = "echo"
"""Whom the page asks if it is there."""
HIDDEN = "aa-secret-agent"


@pytest.fixture(scope="module")
async def http(
    connection: Connection, directory: Directory, running: Running
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a door with agents behind it."""
    async with (
        online(running, directory, speaker(AGENT), replier(HIDDEN)),
        serving(connection, directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
    ):
        yield client


async def shell(command: str) -> str:
    """Run a command as a reader would, but fail when the door does."""
    process = await asyncio.create_subprocess_shell(
        command.replace("curl -s", "curl -fs"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, (command, output)
    return output.decode()


async def test_the_page_is_whole(http: httpx2.AsyncClient) -> None:
    """Every operation and every model has its place, and every link its end."""
    answer = await http.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(answer.text)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    document = (await http.get("/openapi.json")).json()
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert {one["operationId"] for one in operations} <= set(page.ids)
    assert set(document["components"]["schemas"]) <= set(page.ids)
    for address in page.addresses:
        if address.startswith("#"):
            assert address[1:] in page.ids
        else:
            assert (await http.get(address)).status_code == 200, address


async def test_nothing_comes_from_elsewhere(http: httpx2.AsyncClient) -> None:
    """No script, no style in the text, and a policy under which none would run."""
    answer = await http.get("/docs")
    page = Page(answer.text)
    assert not {"script", "style", "iframe", "form"} & set(page.tags)
    assert not [one for one in page.attributes if one == "style" or one.startswith("on")]
    assert all(one.startswith(("./", "#")) for one in page.addresses)
    policy = answer.headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    assert not [one for one in policy if "unsafe" in one]
    assert "script-src 'self'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"


async def test_each_command_works_when_pasted(http: httpx2.AsyncClient) -> None:
    """They name this server and an agent that is there."""
    page = Page((await http.get("/docs")).text)
    commands = [one for one in page.commands if "curl" in one]
    assert len(commands) >= 14
    assert all(str(http.base_url) in one for one in commands)
    for command in commands:
        assert await shell(command)


async def test_the_program_works_when_pasted(http: httpx2.AsyncClient) -> None:
    """With OpenAI's own client."""
    page = Page((await http.get("/docs")).text)
    (program,) = [one for one in page.commands if "from openai" in one]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert output == b"hello\n"


async def test_a_host_that_is_none_is_not_written_into_commands(
    http: httpx2.AsyncClient, connection: Connection, directory: Directory
) -> None:
    """A door with keys takes any Host; a shell must not."""
    async with (
        serving(connection, directory, Rules(requires_keys=True)) as base,
        httpx2.AsyncClient(base_url=base, timeout=30) as client,
    ):
        answer = await client.get("/docs", headers={"host": '"$(id)<script>"'})
    assert answer.status_code == 200
    assert "$(id)" not in answer.text
    assert "<script" not in answer.text
    assert f"{base}/v1" in answer.text


async def test_strangers_read_the_page_and_learn_no_agent(
    http: httpx2.AsyncClient, connection: Connection, directory: Directory
) -> None:
    """Where keys are required a browser has none to show; what it reads is public."""
    rules = Rules(requires_keys=True)
    issued = await Access(connection).create("of the docs", agents=(HIDDEN,))
    async with (
        serving(connection, directory, rules) as base,
        httpx2.AsyncClient(base_url=base, timeout=30) as client,
    ):
        stranger = await client.get("/docs")
        document = await client.get("/openapi.json")
        key = {"authorization": f"Bearer {issued.token}"}
        known = await client.get("/docs", headers=key)
        style = Page(stranger.text).addresses[0]
        assert (await client.get(style)).status_code == 200
    assert stranger.status_code == document.status_code == 200
    assert HIDDEN not in stranger.text + document.text
    assert "Bearer $MESH_API_KEY" in stranger.text
    assert f'"model": "{HIDDEN}"' in Page(known.text).commands[1]


async def test_files_are_kept_by_browsers(http: httpx2.AsyncClient) -> None:
    """For good at the address that has their content's hash; else they ask again."""
    page = Page((await http.get("/docs")).text)
    (style,) = [one for one in page.addresses if ".css?" in one]
    exact = await http.get(style)
    assert exact.headers["content-type"] == "text/css; charset=utf-8"
    assert "immutable" in exact.headers["cache-control"]
    plain = await http.get(re.sub(r"\?.*", "", style))
    assert plain.headers["cache-control"] == "no-cache"
    again = await http.get(style, headers={"if-none-match": exact.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
