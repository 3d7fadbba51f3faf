"""Measures how long a mesh takes to start, and what its processes take while nothing happens.

Real commands, as people type them: `mesh up` in a fresh folder, `mesh run`, `mesh send`; the broker
killed under all of them. Memory and processor time are those of idle processes.
"""

import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mesh import MeshClient, connect
from mesh.errors import MeshError
from scripts.benchmarks import references
from scripts.benchmarks.door import ECHO, fresh_mesh
from scripts.benchmarks.figures import NO_LIMIT, Figure, Limit, Row, report
from scripts.benchmarks.options import complete, parser
from scripts.benchmarks.peers import bare_agent, hundred_agents
from scripts.benchmarks.processes import (
    BenchError,
    Mesh,
    clean_environ,
    mesh_run,
    mesh_up,
    python,
    running,
    starting_host,
)
from scripts.benchmarks.resources import Memory, memory_of, percent_of_a_core, until_ended
from scripts.benchmarks.rounds import Measured, beside, in_turns

DESCRIPTION: Final = "Start-up times, and what idle processes take."
HUNDRED: Final = "scripts.benchmarks.peers.hundred_agents:agents"
HUNDRED_HOST: Final = "host of 100 agents"
SENDS: Final = 3
"""For each round of the others."""
POLL_S: Final = 0.005
PATIENCE_S: Final = 60.0
IDLE_S: Final = 30.0
SETTLE_S: Final = 5.0
MEMORY_GOAL: Final = Limit(most=80, unit="MB")
CPU_GOAL: Final = Limit(most=1, unit="%")


async def until_answered(client: MeshClient, agent: str = "echo") -> None:
    """Ask until there is an answer.

    Raises:
        BenchError: there is none within a minute.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            await client.ask(agent, "hello", timeout_s=PATIENCE_S)
            return
        except MeshError as error:  # Not registered yet, or no broker.
            if time.monotonic() > deadline:
                raise BenchError(f"{agent} does not answer: {error}") from error
            await asyncio.sleep(POLL_S)


async def whole_start() -> Measured:
    """Start a mesh in a fresh folder, and then an agent."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        async with mesh_up(Path(folder)) as mesh:
            ready_s = time.perf_counter() - start
            # Not at once: in a fresh folder `mesh run` ends when the broker has no streams yet.
            async with (
                starting_host(mesh.nats_url, ECHO),
                connect(mesh.nats_url, name="bencher", node="node1") as client,
            ):
                await until_answered(client)
                return {"ready": ready_s, "answered": time.perf_counter() - start}


async def host_start(mesh: Mesh, client: MeshClient) -> float:
    """Start an agent in a mesh that is up, and return the seconds to its first answer."""
    start = time.perf_counter()
    async with starting_host(mesh.nats_url, ECHO):
        await until_answered(client)
        return time.perf_counter() - start


async def broker_restart(mesh: Mesh, client: MeshClient) -> float:
    """Kill the broker, which `mesh up` starts again; return the seconds to the next answer."""
    pid = mesh.broker_pid
    start = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    await until_ended(pid)
    await until_answered(client)
    return time.perf_counter() - start


async def wall_s(command: Sequence[str], **environ: str) -> Measured:
    """Run a program to its end, and return the seconds that took.

    Raises:
        BenchError: it failed.
    """
    start = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**clean_environ(), **environ},
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise BenchError(f"{' '.join(command)}: {output.decode(errors='replace')}")
    return {"wall_ms": (time.perf_counter() - start) * 1e3}


async def sent(mesh: Mesh, rounds: int) -> list[Row]:
    """Compare `mesh send` with the same by hand, and with Python that does nothing."""
    commands = {
        "mesh send": python("mesh", "send", "echo", "hello"),
        "python -c pass": [sys.executable, "-c", "pass"],
        "a nats-py script": python(
            "scripts.benchmarks.peers.bare_send", mesh.nats_url, bare_agent.NAME, "hello"
        ),
    }

    async def run(name: str) -> Measured:
        return await wall_s(commands[name], MESH_NATS_URL=mesh.nats_url, MESH_NODE="node1")

    async with references.bare_agent_of(mesh):
        found = await in_turns(list(commands), rounds, run)
    ours, *others = found.items()
    return [
        row
        for name, reference in others
        for row in beside(f"mesh send, beside {name}", reference, ours[1], {"wall_ms": "ms"})
    ]


async def started(rounds: int) -> list[Row]:
    """Start and restart everything, so many times."""
    whole = [await whole_start() for _ in range(rounds)]
    async with (
        fresh_mesh() as mesh,
        connect(mesh.nats_url, name="bencher", node="node1") as client,
    ):
        hosts = [await host_start(mesh, client) for _ in range(rounds)]
        async with mesh_run(mesh.nats_url, ECHO, "echo"):
            await until_answered(client)
            restarts = [await broker_restart(mesh, client) for _ in range(rounds)]
            sends = await sent(mesh, rounds * SENDS)
    times = {
        "mesh up, a fresh folder: ready, s": [one["ready"] for one in whole],
        "mesh up, a fresh folder, then mesh run: first answer, s": [
            one["answered"] for one in whole
        ],
        "mesh run: first answer, s": hosts,
        "broker killed: next answer, s": restarts,
    }
    return [*(Figure(name, statistics.median(found)) for name, found in times.items()), *sends]


async def idle(for_s: float) -> list[Row]:
    """Look at processes that have nothing to do."""
    async with (
        fresh_mesh() as mesh,
        mesh_run(mesh.nats_url, ECHO, "echo") as one,
        mesh_run(mesh.nats_url, HUNDRED, *hundred_agents.IDS) as hundred,
        running("idle", python("scripts.benchmarks.peers.bare_idle", mesh.nats_url)) as bare,
    ):
        await bare.says("ready")
        await asyncio.sleep(SETTLE_S)
        pids = {
            "broker": mesh.broker_pid,
            "control plane": mesh.control_pid,
            "door": mesh.http_pid,
            "host of 1 agent": one.pid,
            HUNDRED_HOST: hundred.pid,
            "bare nats-py": bare.pid,
        }
        taken = await asyncio.gather(*(percent_of_a_core(pid, for_s) for pid in pids.values()))
        memories = {name: memory_of(pid) for name, pid in pids.items()}
    return [
        row
        for (name, memory), percent in zip(memories.items(), taken, strict=True)
        for row in idle_rows(name, memory, percent, is_judged=name == HUNDRED_HOST)
    ]


def idle_rows(name: str, memory: Memory, percent: float, *, is_judged: bool) -> list[Row]:
    """Show what one process takes."""
    return [
        Figure(f"idle {name}: RSS, MB", memory.rss_mb, MEMORY_GOAL if is_judged else NO_LIMIT),
        Figure(f"idle {name}: PSS, MB", memory.pss_mb),
        Figure(f"idle {name}: USS, MB", memory.uss_mb),
        Figure(f"idle {name}: % of a core", percent, CPU_GOAL if is_judged else NO_LIMIT),
    ]


async def run_bench(rounds: int, idle_s: float) -> list[Row]:
    """Measure starts, then idleness."""
    return [*await started(rounds), *await idle(idle_s)]


def main(arguments: list[str]) -> None:
    """Run, and print the table."""
    options = parser("starts", DESCRIPTION, rounds=5, is_scaled=False).parse_args(arguments)
    rounds, idle_s = (1, 2.0) if options.quick else (options.rounds, IDLE_S)
    rows = complete(run_bench(rounds, idle_s))
    report(rows, judge=not options.quick, as_json=options.json)
