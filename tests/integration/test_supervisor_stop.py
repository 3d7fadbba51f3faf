"""How parts end: in order, after their grace, with the parent, and with nothing left behind."""

import asyncio
import os
import sys

import pytest

from mesh.errors import PartFailedError
from mesh.supervisor import Supervisor
from tests.children import (
    READY,
    REPOSITORY,
    SLEEP,
    STUBBORN,
    Told,
    is_reaped,
    is_running,
    linux_only,
    part,
    pid_of,
)
from tests.conftest import until


@pytest.fixture
def told() -> Told:
    """A listener that keeps all lines."""
    return Told()


async def test_parts_do_not_hear_ctrl_c(told: Told) -> None:
    """A part is in a session of its own: Ctrl-C reaches the parent alone."""
    async with Supervisor(on_line=told) as running:
        await running.start(part("one", READY + SLEEP))
        pid = pid_of(running, "one")
        assert os.getsid(pid) == pid


async def test_parts_stop_in_reverse_order(told: Told) -> None:
    """Each part has ended before the one that was started before it is told to."""
    farewell = (
        "def leave(*_):\n    print('stopping'); time.sleep(0.1); print('stopped'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave)\n"
    )
    script = f"import os, sys, time, signal\n{farewell}{READY}\n{SLEEP}"
    async with Supervisor(on_line=told) as running:
        await running.start(part("one", script))
        await running.start_all([part("two", script), part("three", script)])
    names = ("three", "two", "one")
    assert told.lines == [(name, word) for name in names for word in ("stopping", "stopped")]


async def test_a_stubborn_part_is_killed(told: Told) -> None:
    """A part that ignores SIGTERM is killed after its grace."""
    async with Supervisor(on_line=told, stop_grace_s=0.3) as running:
        await running.start(part("one", STUBBORN))
        pid = pid_of(running, "one")
        clock = asyncio.get_running_loop()
        left_at = clock.time()
    assert is_reaped(pid)
    assert 0.3 <= clock.time() - left_at < 2


async def test_a_cancel_stops_all(told: Told) -> None:
    """A cancelled owner leaves no process, and a second cancel takes the grace from all."""
    pids: list[int] = []

    async def own() -> None:
        async with Supervisor(on_line=told, stop_grace_s=60) as running:
            await running.start_all([part("one", STUBBORN), part("two", STUBBORN)])
            pids.extend(pid_of(running, name) for name in ("one", "two"))
            await asyncio.Event().wait()

    owner = asyncio.create_task(own())
    await until(lambda: len(pids) == 2)
    owner.cancel()
    await asyncio.wait({owner}, timeout=0.2)
    assert not owner.done(), "it waits for the stubborn ones"
    owner.cancel()
    await asyncio.wait({owner}, timeout=3)
    assert owner.cancelled()
    assert all(is_reaped(pid) for pid in pids)


async def test_a_silent_part_is_stopped_too(told: Told) -> None:
    """A part that has closed its output is still stopped, and killed if it must be."""
    script = STUBBORN.replace(SLEEP, "os.close(1); os.close(2);" + SLEEP)
    async with Supervisor(on_line=told, stop_grace_s=0.2) as running:
        await running.start(part("one", script))
        pid = pid_of(running, "one")
    assert is_reaped(pid)


async def test_a_cancel_while_it_starts_leaves_nothing(told: Told) -> None:
    """A `start` that is cancelled ends what it has started."""
    async with Supervisor(on_line=told) as running:
        script = f"import os, time; print(os.getpid()); {SLEEP}"
        starting = asyncio.create_task(running.start(part("one", script)))
        await until(lambda: bool(told.lines))
        starting.cancel()
        await asyncio.wait({starting}, timeout=2)
        assert starting.cancelled()
        assert is_reaped(int(told.lines[0][1]))


async def test_one_failure_of_many_is_the_error(told: Told) -> None:
    """Of parts started side by side, one that fails is the error; the others are stopped."""
    slow = f"import os, time; print(os.getpid()); {SLEEP}"
    bad = "import time; time.sleep(0.3); print('broken'); raise SystemExit(1)"
    async with Supervisor(on_line=told) as running:
        with pytest.raises(PartFailedError, match=r"^bad ended before it was ready.*broken$"):
            await running.start_all([part("slow", slow), part("bad", bad)])
        assert running.pid("slow") is None
        slow_pid = next(int(line) for name, line in told.lines if name == "slow")
        assert is_reaped(slow_pid)


async def test_a_broken_listener_is_an_error_at_the_end() -> None:
    """What `on_line` raises is raised when all has stopped; until then the output is read on."""
    pids: list[int] = []

    def fail(name: str, line: str) -> None:
        raise ZeroDivisionError(line)

    async def run() -> None:
        async with Supervisor(on_line=fail) as running:
            # More than a pipe and the reader's buffer hold.
            script = "for _ in range(40_000): print('x' * 100)\n" + READY + SLEEP
            await running.start(part("one", script), ready_timeout_s=5)
            pids.append(pid_of(running, "one"))

    with pytest.raises(ZeroDivisionError):
        await run()
    assert is_reaped(pids[0])


PARENT = f"""
import asyncio, sys
from mesh.supervisor import Part, Supervisor

async def main():
    async with Supervisor(on_line=print) as running:
        await running.start(Part("one", (sys.executable, "-S", "-c", {READY + SLEEP!r})))
        print(running.pid("one"), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@linux_only
async def test_parts_never_outlive_the_parent() -> None:
    """After kill -9 of the parent its parts end."""
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT), stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert is_running(pid)
    parent.kill()
    await parent.wait()
    await until(lambda: not is_running(pid), within_s=10)
