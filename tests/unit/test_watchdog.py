"""A process that has gone deaf ends; one that was only stopped for a while does not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import asyncio, sys, time
from handlers.watchdog import Watchdog

async def main():
    watchdog = Watchdog(lambda: sys.argv[1] != "cut off", limit_s=3.0)
    ticking = asyncio.create_task(watchdog.tick_forever())
    await asyncio.sleep(0.1)
    print("begun", flush=True)
    if sys.argv[1] == "frozen":
        while True:
            pass
    await asyncio.sleep(8.0)
    ticking.cancel()

asyncio.run(main())
"""


def start(how: str) -> "subprocess.Popen[bytes]":
    """Start a process with a watchdog, and wait until it watches."""
    command = (sys.executable, "-c", SCRIPT, how)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


@pytest.mark.parametrize("how", ["frozen", "cut off"])
def test_a_deaf_process_ends(how: str) -> None:
    """Whether its loop stands still, as FastStream leaves it, or it has no connection."""
    process = start(how)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 70
    assert b"deaf for" in told


def test_a_stopped_process_goes_on() -> None:
    """What nobody could hear is no deafness."""
    process = start("well")
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(5.0)  # Longer than the limit: that is the test.
    os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=200)
    assert process.returncode == 0
