"""One parent and the processes it keeps running.

Starts parts, waits until they say that they are ready, passes on what they print, starts again
what dies, and stops all in reverse order. Knows no part of the mesh (`mesh.cli` does), and does
not run the broker (`mesh.broker` does).
"""

import asyncio
import os
import signal
import stat
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

from mesh.child import Child, Pipe
from mesh.errors import PartFailedError

BACK_OFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
STEADY_S: Final = 30.0
"""Who lived this long begins with the first pause again."""

OnLine = Callable[[str, str], None]
"""Is told the name of a part and a line: one that it printed, or news about it."""
_READY_VARIABLE: Final = "MESH_READY_FD"


def report_ready(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Tell the supervisor, if there is one, that this process is ready. Never fails.

    Returns whether there is one.

    Takes the variable out of `environ`: the second call and our own children find none.
    """
    with suppress(OSError, ValueError, OverflowError):
        ready_fd = int(environ.pop(_READY_VARIABLE, ""))
        # A variable that was inherited too far may name another file by now.
        if stat.S_ISFIFO(os.fstat(ready_fd).st_mode):
            os.write(ready_fd, b"ready\n")
            os.close(ready_fd)
            return True
    return False


@dataclass(frozen=True, slots=True)
class Part:
    """A process to keep running. `environ` is added to the environment of this process."""

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    hopeless: frozenset[int] = frozenset()
    """Exit codes with which it is not started again: what is wrong will not mend itself."""


class Supervisor:
    """Keeps parts running for the length of its context.

    Leaving it stops them in reverse order of their start: SIGTERM, `stop_grace_s`, SIGKILL. A
    cancel while it waits takes the grace from all that are left. On Linux they also end when the
    thread that runs the event loop dies, by kill -9 too.
    """

    def __init__(
        self, *, on_line: OnLine, restart: bool = True, stop_grace_s: float = 10.0
    ) -> None:
        self._on_line = on_line
        self._restart = restart
        self._stop_grace_s = stop_grace_s
        self.gave_up = asyncio.Event()
        """Set when a part is hopeless."""
        self._runners: list[_Runner] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._broken: Exception | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        runners = self._runners[::-1]
        try:
            await asyncio.gather(*self._keepers, return_exceptions=True)
            for runner in runners:
                await runner.stop()
        finally:
            for runner in runners:
                runner.kill()
            await asyncio.gather(*(runner.stop() for runner in runners))
        if self._broken is not None:
            raise self._broken

    async def start(self, part: Part, *, ready_timeout_s: float = 60.0) -> None:
        """Start a part, and return when it has called `report_ready`.

        Raises:
            PartFailedError: it ended before, could not be executed, or took too long.
        """
        runner = _Runner(part, self._tell, ready_timeout_s, self._stop_grace_s)
        self._runners.append(runner)
        try:
            await runner.launch()
        except BaseException:
            self._runners.remove(runner)
            raise
        self._keepers.append(asyncio.create_task(self._keep(runner)))

    async def start_all(self, parts: Sequence[Part]) -> None:
        """Start parts side by side, and return when all are ready.

        Raises:
            PartFailedError: one of them did not become ready; none is waited for any more.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(self.start(part))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def pid(self, name: str) -> int | None:
        """Return the process id of a part, or None while it does not run."""
        return next((runner.pid for runner in self._runners if runner.part.name == name), None)

    async def _keep(self, runner: "_Runner") -> None:
        deaths = 0
        how = await runner.ended()
        while self._restart:
            deaths = 0 if time.monotonic() - runner.started_at >= STEADY_S else deaths
            pause_s = BACK_OFF_S[min(deaths, len(BACK_OFF_S) - 1)]
            deaths += 1
            self._tell(runner.part.name, f"{how}; starting again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            try:
                await runner.launch()
                self._tell(runner.part.name, f"started again (process {runner.pid})")
                how = await runner.ended()
            except PartFailedError as error:
                how = error.message
                if error.fields.get("exit_code") in runner.part.hopeless:
                    self.gave_up.set()
                    break
        self._tell(runner.part.name, f"{how}; it is not started again")

    def _tell(self, name: str, line: str) -> None:
        if self._broken is None:
            try:
                self._on_line(name, line)
            except Exception as error:  # noqa: BLE001 - kept, and raised when the context ends
                self._broken = error


class _Runner:
    """One part, and the process that runs it at the moment."""

    def __init__(self, part: Part, tell: OnLine, ready_timeout_s: float, grace_s: float) -> None:
        self.part = part
        self._tell = tell
        self._ready_timeout_s = ready_timeout_s
        self._grace_s = grace_s
        self._child: Child | None = None
        self._last_lines: deque[str] = deque(maxlen=20)
        self.started_at = 0.0

    @property
    def pid(self) -> int | None:
        child = self._child
        return child.pid if child and child.returncode is None else None

    async def launch(self) -> None:
        """Start the process and wait until it is ready. If that fails, nothing of it is left."""
        self._last_lines.clear()
        self.started_at = time.monotonic()
        ready = await Pipe.open()
        try:
            self._child = child = await self._spawn(ready)
            if not await self._is_ready(child, ready):
                raise await self._never_ready(child.returncode)
        except BaseException:
            await self.stop()
            raise
        finally:
            ready.close_reading()

    async def ended(self) -> str:
        """Wait for the end of the process and of its output, and tell how it ended."""
        assert self._child is not None
        code = await self._child.wait()
        await self.stop()
        return f"ended ({_ending(code)})"

    async def stop(self) -> None:
        """Stop the process, and kill all that it left behind."""
        if self._child is not None:
            await self._child.stop(self._grace_s)

    def kill(self) -> None:
        """Kill the process and its group, without waiting."""
        if self._child is not None:
            self._child.kill()

    async def _spawn(self, ready: Pipe) -> Child:
        # Without PYTHONUNBUFFERED, lines in a pipe come kilobytes late.
        environ = {"PYTHONUNBUFFERED": "1", **os.environ, **self.part.environ}
        environ[_READY_VARIABLE] = str(ready.write_fd)
        try:
            return await Child.start(
                self.part.command, self._read, environ=environ, pass_fds=(ready.write_fd,)
            )
        except OSError as error:
            raise self._failure(f"could not be started: {error}", None) from error
        finally:
            ready.close_writing()

    def _read(self, line: str) -> None:
        self._last_lines.append(line)
        self._tell(self.part.name, line)

    async def _is_ready(self, child: Child, ready: Pipe) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._ready_timeout_s):
                if await ready.stream.read(6) == b"ready\n":
                    return True
                # It closed the pipe without a word: most likely it is about to end.
                await child.wait()
        return False

    async def _never_ready(self, code: int | None) -> PartFailedError:
        await self.stop()
        if code is None:
            return self._failure(f"was not ready in {self._ready_timeout_s:g} s", code)
        return self._failure(f"ended before it was ready ({_ending(code)})", code)

    def _failure(self, what: str, code: int | None) -> PartFailedError:
        name, lines = self.part.name, tuple(self._last_lines)
        message = ": ".join((f"{name} {what}", *lines[-1:]))
        return PartFailedError(message, name=name, exit_code=code, last_lines=lines)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
