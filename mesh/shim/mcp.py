"""Agents as tools of the Model Context Protocol, by its official SDK: a translation, and no more.

A tool is an agent; calling it is a call like any other, with a deadline, which ends when the client
cancels it. Parts of a streamed answer are told as progress. Served on stdio or over HTTP by
`mesh mcp`; nothing else of the mesh needs the SDK.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import anyio
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.session import ServerSession
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from starlette.types import ASGIApp, Receive, Scope, Send

from mesh import headers as h
from mesh.access import Access
from mesh.client import MeshClient
from mesh.completions import read_delta
from mesh.connection import Connection
from mesh.errors import InvalidInputError, MeshError
from mesh.questions import encode_question
from mesh.settings import Settings
from mesh.shim.app import Envelope
from mesh.shim.cors import Cors
from mesh.shim.guard import Guard, may_call
from mesh.shim.http import send_json
from mesh.shim.listener import HttpServer, connection_limit
from mesh.shim.rules import rules_for
from mesh.shim.server import certificate_of, require_hub_for_keys
from mesh.shim.status import UNKNOWN_URL, refusal
from mesh.standing import AgentStanding
from mesh.version import VERSION

logger = logging.getLogger(__name__)

PATH: Final = "/mcp"
TIMEOUT_S: Final = 120.0
PAGE: Final = 200
"""Tools in one answer."""
PROGRESS_S: Final = 0.25
"""How often a streamed answer is told as progress."""
LOOK_S: Final = 1.0
"""How soon a client is told that there are other agents."""
INSTRUCTIONS: Final = (
    "Each tool is an AI agent, perhaps on another machine. Say what you want of it in `message`, "
    "in plain words. It may take minutes; an agent that is offline answers when it is back."
)

Allows = Callable[[Any, str], bool]
"""Whether a request, as the SDK has it, may see an agent."""


class AgentTools:
    """The agents of a mesh as tools."""

    def __init__(self, client: MeshClient, agents: Sequence[str] = ()) -> None:
        self._client = client
        self._agents = frozenset(agents)
        """Those that are offered; all where none is named."""
        self._session: ServerSession | None = None
        """With the client on stdio, once it has asked for the list."""
        self.server: Server[Any] = Server(
            "mesh",
            version=VERSION,
            title="Agent mesh",
            instructions=INSTRUCTIONS,
            on_list_tools=self._list,
            on_call_tool=self._call,
        )

    def _offered(self, request: Any) -> list[AgentStanding]:
        return [
            one
            for one in self._client.directory.standings()
            if (not self._agents or one.id in self._agents) and _may_see(request, one.id)
        ]

    async def _list(
        self, context: ServerRequestContext[Any, Any], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        if context.request is None:
            self._session = context.session
        offered = self._offered(context.request)
        start = _read_cursor(params.cursor if params else None)
        end = start + PAGE
        return ListToolsResult(
            tools=[_tool(one) for one in offered[start:end]],
            next_cursor=str(end) if end < len(offered) else None,
        )

    async def _call(
        self, context: ServerRequestContext[Any, Any], params: CallToolRequestParams
    ) -> CallToolResult:
        if params.name not in {one.id for one in self._offered(context.request)}:
            raise MCPError(INVALID_PARAMS, f"there is no agent {params.name[:80]!r}")
        try:
            asked = _Asked.read(params.arguments or {})
            return await self._ask(context.session, params.name, asked)
        except MeshError as error:
            # For the model, which may know what to do about it.
            return _result(f"{error.code}: {error.message}", is_error=True)

    async def _ask(self, session: ServerSession, agent: str, asked: "_Asked") -> CallToolResult:
        body = encode_question(agent, asked.message, stream=True)
        call = await self._client.start(
            agent, body, node=asked.node, timeout_s=asked.timeout_s or TIMEOUT_S
        )
        try:
            progress = _Progress(session)
            async with aclosing(call.chunks()) as chunks:  # type: ignore[type-var]
                async for frame in chunks:
                    await progress.tell(read_delta(frame.body).content or "")
            reply = await call.reply()
        finally:
            # Cancelled by the client: so is the call.
            self._client.abandon(call)
        return _result(reply.text, meta={"mesh/call_id": call.id, "mesh/agent": agent})

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Tell the client on stdio when there are other agents, for the length of the context."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _watch(self) -> None:
        known = self._cards()
        while True:
            await asyncio.sleep(LOOK_S)
            if (found := self._cards()) == known:
                continue
            known = found
            if self._session is not None:
                try:
                    await self._session.send_tool_list_changed()
                except (MCPError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                    logger.debug("the client is gone", exc_info=True)

    def _cards(self) -> dict[str, str]:
        return {one.id: one.record.card.description for one in self._offered(None)}


class _Asked:
    """The arguments of a tool."""

    def __init__(self, message: str, node: str | None, timeout_s: float | None) -> None:
        self.message = message
        self.node = node
        self.timeout_s = timeout_s

    @classmethod
    def read(cls, arguments: dict[str, Any]) -> "_Asked":
        """Read them. Raises `InvalidInputError`."""
        unknown = sorted(set(arguments) - set(SCHEMA["properties"]))
        if unknown:
            raise InvalidInputError(f"there is no argument {unknown[0][:40]!r}", field="arguments")
        message = arguments.get("message")
        if not isinstance(message, str) or not message.strip():
            raise InvalidInputError("say in `message` what is asked", field="message")
        node, timeout_s = arguments.get("node"), arguments.get("timeout_s")
        if node is not None and not isinstance(node, str):
            raise InvalidInputError("`node` is the name of a node", field="node")
        if timeout_s is not None and (
            isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float)
        ):
            raise InvalidInputError("`timeout_s` is a number of seconds", field="timeout_s")
        return cls(message, node or None, timeout_s)


SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "message": {"type": "string", "description": "What you want of it, in plain words."},
        "node": {"type": "string", "description": "Ask the instance on this node only."},
        "timeout_s": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": h.MAX_TIMEOUT_S,
            "description": f"How long to wait for the answer; {TIMEOUT_S:g} s unless it is said.",
        },
    },
    "required": ["message"],
    "additionalProperties": False,
}


class _Progress:
    """Tells parts of an answer, not too often."""

    def __init__(self, session: ServerSession) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._text = ""
        self._count = 0
        self._told_at = 0.0

    async def tell(self, text: str) -> None:
        """Take in a part; what a client has not asked for is sent to nobody."""
        self._text += text
        if self._text and self._loop.time() - self._told_at >= PROGRESS_S:
            self._count += 1
            told, self._text = self._text, ""
            self._told_at = self._loop.time()
            await self._session.report_progress(self._count, None, told)


def _may_see(request: Any, agent: str) -> bool:
    """Tell whether a request's API key is for an agent; on stdio there is none."""
    scope = getattr(request, "scope", None)
    return scope is None or may_call(scope, agent)


def _tool(one: AgentStanding) -> Tool:
    card = one.record.card
    state = "" if one.instances else " It is offline: it answers when it is back."
    return Tool(
        name=one.id,
        title=one.id,
        description=f"{card.description or 'An AI agent.'}{state}",
        input_schema=SCHEMA,
        annotations=ToolAnnotations(open_world_hint=True),
    )


def _read_cursor(text: str | None) -> int:
    if text is None:
        return 0
    if not text.isdecimal() or len(text) > 9:
        raise MCPError(INVALID_PARAMS, "this cursor is none of ours")
    return int(text)


def _result(
    text: str, *, is_error: bool = False, meta: dict[str, Any] | None = None
) -> CallToolResult:
    found = CallToolResult(content=[TextContent(text=text)], is_error=is_error)
    found.meta = meta
    return found


async def serve_stdio(client: MeshClient, agents: Sequence[str] = ()) -> None:
    """Serve the process that has started us, until it closes our stdin."""
    tools = AgentTools(client, agents)
    options = tools.server.create_initialization_options(NotificationOptions(tools_changed=True))
    async with tools.watching(), stdio_server() as (read, write):
        await tools.server.run(read, write, options)


async def serve_http(
    client: MeshClient,
    connection: Connection,
    listener: socket.socket,
    settings: Settings,
    *,
    agents: Sequence[str] = (),
    on_ready: Callable[[str, int], None],
    stop: asyncio.Event,
) -> None:
    """Serve `PATH` on a socket that listens, until `stop`; guarded as a door is.

    Raises:
        SettingsError: keys are required, and these credentials cannot read them; or the certificate
            that is named is none.
        BrokerUnreachableError: the connection is closed for good.
    """
    host, port = listener.getsockname()[:2]
    rules = rules_for(settings, [host])
    if rules.requires_keys:
        require_hub_for_keys(connection)
    tools = AgentTools(client, agents)
    manager = StreamableHTTPSessionManager(tools.server)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != PATH:
            told = refusal(UNKNOWN_URL, f"there is nothing here: MCP is at {PATH}")
            await send_json(send, told.status, told.body, told.headers)
            return
        await manager.handle_request(scope, receive, send)

    guarded: ASGIApp = Guard(app, rules, Access(connection), ())
    if rules.cors_origins:
        guarded = Cors(guarded, rules.cors_origins)
    server = HttpServer(
        Envelope(guarded),
        on_started=lambda: on_ready(host, port),
        max_connections=connection_limit(),
        certificate=certificate_of(settings),
    )
    serving = asyncio.create_task(server.serve([listener]))
    ends = [asyncio.create_task(one.wait()) for one in (stop, connection.closed)]
    try:
        async with manager.run():
            await asyncio.wait([serving, *ends], return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            # Its sessions end with it: clients hold a stream open for as long as they live.
        await serving
    finally:
        for task in (*ends, serving):
            task.cancel()
    if connection.closed.is_set() and not stop.is_set():
        raise connection.ending()
