"""The promises hold while processes are killed, frozen and cut off: each fault once, under load.

`scripts/soak` does the same for as long as it is told. FAULT_SEED repeats an order of faults.
"""

import os
from pathlib import Path

import pytest

from tests.faults import of_a_cluster, of_one_server
from tests.faults.run import Outcome, run
from tests.faults.sites import open_cluster, open_secure_server, open_server

SEED = int(os.environ.get("FAULT_SEED", "0")) or os.getpid()


@pytest.mark.timeout(540)
async def test_every_fault_once(tmp_path: Path) -> None:
    """P1, P2, P3 and P5 of every call; P6 of those that began after a fault."""
    opening = open_server(tmp_path / "broker")
    outcome = await run(tmp_path, opening, of_one_server.FAULTS, SEED, for_s=0, quiet_s=3.0)
    _require_promises(outcome)


@pytest.mark.timeout(540)
async def test_a_secure_mesh_keeps_its_promises(tmp_path: Path) -> None:
    """TLS, a border between accounts, signed requests: what can be lost there is not."""
    opening = open_secure_server(tmp_path / "broker")
    faults = of_one_server.SECURE_FAULTS
    outcome = await run(tmp_path, opening, faults, SEED, for_s=0, quiet_s=3.0)
    _require_promises(outcome)


@pytest.mark.timeout(540)
async def test_every_fault_of_a_cluster_once(tmp_path: Path) -> None:
    """The same with three brokers: the loss of one hurts nobody, that of more is waited for."""
    opening = open_cluster(tmp_path / "brokers")
    outcome = await run(tmp_path, opening, of_a_cluster.FAULTS, SEED, for_s=0, quiet_s=3.0)
    _require_promises(outcome)


def _require_promises(outcome: Outcome) -> None:
    assert outcome.verdict.is_kept, f"{outcome}\n{outcome.verdict}"
    assert outcome.broken_gently == [], str(outcome)
    untried = [name for name, one in outcome.recoveries.items() if not one.times_s]
    assert untried == [], f"no call counts after these, the machine stood still:\n{outcome}"
    slow = {name: one.soon for name, one in outcome.recoveries.items() if one.soon < 0.99}
    assert slow == {}, str(outcome)
