"""One parent and the processes it keeps running.

Starts parts, waits until they say that they are ready, passes on what they print, starts again
what dies, and stops all in reverse order. Knows no part of the mesh: which ones there are stands
in `mesh.cli`; the broker has its own module, for nobody may start that again behind our back.
"""

import asyncio
import ctypes
import os
import signal
import stat
import sys
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

from mesh.errors import MeshError, PartFailedError

READY_VARIABLE: Final = "MESH_READY_FD"
BACK_OFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""The pause before each start again; the last one repeats."""
STEADY_S: Final = 30.0
"""A process that lived this long has the back-off begin anew when it dies."""

OnLine = Callable[[str, str], None]
"""Is told the name of a part and a line: one that it printed, or news about it."""

_LAST_LINES: Final = 20
_LINE_LIMIT_BYTES: Final = 1_000_000
_READY_LINE: Final = b"ready\n"


def report_ready(environ: MutableMapping[str, str] = os.environ) -> None:
    """Tell the supervisor, if there is one, that this process is ready. Never fails.

    Takes the variable out of `environ`: the second call and our own children find none.
    """
    number = environ.pop(READY_VARIABLE, "")
    if not number.isdecimal():
        return
    with suppress(OSError, OverflowError):
        # A variable that was inherited too far may name another file by now.
        if stat.S_ISFIFO(os.fstat(int(number)).st_mode):
            os.write(int(number), _READY_LINE)
            os.close(int(number))


@dataclass(frozen=True, slots=True)
class Part:
    """A process to keep running. `environ` is added to the environment of this process."""

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)


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
        self._children: dict[str, _Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._broken: Exception | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        children = list(reversed(self._children.values()))
        try:
            if self._keepers:
                await asyncio.wait(self._keepers)
            for child in children:
                await child.stop(self._stop_grace_s)
        finally:
            await asyncio.gather(*(child.stop(0) for child in children))
        if self._broken is not None:
            raise self._broken

    async def start(self, part: Part, *, ready_timeout_s: float = 20.0) -> None:
        """Start a part, and return when it has called `report_ready`.

        Raises:
            PartFailedError: it ended before, could not be executed, or took too long.
            MeshError: a part of this name has been started.
        """
        if part.name in self._children:
            raise MeshError(f"{part.name} is started already: give the part another name")
        child = _Child(part, ready_timeout_s, self._tell)
        self._children[part.name] = child
        try:
            await child.launch(self._stop_grace_s)
        except PartFailedError:
            del self._children[part.name]
            raise
        self._keepers.append(asyncio.create_task(self._keep(child)))

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
        child = self._children.get(name)
        return child.pid if child else None

    async def _keep(self, child: "_Child") -> None:
        deaths = 0
        how = await child.ended()
        while self._restart:
            deaths = 0 if child.age_s >= STEADY_S else deaths
            pause_s = BACK_OFF_S[min(deaths, len(BACK_OFF_S) - 1)]
            deaths += 1
            self._tell(child.part.name, f"{how}; starting again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            try:
                await child.launch(self._stop_grace_s)
                self._tell(child.part.name, f"started again (process {child.pid})")
                how = await child.ended()
            except PartFailedError as error:
                how = error.message
        self._tell(child.part.name, f"{how}; it is not started again")

    def _tell(self, name: str, line: str) -> None:
        if self._broken is None:
            try:
                self._on_line(name, line)
            except Exception as error:  # noqa: BLE001 - kept, and raised when the context ends
                self._broken = error
