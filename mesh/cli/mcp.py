"""`mesh mcp`: the agents of the mesh as tools, for whatever speaks the Model Context Protocol."""

from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated

import typer

from mesh.cli import exits

PATIENCE_S = 10.0


def mcp(
    agents: Annotated[
        list[str] | None, typer.Option("--agent", "-a", help="Only this agent; as often as wanted.")
    ] = None,
    http: Annotated[
        int | None, typer.Option("--http", min=0, max=65_535, help="Serve HTTP on this port.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Serve agents as MCP tools: on stdin and stdout, or over HTTP at /mcp.

    For a client that starts its servers: command `mesh`, argument `mcp`. Over HTTP the rules are
    those of the door: MESH_HTTP_HOST, and API keys on any address but loopback.
    """
    from mesh.cli import logs

    logs.set_up(verbose=verbose)
    exits.run(_mcp(agents or [], http))


async def _mcp(agents: list[str], port: int | None) -> None:
    from mesh import subjects
    from mesh.callers import Caller, new_instance_id
    from mesh.client import open_client
    from mesh.connection import open_connection
    from mesh.directory import follow_directory
    from mesh.errors import LoadError
    from mesh.otlp import exporting
    from mesh.settings import Settings
    from mesh.trust.login import Login

    try:
        from mesh.shim import mcp as door
        from mesh.shim.server import listen_on
    except ModuleNotFoundError as error:
        if error.name not in ("mcp", "mcp_types"):
            raise
        raise LoadError(
            "the SDK of the Model Context Protocol is missing: pip install 'nats-agent-mesh[mcp]'",
            target="mcp",
        ) from None
    wanted = [subjects.require_id(agent) for agent in agents]
    settings = Settings.from_env()
    async with AsyncExitStack() as stack:
        # Before anything else: that a port is taken is told at once.
        listener = None
        if port is not None:
            listener = stack.enter_context(listen_on(settings.http_host, port))
        login = Login.of(settings)
        connection = await stack.enter_async_context(
            open_connection(login, name="mesh mcp", patience_s=PATIENCE_S)
        )
        directory = await stack.enter_async_context(follow_directory(connection))
        await stack.enter_async_context(exporting("mesh-mcp", settings.node))
        caller = Caller(connection.caller("mcp"), settings.node, new_instance_id())
        client = await stack.enter_async_context(open_client(connection, directory, caller))
        if listener is None:
            await door.serve_stdio(client, wanted)
            return
        from mesh.cli.signals import stop_on_signals

        await door.serve_http(
            client,
            connection,
            listener,
            settings,
            agents=wanted,
            on_ready=partial(_tell, settings.http_scheme),
            stop=stop_on_signals(),
        )


def _tell(scheme: str, host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"MCP at {scheme}://{shown}:{port}/mcp. Ctrl-C stops.")
