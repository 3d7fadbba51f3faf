"""`mesh call` and `mesh cancel`: a call that was begun elsewhere is shown, and stopped."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli import exits

if TYPE_CHECKING:
    from mesh.connection import Connection
    from mesh.ledger import CallRecord

CANCEL_PATIENCE_S = 2.0


def show_call(
    call: Annotated[str, typer.Argument(help="The call's id.")],
    wait_s: Annotated[
        float, typer.Option("--wait", "-w", min=0, help="Wait for its end for so many seconds.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", "-j", help="Print one JSON line.")] = False,
) -> None:
    """Show where a call stands, and its answer.

    The exit code is 0 as long as it goes on and when it was answered, else that of its error.
    """
    exits.run(_show(call, wait_s, as_json), as_json=as_json)


def cancel_call(
    call: Annotated[str, typer.Argument(help="The call's id.")],
    as_json: Annotated[bool, typer.Option("--json", "-j", help="Print one JSON line.")] = False,
) -> None:
    """Stop a call, whether it waits or runs, and show where it stands.

    An answer that is stored already stands.
    """
    exits.run(_cancel(call, as_json), as_json=as_json)


async def _show(call_id: str, wait_s: float, as_json: bool) -> None:
    from mesh.connection import open_connection
    from mesh.errors import MeshError
    from mesh.ledger import read_answered
    from mesh.settings import Settings
    from mesh.trust.login import Login

    async with open_connection(Login.of(Settings.from_env()), name="mesh call") as connection:
        record = await read_answered(connection, call_id)
        if record.outcome is None and wait_s:
            record = await _wait(connection, record, wait_s)
    _print(record, as_json=as_json)
    if isinstance(record.outcome, MeshError):
        raise SystemExit(exits.exit_code(record.outcome))


async def _cancel(call_id: str, as_json: bool) -> None:
    from mesh.connection import open_connection
    from mesh.ledger import read_answered
    from mesh.outbox import Outbox
    from mesh.settings import Settings
    from mesh.trust.login import Login

    async with open_connection(Login.of(Settings.from_env()), name="mesh cancel") as connection:
        record = await read_answered(connection, call_id)
        if record.outcome is None:
            await Outbox(connection).cancel(record.call)
            record = await _wait(connection, record, CANCEL_PATIENCE_S)
    _print(record, as_json=as_json)


async def _wait(connection: "Connection", record: "CallRecord", wait_s: float) -> "CallRecord":
    """Return the record as it is when the call has ended, or when `wait_s` is over."""
    import asyncio

    from mesh.errors import MeshError
    from mesh.followers import follow_call
    from mesh.ledger import read_answered

    async with follow_call(connection, record.call) as call:
        try:
            async with asyncio.timeout(wait_s):
                await call.result()
        except (TimeoutError, MeshError):
            pass  # The record tells it.
    return await read_answered(connection, record.call.id)


def _print(record: "CallRecord", *, as_json: bool) -> None:
    facts = _facts(record)
    if as_json:
        import orjson

        typer.echo(orjson.dumps(facts).decode())
        return
    if error := facts["error"]:
        facts["error"] = f"{error['code']}: {error['message']}"
    for name, value in facts.items():
        if value not in ("", None):
            typer.echo(f"{name:<12} {exits.plain(str(value))}")


def _facts(record: "CallRecord") -> dict[str, Any]:
    from mesh.completions import read_reply
    from mesh.errors import MeshError
    from mesh.frames import Frame

    outcome = record.outcome
    error = outcome if isinstance(outcome, MeshError) else None
    return {
        "call_id": record.call.id,
        "state": record.state.value,
        "agent": record.call.agent,
        "node": record.node,
        "attempt": record.attempt,
        "chunks": record.chunks,
        "created_at": record.created_at,
        "timeout_ms": record.stored.timeout_ms if record.stored else None,
        "content": read_reply(outcome).content if isinstance(outcome, Frame) else None,
        "error": {"code": error.code, "message": error.message} if error else None,
    }
