"""`mesh tail`: calls and the registry, as they happen."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli import exits
from mesh.cli.durations import seconds

if TYPE_CHECKING:
    from mesh.activity import Fact
    from mesh.connection import Connection


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be shown."""

    agent: str
    node: str
    call: str
    chunks: bool
    bodies: bool
    as_json: bool

    def takes(self, fact: "Fact") -> bool:
        """Tell whether a fact is to be shown."""
        return (
            (not self.agent or self.agent in (fact.agent, fact.caller))
            and (not self.node or self.node in (fact.node, fact.source_node))
            and (not self.call or fact.call_id.startswith(self.call))
            and (self.chunks or fact.what.value != "chunk")
        )


def tail(
    agent: Annotated[str, typer.Option("--agent", "-a", help="Only of or to this agent.")] = "",
    node: Annotated[str, typer.Option("--node", "-n", help="Only on this node.")] = "",
    call: Annotated[str, typer.Option("--call", "-c", help="Only this call.")] = "",
    since: Annotated[
        str, typer.Option("--since", "-s", help="First what is stored of so long: 30s, 5m, 2h.")
    ] = "",
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Go on with what happens.")
    ] = True,
    chunks: Annotated[bool, typer.Option("--chunks", help="Also parts of answers.")] = False,
    bodies: Annotated[bool, typer.Option("--bodies", help="Also what is said.")] = False,
    as_json: Annotated[bool, typer.Option("--json", "-j", help="One JSON object a line.")] = False,
) -> None:
    """Show calls, events and registry changes as they happen; what is said only when asked to.

    Of answered calls their mailbox keeps nothing: with --since they begin with a frame.
    """
    wanted = Wanted(agent, node, call, chunks, bodies, as_json)
    exits.run(_tail(wanted, since, follow), as_json=as_json)


async def _tail(wanted: Wanted, since: str, follow: bool) -> None:
    from mesh.connection import open_connection
    from mesh.errors import InvalidInputError
    from mesh.settings import Settings
    from mesh.trust.login import Login

    since_s = seconds(since, "--since") if since else 0.0
    if not since and not follow:
        raise InvalidInputError("nothing is to be shown: say since when, --since 5m", field="since")
    async with open_connection(Login.of(Settings.from_env()), name="mesh tail") as connection:
        facts = _facts(connection, since_s, follow)
        async with aclosing(facts) as found:  # type: ignore[type-var]
            async for fact in found:
                if wanted.takes(fact):
                    typer.echo(_json(fact, wanted) if wanted.as_json else _line(fact, wanted))


async def _facts(connection: "Connection", since_s: float, follow: bool) -> "AsyncIterator[Fact]":
    from mesh.activity import listening, replay

    async with AsyncExitStack() as stack:
        # Listened first, then read: nothing falls between.
        live = await stack.enter_async_context(listening(connection)) if follow else None
        seen: dict[str, int] = {}
        last_ns = 0
        if since_s:
            async for fact in replay(connection, since_s):
                stream, number = fact.place
                seen[stream] = max(number, seen.get(stream, 0))
                last_ns = max(fact.at_ns, last_ns)
                yield fact
        if live is not None:
            async for fact in live:
                if not _is_seen(fact, seen, last_ns):
                    yield fact


def _is_seen(fact: "Fact", seen: Mapping[str, int], last_ns: int) -> bool:
    """Tell whether what is heard was among what was read before."""
    from mesh.activity import What

    stream, number = fact.place
    if stream in seen:
        return number <= seen[stream]
    # What the registry has told is read again from another stream, which copies it; and of events
    # and dead letters, which nobody republishes, and of requests only the moment is known.
    return fact.what is not What.ASKED and fact.at_ns <= last_ns


def _line(fact: "Fact", wanted: Wanted) -> str:
    parts = [_clock(fact.at_ns), f"{fact.what.value:<9}", *_words(fact)]
    line = exits.plain("  ".join(part for part in parts if part))
    if wanted.bodies and fact.body:
        line += "\n" + "\n".join(f"    {one}" for one in _text(fact.body).splitlines())
    return line


def _words(fact: "Fact") -> list[str]:
    where = f"{fact.agent}@{fact.node}" if fact.node else fact.agent
    if fact.what.value in ("asked", "dead"):
        source = f"{fact.caller or 'somebody'}@{fact.source_node}".rstrip("@")
        words = [f"{source} → {where}"]
    elif fact.what.value == "event":
        words = [f"{fact.agent}.{fact.code}"]
    elif fact.caller:
        words = [f"{where} → {fact.caller}"]
    else:
        words = [where]
    words.append(fact.call_id[:12])
    if fact.attempt > 1:
        words.append(f"attempt {fact.attempt}")
    if fact.took_ms is not None:
        words.append(
            f"{fact.took_ms:.0f} ms" if fact.took_ms < 10_000 else f"{fact.took_ms / 1e3:.1f} s"
        )
    if fact.code and fact.what.value != "event":
        words.append(fact.code)
    if fact.instance and not fact.call_id:
        words.append(f"[{fact.instance[:8]}]")
    return words


def _json(fact: "Fact", wanted: Wanted) -> str:
    import orjson

    found: dict[str, Any] = {
        "at": _clock(fact.at_ns),
        "what": fact.what.value,
        "agent": fact.agent,
        "node": fact.node,
        "caller": fact.caller,
        "source_node": fact.source_node,
        "call_id": fact.call_id,
        "trace_id": fact.trace_id,
        "attempt": fact.attempt,
        "code": fact.code,
        "took_ms": fact.took_ms,
        "instance": fact.instance,
    }
    if wanted.bodies:
        found["body"] = _text(fact.body)
    return orjson.dumps(
        {name: one for name, one in found.items() if one not in ("", 0, None)}
    ).decode()


def _text(body: bytes) -> str:
    return exits.plain(body.decode(errors="replace"))


def _clock(at_ns: int) -> str:
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(at_ns / 1e9, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
