"""One parent and its processes: made ready, and started again when they die."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from mesh import supervisor
from mesh.errors import PartFailedError
from mesh.supervisor import Part, Supervisor, report_ready
from tests.children import READY, REPOSITORY, SLEEP, Told, is_reaped, is_running, part, pid_of
from tests.conftest import until


@pytest.fixture
def told() -> Told:
    """A listener that keeps all lines."""
    return Told()


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
        await until(lambda: told.has("one", "started again"), within_s=10)
        orphan = int((tmp_path / "pid").read_text().splitlines()[0])
        await until(lambda: not is_running(orphan), within_s=10)


async def test_parts_start_side_by_side(told: Told, tmp_path: Path) -> None:
    """Parts that wait for each other all become ready."""
    os.mkfifo(tmp_path / "meeting")
    # Either end of the pipe opens when the other one does.
    ends = [f"open({str(tmp_path / 'meeting')!r}, {mode!r});" for mode in ("rb", "wb")]
    async with Supervisor(on_line=told) as running:
        parts = [part(str(number), end + READY + SLEEP) for number, end in enumerate(ends)]
        await asyncio.wait_for(running.start_all(parts), 30)


async def test_a_line_without_end_does_no_harm(told: Told) -> None:
    """A part that prints megabytes without a line end is read on, and so is what follows."""
    script = "print('x' * 3_000_000); print('after');" + "import sys; sys.stdout.flush();" + READY
    async with Supervisor(on_line=told, restart=False) as running:
        await running.start(part("one", script))
        await until(lambda: told.has("one", "^after$"))
    assert told.has("one", "part of a line of more than 1 MB")
