"""The command line of a bench: the options that all of them have, and how one ends."""

import argparse
import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from mesh.errors import MeshError
from scripts.benchmarks.processes import BenchError

Result = TypeVar("Result")


def parser(
    name: str, about: str, *, rounds: int | None = None, is_scaled: bool = True
) -> argparse.ArgumentParser:
    """Return what reads the options of the bench `name`; `rounds` are as many as it makes.

    `role` is what a process of the bench is told that was started by the bench itself.
    """
    made = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=about)
    made.add_argument("role", nargs="*", help=argparse.SUPPRESS)
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds)
    if is_scaled:
        made.add_argument("--scale", type=float, default=1.0, help="times the number of calls")
    made.add_argument("--quick", action="store_true", help="a smoke run: nothing is judged")
    made.add_argument("--json", action="store_true", help="print plain data")
    return made


def complete(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a bench, or a process of it. What it cannot do ends this process with one line."""
    try:
        return asyncio.run(work)
    except (MeshError, BenchError) as error:
        sys.exit(f"bench: {error}")
