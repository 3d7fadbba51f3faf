"""What running processes are and take, as Linux tells it under /proc: memory, processor time."""

import asyncio
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
KB: Final = 1024 / 1e6
"""A kB of Linux in MB of a million bytes."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a process, in MB of a million bytes."""

    rss_mb: float
    """All that is resident. What processes share is counted in each."""
    pss_mb: float
    """The same, with what n processes share counted as an n-th."""
    uss_mb: float
    """What would be free if it ended: it shares that with nobody."""


def memory_of(pid: int) -> Memory:
    """Return the memory of a process.

    Raises:
        OSError: it does not run.
    """
    text = (PROC / str(pid) / "smaps_rollup").read_text()
    kb = {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return Memory(
        rss_mb=kb["Rss"] * KB,
        pss_mb=kb["Pss"] * KB,
        uss_mb=(kb["Private_Clean"] + kb["Private_Dirty"]) * KB,
    )


async def percent_of_a_core(pid: int, for_s: float) -> float:
    """Return how much of a core a process takes."""
    before = cpu_s(pid)
    await asyncio.sleep(for_s)
    return (cpu_s(pid) - before) / for_s * 100


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has taken so far, in steps of 10 ms.

    Raises:
        OSError: it does not run.
    """
    fields = (PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_s() -> float:
    """Return for how long the cores of this machine had nothing to do so far, all together."""
    fields = (PROC / "stat").read_text().partition("\n")[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def cpu_us_of(pids: Mapping[str, int]) -> Iterator[dict[str, float]]:
    """Give, behind the block, the processor time that each process took in it, in µs."""
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    taken: dict[str, float] = {}
    yield taken
    taken |= {name: (cpu_s(pid) - before[name]) * 1e6 for name, pid in pids.items()}


async def until_ended(pid: int) -> None:
    """Wait until a process runs no more, be it that nobody has asked yet how it ended."""
    while True:
        try:
            if not (PROC / str(pid) / "cmdline").read_bytes():
                return
        except OSError:
            return
        await asyncio.sleep(0)


def commands_below(pid: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the descendants of a process, each with its command."""
    for folder in PROC.iterdir():
        if not folder.name.isdecimal() or not _is_below(int(folder.name), pid):
            continue
        try:
            command = (folder / "cmdline").read_text().split("\0")[:-1]
        except OSError:
            continue  # It has ended meanwhile.
        yield int(folder.name), command


def _is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        try:
            fields = (PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            return False
        pid = int(fields[1])
        if pid == ancestor:
            return True
    return False
