"""`mesh dead`: requests that could not be answered are looked at, sent again, or discarded."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli import exits
from mesh.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from mesh.calls import StoredCall
    from mesh.client import MeshClient
    from mesh.connection import Connection
    from mesh.dead_letters import DeadLetter

SHOWN = 100
PREVIEW_CHARS = 50

app = typer.Typer(
    no_args_is_help=True,
    help="Requests that could not be answered: list, show, replay, edit, discard.",
)

Number = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="As `mesh dead list` says.")]
Numbers = Annotated[
    list[int] | None, typer.Argument(metavar="[NUMBER]...", help="As `mesh dead list` says.")
]
OfAgent = Annotated[str, typer.Option("--agent", "-a", help="All letters to this agent.")]
Every = Annotated[bool, typer.Option("--all", help="All letters there are.")]
AsJson = Annotated[bool, typer.Option("--json", "-j", help="Print JSON.")]


@app.command(name="list")
def list_letters(
    agent: Annotated[str, typer.Option("--agent", "-a", help="Only those to this agent.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, help="At most so many.")] = SHOWN,
    as_json: AsJson = False,
) -> None:
    """List the dead letters, oldest first. They are kept for fourteen days."""
    exits.run(_list(agent, limit, as_json), as_json=as_json)


@app.command()
def show(number: Number, as_json: AsJson = False) -> None:
    """Show a dead letter: who asked what, and why it is dead."""
    exits.run(_show(number, as_json), as_json=as_json)


@app.command()
def replay(
    numbers: Numbers = None, agent: OfAgent = "", every: Every = False, as_json: AsJson = False
) -> None:
    """Send dead letters again, each as a new call, whose id is printed: see `mesh wait`."""
    exits.run(_replay(numbers or [], agent, every, as_json), as_json=as_json)


@app.command()
def edit(number: Number, as_json: AsJson = False) -> None:
    """Change the body of a dead letter, and send it again as a new call.

    Opens $EDITOR; a body that is piped in is taken as it is.
    """
    exits.run(_edit(number, as_json), as_json=as_json)


@app.command()
def discard(
    numbers: Numbers = None, agent: OfAgent = "", every: Every = False, as_json: AsJson = False
) -> None:
    """Delete dead letters for good."""
    exits.run(_discard(numbers or [], agent, every, as_json), as_json=as_json)


async def _list(agent: str, limit: int, as_json: bool) -> None:
    from mesh.dead_letters import read_letters

    found: list[DeadLetter] = []
    has_more = False
    async with _connection() as connection:
        async for letter in read_letters(connection, agent):
            if has_more := len(found) == limit:
                break
            found.append(letter)
    if as_json:
        print_json([_facts(one) for one in found])
        return
    if not found:
        typer.echo("No dead letters.", err=True)
        return
    rows = [
        (str(one.sequence), exits.plain(one.agent), _day(one), one.reason, _preview(one))
        for one in found
    ]
    print_table(("NUMBER", "AGENT", "SINCE", "REASON", "BODY"), rows)
    if has_more:
        typer.echo(f"There are more than {limit}: see --limit.", err=True)


async def _show(number: int, as_json: bool) -> None:
    from mesh.dead_letters import read_letter

    async with _connection() as connection:
        facts = _facts(await read_letter(connection, number))
    if as_json:
        print_json(facts)
        return
    body = facts.pop("body")
    for name, value in facts.items():
        if value not in ("", None):
            typer.echo(f"{name:<12} {exits.plain(str(value))}")
    typer.echo(f"\n{exits.plain(body)}")


async def _replay(numbers: list[int], agent: str, every: bool, as_json: bool) -> None:
    from mesh.dead_letters import discard as discard_letter
    from mesh.dead_letters import replay_id

    async with _client() as (client, connection):
        chosen = await _chosen(connection, numbers, agent, every)
        for letter in chosen:  # All of them, before the first is sent.
            letter.require_whole()
        for letter in chosen:
            body = await _body(connection, letter)
            call = await _send(client, connection, letter, body, replay_id(letter))
            # Stored first: who is killed in between replays it again, and that is the same call.
            await discard_letter(connection, letter.sequence)
            _print_call(letter, call, as_json=as_json)


async def _edit(number: int, as_json: bool) -> None:
    from mesh.dead_letters import discard as discard_letter
    from mesh.dead_letters import read_letter

    async with _client() as (client, connection):
        letter = await read_letter(connection, number)
        letter = replace(letter, body=await _body(connection, letter))
        body = _edited(letter)
        if body is None or not body.strip():
            typer.echo("Nothing is changed or written, and nothing is sent.", err=True)
            return
        call = await _send(client, connection, letter, body, "")
        await discard_letter(connection, letter.sequence)
        _print_call(letter, call, as_json=as_json)


async def _discard(numbers: list[int], agent: str, every: bool, as_json: bool) -> None:
    from mesh.dead_letters import discard as discard_letter

    async with _connection() as connection:
        chosen = await _chosen(connection, numbers, agent, every)
        for letter in chosen:
            await discard_letter(connection, letter.sequence)
    if as_json:
        print_json([one.sequence for one in chosen])
    else:
        typer.echo(f"{len(chosen)} dead letters are gone.")


async def _chosen(
    connection: "Connection", numbers: list[int], agent: str, every: bool
) -> list["DeadLetter"]:
    from mesh.dead_letters import read_letter, read_letters
    from mesh.errors import InvalidInputError

    if sum((bool(numbers), bool(agent), every)) != 1:
        message = "say which: numbers as `mesh dead list` shows them, --agent, or --all"
        raise InvalidInputError(message, field="number")
    if numbers:
        return [await read_letter(connection, one) for one in numbers]
    return [one async for one in read_letters(connection, agent)]


async def _body(connection: "Connection", letter: "DeadLetter") -> bytes:
    from mesh.attachments import read_body

    return await read_body(connection, letter.body_claim) if letter.body_claim else letter.body


async def _send(
    client: "MeshClient", connection: "Connection", letter: "DeadLetter", body: bytes, call_id: str
) -> "StoredCall":
    from mesh.attachments import Attachment
    from mesh.callers import Caller, new_instance_id
    from mesh.claims import Claim

    asker = Caller(letter.source_agent or "cli", letter.source_node, new_instance_id())
    return await client.submit(
        letter.agent,
        body,
        content_type=letter.content_type,
        file=Attachment(connection, Claim.read(letter.file_claim)) if letter.file_claim else None,
        node=letter.node,
        source=asker,
        call_id=call_id,
        replay_of=letter.call_id,
    )


def _edited(letter: "DeadLetter") -> bytes | None:
    """Return the new body; None when it is the old one."""
    import click

    if not sys.stdin.isatty():
        return sys.stdin.buffer.read()
    extension = ".json" if letter.content_type == "application/json" else ".txt"
    text = click.edit(letter.body.decode(errors="replace"), extension=extension)
    return None if text is None or text.encode() == letter.body else text.encode()


def _print_call(letter: "DeadLetter", call: "StoredCall", *, as_json: bool) -> None:
    import orjson

    if as_json:
        line = {"number": letter.sequence, "call_id": call.id, "replay_of": letter.call_id}
        typer.echo(orjson.dumps(line).decode())
    else:
        typer.echo(call.id)


@asynccontextmanager
async def _connection() -> AsyncIterator["Connection"]:
    from mesh.connection import open_connection
    from mesh.settings import Settings
    from mesh.trust.login import Login

    async with open_connection(Login.of(Settings.from_env()), name="mesh dead") as connection:
        yield connection


@asynccontextmanager
async def _client() -> AsyncIterator[tuple["MeshClient", "Connection"]]:
    from mesh.callers import Caller, new_instance_id
    from mesh.client import open_client
    from mesh.directory import load_directory
    from mesh.settings import Settings

    caller = Caller("cli", Settings.from_env().node, new_instance_id())
    async with _connection() as connection:
        directory = await load_directory(connection)
        async with open_client(connection, directory, caller) as client:
            yield client, connection


def _facts(letter: "DeadLetter") -> dict[str, Any]:
    return {
        "number": letter.sequence,
        "agent": letter.agent,
        "node": letter.node,
        "reason": letter.reason,
        "buried_at": letter.buried_at,
        "call_id": letter.call_id,
        "source_agent": letter.source_agent,
        "content_type": letter.content_type,
        "cut_from": letter.cut_from or None,
        "body_in": letter.body_claim or None,
        "file_in": letter.file_claim or None,
        "body": letter.body.decode(errors="replace"),
    }


def _day(letter: "DeadLetter") -> str:
    return letter.buried_at[:16].replace("T", " ")


def _preview(letter: "DeadLetter") -> str:
    if letter.body_claim:
        _, size, *_ = *letter.body_claim.split(" "), "?", "?"
        return f"({exits.plain(size[:15])} bytes in the object store)"
    text = " ".join(exits.plain(letter.body[:400].decode(errors="replace")).split())
    return text if len(text) <= PREVIEW_CHARS else f"{text[: PREVIEW_CHARS - 1]}…"
