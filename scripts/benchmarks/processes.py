"""The processes of a bench, the mesh among them: started, waited for, looked at, ended."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mesh.child import Child
from scripts.benchmarks.resources import commands_below

ROOT: Final = Path(__file__).parents[2]
START_S: Final = 120.0
STOP_S: Final = 20.0
SPARING: Final = {"MESH_UNKNOWN_AGENT_GRACE_S": "86400"}
"""For a control plane: agents by hand are in no registry, and what they are asked would be buried
when some scans in a row find it in their mailboxes."""


class BenchError(Exception):
    """The bench cannot go on; the message says why."""


@dataclass(slots=True)
class Spoken:
    """What a process has printed so far."""

    name: str
    pid: int = 0
    lines: list[str] = field(default_factory=list)
    was_killed: bool = False
    """On purpose, by `kill`."""
    exit_code: int | None = None
    """None while it runs."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self.was_killed = True
        os.kill(self.pid, signal.SIGKILL)

    def hear(self, line: str) -> None:
        """Take in a line."""
        self.lines.append(line)
        self._news.set()

    async def hear_end(self, child: Child) -> None:
        """Take in that the process has ended, once all that it said is heard."""
        self.exit_code = await child.wait_for_all()
        self._news.set()

    async def says(self, pattern: str, *, within_s: float = START_S) -> str:
        """Wait for a line that matches, and return its first group, or the whole match.

        Raises:
            BenchError: it does not come in time, or the process has ended without it.
        """
        try:
            async with asyncio.timeout(within_s):
                while (found := self._find(pattern)) is None and self.exit_code is None:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise self.failure(f"did not say {pattern!r} within {within_s:g} s") from None
        if found is None:
            raise self.failure(f"ended with {self.exit_code}, and did not say {pattern!r}")
        return found

    def _find(self, pattern: str) -> str | None:
        for line in self.lines:
            if found := re.search(pattern, line):
                return found[found.lastindex or 0]
        return None

    def failure(self, what: str) -> BenchError:
        """Return an error that tells what is wrong, and what the process has said last."""
        said = "\n  ".join(self.lines[-20:])
        return BenchError(f"{self.name} {what}:\n  {said}")


def tell(measured: Mapping[str, float]) -> None:
    """Print what this process has measured, for the bench that has started it."""
    print(json.dumps(measured), flush=True)


async def told_by(child: Spoken, *, within_s: float = START_S) -> dict[str, float]:
    """Return what a process has measured.

    Raises:
        BenchError: it does not tell in time.
    """
    found: dict[str, float] = json.loads(await child.says(r"^\{.*\}$", within_s=within_s))
    return found


@asynccontextmanager
async def running(
    name: str, command: Sequence[str | Path], **environ: str
) -> AsyncIterator[Spoken]:
    """Run a process to the end of the block. `environ` is added to a clean environment."""
    spoken = Spoken(name)
    child = await Child.start(command, spoken.hear, environ={**clean_environ(), **environ})
    spoken.pid = child.pid
    ending = asyncio.create_task(spoken.hear_end(child))
    try:
        yield spoken
        if child.returncode and not spoken.was_killed:
            raise spoken.failure(f"failed (exit code {child.returncode})")
    finally:
        await child.stop(STOP_S)
        ending.cancel()


def python(module: str, *arguments: str, venv: str = "") -> list[str]:
    """Return the command that runs a module: in this Python, or in another environment's."""
    interpreter = str(ROOT / venv / "bin" / "python") if venv else sys.executable
    return [interpreter, "-m", module, *arguments]


@dataclass(frozen=True, slots=True)
class Tree:
    """A checkout whose mesh is run."""

    folder: Path
    """Where its packages `mesh`, `handlers` and `schemas` are, and this bench as `scripts`."""

    @property
    def environ(self) -> dict[str, str]:
        """What its processes need in their environment."""
        return {"PYTHONPATH": str(self.folder)}

    def python(self, module: str, *arguments: str) -> list[str]:
        """Return the command that runs a module of this checkout, in its folder."""
        command = python(module, *arguments)
        return command if self.folder == ROOT else ["env", "-C", str(self.folder), *command]


HERE: Final = Tree(ROOT)


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
    pid: int
    """Of `mesh up` itself, the parent of the others."""

    @property
    def broker_pid(self) -> int:
        """The process of the broker that runs now."""
        return _pid_below(self.pid, lambda command: "nats-server" in command[0])

    @property
    def control_pid(self) -> int:
        """The process of the control plane."""
        return _pid_below(self.pid, lambda command: command[-2:] == ["up", "control"])

    @property
    def http_pid(self) -> int:
        """The process of the door."""
        return _pid_below(self.pid, lambda command: command[-2:] == ["up", "http"])


@asynccontextmanager
async def mesh_up(folder: Path, tree: Tree = HERE) -> AsyncIterator[Mesh]:
    """Run `mesh up` on free ports, with its data in `folder`, and wait until it is ready."""
    async with starting_mesh(folder, tree=tree) as said:
        nats_url = await said.says(r"NATS\s+(nats://\S+)")
        http_url = await said.says(r"OpenAI\s+(http://\S+)/v1")
        yield Mesh(nats_url, http_url, said.pid)


def starting_mesh(
    folder: Path, *, port: int = 0, tree: Tree = HERE
) -> AbstractAsyncContextManager[Spoken]:
    """Run `mesh up`, with its broker on `port`, and wait for nothing."""
    environ = {
        "MESH_DATA_DIR": str(folder),
        "MESH_NODE": "node1",
        "MESH_NATS_PORT": str(port),
        "MESH_NATS_MONITOR_PORT": "0",
        "MESH_HTTP_PORTS": "0",
        **SPARING,
    }
    return running("mesh up", tree.python("mesh", "up"), **environ, **tree.environ)


@asynccontextmanager
async def mesh_run(
    nats_url: str, target: str, *ids: str, tree: Tree = HERE
) -> AsyncIterator[Spoken]:
    """Run the agents `ids` of `module:attribute` with `mesh run`, and wait until they answer."""
    async with starting_host(nats_url, target, tree=tree) as said:
        for agent in ids:
            await said.says(f"agent {agent} runs on")
        yield said


def starting_host(
    nats_url: str, target: str, *, tree: Tree = HERE
) -> AbstractAsyncContextManager[Spoken]:
    """Run `mesh run`, and wait for nothing."""
    environ = {"MESH_NATS_URL": nats_url, "MESH_NODE": "node1", **tree.environ}
    return running("mesh run", tree.python("mesh", "run", target), **environ)


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:  # All open at once, so that no port comes twice.
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _pid_below(pid: int, is_wanted: Callable[[list[str]], bool]) -> int:
    for one, command in commands_below(pid):
        if command and is_wanted(command):
            return one
    raise BenchError(f"process {pid} has not started what was expected")
