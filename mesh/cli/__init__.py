"""The `mesh` command. Each command is a module here; they import what they need when they run."""

import os
import sys
from typing import Annotated

import typer

from mesh.cli import (
    agents,
    ask,
    calls,
    check,
    dead,
    demo,
    doctor,
    host,
    join,
    keys,
    mcp,
    publish,
    tail,
    top,
    trace,
    up,
    who,
)

app = typer.Typer(
    name="mesh",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Agents on many machines call each other over NATS, and OpenAI clients call them.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such agent, node, "
    "call, letter or key, 4 not allowed, 5 deadline passed, 6 no broker, 130 Ctrl-C. "
    "Settings: MESH_NATS_URL, MESH_NODE, MESH_DATA_DIR, MESH_HTTP_PORTS and more, see the README.",
)
app.command(name="up")(up.up)
app.command(name="demo")(demo.demo)
app.command(name="join")(join.join)
app.command(name="run")(host.run)
app.command(name="send")(ask.send)
app.command(name="wait")(ask.wait)
app.command(name="chat")(ask.chat)
app.command(name="call")(calls.show_call)
app.command(name="cancel")(calls.cancel_call)
app.command(name="trace")(trace.trace)
app.command(name="tail")(tail.tail)
app.command(name="top")(top.top)
app.command(name="publish")(publish.publish)
app.command(name="agents")(agents.list_agents)
app.command(name="nodes")(agents.list_nodes)
app.command(name="agent")(agents.show_agent)
app.command(name="who")(who.who)
app.command(name="check")(check.check)
app.command(name="mcp")(mcp.mcp)
app.add_typer(dead.app, name="dead")
app.add_typer(keys.app, name="keys")
app.command(name="doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Run before every command."""
    if version:
        from mesh.version import VERSION

        typer.echo(f"mesh {VERSION}")
        raise typer.Exit
    from mesh.settings import unknown_variables

    for warning in unknown_variables(os.environ):
        typer.echo(f"warning: {warning}", err=True)


def main() -> None:
    """Entry point of the command."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
