"""`mesh mcp`, used by the official SDK's client: on stdio, and over HTTP."""

import asyncio
import json
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from mesh.settings import authority, server_certificate
from mesh.trust.certificates import write_server_certificate
from tests.acceptance.conftest import Mesh, OwnMesh
from tests.conftest import until

AGENTS = """
import asyncio
from mesh import Agent, CallContext, ChatRequest

slow, failing, talking = Agent("slow"), Agent("failing"), Agent("talking", description="Talks.")
agents = [slow, failing, talking]

@slow.chat
async def think(request: ChatRequest) -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("was cancelled", flush=True)
        raise

@failing.chat
async def fail(request: ChatRequest) -> str:
    raise ValueError("the sun does not shine")

@talking.chat
async def talk(request: ChatRequest):
    for word in request.last_text.split():
        yield word + " "
        await asyncio.sleep(0.3)
"""


def stdio(mesh: Mesh, *arguments: str) -> StdioServerParameters:
    """Return how a client starts `mesh mcp`, as in its configuration."""
    command = ["-m", "mesh", "mcp", *arguments]
    return StdioServerParameters(command=sys.executable, args=command, env=mesh.environ)


def text_of(result: Any) -> str:
    """Return the text of a tool's answer."""
    (content,) = result.content
    return str(content.text)


async def test_agents_are_tools(mesh: Mesh) -> None:
    """Listed with what they say about themselves, and called."""
    async with Client(stdio(mesh)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert "Repeats" in (tools["echo"].description or "")
        assert tools["echo"].input_schema["required"] == ["message"]
        result = await client.call_tool("echo", {"message": "hello there"})
        assert not result.is_error
        assert text_of(result) == "hello there"
        call_id = (result.meta or {})["mesh/call_id"]
        on_node = await client.call_tool("echo", {"message": "hi", "node": "node1"})
        assert text_of(on_node) == "hi"
    facts = json.loads((await mesh.run("trace", call_id, "--json")).out)
    assert (facts["caller"], facts["agent"], facts["state"]) == ("mcp", "echo", "answered")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "invalid_input: say in `message`"),
        ({"message": "  "}, "invalid_input: say in `message`"),
        ({"message": 5}, "invalid_input: say in `message`"),
        ({"message": "x", "node": "nowhere"}, "node_not_found: no node 'nowhere'"),
        ({"message": "x", "node": 5}, "invalid_input: `node`"),
        ({"message": "x", "timeout_s": "soon"}, "invalid_input: `timeout_s`"),
        ({"message": "x", "timeout_s": -1}, "invalid_input: a deadline of -1 s"),
        ({"message": "x", "massage": "y"}, "invalid_input: there is no argument 'massage'"),
    ],
)
async def test_arguments_that_cannot_be(mesh: Mesh, arguments: dict[str, Any], told: str) -> None:
    """Are told to the model, which can mend them."""
    async with Client(stdio(mesh)) as client:
        result = await client.call_tool("echo", arguments)
    assert result.is_error
    assert text_of(result).startswith(told)


async def test_a_tool_that_is_none(mesh: Mesh) -> None:
    """Is an error of the protocol; so is one that is not offered."""
    async with Client(stdio(mesh, "--agent", "somebody")) as client:
        assert (await client.list_tools()).tools == []
        for name in ("echo", "nobody-at-all", "No Name"):
            with pytest.raises(MCPError, match="there is no agent"):
                await client.call_tool(name, {"message": "x"})


@asynccontextmanager
async def running_agents(own_mesh: OwnMesh, folder: Path) -> AsyncIterator[tuple[Mesh, Any]]:
    """Run a mesh with agents that are slow, fail, and talk."""
    (folder / "three.py").write_text(AGENTS)
    async with (
        own_mesh() as mesh,
        mesh.start("run", "three:agents", TEST_CWD=str(folder)) as host,
    ):
        await host.says("agent talking runs")
        yield mesh, host


async def test_deadlines_failures_progress_and_cancel(own_mesh: OwnMesh, tmp_path: Path) -> None:
    """Each as MCP has it: an error of the tool, progress, and an end at the agent."""
    async with running_agents(own_mesh, tmp_path) as (mesh, host), Client(stdio(mesh)) as client:
        late = await client.call_tool("slow", {"message": "x", "timeout_s": 0.5})
        assert late.is_error
        assert text_of(late).startswith("timeout: ")
        failed = await client.call_tool("failing", {"message": "x"})
        assert failed.is_error
        assert text_of(failed) == "agent_failed: ValueError: the sun does not shine"
        told: list[str] = []

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            told.append(message or "")

        words = "one two three four"
        result = await client.call_tool(
            "talking", {"message": words}, progress_callback=on_progress
        )
        assert text_of(result).strip() == words
        assert len(told) >= 3
        assert words.startswith("".join(told).strip())
        before = host.text.count("was cancelled")
        with anyio.move_on_after(1.0):
            await client.call_tool("slow", {"message": "x"})
        await until(lambda: host.text.count("was cancelled") > before)


async def test_over_http(own_mesh: OwnMesh, tmp_path: Path) -> None:
    """The same at /mcp; with keys where the door requires them, each for its agents."""
    async with running_agents(own_mesh, tmp_path) as (mesh, _):
        async with mesh.start("mcp", "--http", "0") as server:
            url = await server.says(r"MCP at (\S+)\.")
            async with Client(url) as client:
                result = await client.call_tool("talking", {"message": "hello"})
                assert text_of(result).strip() == "hello"
            async with httpx2.AsyncClient() as http:
                foreign = await http.post(url, json={}, headers={"origin": "https://evil.example"})
                assert foreign.status_code == 403
                elsewhere = await http.get(url.replace("/mcp", "/v1/models"))
                assert elsewhere.status_code == 404
                taken = await mesh.run("mcp", "--http", url.split(":")[2].partition("/")[0])
                assert (taken.code, taken.out) == (1, "")
                assert "cannot be used" in taken.err
            assert await server.stop() == 0
        key = json.loads(
            (await mesh.run("keys", "create", "x", "--agents", "talking", "--json")).out
        )
        async with mesh.start("mcp", "--http", "0", MESH_HTTP_AUTH="keys") as server:
            url = await server.says(r"MCP at (\S+)\.")
            async with httpx2.AsyncClient() as http:
                assert (await http.post(url, json={})).status_code == 401
            shown = {"authorization": f"Bearer {key['token']}"}
            async with (
                httpx2.AsyncClient(headers=shown) as http,
                Client(streamable_http_client(url, http_client=http)) as client,
            ):
                tools = [tool.name for tool in (await client.list_tools()).tools]
                assert tools == ["talking"]
                with pytest.raises(MCPError, match="there is no agent"):
                    await client.call_tool("slow", {"message": "x"})


async def test_it_stops_while_clients_are_there(own_mesh: OwnMesh, tmp_path: Path) -> None:
    """At once, with a call that runs and a stream that is open, and without a traceback."""
    async with (
        running_agents(own_mesh, tmp_path) as (mesh, _),
        mesh.start("mcp", "--http", "0") as server,
    ):
        url = await server.says(r"MCP at (\S+)\.")
        client = Client(url, mode="legacy")
        await client.__aenter__()
        await client.list_tools()
        asking = asyncio.create_task(client.call_tool("slow", {"message": "x"}))
        await asyncio.sleep(0.5)
        started = asyncio.get_running_loop().time()
        assert await server.stop(signal.SIGINT) == 0
        assert asyncio.get_running_loop().time() - started < 8
        assert "Traceback" not in server.text
        asking.cancel()
        with suppress(BaseExceptionGroup, Exception, asyncio.CancelledError):
            await asking
        with suppress(BaseExceptionGroup, Exception):
            await client.__aexit__(None, None, None)


async def test_it_speaks_tls_where_the_door_does(mesh: Mesh, tmp_path: Path) -> None:
    """A key must not go in the clear."""
    write_server_certificate(tmp_path, ["door.example.org"])
    certificate = server_certificate(tmp_path)
    key = certificate.with_suffix(".key")
    secure = {"MESH_HTTP_CERT": str(certificate), "MESH_HTTP_KEY": str(key)}
    async with mesh.start("mcp", "--http", "0", **secure) as server:
        url = await server.says(r"MCP at (https://\S+)\.")
        trust = ssl.create_default_context(cafile=str(authority(tmp_path)))
        trust.check_hostname = False
        async with httpx2.AsyncClient(verify=trust) as http:
            async with Client(streamable_http_client(url, http_client=http)) as client:
                result = await client.call_tool("echo", {"message": "hello"})
                assert text_of(result) == "hello"
            with pytest.raises(httpx2.HTTPError):
                await http.get(url.replace("https:", "http:"))


async def test_a_new_agent_is_told_of(own_mesh: OwnMesh, tmp_path: Path) -> None:
    """To a client that has asked for the list."""
    changed = asyncio.Event()

    async def on_message(message: Any) -> None:
        if "list_changed" in str(getattr(message, "method", "")):
            changed.set()

    async with (
        own_mesh() as mesh,
        Client(stdio(mesh), message_handler=on_message, mode="legacy") as client,
    ):
        assert (await client.list_tools()).tools == []
        async with mesh.start("run", "handlers.echo:agent") as host:
            await host.says("agent echo runs")
            async with asyncio.timeout(15):
                await changed.wait()
            assert [one.name for one in (await client.list_tools()).tools] == ["echo"]
