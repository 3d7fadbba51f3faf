"""What a call costs, counted and not timed: the same on a busy machine as on an idle one.

A change that makes calls dearer fails here, whatever the machine does beside. The measure is the
same round trip by hand in nats-py, counted in the same way, so that versions of Python and of
nats-py do not matter. `scripts/bench calls` tells the times of both.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from typing import Final

MOST: Final = 0.72
"""So many times what it takes by hand; measured 0.65. Whoever makes calls cheaper lowers it."""


async def test_a_call_takes_less_than_by_hand(nats_url: str, control: Process) -> None:
    command = (sys.executable, "-m", "scripts.benchmarks.functions", nats_url)
    process = await create_subprocess_exec(*command, stdout=PIPE)
    try:
        told, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    found = json.loads(told.splitlines()[-1])
    assert found["mesh"] <= MOST * found["by_hand"], found
