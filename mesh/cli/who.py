"""`mesh who`: people and agents, and who of them is there."""

from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import exits
from mesh.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from mesh.directory import Directory
    from schemas.presence import PersonView

MARKS = {"online": "●", "busy": "◕", "draining": "◔", "away": "◐", "offline": "○", "unknown": "?"}


def who(
    as_json: Annotated[bool, typer.Option("--json", "-j", help="Print JSON.")] = False,
) -> None:
    """List who is there: people by their browsers, agents by the registry."""
    exits.run(_who(as_json), as_json=as_json)


async def _who(as_json: bool) -> None:
    people, directory = await _read()
    if as_json:
        agents = [
            {
                "agent_id": one.id,
                "state": one.condition().value,
                "last_seen": directory.last_seen(one),
            }
            for one in directory.standings()
        ]
        shown = [one.model_dump(mode="json") for one in people]
        print_json({"people": shown, "agents": agents})
        return
    rows = [
        (
            exits.plain(one.matrix_user_id),
            _state(one.state.value),
            one.last_seen.replace("T", " ")[:19],
            exits.plain(one.status_msg),
        )
        for one in people
    ]
    rows += [
        (one.id, _state(one.condition().value), directory.last_seen(one).replace("T", " ")[:19], "")
        for one in directory.standings()
    ]
    if not rows:
        typer.echo("Nobody yet.", err=True)
        return
    print_table(("WHO", "STATE", "SEEN, UTC", "SAYS"), rows)


async def _read() -> "tuple[list[PersonView], Directory]":
    from mesh.connection import open_connection
    from mesh.directory import load_directory
    from mesh.nats_client import is_guarded
    from mesh.presence import read_people
    from mesh.settings import Settings
    from mesh.trust.login import Login

    async with open_connection(Login.of(Settings.from_env()), name="mesh who") as connection:
        directory = await load_directory(connection)
        if is_guarded(connection.client):
            typer.echo("Who of the people is there, `mesh who` at the hub tells.", err=True)
            return [], directory
        people = await read_people(connection, directory.clock)
        return people.views(), directory


def _state(word: str) -> str:
    return f"{MARKS[word]} {word}"
