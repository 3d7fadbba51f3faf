"""`mesh agents`, `mesh nodes`, `mesh agent`: who is in the mesh."""

from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import exits
from mesh.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from mesh.directory import Directory
    from mesh.standing import AgentStanding, NodeStanding

MARKS = {"online": "●", "offline": "○", "unknown": "?"}


def list_agents(
    node: Annotated[str, typer.Option("--node", "-n", help="Only agents on this node.")] = "",
    as_json: Annotated[bool, typer.Option("--json", "-j", help="Print JSON.")] = False,
) -> None:
    """List the agents of the mesh."""
    exits.run(_list_agents(node, as_json), as_json=as_json)


def list_nodes(
    as_json: Annotated[bool, typer.Option("--json", "-j", help="Print JSON.")] = False,
) -> None:
    """List the nodes of the mesh."""
    exits.run(_list_nodes(as_json), as_json=as_json)


def show_agent(
    agent: Annotated[str, typer.Argument(help="The agent's id.")],
    as_json: Annotated[bool, typer.Option("--json", "-j", help="Print JSON.")] = False,
) -> None:
    """Show one agent: where it runs, and how to reach it."""
    exits.run(_show_agent(agent, as_json), as_json=as_json)


async def _list_agents(node: str, as_json: bool) -> None:
    directory = await _directory()
    found = [one for one in directory.standings() if not node or node in one.nodes]
    if as_json:
        print_json([directory.agent(one.id).model_dump(mode="json") for one in found])
        return
    if not found:
        typer.echo("No agents. Run one: mesh run handlers.echo:agent", err=True)
        return
    rows = [
        (
            one.id,
            _mark(one.state),
            ", ".join(one.nodes),
            _seen(directory, one),
            _line(one.record.card.description),
        )
        for one in found
    ]
    print_table(("AGENT", "STATE", "NODE", "SEEN", "DESCRIPTION"), rows)


async def _list_nodes(as_json: bool) -> None:
    directory = await _directory()
    if as_json:
        print_json([one.model_dump(mode="json") for one in directory.nodes()])
        return
    agents = {one.node: ", ".join(one.agents) or "-" for one in directory.nodes()}
    rows = [
        (
            one.id,
            _mark(one.state),
            _seen(directory, one),
            str(len(one.instances)),
            agents[one.id],
        )
        for one in directory.node_standings()
    ]
    print_table(("NODE", "STATE", "SEEN", "PROCESSES", "AGENTS"), rows)


async def _show_agent(agent: str, as_json: bool) -> None:
    directory = await _directory()
    view = directory.agent(agent)
    if as_json:
        print_json(view.model_dump(mode="json"))
        return
    facts = {
        "agent": view.card.id,
        "state": _mark(view.state),
        "node": ", ".join(view.nodes) or "-",
        "instances": ", ".join(view.instances) or "-",
        "description": _line(view.card.description) or "-",
        "model": view.card.model or "-",
        "streams": "yes" if view.card.streams else "no",
        "concurrency": str(view.card.concurrency),
        "registered": view.registered_at,
        "last seen": _seen(directory, directory.standing(agent)),
        "subject": f"agent.{view.card.id}.inbox",
        "try": f'mesh send {view.card.id} "hello"',
    }
    for name, value in facts.items():
        typer.echo(f"{name:<12} {exits.plain(value)}")


async def _directory() -> "Directory":
    from mesh.connection import open_connection
    from mesh.directory import load_directory
    from mesh.settings import Settings
    from mesh.trust.login import Login

    async with open_connection(Login.of(Settings.from_env()), name="mesh agents") as connection:
        return await load_directory(connection)


def _mark(state: str) -> str:
    return f"{MARKS[state]} {state}"


def _seen(directory: "Directory", one: "AgentStanding | NodeStanding") -> str:
    """Show how long ago it was heard; of what is gone, when that was, by the clock on the wall."""
    from datetime import datetime

    if one.instances:
        silence_s = min(directory.silence_s(it.instance) for it in one.instances)
        return f"{silence_s:.0f} s ago"
    try:
        seen = datetime.fromisoformat(directory.last_seen(one)).astimezone()
    except (ValueError, OverflowError):
        return "-"
    return seen.isoformat(sep=" ", timespec="seconds")[:19]


def _line(text: str) -> str:
    return exits.plain(" ".join(text.split()))
