"""What the tests of our child processes share: parts to run, and looks at what is left of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.supervisor import Part, Supervisor

REPOSITORY = Path(__file__).parents[1]
READY = "import os, sys, time, signal; os.write(int(os.environ['MESH_READY_FD']), b'ready\\n');"
SLEEP = "time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + READY + SLEEP

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a feature of the Linux kernel")


class Told:
    """What the supervisor tells of its parts."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))

    def has(self, name: str, pattern: str) -> bool:
        return any(told == name and re.search(pattern, line) for told, line in self.lines)


def part(name: str, script: str, **environ: str) -> Part:
    """A part in bare Python: it starts in 15 ms."""
    return Part(name, (sys.executable, "-S", "-c", script), environ)


def pid_of(running: Supervisor, name: str) -> int:
    """Return the process id of a part that runs."""
    pid = running.pid(name)
    assert pid is not None, f"{name} does not run"
    return pid


def is_running(pid: int) -> bool:
    """Tell whether a process runs. A zombie that its parent has not reaped does not."""
    listed = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip()[:1] not in ("", "Z")


def is_reaped(pid: int) -> bool:
    """Tell whether nothing is left of a child of ours, not even a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
