"""`scripts/soak`: faults of all kinds for as long as it is told, and what came of them."""

import asyncio
import random
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.faults.of_one_server import FAULTS, LONG_FAULTS
from tests.faults.run import run
from tests.faults.sites import open_server

WORK_S = 0.3
QUIET_S = 4.0
CALLERS = 12


def soak(
    minutes: Annotated[float, typer.Option(min=0.1, max=600, help="How long.")] = 15.0,
    seed: Annotated[int, typer.Option(help="Of the faults and their order; 0: any.")] = 0,
) -> None:
    """Do faults under load on loopback, one after the other; exit 1 when a promise was broken."""
    seed = seed or random.randrange(1, 1_000_000)
    typer.echo(f"soak of {minutes:g} minutes, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="mesh-soak-") as folder:
        outcome = asyncio.run(
            run(
                Path(folder),
                open_server(Path(folder) / "broker"),
                FAULTS + LONG_FAULTS,
                seed,
                for_s=minutes * 60,
                quiet_s=QUIET_S,
                work_s=WORK_S,
                callers=CALLERS,
            )
        )
    typer.echo(outcome)
    for one in outcome.broken_gently:
        typer.echo(f"failed of a restart in good order: {one}")
    sys.exit(0 if outcome.verdict.is_kept and not outcome.broken_gently else 1)


if __name__ == "__main__":
    typer.run(soak)
