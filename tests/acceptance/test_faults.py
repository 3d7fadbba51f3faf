"""Processes are killed, and calls go on."""

import asyncio
import os
import re
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import nats

from tests.acceptance.conftest import (
    SLOW_AGENT,
    Mesh,
    OwnMesh,
    clean_environ,
    run_mesh,
    running_mesh,
)
from tests.bare import connect_bare
from tests.conftest import until
from tests.pace import stopwatch


def child_pid(mesh: Mesh, words: str) -> int:
    """Find a child of `mesh up` by its command line."""
    children = Path(f"/proc/{mesh.up.process.pid}/task/{mesh.up.process.pid}/children")
    for pid in children.read_text().split():
        if words in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
            return int(pid)
    raise AssertionError(f"mesh up has no child {words!r}")


async def test_a_killed_agent_is_replaced_in_the_middle_of_a_call(
    own_mesh: OwnMesh, agents: dict[str, str]
) -> None:
    """kill -9 while it works: another instance answers, and the caller sees one answer."""
    async with own_mesh() as mesh:
        client = await connect_bare(mesh.nats_url)
        frames = await client.subscribe("delivered.cli.reply.>")
        async with mesh.start("run", "slow_agent:agent", WHO="first", STUCK="1", **agents) as one:
            await one.says("agent slow runs")
            asking = asyncio.create_task(mesh.run("send", "slow", "hi", "--timeout", "40"))
            await one.says("working attempt 1")
            await one.stop(signal.SIGKILL)
            async with mesh.start("run", "slow_agent:agent", WHO="second", **agents) as two:
                done = await asking
                assert (done.code, done.out) == (0, "answered by second, attempt 2\n"), done
                assert two.text.count("working") == 1
        seen = []
        while frames.pending_msgs:
            message = await frames.next_msg(timeout=30)
            seen.append(message.headers or {})
        assert [one["mesh-kind"] for one in seen].count("final") == 1, seen
        await client.close()
        told = await mesh.run("trace", seen[0]["correlation_id"])
        hops = re.findall(r"(?m)^ *(?:\S+ s)? +(stored|began|lost|answered|ack\w+)", told.out)
        # It was killed before it had to say that it works.
        assert hops == ["stored", "lost", "began", "answered", "acknowledged"], told.out
        assert "attempt 1 said nothing" in told.out
        assert re.search(r"began +attempt 2 on \S+ \[\w{8}\] +\((9|1\d)\.\d s later\)", told.out)


async def test_calls_go_on_without_a_control_plane(
    own_mesh: OwnMesh, agents: dict[str, str]
) -> None:
    """Registrar dead for longer than liveness lasts, a host restarted meanwhile: no call fails."""
    environ = {"WHO": "it", **agents}
    async with own_mesh() as mesh, mesh.start("run", "slow_agent:agent", **environ) as host:
        await host.says("agent slow runs")
        pid = child_pid(mesh, "up control")
        os.kill(pid, signal.SIGSTOP)  # A dead one would be started again by `mesh up`.
        try:
            await _call_for(mesh, seconds=3.0)
            assert (await host.stop()) == 0
            async with mesh.start("run", "slow_agent:agent", **environ) as again:
                await again.says("agent slow runs")
                await _call_for(mesh, seconds=3.0)
        finally:
            os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)
        await mesh.up.says("started again|starting again|restart")


async def _call_for(mesh: Mesh, *, seconds: float) -> None:
    """Call by command and over HTTP for a while; every call must be answered."""
    body = {"model": "slow", "messages": [{"role": "user", "content": "x"}]}
    end = asyncio.get_running_loop().time() + seconds
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
        while asyncio.get_running_loop().time() < end:
            done = await mesh.run("send", "slow", "x", "--timeout", "10")
            assert (done.code, done.err) == (0, ""), done
            response = await client.post(f"{mesh.http_url}/chat/completions", json=body)
            assert response.status_code == 200, response.text


async def test_a_killed_broker_is_started_again(own_mesh: OwnMesh, agents: dict[str, str]) -> None:
    """kill -9 of the broker while an agent works: the call is answered all the same."""
    async with (
        own_mesh() as mesh,
        mesh.start("run", "handlers.echo:agent") as host,
        mesh.start("run", "slow_agent:agent", WHO="it", STUCK="1", **agents) as slow,
    ):
        await host.says("agent echo runs")
        await slow.says("agent slow runs")
        asking = asyncio.create_task(mesh.run("send", "slow", "x", "--timeout", "8"))
        await slow.says("working attempt 1")
        os.kill(child_pid(mesh, "nats-server"), signal.SIGKILL)
        await mesh.up.says("the broker ended")

        async def answers() -> bool:
            return (await mesh.run("send", "echo", "back", "--timeout", "5")).out == "back\n"

        await until(answers, within_s=60)
        assert (await asking).code == 5, "its own deadline, told by its own clock"


async def test_what_was_sent_survives_a_restart_of_everything(
    tmp_path: Path, agents: dict[str, str]
) -> None:
    """A question in the mailbox is answered after `mesh up` was stopped and started again."""
    environ = clean_environ(tmp_path / "data")
    async with running_mesh(environ) as mesh:
        async with mesh.start("run", "slow_agent:agent", WHO="it", **agents) as host:
            await host.says("agent slow runs")
        client = await nats.connect(mesh.nats_url)
        headers = {"reply_to": "agent.me.reply.x.1", "correlation_id": "1"}
        await client.jetstream().publish("agent.slow.inbox", b"hello", headers=headers)
        await client.close()
        assert await mesh.up.stop(signal.SIGINT) == 0
    async with running_mesh(environ) as mesh:
        client = await connect_bare(mesh.nats_url)
        answers = await client.subscribe("delivered.me.reply.x.1")
        async with mesh.start("run", "slow_agent:agent", WHO="it", **agents):
            message = await answers.next_msg(timeout=30)
            assert message.data == b"answered by it, attempt 1"
        await client.close()


async def test_sigterm_finishes_what_runs(own_mesh: OwnMesh, tmp_path: Path) -> None:
    """An agent that is told to stop answers what it works on, and leaves."""
    (tmp_path / "steady_agent.py").write_text(
        SLOW_AGENT.replace("await asyncio.sleep(60)", "await asyncio.sleep(1.5)")
    )
    async with own_mesh() as mesh:
        environ = {"TEST_CWD": str(tmp_path), "WHO": "it", "STUCK": "1"}
        async with mesh.start("run", "steady_agent:agent", **environ) as host:
            await host.says("agent slow runs")
            asking = asyncio.create_task(mesh.run("send", "slow", "x", "--timeout", "20"))
            await host.says("working attempt 1")
            assert await host.stop() == 0
            assert (await asking).out == "answered by it, attempt 1\n"


async def test_up_starts_and_stops_cleanly(tmp_path: Path) -> None:
    """Ready in under 3 s, everything of it gone at Ctrl-C, and nothing left listening."""
    for number in (signal.SIGINT, signal.SIGTERM):
        async with AsyncExitStack() as stack:
            with stopwatch() as start:
                environ = clean_environ(tmp_path / number.name)
                mesh = await stack.enter_async_context(running_mesh(environ))
                ready_s = float(await mesh.up.says(r"after ([\d.]+) s"))
            pids = [child_pid(mesh, words) for words in ("nats-server", "up control", "up http")]
            assert await mesh.up.stop(number) == 0
            assert not {str(pid) for pid in pids} & set(os.listdir("/proc"))
        # Each is an upper bound: the standstill may have come before it began to count.
        assert min(ready_s, start.took_s) < 3.0
        assert not re.search("Traceback|[Ee]rror", mesh.up.text), mesh.up.text


async def test_two_meshes_do_not_share_a_folder_or_a_port(
    own_mesh: OwnMesh, tmp_path: Path
) -> None:
    """The second `mesh up` says in one line what is in its way, and what to do."""
    async with own_mesh() as mesh:
        port = mesh.nats_url.rpartition(":")[2]
        cases: list[tuple[dict[str, str], str]] = [
            ({}, "in use by another mesh"),
            ({"MESH_DATA_DIR": str(tmp_path / "other"), "MESH_NATS_PORT": port}, f"port {port}"),
            ({"MESH_NATS_SERVER": "/nowhere/nats-server"}, "/nowhere/nats-server does not exist"),
            ({"MESH_DATA_DIR": "/proc/mesh"}, "/proc/mesh"),
        ]
        for change, words in cases:
            environ = {**mesh.environ, "MESH_NATS_URL": "", **change}
            done = await run_mesh("up", environ=environ)
            assert done.code == 1, done
            assert words in done.err
            assert done.err.count("\n") == 1, done.err


async def test_the_demo_shows_a_call_across_the_mesh(tmp_path: Path) -> None:
    """`mesh demo --once` asks three ways, and gets the same, right answer each time."""
    done = await run_mesh("demo", "--once", environ=clean_environ(tmp_path))
    assert done.code == 0, done.err
    answer = (
        "I asked solarius. On 2026-06-21: Kyiv 16 h 27 min, Lisbon 14 h 53 min. "
        "The day is longest in Kyiv, 1 h 34 min longer than in Lisbon."
    )
    assert done.out.count(answer) == 3, done.out
    assert "Traceback" not in done.err
