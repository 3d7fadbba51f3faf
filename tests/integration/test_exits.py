"""Ctrl-C ends a command, also one that has swallowed it once."""

import asyncio
import signal
import sys

import pytest

SCRIPT = """
import asyncio
from mesh.cli import exits

async def work():
    print("working", flush=True)
    for _ in range({swallowed}):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass  # As `asyncio.wait_for` does when its result is there, too.
    await asyncio.sleep(60)

exits.run(work())
"""


@pytest.mark.parametrize("swallowed", [0, 1, 2])
async def test_ctrl_c_ends_a_command(swallowed: int) -> None:
    """With 130, and no traceback."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SCRIPT.format(swallowed=swallowed)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"working\n"
    process.send_signal(signal.SIGINT)
    _, said = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, said) == (130, b"")
