"""The promises hold while processes are killed, frozen and cut off: each fault once, under load.

`scripts/soak` does the same for as long as it is told. FAULT_SEED repeats an order of faults.
"""

import os
from pathlib import Path

import pytest

from tests.faults.run import run

SEED = int(os.environ.get("FAULT_SEED", "0")) or os.getpid()


@pytest.mark.timeout(540)
async def test_every_fault_once(tmp_path: Path) -> None:
    """P1, P2, P3 and P5 of every call; P6 of those that began after a fault."""
    outcome = await run(tmp_path, SEED, for_s=0, quiet_s=3.0)
    assert outcome.verdict.is_kept, f"{outcome}\n{outcome.verdict}"
    untried = [name for name, one in outcome.recoveries.items() if not one.times_s]
    assert untried == [], f"no call counts after these, the machine stood still:\n{outcome}"
    slow = {name: one.soon for name, one in outcome.recoveries.items() if one.soon < 0.99}
    assert slow == {}, str(outcome)
