"""`mesh top`: who is asked how often, how long it takes, and what waits."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli import exits
from mesh.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from mesh.directory import Directory
    from mesh.standing import AgentStanding
    from mesh.traffic_log import AgentNumbers, TrafficLog

HEAD = ("AGENT", "STATE", "NODE", "RUN", "WAIT", "CALLS/S", "P50 MS", "P99 MS", "FAILED, 5 MIN")
COLOURS = {"online": "green", "busy": "yellow", "draining": "cyan", "offline": "dim"}


@dataclass(frozen=True, slots=True)
class Line:
    """One agent, now."""

    agent: str
    state: str
    nodes: tuple[str, ...]
    running: int
    capacity: int
    waiting: int
    numbers: "AgentNumbers | None"

    @property
    def cells(self) -> tuple[str, ...]:
        """What the table shows."""
        numbers = self.numbers
        return (
            self.agent,
            self.state,
            ", ".join(self.nodes),
            f"{self.running}/{self.capacity}" if self.capacity else "-",
            str(self.waiting or "-"),
            f"{numbers.calls_per_s:.1f}" if numbers else "-",
            _ms(numbers.p50_ms if numbers else None),
            _ms(numbers.p99_ms if numbers else None),
            str(numbers.errors or "-") if numbers else "-",
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The same as plain data."""
        numbers = self.numbers
        return {
            "agent": self.agent,
            "state": self.state,
            "nodes": list(self.nodes),
            "running": self.running,
            "capacity": self.capacity,
            "waiting": self.waiting,
            "calls_per_s": numbers.calls_per_s if numbers else 0.0,
            "p50_ms": numbers.p50_ms if numbers else None,
            "p99_ms": numbers.p99_ms if numbers else None,
            "failed": numbers.errors if numbers else 0,
        }


def top(
    interval_s: Annotated[
        float, typer.Option("--interval", "-i", min=0.5, max=3600, help="Seconds between looks.")
    ] = 2.0,
    count: Annotated[
        int, typer.Option("--count", "-c", min=0, help="End after so many looks; 0 is never.")
    ] = 0,
    limit: Annotated[int, typer.Option("--limit", "-l", min=1, help="Agents shown.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", "-j", help="Print JSON, once.")] = False,
) -> None:
    """Show the load of each agent, the busiest first, again and again; once where it is piped.

    Calls are heard from now on: times and failures are of what has passed since, up to 5 minutes.
    """
    is_live = sys.stdout.isatty() and not as_json
    looks = count or (0 if is_live else 1)
    exits.run(_top(interval_s, looks, limit, is_live, as_json), as_json=as_json)


async def _top(interval_s: float, looks: int, limit: int, is_live: bool, as_json: bool) -> None:
    import asyncio

    from mesh.activity import require_hub
    from mesh.connection import open_connection
    from mesh.directory import follow_directory
    from mesh.settings import Settings
    from mesh.traffic import Traffic
    from mesh.trust.login import Login

    async with (
        open_connection(Login.of(Settings.from_env()), name="mesh top") as connection,
        follow_directory(connection) as directory,
    ):
        require_hub(connection)
        async with Traffic(connection).watching() as log:
            show = _show_live if is_live else _show_plain
            for _ in _looks(looks):
                with suppress(TimeoutError):
                    async with asyncio.timeout(interval_s):
                        await connection.closed.wait()
                    raise connection.ending()
                if not connection.client.is_connected:
                    typer.echo("the broker is away: this is how it was", err=True)
                lines = list(_lines(directory, log))[:limit]
                if as_json:
                    print_json([one.facts for one in lines])
                else:
                    show(lines, directory, log)


def _looks(count: int) -> Iterator[int]:
    number = 0
    while not count or number < count:
        number += 1
        yield number


def _lines(directory: "Directory", log: "TrafficLog") -> Iterator[Line]:
    import time

    now = time.time()
    numbers = log.by_agent(now)
    lines = [_line(one, log, numbers.get(one.id), now) for one in directory.standings()]

    def weight(line: Line) -> tuple[Any, ...]:
        rate = line.numbers.calls_per_s if line.numbers else 0.0
        return (-line.waiting, -rate, -line.running, line.state == "offline", line.agent)

    yield from sorted(lines, key=weight)


def _line(
    one: "AgentStanding", log: "TrafficLog", numbers: "AgentNumbers | None", now: float
) -> Line:
    capacity = one.record.card.concurrency * len(one.instances)
    depth, running = log.depths.get(one.id, 0), log.running(one.id, now)
    # The broker counts what lies in a mailbox, worked on or not; an agent says what is slow.
    at_work = max(running, min(depth, capacity))
    state = one.condition(is_busy=at_work >= capacity)
    waiting = max(0, depth - at_work)
    return Line(one.id, state.value, one.nodes, at_work, capacity, waiting, numbers)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _summary(directory: "Directory", log: "TrafficLog") -> str:
    import time

    numbers = log.numbers(time.time())
    p99 = _ms(numbers.p99_ms)
    nodes = directory.node_standings()
    up = sum(one.state.value == "online" for one in nodes)
    agents = f"{directory.online_count()}/{len(directory.standings())} agents"
    return (
        f"{up}/{len(nodes)} nodes  {agents}  {numbers.calls_per_s:.1f} calls/s  "
        f"{numbers.in_flight} in flight  p99 {p99} ms  {numbers.errors} failed"
    )


def _show_plain(lines: list[Line], directory: "Directory", log: "TrafficLog") -> None:
    typer.echo(_summary(directory, log))
    print_table(HEAD, [one.cells for one in lines])


def _show_live(lines: list[Line], directory: "Directory", log: "TrafficLog") -> None:
    from rich.console import Console

    console = Console()
    console.clear()
    console.print(_summary(directory, log), highlight=False)
    console.print(_table(lines))


def _table(lines: list[Line]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(HEAD):
        table.add_column(name, justify="right" if number > 2 else "left")
    for line in lines:
        agent, state, *rest = line.cells
        table.add_row(agent, Text(state, style=COLOURS.get(state, "")), *rest)
    return table
