"""`mesh publish`: an event of an agent, from the command line."""

from typing import Annotated

import typer

from mesh.cli import exits


def publish(
    event: Annotated[str, typer.Argument(help="agent.name, such as solarius.done")],
    payload: Annotated[str, typer.Argument(help="JSON, or any text.")] = "{}",
    as_json: Annotated[
        bool, typer.Option("--json", "-j", help="Print the receipt as JSON.")
    ] = False,
) -> None:
    """Publish an event; agents that listen to it get it at least once."""
    exits.run(_publish(event, payload, as_json), as_json=as_json)


async def _publish(event: str, payload: str, as_json: bool) -> None:
    import orjson

    from mesh import headers as h
    from mesh.cli.sessions import open_session
    from mesh.errors import InvalidInputError
    from mesh.settings import Settings

    agent, dot, name = event.partition(".")
    if not dot:
        raise InvalidInputError(
            f"{event!r} names no event: write agent.name, such as solarius.done", field="event"
        )
    try:
        orjson.loads(payload)
        content_type = h.JSON
    except orjson.JSONDecodeError:
        content_type = h.TEXT
    async with open_session(Settings.from_env()) as client:
        ack = await client.publish_event(agent, name, payload.encode(), content_type=content_type)
    if as_json:
        line = {"event": event, "stream": ack.stream, "sequence": ack.sequence}
        typer.echo(orjson.dumps(line).decode())
    else:
        typer.echo(f"stored as event {ack.sequence}")
