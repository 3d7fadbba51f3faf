"""`mesh check`: the connection test, run from this machine, as a matrix."""

from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import exits

if TYPE_CHECKING:
    from mesh.prober import Cell, Doors
    from mesh.probes import ConnectionTest
    from mesh.settings import Settings
    from schemas.probe import Method, Outcome, ProbeEnd, ProbeResult

MARKS = {"ok": "✓", "busy": "!", "offline": "○", "timeout": "✗", "failed": "✗", "not_tried": "-"}
SEVERITY = ("failed", "timeout", "busy", "offline", "ok", "not_tried")
CELL_CHARS = 11
SHOWN = 3
"""How many places a finding names that is the same in many."""


def check(
    agent: Annotated[str, typer.Argument(help="Only this agent.")] = "",
    node: Annotated[str, typer.Option("--node", "-n", help="Only this node.")] = "",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help="Only this: inbox, router, direct, registry, presence, broker, jetstream, "
            "monitoring.",
        ),
    ] = "",
    limit_s: Annotated[
        float, typer.Option("--timeout", "-t", help="Seconds that each try may take.")
    ] = 2.0,
    as_json: Annotated[
        bool, typer.Option("--json", "-j", help="Print the report as JSON.")
    ] = False,
) -> None:
    """Try every way to every agent and node, and show what works.

    Agents answer without running their handlers. Exit code 0: all that was tried works.
    """
    is_fine = exits.run(_check(agent, node, method, limit_s, as_json), as_json=as_json)
    if not is_fine:
        raise SystemExit(exits.FAILED)


async def _check(agent: str, node: str, method: str, limit_s: float, as_json: bool) -> bool:
    from mesh.callers import Caller, new_instance_id
    from mesh.cli.sessions import DEFAULT_CALLER
    from mesh.client import open_client
    from mesh.connection import open_connection
    from mesh.directory import load_directory
    from mesh.probes import ConnectionTest, Selection
    from mesh.settings import Settings
    from mesh.trust.login import Login

    settings = Settings.from_env()
    selection = Selection(agent or None, node or None, _method(method), _limit(limit_s))
    async with open_connection(Login.of(settings), name="mesh check") as connection:
        caller = Caller(connection.caller(DEFAULT_CALLER), settings.node, new_instance_id())
        directory = await load_directory(connection)
        async with open_client(connection, directory, caller) as client:
            test = ConnectionTest(client, connection, _doors(settings), selection)
            return await _run(test, as_json)


def _doors(settings: "Settings") -> "Doors":
    from mesh.http_probes import local_url
    from mesh.prober import Doors

    return Doors(
        router_url=local_url(
            settings.http_host, settings.http_ports[0], scheme=settings.http_scheme
        ),
        certificate=settings.http_cert,
        node=settings.node,
        monitor_url=settings.nats_monitor_url,
        shown=(("Authorization", f"Bearer {settings.api_key}"),) if settings.api_key else (),
    )


def _method(name: str) -> "Method | None":
    from mesh.errors import InvalidInputError
    from schemas.probe import Method

    if name and name not in set(Method):
        known = ", ".join(Method)
        raise InvalidInputError(f"{name[:40]!r} is no method; give one of {known}", field="method")
    return Method(name) if name else None


def _limit(limit_s: float) -> float:
    from mesh.errors import InvalidInputError
    from mesh.probes import MAX_LIMIT_S, MIN_LIMIT_S

    if MIN_LIMIT_S <= limit_s <= MAX_LIMIT_S:
        return limit_s
    raise InvalidInputError(
        f"a limit of {limit_s:g} s cannot be: give {MIN_LIMIT_S:g} to {MAX_LIMIT_S:g}",
        field="timeout",
    )


async def _run(test: "ConnectionTest", as_json: bool) -> bool:
    from contextlib import aclosing

    from mesh.probe_report import ReportBuilder

    builder = ReportBuilder()
    matrix = None if as_json else _Matrix(test.cells())
    async with aclosing(test.run()) as results:
        async for result in results:
            builder.add(result)
            if matrix is not None:
                matrix.add(result)
    end = builder.end()
    if matrix is None:
        from mesh import codec

        typer.echo(codec.encode(builder.report(end)).decode())
    else:
        _print_findings(builder.results)
        typer.echo(_summary(end))
    # With nothing that can be tried from here, nothing is wrong.
    return end.summary.state in ("ok", "not_tried")


class _Matrix:
    """Prints each row as soon as it is complete, and all rows above it are."""

    def __init__(self, cells: "list[Cell]") -> None:
        self._rows: dict[tuple[str | None, str | None], list[Cell]] = {}
        self._columns: dict[str, list[Method]] = {}
        for cell in cells:
            self._rows.setdefault((cell.agent, cell.node), []).append(cell)
            columns = self._columns.setdefault(_section(cell), [])
            if cell.method not in columns:
                columns.append(cell.method)
        labels = [_label(*place) for place in self._rows]
        self._width = max(map(len, labels), default=0)
        self._waiting = list(self._rows)
        self._found: dict[tuple[str | None, str | None, Method], Outcome] = {}
        self._begun = ""

    def add(self, result: "ProbeResult") -> None:
        """Take in a result, and print the rows that it completes."""
        self._found[result.agent_id, result.node, result.method] = result
        while self._waiting and self._is_complete(self._rows[self._waiting[0]]):
            self._print(self._rows[self._waiting.pop(0)])

    def _is_complete(self, row: "list[Cell]") -> bool:
        return all((one.agent, one.node, one.method) in self._found for one in row)

    def _print(self, row: "list[Cell]") -> None:
        section = _section(row[0])
        columns = self._columns[section]
        if section != self._begun:
            self._begun = section
            _print_row(section, [one.upper() for one in columns], self._width)
        place = (row[0].agent, row[0].node)
        found = [self._found.get((*place, method)) for method in columns]
        _print_row(_label(*place), [_mark(one) if one else "" for one in found], self._width)


def _section(cell: "Cell") -> str:
    if cell.agent:
        return "AGENT"
    return "NODE" if cell.node else "MESH"


def _label(agent: str | None, node: str | None) -> str:
    return "@".join(one for one in (agent, node) if one) or "mesh"


def _print_row(label: str, cells: list[str], width: int) -> None:
    line = "  ".join((label.ljust(width), *(one.ljust(CELL_CHARS) for one in cells)))
    typer.echo(line.rstrip())


def _mark(outcome: "Outcome") -> str:
    mark = MARKS[outcome.state]
    if outcome.latency_ms is not None:
        return f"{mark} {outcome.latency_ms:.1f} ms"
    return mark if outcome.state == "not_tried" else f"{mark} {outcome.state.value}"


def _print_findings(results: "list[ProbeResult]") -> None:
    """Say once what is the same in many places, and what to do about it."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for one in sorted(results, key=lambda one: SEVERITY.index(one.state)):
        if one.state != "ok" or one.fix:
            place = f"{_label(one.agent_id, one.node)} {one.method.value}"
            places.setdefault((one.state, one.detail, one.fix), []).append(place)
    if places:
        typer.echo()
    for (state, detail, fix), named in places.items():
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        typer.echo(f"{MARKS[state]} {', '.join(named[:SHOWN])}{more}: {exits.plain(detail)}")
        if fix:
            typer.echo(f"    {exits.plain(fix)}")


def _summary(end: "ProbeEnd") -> str:
    counted = end.summary.model_dump(exclude={"state"})
    parts = [f"{number} {name.replace('_', ' ')}" for name, number in counted.items() if number]
    return f"\n{end.summary.state.value}: {', '.join(parts)}; {end.took_ms / 1000:.1f} s"
