"""`mesh trace CALL`: where a call has been, when, and where its time went."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli import exits

if TYPE_CHECKING:
    from mesh.call_trace import CallTrace, Step

GAP_S = 1.0
"""A time between two steps that is worth a remark."""


def trace(
    call: Annotated[str, typer.Argument(help="The call's id.")],
    as_json: Annotated[bool, typer.Option("--json", "-j", help="Print one JSON line.")] = False,
) -> None:
    """Show each hop of a call with its time, and the calls that were made for it.

    Times are the broker's; kept as long as the call's frames are.
    """
    exits.run(_trace(call, as_json), as_json=as_json)


async def _trace(call_id: str, as_json: bool) -> None:
    from mesh.call_trace import read_trace
    from mesh.connection import open_connection
    from mesh.settings import Settings
    from mesh.trust.login import Login

    async with open_connection(Login.of(Settings.from_env()), name="mesh trace") as connection:
        found = await read_trace(connection, call_id)
    if as_json:
        import orjson

        typer.echo(orjson.dumps(_facts(found)).decode())
        return
    for line in _lines(found, ""):
        typer.echo(exits.plain(line))


def _lines(found: "CallTrace", indent: str) -> Iterator[str]:
    took = "" if found.took_s is None else f" after {_duration(found.took_s)}"
    who = f"{found.caller} asked {found.agent}" if found.caller else f"call to {found.agent}"
    yield f"{indent}{who}: {found.state.value}{took}"
    yield f"{indent}  call  {found.call_id}"
    if found.trace_id and not indent:
        yield f"{indent}  trace {found.trace_id}"
    yield f"{indent}  from  {_clock(found.began_ns)} UTC"
    before_ns = 0
    for step in found.steps:
        gap_s = (step.at_ns - before_ns) / 1e9 if step.at_ns and before_ns else 0.0
        remark = f"  ({_duration(gap_s)} later)" if gap_s >= GAP_S else ""
        yield f"{indent}  {_at(step, found.began_ns)}  {step.hop.value:<12} {_told(step)}{remark}"
        before_ns = step.at_ns or before_ns
    for child in found.children:
        yield ""
        yield from _lines(child, f"{indent}    ")


def _told(step: "Step") -> str:
    parts = []
    if step.attempt and step.hop.value in ("began", "answered", "failed"):
        parts.append(f"attempt {step.attempt}")
    if step.node:
        parts.append(f"on {step.node}")
    if step.instance and step.hop.value in ("began", "lost"):
        parts.append(f"[{step.instance[:8]}]")
    if step.note:
        parts.append(step.note)
    return " ".join(parts)


def _at(step: "Step", began_ns: int) -> str:
    if not step.at_ns:
        return " " * 10
    return f"{(step.at_ns - began_ns) / 1e9:+8.3f} s"


def _duration(seconds: float) -> str:
    return f"{seconds * 1_000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _clock(at_ns: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(sep=" ", timespec="milliseconds")[:23]


def _facts(found: "CallTrace") -> dict[str, Any]:
    return {
        "call_id": found.call_id,
        "agent": found.agent,
        "caller": found.caller,
        "state": found.state.value,
        "trace_id": found.trace_id,
        "took_s": found.took_s,
        "steps": [
            {
                "hop": one.hop.value,
                "at": _clock(one.at_ns).replace(" ", "T") + "Z" if one.at_ns else "",
                "attempt": one.attempt,
                "node": one.node,
                "instance": one.instance,
                "note": one.note,
            }
            for one in found.steps
        ],
        "calls": [_facts(one) for one in found.children],
    }
