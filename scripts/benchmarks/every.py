"""Runs every bench in turn, each in a process of its own: `scripts/bench all`.

With `--json` what all of them have measured is one document. A bench that fails does not keep the
others from running; this ends with 1 then.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scripts.benchmarks.figures import NotRun, Row, row_of, table
from scripts.benchmarks.notes import not_run, note
from scripts.benchmarks.processes import ROOT, clean_environ, python

NEEDS: Final = "needs an environment of its own (scripts/setup {}); without --quick it is run"


@dataclass(frozen=True, slots=True)
class Bench:
    """A bench, and how much of it `--quick` runs."""

    name: str
    quick: tuple[str, ...] = ("--quick",)
    left_out: str = ""
    """Why not, if `--quick` leaves it out."""


BENCHES: Final = (
    Bench("calls"),
    Bench("http", ("--quick", "--no-guide", "--no-litellm")),
    Bench("streams"),
    Bench("nested"),
    Bench("sizes"),
    Bench("machines"),
    Bench("peers", left_out=NEEDS.format("peers")),
    Bench("lookups"),
    Bench("starts"),
    Bench("agents"),
    Bench("backlog"),
    Bench("look"),
    Bench("pages"),
)


def run(bench: Bench, *, is_quick: bool) -> list[Row]:
    """Run a bench, and return its rows; one that says so if there are none."""
    if is_quick and bench.left_out:
        return [not_run(bench.name, bench.left_out)]
    note(f"== {bench.name}")
    options = bench.quick if is_quick else ()
    command = python("scripts.benchmarks", bench.name, *options, "--json")
    ended = subprocess.run(
        command, cwd=ROOT, env=clean_environ(), stdout=subprocess.PIPE, text=True, check=False
    )
    if ended.returncode:
        return [not_run(bench.name, f"it failed, exit code {ended.returncode}")]
    return [row_of(one) for one in json.loads(ended.stdout)]


def shown(found: Mapping[str, Sequence[Row]], *, judge: bool) -> str:
    """Render what all have measured, a table each."""
    return "\n\n".join(
        f"## {name}\n\n{table(list(rows), judge=judge)}" for name, rows in found.items()
    )


def as_json(found: Mapping[str, Sequence[Row]]) -> str:
    """Return the same as plain data: the rows of each bench by its name."""
    plain = {name: [row.as_json() for row in rows] for name, rows in found.items()}
    return json.dumps(plain, indent=2)


def main(arguments: list[str]) -> None:
    """Run all, and print what they have measured."""
    parser = argparse.ArgumentParser(prog="scripts/bench all", description="Every bench in turn.")
    parser.add_argument("--quick", action="store_true", help="smoke runs: nothing is judged")
    parser.add_argument("--json", action="store_true", help="print plain data, one document")
    options = parser.parse_args(arguments)
    found = {bench.name: run(bench, is_quick=options.quick) for bench in BENCHES}
    print(as_json(found) if options.json else shown(found, judge=not options.quick))
    if any(is_failed(bench, found[bench.name], options.quick) for bench in BENCHES):
        sys.exit(1)


def is_failed(bench: Bench, rows: Sequence[Row], is_quick: bool) -> bool:
    """Tell whether a bench that was to run has measured nothing."""
    was_wanted = not (is_quick and bench.left_out)
    return was_wanted and all(isinstance(row, NotRun) for row in rows)
