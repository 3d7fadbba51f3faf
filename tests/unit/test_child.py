"""What the broker and the supervisor rely on: a child is heard, stopped, and leaves nothing."""

import asyncio
import os
import signal
import sys

import pytest

from mesh import child as module
from mesh.child import Child
from tests.children import is_reaped, is_running
from tests.conftest import until

# A process that says good-bye when it gets SIGTERM, and its child, which does so too.
FAMILY = """
import os, signal, sys, time

def leave(*_):
    time.sleep(0.3 if name == b"child" else 0)
    os.write(1, b"bye of the %s\\n" % name)
    os._exit(0)

signal.signal(signal.SIGTERM, leave)
name = b"parent" if os.fork() else b"child"
os.write(1, b"%s\\n" % name)
time.sleep(60)
"""


async def start(script: str, lines: list[str]) -> Child:
    """Run a script in bare Python."""
    return await Child.start((sys.executable, "-S", "-c", script), lines.append)


@pytest.mark.parametrize("whole_group", [False, True])
async def test_sigterm_goes_to_the_process_or_to_its_group(whole_group: bool) -> None:
    """What a process has started is killed, or gets SIGTERM and the grace as well."""
    lines: list[str] = []
    child = await start(FAMILY, lines)
    await until(lambda: {"parent", "child"} <= set(lines))
    await child.stop(5, whole_group=whole_group)
    assert is_reaped(child.pid)
    assert child.returncode == 0
    assert "bye of the parent" in lines
    assert ("bye of the child" in lines) == whole_group


@pytest.mark.parametrize("whole_group", [False, True])
async def test_who_left_the_group_does_not_hold_us_up(
    monkeypatch: pytest.MonkeyPatch, whole_group: bool
) -> None:
    """A process that has left the group, and holds the pipe, is not waited for and not killed."""
    monkeypatch.setattr(module, "_LAST_WORDS_S", 0.1)
    lines: list[str] = []
    leaver = "os.setsid(); print(os.getpid(), flush=True); time.sleep(60)"
    script = f"import os, time\nif not os.fork(): {leaver}\ntime.sleep(60)"
    child = await start(script, lines)
    await until(lambda: bool(lines))
    pid = int(lines[0])
    try:
        await asyncio.wait_for(child.stop(0.1, whole_group=whole_group), 30)
        assert is_reaped(child.pid)
        assert is_running(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


async def test_a_child_that_was_stopped_may_be_stopped_again() -> None:
    """A second stop does nothing, and `wait` gives the exit code still."""
    lines: list[str] = []
    child = await start("print('one'); print('two'); raise SystemExit(3)", lines)
    assert await child.wait_for_all() == 3
    assert lines == ["one", "two"]
    await child.stop(5)
    await child.stop(5, whole_group=True)
    assert await child.wait() == 3


async def test_no_file_is_left_open() -> None:
    """Neither a child that has ended nor a program that does not exist costs a file."""
    before = len(os.listdir("/dev/fd"))
    child = await start("pass", [])
    await child.stop(5)
    with pytest.raises(FileNotFoundError):
        await Child.start(("/no/such/program",), print)
    await until(lambda: len(os.listdir("/dev/fd")) <= before)
