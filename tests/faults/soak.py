"""`scripts/soak`: faults of all kinds for as long as it is told, and what came of them."""

import asyncio
import random
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tests.faults import of_a_cluster, of_one_server
from tests.faults.run import run
from tests.faults.sites import open_cluster, open_secure_server, open_server

WORK_S = 0.3
QUIET_S = 4.0
CALLERS = 12


def soak(
    minutes: Annotated[float, typer.Option(min=0.1, max=600, help="How long.")] = 15.0,
    seed: Annotated[int, typer.Option(help="Of the faults and their order; 0: any.")] = 0,
    cluster: Annotated[bool, typer.Option("--cluster", help="On three brokers.")] = False,
    neighbours: Annotated[int, typer.Option(min=0, help="Agents beside it in its processes.")] = 0,
    secure: Annotated[bool, typer.Option("--secure", help="On one in secure mode, TLS.")] = False,
) -> None:
    """Do faults under load on loopback, one after the other; exit 1 when a promise was broken."""
    seed = seed or random.randrange(1, 1_000_000)
    typer.echo(f"soak of {minutes:g} minutes, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="mesh-soak-") as name:
        folder = Path(name)
        if cluster:
            running = partial(run, folder, open_cluster(folder / "brokers"), of_a_cluster.FAULTS)
        else:
            faults = of_one_server.FAULTS + of_one_server.LONG_FAULTS
            broker = folder / "broker"
            site = open_secure_server(broker) if secure else open_server(broker, neighbours)
            running = partial(run, folder, site, faults)
        for_s = minutes * 60
        outcome = asyncio.run(
            running(seed, for_s=for_s, quiet_s=QUIET_S, work_s=WORK_S, callers=CALLERS)
        )
    typer.echo(outcome)
    for one in outcome.broken_gently:
        typer.echo(f"failed of a restart in good order: {one}")
    sys.exit(0 if outcome.verdict.is_kept and not outcome.broken_gently else 1)


if __name__ == "__main__":
    typer.run(soak)
