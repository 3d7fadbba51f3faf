"""One parent and its processes: made ready, started again, stopped in order, never left behind."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mesh import supervisor
from mesh.errors import PartFailedError
from mesh.supervisor import Part, Supervisor, report_ready
from tests.conftest import until

REPOSITORY = Path(__file__).parents[2]
READY = "import os, sys, time, signal; os.write(int(os.environ['MESH_READY_FD']), b'ready\\n');"
SLEEP = "time.sleep(60)"

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a feature of the Linux kernel")


class Told:
    """What the supervisor tells of its parts."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))

    def has(self, name: str, pattern: str) -> bool:
        return any(told == name and re.search(pattern, line) for told, line in self.lines)


@pytest.fixture
def told() -> Told:
    """A listener that keeps all lines."""
    return Told()


def part(name: str, script: str, **environ: str) -> Part:
    """A part in bare Python: it starts in 15 ms."""
    return Part(name, (sys.executable, "-S", "-c", script), environ)


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


def pid_of(running: Supervisor, name: str) -> int:
    pid = running.pid(name)
    assert pid is not None, f"{name} does not run"
    return pid


async def test_a_part_is_started_when_it_says_so(told: Told) -> None:
    """`start` returns with the part's word; what it prints is told with its name."""
    script = (
        "import time; time.sleep(0.2); print('out of', __import__('os').environ['PLACE']);"
        f"{READY} print('err', file=sys.stderr); {SLEEP}"
    )
    async with Supervisor(on_line=told) as running:
        await running.start(part("one", script, PLACE="Kyiv"))
        pid = pid_of(running, "one")
        await until(lambda: told.has("one", "^out of Kyiv$") and told.has("one", "^err$"))
        assert running.pid("two") is None
    assert is_reaped(pid)


async def test_parts_do_not_hear_ctrl_c(told: Told) -> None:
    """A part is in a session of its own: Ctrl-C reaches the parent alone."""
    async with Supervisor(on_line=told) as running:
        await running.start(part("one", READY + SLEEP))
        pid = pid_of(running, "one")
        assert os.getsid(pid) == pid


async def test_report_ready_is_heard(told: Told) -> None:
    """What our own processes call to say that they are ready makes `start` return."""
    script = "from mesh.supervisor import report_ready; report_ready()"
    spawned = Part("one", (sys.executable, "-c", script), {"PYTHONPATH": str(REPOSITORY)})
    async with Supervisor(on_line=told, restart=False) as running:
        await running.start(spawned)


def test_report_ready_speaks_once() -> None:
    """The word is written once, the pipe closed, and the variable taken away."""
    reading, writing = os.pipe()
    environ = {"MESH_READY_FD": str(writing)}
    report_ready(environ)
    report_ready(environ)
    assert environ == {}
    assert os.read(reading, 100) == b"ready\n"
    assert os.read(reading, 100) == b"", "the pipe is closed"
    os.close(reading)


@pytest.mark.parametrize("value", ["", "x", "-1", "987654", "9" * 40])
def test_report_ready_never_fails(value: str) -> None:
    """Without a supervisor, or with a useless variable, nothing happens."""
    report_ready({})
    report_ready({"MESH_READY_FD": value})


def test_report_ready_leaves_other_files_alone(tmp_path: Path) -> None:
    """A variable that was inherited too far does not write into a file that is no pipe."""
    with (tmp_path / "file").open("wb") as file:
        report_ready({"MESH_READY_FD": str(file.fileno())})
        file.write(b"mine")
    assert (tmp_path / "file").read_bytes() == b"mine"


async def test_report_ready_survives_a_supervisor_that_has_gone() -> None:
    """A pipe that nobody reads any more is no failure."""
    reading, writing = os.pipe()
    os.close(reading)
    report_ready({"MESH_READY_FD": str(writing)})


async def test_an_early_end_is_an_error(told: Told) -> None:
    """A part that ends before it is ready fails at once, with its code and last lines."""
    script = "print('first'); print('no such module'); raise SystemExit(3)"
    async with Supervisor(on_line=told) as running:
        with pytest.raises(PartFailedError) as caught:
            await running.start(part("one", script))
        assert running.pid("one") is None
        await running.start(part("one", READY + SLEEP))
        assert pid_of(running, "one"), "the name is free again"
    error = caught.value
    assert (error.name, error.exit_code) == ("one", 3)
    assert error.last_lines == ("first", "no such module")
    assert str(error) == "one ended before it was ready (exit code 3): no such module"


async def test_a_command_that_does_not_exist_is_an_error(told: Told) -> None:
    """A part that cannot be executed fails with the reason."""
    async with Supervisor(on_line=told) as running:
        with pytest.raises(PartFailedError, match=r"could not be started.*No such file") as caught:
            await running.start(Part("one", ("/no/such/program",)))
    assert caught.value.exit_code is None


async def test_a_part_that_is_never_ready_is_given_up(told: Told) -> None:
    """A part that takes too long fails, and its process is ended."""
    script = f"import os, time; print(os.getpid()); {SLEEP}"
    async with Supervisor(on_line=told) as running:
        with pytest.raises(PartFailedError, match=r"^one was not ready in 0\.3 s: \d+$"):
            await running.start(part("one", script), ready_timeout_s=0.3)
        assert is_reaped(int(told.lines[0][1]))


async def test_a_killed_part_is_started_again(told: Told) -> None:
    """After kill -9 a part comes back with a new process, and both are told."""
    async with Supervisor(on_line=told) as running:
        await running.start(part("one", READY + SLEEP))
        first = pid_of(running, "one")
        os.kill(first, signal.SIGKILL)
        await until(lambda: told.has("one", "started again"))
        second = pid_of(running, "one")
        assert second != first
        assert told.lines == [
            ("one", "ended (signal 9, Killed); starting again in 0.2 s"),
            ("one", f"started again (process {second})"),
        ]
    assert is_reaped(second)


async def test_pauses_grow_while_a_part_keeps_dying(told: Told) -> None:
    """A part that dies again and again is started after longer and longer pauses."""
    async with Supervisor(on_line=told) as running:
        await running.start(part("one", READY))
        await until(lambda: told.has("one", "in 1 s"))
    pauses = [line.split()[-2] for _, line in told.lines if "starting" in line]
    assert pauses == ["0.2", "0.5", "1"]


async def test_pauses_begin_anew_after_a_steady_life(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that lived long enough is started after the first pause again."""
    monkeypatch.setattr(supervisor, "STEADY_S", 0.0)
    async with Supervisor(on_line=told) as running:
        await running.start(part("one", READY))
        await until(lambda: sum("in 0.2 s" in line for _, line in told.lines) == 3)


async def test_a_start_again_that_fails_is_told_and_repeated(told: Told, tmp_path: Path) -> None:
    """A part that does not become ready any more is tried on; old lines are not its reason."""
    (tmp_path / "once").touch()
    check = "import os, sys; os.path.exists('once') or sys.exit(1); os.remove('once');"
    script = f"{check} print('from the first life');{READY}"
    command = ("/bin/sh", "-c", f'cd {tmp_path}; exec {sys.executable} -S -c "$0"', script)
    async with Supervisor(on_line=told) as running:
        await running.start(Part("one", command))
        await until(lambda: told.has("one", r"before it was ready \(exit code 1\); starting"))
        (tmp_path / "once").touch()
        await until(lambda: told.has("one", "started again"))


async def test_a_part_may_stay_dead(told: Told) -> None:
    """Without `restart`, a part that dies is told of and left."""
    async with Supervisor(on_line=told, restart=False) as running:
        await running.start(part("one", READY + "sys.exit(7)"))
        await until(lambda: told.has("one", "not started again"))
        assert told.lines == [("one", "ended (exit code 7); it is not started again")]
        assert running.pid("one") is None


async def test_a_crash_takes_its_own_children_along(told: Told, tmp_path: Path) -> None:
    """What a killed part had started does not delay its return, nor live on."""
    script = (
        READY + f"child = os.fork(); child or {SLEEP};"
        f"open({str(tmp_path / 'pid')!r}, 'a').write(f'{{child}}\\n');" + SLEEP
    )
    async with Supervisor(on_line=told) as running:
        await running.start(part("one", script))
        await until(lambda: (tmp_path / "pid").exists() and "\n" in (tmp_path / "pid").read_text())
        os.kill(pid_of(running, "one"), signal.SIGKILL)
        await until(lambda: told.has("one", "started again"), within_s=3)
        orphan = int((tmp_path / "pid").read_text().splitlines()[0])
        await until(lambda: not is_running(orphan), within_s=1)


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


STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + READY + SLEEP


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


async def test_parts_start_side_by_side(told: Told, tmp_path: Path) -> None:
    """Parts that wait for each other all become ready."""
    os.mkfifo(tmp_path / "meeting")
    # Either end of the pipe opens when the other one does.
    ends = [f"open({str(tmp_path / 'meeting')!r}, {mode!r});" for mode in ("rb", "wb")]
    async with Supervisor(on_line=told) as running:
        parts = [part(str(number), end + READY + SLEEP) for number, end in enumerate(ends)]
        await asyncio.wait_for(running.start_all(parts), 5)


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


async def test_a_line_without_end_does_no_harm(told: Told) -> None:
    """A part that prints megabytes without a line end is read on, and so is what follows."""
    script = "print('x' * 3_000_000); print('after');" + "import sys; sys.stdout.flush();" + READY
    async with Supervisor(on_line=told, restart=False) as running:
        await running.start(part("one", script))
        await until(lambda: told.has("one", "^after$"))
    assert told.has("one", "part of a line of more than 1 MB")


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
    await until(lambda: not is_running(pid), within_s=3)
