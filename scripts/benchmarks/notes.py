"""What a bench tells beside its table, on stderr, while it runs."""

import sys

from scripts.benchmarks.figures import NotRun


def note(text: str) -> None:
    """Tell what is going on."""
    print(text, file=sys.stderr, flush=True)


def not_run(name: str, why: str) -> NotRun:
    """Say at once, and in the table, what is left out."""
    note(f"NOT RUN: {name} ({why})")
    return NotRun(name, why.partition("\n")[0])
