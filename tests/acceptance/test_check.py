"""`mesh check`: the connection test from a terminal, against a real `mesh up`."""

import json
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from tests.acceptance.conftest import Mesh, OwnMesh, clean_environ, running_mesh
from tests.conftest import until
from tests.pace import stopwatch


def port_of(mesh: Mesh) -> str:
    """Return where the tested mesh has its HTTP door, which is on any free port."""
    return str(urlsplit(mesh.http_url).port)


def rows_of(out: str) -> dict[str, list[str]]:
    """Return the matrix: a row's marks by its name."""
    lines = out.partition("\n\n")[0].splitlines()
    return {line.split()[0]: [one for one in line.split() if one in "✓✗!○-"] for line in lines}


async def test_a_healthy_mesh_is_all_ticks(own_mesh: OwnMesh) -> None:
    """Two nodes, two agents: every row, one line of summary, exit code 0."""
    async with own_mesh() as mesh:
        monitor = await mesh.up.says(r"(http\S+)/varz")
        async with (
            mesh.start("run", "handlers.echo:agent") as first,
            mesh.start("run", "handlers.solarius:agent", "--node", "node2") as second,
        ):
            await first.says("agent echo runs")
            await second.says("agent solarius runs on node2")
            done = await mesh.run(
                "check", MESH_HTTP_PORTS=port_of(mesh), MESH_NATS_MONITOR_URL=monitor
            )
            report = await http_report(mesh)
    assert (done.code, done.err) == (0, ""), done
    rows = rows_of(done.out)
    assert {"mesh", "node1", "node2", "echo", "echo@node1", "solarius@node2"} <= rows.keys()
    # Another node's router is not tried.
    assert rows.pop("node2") == ["✓", "✓", "-"]
    assert {mark for marks in rows.values() for mark in marks} == {"✓"}
    assert rows["mesh"] == ["✓"] * 4
    assert done.out.splitlines()[-1].startswith("ok: ")
    # The door knows the broker's monitoring from `mesh up`.
    assert {one["method"]: one["state"] for one in report["broker"]}["monitoring"] == "ok"
    assert report["summary"]["state"] == "ok"


async def http_report(mesh: Mesh) -> Any:
    """Return what the door says of the same."""
    async with httpx2.AsyncClient(timeout=30) as client:
        url = f"http://127.0.0.1:{port_of(mesh)}/api/agents/connection-test"
        return (await client.get(url)).json()


async def test_a_stopped_process_spoils_only_its_own_rows(own_mesh: OwnMesh) -> None:
    """It times out, the rest is as it was, and the command ends in time with exit code 1."""
    async with (
        own_mesh() as mesh,
        mesh.start("run", "handlers.echo:agent") as host,
        mesh.start("run", "handlers.solarius:agent", "--node", "node2") as stopped,
    ):
        await host.says("agent echo runs")
        await stopped.says("agent solarius runs")
        arguments = ("check", "--timeout", "3", "--json")
        stopped.process.send_signal(signal.SIGSTOP)
        try:
            with stopwatch() as stretch:
                done = await mesh.run(*arguments, MESH_HTTP_PORTS=port_of(mesh))
            agents = by_id(json.loads(done.out))
            assert done.code == 1
            assert agents["echo"]["state"] == "ok"
            assert agents["solarius"]["methods"]["inbox"]["state"] == "timeout"
            assert agents["solarius"]["methods"]["router"]["state"] == "timeout"
            assert stretch.took_s < 6, stretch

            async def is_offline() -> bool:
                done = await mesh.run(
                    *arguments, "--method", "presence", MESH_HTTP_PORTS=port_of(mesh)
                )
                found = by_id(json.loads(done.out))["solarius"]
                return bool(found["methods"]["presence"]["state"] == "offline")

            await until(is_offline, within_s=60)
        finally:
            stopped.process.send_signal(signal.SIGCONT)


def by_id(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report's agents by id."""
    return {one["agent_id"]: one for one in report["agents"]}


async def test_a_router_that_is_gone_is_told(mesh: Mesh) -> None:
    """What goes over NATS still works; the rest says what to start."""
    done = await mesh.run("check", "echo", MESH_HTTP_PORTS="9")
    assert done.code == 1, done
    assert "echo router, echo direct: http://127.0.0.1:9 does not answer" in done.out
    assert "mesh up http" in done.out
    rows = rows_of(done.out)
    assert rows["echo"] == ["✓", "✓", "✓", "✗", "✗"]
    assert rows["echo@node1"] == ["✓"]


async def test_a_guarded_router_wants_a_key(tmp_path: Path) -> None:
    """Without one its ways fail, and only they; MESH_API_KEY is the way in."""
    async with (
        running_mesh(clean_environ(tmp_path / "data", MESH_HTTP_AUTH="keys")) as mesh,
        mesh.start("run", "handlers.echo:agent") as host,
    ):
        await host.says("agent echo runs")
        mesh.environ["MESH_HTTP_PORTS"] = port_of(mesh)
        done = await mesh.run("check", "echo")
        assert (done.code, rows_of(done.out)["echo"]) == (1, ["✓", "✓", "✓", "✗", "✗"])
        assert "401" in done.out
        assert "MESH_API_KEY" in done.out
        key = (await mesh.run("keys", "create", "check")).out.strip()
        done = await mesh.run("check", "echo", MESH_API_KEY=key)
        assert (done.code, rows_of(done.out)["echo"]) == (0, ["✓"] * 5), done


async def test_one_agent_node_or_method_can_be_chosen(mesh: Mesh) -> None:
    """And what cannot be chosen is one line, with the exit code of its kind."""
    done = await mesh.run("check", "echo", "--node", "node1", "--method", "inbox", "--json")
    report = json.loads(done.out)
    assert (done.code, report["summary"]["ok"]) == (0, 2)
    assert report["broker"] == report["nodes"] == []
    for arguments, code in {
        ("nobody",): 3,
        ("--node", "nowhere"): 3,
        ("no.id",): 2,
        ("--method", "telepathy"): 2,
        ("--timeout", "0"): 2,
    }.items():
        done = await mesh.run("check", *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done


async def test_without_a_broker_there_is_nothing_to_check(mesh: Mesh) -> None:
    """Exit code 6, as everywhere."""
    done = await mesh.run("check", MESH_NATS_URL="nats://127.0.0.1:9")
    assert (done.code, "mesh up" in done.err) == (6, True)
