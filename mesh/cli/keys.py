"""`mesh keys`: who may use the HTTP door, and who is let into a secure mesh (`mesh.cli.users`).

A token is printed once, when its key is made; the mesh keeps its hash only.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli import exits, keyring, users
from mesh.cli.durations import seconds
from mesh.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from mesh.access import Access
    from mesh.connection import Connection
    from schemas.access import ApiKey

app = typer.Typer(
    no_args_is_help=True,
    help="API keys of the HTTP door (create, list, revoke), and the keys of a secure mesh.",
)
for _command in (
    *(keyring.init, keyring.certificate, keyring.export),
    *(users.agent, users.node, users.user),
    *(users.invite, users.users, users.rotate),
):
    app.command(rich_help_panel="A secure mesh")(_command)

AsJson = Annotated[bool, typer.Option("--json", "-j", help="Print JSON.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What to call the key.")],
    agents: Annotated[
        str, typer.Option("--agents", "-a", help="The agents it may call, with commas.")
    ] = "",
    expires: Annotated[
        str, typer.Option("--expires", "-e", help="How long it lives, such as 12h or 30d.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make an API key, and print its token: it is shown this once."""
    exits.run(_create(name, agents, expires, as_json), as_json=as_json)


@app.command(name="list")
def list_keys(as_json: AsJson = False) -> None:
    """List the API keys, without their tokens."""
    exits.run(_list(as_json), as_json=as_json)


@app.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="The key's id, mesh_ID_…, or a user's name.")
    ],
    as_json: AsJson = False,
) -> None:
    """Make an API key useless within three seconds, or cut somebody off at once."""
    exits.run(_revoke(key_id, as_json), as_json=as_json)


async def _create(name: str, agents: str, expires: str, as_json: bool) -> None:
    wanted = [part.strip() for part in agents.split(",")] if agents else []
    lifetime_s = seconds(expires) if expires else None
    async with _connection() as connection:
        issued = await _access(connection).create(name, agents=wanted, lifetime_s=lifetime_s)
        unknown = await _unknown(connection, issued.key.agents)
    for agent in unknown:
        typer.echo(
            f"Note: no agent {agent!r} is known yet; the key is good once there is.", err=True
        )
    if as_json:
        print_json({**_shown(issued.key), "token": issued.token})
        return
    typer.echo(issued.token)
    typer.echo(
        f"Key {issued.key.id} for {_agents(issued.key)}. The token is not shown again; send it as "
        "Authorization: Bearer …",
        err=True,
    )


async def _list(as_json: bool) -> None:
    async with _connection() as connection:
        found = await _access(connection).keys()
    if as_json:
        print_json([_shown(key) for key in found])
        return
    if not found:
        typer.echo("No API keys. Make one: mesh keys create NAME", err=True)
        return
    rows = [
        (one.id, exits.plain(one.name), _state(one), _expiry(one), _agents(one)) for one in found
    ]
    print_table(("ID", "NAME", "STATE", "EXPIRES", "AGENTS"), rows)


async def _revoke(key_id: str, as_json: bool) -> None:
    if await users.revoke(key_id, as_json):
        return
    async with _connection() as connection:
        key = await _access(connection).revoke(key_id)
    if as_json:
        print_json(_shown(key))
    else:
        typer.echo(f"{key.id} ({exits.plain(key.name)}) is revoked.")


@asynccontextmanager
async def _connection() -> AsyncIterator["Connection"]:
    from mesh.connection import open_connection
    from mesh.settings import Settings
    from mesh.trust.login import Login

    async with open_connection(Login.of(Settings.from_env()), name="mesh keys") as connection:
        yield connection


def _access(connection: "Connection") -> "Access":
    from mesh.access import Access

    return Access(connection)


async def _unknown(connection: "Connection", agents: Iterable[str]) -> list[str]:
    """Return those that were never announced: mostly somebody has mistyped them."""
    from mesh.directory import load_directory

    directory = await load_directory(connection)
    return [one for one in agents if directory.agent_record(one) is None]


def _shown(key: "ApiKey") -> dict[str, Any]:
    return {**key.model_dump(mode="json", exclude={"sha256"}), "state": _state(key)}


def _state(key: "ApiKey") -> str:
    from datetime import UTC, datetime

    if key.revoked_at is not None:
        return "revoked"
    if key.is_expired(datetime.now(UTC)):
        return "expired"
    return "valid"


def _expiry(key: "ApiKey") -> str:
    return key.expires_at.strftime("%Y-%m-%d %H:%M UTC") if key.expires_at else "never"


def _agents(key: "ApiKey") -> str:
    return ", ".join(key.agents) or "all agents"
