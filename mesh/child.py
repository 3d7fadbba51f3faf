"""One child process of ours: what it prints is read line by line, and nothing of it is left.

Does not know what the lines mean, when the process is ready, or whether it is started again:
`mesh.broker` and `mesh.supervisor` do.
"""

import asyncio
import ctypes
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_MAX_LINE_BYTES: Final = 1_000_000
_LAST_WORDS_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Pipe:
    """A pipe whose writing end a child gets. Who opens it closes both ends."""

    stream: asyncio.StreamReader
    write_fd: int
    _transport: asyncio.ReadTransport

    @classmethod
    async def open(cls) -> "Pipe":
        """Open a pipe, to be read by this event loop."""
        read_fd, write_fd = os.pipe()
        stream = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(read_fd, "rb", buffering=0)
        )
        return cls(stream, write_fd, transport)

    async def next_line(self) -> bytes:
        """Return a line with its end, or b"" when all writers have gone."""
        try:
            return await self.stream.readline()
        except ValueError:
            return b"(part of a line of more than 1 MB)"

    def close_writing(self) -> None:
        """Close our copy of the child's end: with it open, the pipe would never end. Once only."""
        os.close(self.write_fd)

    def close_reading(self) -> None:
        """Close the end that we read."""
        self._transport.close()


class Child:
    """A process that runs or has run. Whoever started it calls `stop`, also when it has ended.

    It leads a session and a group of its own: Ctrl-C in the terminal does not reach it. On Linux
    it gets SIGTERM when the thread that started it dies, by kill -9 too.
    """

    def __init__(self, process: Process, output: Pipe, on_line: Callable[[str], None]) -> None:
        self._process = process
        self._on_line = on_line
        self._broken: Exception | None = None
        self._reading = asyncio.create_task(self._read(output))

    @classmethod
    async def start(
        cls,
        command: Sequence[str | Path],
        on_line: Callable[[str], None],
        *,
        environ: Mapping[str, str] | None = None,
        pass_fds: Collection[int] = (),
    ) -> Self:
        """Start a process. `on_line` is told every line of its output and errors, without its end.

        `environ` is its whole environment (None: ours), `pass_fds` are the files it inherits.

        Raises:
            OSError: it cannot be executed.
        """
        # Not asyncio's own pipe: `Process.wait` would wait for all who hold that one.
        output = await Pipe.open()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=DEVNULL,
                stdout=output.write_fd,
                stderr=STDOUT,
                env=environ,
                pass_fds=pass_fds,
                start_new_session=True,
                preexec_fn=_death_with_parent(),
            )
        except BaseException:
            output.close_reading()
            raise
        finally:
            output.close_writing()
        return cls(process, output, on_line)

    @property
    def pid(self) -> int:
        """The process id, which is the id of the group as well."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code (-9: killed by signal 9), or None while the process runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for the process to end, and return its exit code."""
        return await self._process.wait()

    async def wait_for_all(self) -> int:
        """Wait as well until nobody can print any more and all lines are told."""
        code = await self._process.wait()
        await asyncio.wait({self._reading})
        return code

    async def stop(self, grace_s: float, *, whole_group: bool = False) -> None:
        """End it: SIGTERM, `grace_s` (a cancel cuts it), SIGKILL to all that is left of its group.

        With `whole_group`, SIGTERM and grace are for all of the group: the process may be a
        wrapper. Then what `on_line` raised is raised; until then the output was read on, for a
        full pipe would have stopped the process.
        """
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._terminate(whole_group=whole_group)
        finally:
            self.kill()
            await self._process.wait()
            # Somebody who left the group may keep the pipe open for ever.
            await asyncio.wait({self._reading}, timeout=_LAST_WORDS_S)
            self._reading.cancel()
        if self._broken is not None:
            raise self._broken

    async def _terminate(self, *, whole_group: bool) -> None:
        if whole_group:
            self._signal_group(signal.SIGTERM)
            await self.wait_for_all()
        elif self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            await self.wait()

    def kill(self) -> None:
        """Send SIGKILL to the process and its group, and wait for nothing."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        # When the process and its pipe are gone, the id may be another group's.
        if self.returncode is None or not self._reading.done():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def _read(self, output: Pipe) -> None:
        try:
            while line := await output.next_line():
                self._tell(line.decode(errors="replace").rstrip())
        finally:
            output.close_reading()

    def _tell(self, line: str) -> None:
        if self._broken is None:
            try:
                self._on_line(line)
            except Exception as error:  # noqa: BLE001 - kept, and raised by `stop`
                self._broken = error


def _death_with_parent() -> Callable[[], None] | None:
    """What a child runs between fork and exec. Other systems have no such signal."""
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def ask() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return ask
