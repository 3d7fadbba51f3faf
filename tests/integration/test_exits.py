"""Ctrl-C ends a command, also one that has swallowed it once; and a program that has done its work
ends, whatever it has left running.
"""

import asyncio
import signal
import sys

import pytest

SCRIPT = """
import asyncio
from mesh.cli import exits

async def work():
    print("working", flush=True)
    for _ in range({swallowed}):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass  # As `asyncio.wait_for` does when its result is there, too.
    await asyncio.sleep(60)

exits.run(work())
"""

LEFT_RUNNING = """
import asyncio, sys
from mesh.agent import Agent
from mesh.connection import open_connection
from mesh.runtime import AgentHost
from mesh.settings import Settings

async def host(ready):
    agent = Agent(sys.argv[2])
    agent.chat(lambda request: "never asked")
    async with open_connection(sys.argv[1], name="left running") as connection:
        host = AgentHost(connection, [agent], node="node1", settings=Settings(nats_url=sys.argv[1]))
        running = asyncio.create_task(host.run(asyncio.Event()))
        await host.ready.wait()
        ready.set()
        await running

async def main():
    ready = asyncio.Event()
    kept = asyncio.create_task(host(ready))
    await ready.wait()

asyncio.run(main())
"""


async def test_a_program_ends_with_a_host_left_running(
    nats_url: str, control: asyncio.subprocess.Process, agent_id: str
) -> None:
    """`asyncio.run` cancels everything at once: nothing may wait for what has ended before it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LEFT_RUNNING, nats_url, agent_id),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, said.decode()


@pytest.mark.parametrize("swallowed", [0, 1, 2])
async def test_ctrl_c_ends_a_command(swallowed: int) -> None:
    """With 130, and no traceback."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SCRIPT.format(swallowed=swallowed)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"working\n"
    process.send_signal(signal.SIGINT)
    _, said = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, said) == (130, b"")
