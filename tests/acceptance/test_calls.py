"""Calls that were begun elsewhere: shown, waited for, stopped, from the command line."""

import json
import signal
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.conftest import Mesh
from tests.conftest import until

HELD_AGENT = """
import asyncio, os
from pathlib import Path
from mesh import Agent, ChatRequest

agent = Agent(os.environ["WHO"])

@agent.chat
async def answer(request: ChatRequest) -> str:
    print("at work", flush=True)
    try:
        while not Path("go").exists():
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        print("stopped", flush=True)
        raise
    if request.last_text == "fail":
        raise ValueError("cloudy")
    return "done at last"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the agent lives, and where `go` lets it go on."""
    (tmp_path / "held_agent.py").write_text(HELD_AGENT)
    return tmp_path


async def background(mesh: Mesh, agent: str, text: str = "x") -> str:
    """Begin a call that nobody waits for, and return its id."""
    messages = [{"role": "user", "content": text}]
    body = {"model": agent, "messages": messages, "background": True}
    call_id = ""
    async with httpx2.AsyncClient(trust_env=False) as client:

        async def is_taken() -> bool:
            nonlocal call_id
            answer = await client.post(f"{mesh.http_url}/chat/completions", json=body)
            call_id = answer.headers.get("mesh-call-id", "")
            return answer.status_code == 202

        await until(is_taken)
    return call_id


async def test_a_call_is_shown_and_waited_for(mesh: Mesh, folder: Path) -> None:
    """While it runs, and with its answer; for people and for programs."""
    environ = {"TEST_CWD": str(folder), "WHO": "held-1"}
    async with mesh.start("run", "held_agent:agent", **environ) as host:
        await host.says("agent held-1 runs")
        call_id = await background(mesh, "held-1")
        await host.says("at work")
        shown = json.loads((await mesh.run("call", call_id, "--wait", "0.5", "--json")).out)
        assert (shown["call_id"], shown["state"], shown["agent"]) == (call_id, "working", "held-1")
        assert (shown["node"], shown["attempt"], shown["content"]) == ("node1", 1, None)
        (folder / "go").touch()
        done = await mesh.run("call", call_id, "--wait", "20")
    assert done.code == 0
    facts = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert (facts["state"], facts["content"]) == ("answered", "done at last")


async def test_a_call_that_failed(mesh: Mesh, folder: Path) -> None:
    """The exit code tells, and the reason is shown."""
    (folder / "go").touch()
    environ = {"TEST_CWD": str(folder), "WHO": "held-2"}
    async with mesh.start("run", "held_agent:agent", **environ) as host:
        await host.says("agent held-2 runs")
        done = await mesh.run("call", await background(mesh, "held-2", "fail"), "--wait", "20")
    assert done.code == 1
    assert "state        failed" in done.out
    assert "agent_failed: ValueError: cloudy" in done.out


async def test_a_call_is_cancelled(mesh: Mesh, folder: Path) -> None:
    """The handler is stopped; a second cancel changes nothing."""
    environ = {"TEST_CWD": str(folder), "WHO": "held-3"}
    async with mesh.start("run", "held_agent:agent", **environ) as host:
        await host.says("agent held-3 runs")
        call_id = await background(mesh, "held-3")
        await host.says("at work")
        for _ in range(2):
            done = await mesh.run("cancel", call_id, "--json")
            assert (done.code, json.loads(done.out)["state"]) == (0, "cancelled")
        await host.says("stopped")
    assert (await mesh.run("call", call_id)).code == 1


async def test_ctrl_c_cancels_what_was_asked(mesh: Mesh, folder: Path) -> None:
    """`mesh send` leaves no agent at work behind."""
    environ = {"TEST_CWD": str(folder), "WHO": "held-4"}
    async with mesh.start("run", "held_agent:agent", **environ) as host:
        await host.says("agent held-4 runs")
        async with mesh.start("send", "held-4", "x") as sender:
            await host.says("at work")
            assert await sender.stop(signal.SIGINT) == 130
        await host.says("stopped")


async def test_calls_that_are_not_there(mesh: Mesh) -> None:
    """Unknown is exit code 3, impossible 2, no broker 6: one line each."""
    for command in ("call", "cancel"):
        for call_id, code in (("f" * 32, 3), ("a.b", 2), ("*", 2)):
            done = await mesh.run(command, call_id)
            assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done
        done = await mesh.run(command, "f" * 32, MESH_NATS_URL="nats://127.0.0.1:9")
        assert (done.code, done.err.count("\n")) == (6, 1)
