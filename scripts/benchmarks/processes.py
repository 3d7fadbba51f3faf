"""The processes of a bench, the mesh among them: started, waited for, looked at, ended."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mesh.child import Child

ROOT: Final = Path(__file__).parents[2]
START_S: Final = 120.0
STOP_S: Final = 20.0


class BenchError(Exception):
    """The bench cannot go on; the message says why."""


@dataclass(slots=True)
class Spoken:
    """What a process has printed so far."""

    name: str
    lines: list[str] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, line: str) -> None:
        """Take in a line."""
        self.lines.append(line)
        self._news.set()

    async def says(self, pattern: str, *, within_s: float = START_S) -> str:
        """Wait for a line that matches, and return its first group, or the whole match.

        Raises:
            BenchError: it does not come in time.
        """
        try:
            async with asyncio.timeout(within_s):
                while True:
                    for line in self.lines:
                        if found := re.search(pattern, line):
                            return found[found.lastindex or 0]
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            said = "\n  ".join(self.lines[-20:])
            message = f"{self.name} did not say {pattern!r} within {within_s:g} s:\n  {said}"
            raise BenchError(message) from None


@asynccontextmanager
async def running(
    name: str, command: Sequence[str | Path], **environ: str
) -> AsyncIterator[Spoken]:
    """Run a process to the end of the block. `environ` is added to a clean environment."""
    spoken = Spoken(name)
    child = await Child.start(command, spoken.hear, environ={**clean_environ(), **environ})
    try:
        yield spoken
        if child.returncode:
            said = "\n  ".join(spoken.lines[-20:])
            raise BenchError(f"{name} failed (exit code {child.returncode}):\n  {said}")
    finally:
        await child.stop(STOP_S)


def python(module: str, *arguments: str, venv: str = "") -> list[str]:
    """Return the command that runs a module: in this Python, or in another environment's."""
    interpreter = str(ROOT / venv / "bin" / "python") if venv else sys.executable
    return [interpreter, "-m", module, *arguments]


def clean_environ() -> dict[str, str]:
    """Return our environment without any settings of the mesh."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, slots=True)
class Mesh:
    """A mesh that is up."""

    nats_url: str
    http_url: str
    """Without the `/v1`."""
    http_pid: int


@asynccontextmanager
async def mesh_up(folder: Path) -> AsyncIterator[Mesh]:
    """Run `mesh up` on free ports, with its data in `folder`."""
    environ = {
        "MESH_DATA_DIR": str(folder),
        "MESH_NODE": "node1",
        "MESH_NATS_PORT": "0",
        "MESH_NATS_MONITOR_PORT": "0",
        "MESH_HTTP_PORTS": "0",
    }
    async with running("mesh up", python("mesh", "up"), **environ) as said:
        nats_url = await said.says(r"NATS\s+(nats://\S+)")
        http_url = await said.says(r"OpenAI\s+(http://\S+)/v1")
        yield Mesh(nats_url, http_url, _pid_of("mesh", "up", "http"))


@asynccontextmanager
async def mesh_run(mesh: Mesh, target: str, *ids: str) -> AsyncIterator[None]:
    """Run the agents `ids` of `module:attribute` with `mesh run`."""
    environ = {"MESH_NATS_URL": mesh.nats_url, "MESH_NODE": "node1"}
    async with running("mesh run", python("mesh", "run", target), **environ) as said:
        for agent in ids:
            await said.says(f"agent {agent} runs on")
        yield


def _pid_of(*arguments: str) -> int:
    """Return the process among our descendants whose command ends with `arguments`."""
    wanted = [argument.encode() for argument in arguments]
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or not _is_ours(int(folder.name)):
            continue
        command = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
        if command[-len(wanted) :] == wanted:
            return int(folder.name)
    raise BenchError(f"no process of ours runs {' '.join(arguments)}")


def _is_ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(_status(pid, "PPid"))
        except OSError:
            return False
    return False


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process, in MB of a million bytes."""
    return int(_status(pid, "VmRSS").removesuffix("kB")) * 1024 / 1e6


def _status(pid: int, name: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s*(.*)$", text, re.MULTILINE)
    if found is None:
        raise BenchError(f"/proc/{pid}/status has no {name}")
    return found[1].strip()
