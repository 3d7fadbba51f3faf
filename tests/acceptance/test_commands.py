"""The commands as a person meets them: output, exit codes, speed, bad input."""

import json
import math
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.conftest import Mesh, clean_environ, run_mesh, start_mesh
from tests.brokers import wrapper
from tests.conftest import until
from tests.pace import stopwatch

BAD_IDS = ("a.b", "*", ">", "a b", "a\n", "", "a" * 33)


async def test_send_prints_the_answer(mesh: Mesh) -> None:
    """The answer comes on stdout, and nothing else does."""
    done = await mesh.run("send", "echo", "hello there")
    assert (done.code, done.out, done.err) == (0, "hello there\n", "")


async def test_send_reads_stdin(mesh: Mesh) -> None:
    """Without a text, or with '-', the question comes from stdin."""
    for arguments in (("send", "echo"), ("send", "echo", "-")):
        done = await mesh.run(*arguments, stdin="з дому\n".encode())
        assert (done.code, done.out.strip()) == (0, "з дому")


async def test_send_prints_json(mesh: Mesh) -> None:
    """`--json` is one line, with where the answer came from."""
    done = await mesh.run("send", "echo", "hi", "--json")
    answer = json.loads(done.out)
    assert (answer["content"], answer["node"], answer["attempt"]) == ("hi", "node1", 1)
    assert len(answer["call_id"]) == 32


async def test_raw_output_has_no_newline(mesh: Mesh) -> None:
    """`--raw` prints the answer's bytes."""
    assert (await mesh.run("send", "echo", "hi", "--raw")).out == "hi"


async def test_control_characters_do_not_reach_the_terminal(mesh: Mesh) -> None:
    """An answer cannot drive the terminal it is printed on."""
    done = await mesh.run("send", "echo", "-", stdin=b"\x1b[31mred\x07")
    assert done.out == "[31mred\n"


async def test_an_unknown_agent_is_told_with_the_nearest(mesh: Mesh) -> None:
    """Exit code 3, and "did you mean"."""
    done = await mesh.run("send", "ecko", "hi")
    assert (done.code, done.out) == (3, "")
    assert done.err == "mesh: no agent 'ecko'; did you mean echo?\n"


async def test_errors_are_json_when_asked(mesh: Mesh) -> None:
    """With `--json` the error is the same envelope as elsewhere, on stderr."""
    done = await mesh.run("send", "ecko", "hi", "--json")
    assert json.loads(done.err)["error"]["code"] == "agent_not_found"


@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
async def test_bad_ids_are_refused(mesh: Mesh, bad: str) -> None:
    """An invalid agent, node or caller id is one line and exit code 2."""
    for arguments in (
        ("send", bad, "hi"),
        ("send", "echo", "hi", f"--from={bad}"),
        ("agent", bad),
        ("publish", f"{bad} .done"),
    ):
        done = await mesh.run(*arguments)
        assert done.code == 2, (arguments, done)
        assert done.err.count("\n") == 1
        assert "Traceback" not in done.err


async def test_bad_questions_are_refused(mesh: Mesh) -> None:
    """Nothing, no UTF-8, too much, an unknown or wrong node: a typed error each."""
    cases = {
        (b"", ("send", "echo")): 2,
        (b"\xff\xfe", ("send", "echo")): 2,
        (b"", ("send", "echo", "x", "--node", "nowhere")): 3,
        (b"", ("send", "echo", "x", "--node", "no.de")): 2,
        (b"", ("send", "echo", "x", "--timeout", "0")): 2,
    }
    for (stdin, arguments), code in cases.items():
        done = await mesh.run(*arguments, stdin=stdin)
        assert done.code == code, (arguments, done.err)
        assert done.err.startswith("mesh: ")
        assert "Traceback" not in done.err


async def test_a_question_larger_than_a_message(mesh: Mesh) -> None:
    """It travels, and so does its answer, up to MESH_BODY_MAX."""
    question = b"x" * 1_200_000
    for more in ((), ("--json",), ("--detach",)):
        done = await mesh.run("send", "echo", *more, stdin=question)
        assert done.code == 0, done.err
        if more == ("--detach",):
            done = await mesh.run("wait", done.out.strip())
        text = json.loads(done.out)["content"] if more == ("--json",) else done.out.strip()
        assert text == question.decode()
    refused = await mesh.run("send", "echo", stdin=question, MESH_BODY_MAX="1100000")
    assert (refused.code, refused.out) == (2, "")
    assert "raise MESH_BODY_MAX" in refused.err


async def test_a_deadline_is_exit_code_five(mesh: Mesh) -> None:
    """An agent that is known but away is waited for until the deadline, or not at all."""
    async with mesh.start("run", "handlers.solarius:agent") as host:
        await host.says("agent solarius runs")
    done = await mesh.run("send", "solarius", "hi", "--timeout", "1")
    assert done.code == 5
    assert "(the request was stored)" in done.err
    done = await mesh.run("send", "solarius", "hi", "--no-wait")
    assert (done.code, "is not running" in done.err) == (1, True)


async def test_no_broker_is_exit_code_six(mesh: Mesh) -> None:
    """Every command says in one line what to do when there is no broker."""
    for arguments in (("send", "echo", "x"), ("agents",), ("nodes",), ("publish", "a.b")):
        done = await mesh.run(*arguments, MESH_NATS_URL="nats://127.0.0.1:9")
        assert done.code == 6, done
        assert done.err.count("\n") == 1
        assert "mesh up" in done.err


async def test_the_registry_is_listed(mesh: Mesh) -> None:
    """`agents`, `nodes` and `agent` show who is there, for people and for programs."""
    agents = await mesh.run("agents")
    assert agents.out.splitlines()[0].split() == ["AGENT", "STATE", "NODE", "SEEN", "DESCRIPTION"]
    assert re.search(r"^echo +● online +node1 +\d+ s ago", agents.out, re.MULTILINE)
    listed = json.loads((await mesh.run("agents", "--json")).out)
    [echo] = [one for one in listed if one["card"]["id"] == "echo"]
    assert echo["state"] == "online"
    nodes = await mesh.run("nodes")
    assert nodes.out.splitlines()[0].split() == ["NODE", "STATE", "SEEN", "PROCESSES", "AGENTS"]
    assert re.search(r"^node1 +● online +\d+ s ago", nodes.out, re.MULTILINE)
    listed = json.loads((await mesh.run("nodes", "--json")).out)
    [node1] = [one for one in listed if one["node"] == "node1"]
    shown = await mesh.run("agent", "echo")
    assert "agent.echo.inbox" in shown.out
    assert re.search(r"^last seen +\d+ s ago", shown.out, re.MULTILINE)
    for one in (echo, node1):
        seen_at = datetime.fromisoformat(one["last_seen"])
        assert (datetime.now(UTC) - seen_at).total_seconds() < 10


async def test_who_is_gone_was_seen_at_a_time(mesh: Mesh) -> None:
    """By the clock on the wall: how long ago would be guessed from two clocks."""
    async with mesh.start("run", "handlers.solarius:agent", "--node", "node-t") as host:
        await host.says("agent solarius runs")
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    for command, pattern in (
        (("agents",), rf"^solarius +○ offline +node-t +{moment} +Says"),
        (("nodes",), rf"^node-t +○ offline +{moment} +0 +-"),
        (("agent", "solarius"), rf"^last seen +{moment}$"),
    ):
        shown = await mesh.run(*command)
        assert re.search(pattern, shown.out, re.MULTILINE), shown.out


async def test_a_second_mesh_is_told_at_once(mesh: Mesh) -> None:
    """On the same ports nothing is started: one line, with the port and the setting."""
    urls = (mesh.http_url.removesuffix("/v1"), mesh.registry_url, mesh.monitor_url)
    ports = [url.rpartition(":")[2] for url in urls]
    for taken in (ports, ["0", ports[1], "0"], ["0", "0", ports[2]]):
        environ = {**mesh.environ, "MESH_NATS_URL": "", "MESH_HTTP_PORTS": ",".join(taken)}
        done = await run_mesh("up", environ=environ)
        first = next(port for port in taken if port != "0")
        assert (done.code, done.out) == (1, ""), done
        assert done.err.count("\n") == 1
        assert f"port {first} is in use, perhaps by a mesh that is up already" in done.err
        assert f"MESH_HTTP_PORTS (now {','.join(taken)})" in done.err


async def test_a_second_door_says_where_it_is(mesh: Mesh) -> None:
    """A machine that joins has nobody else to print its addresses."""
    async with mesh.start("up", "http", "--node", "node2", MESH_HTTP_PORTS="0") as door:
        url = await door.says(r"OpenAI\s+(http\S+)/v1")
        async with httpx2.AsyncClient(base_url=url, timeout=30) as http:
            found = (await http.get("/health")).json()
    assert (found["status"], found["node"]) == ("ok", "node2")


async def test_chat_keeps_the_conversation(mesh: Mesh) -> None:
    """Each line is answered; a failed answer does not end the talk."""
    done = await mesh.run("chat", "echo", stdin=b"one\ntwo\n")
    assert (done.code, done.out) == (0, "one\ntwo\n")


async def test_publish_stores_an_event(mesh: Mesh) -> None:
    """An event is told where it is stored."""
    done = await mesh.run("publish", "echo.done", '{"x": 1}', "--json")
    assert json.loads(done.out)["stream"] == "EVENT"


async def test_doctor_finds_nothing_wrong(mesh: Mesh) -> None:
    """On a healthy mesh no line is a failure; without a broker the exit code says so."""
    urls = (mesh.http_url.removesuffix("/v1"), mesh.registry_url, mesh.monitor_url)
    ports = [url.rpartition(":")[2] for url in urls]
    done = await mesh.run("doctor", MESH_HTTP_PORTS=",".join(ports))
    assert (done.code, "✗" in done.out) == (0, False), done.out
    assert "a registrar is alive" in done.out
    for name, port in zip(("OpenAI", "registry", "monitor"), ports, strict=True):
        assert f"✓ {name}: HTTP door at http://127.0.0.1:{port}/health: 200" in done.out
    done = await mesh.run("doctor", MESH_NATS_URL="nats://127.0.0.1:9")
    assert (done.code, "✗ no broker" in done.out) == (1, True), done.out


async def test_run_says_what_cannot_be_run(mesh: Mesh) -> None:
    """A target that is none, or no agent, is one line and exit code 2."""
    for target in (
        "nothing",
        "no_such_module:agent",
        "handlers.echo:nope",
        "json:dumps",
        "json:loads",
    ):
        done = await mesh.run("run", target)
        assert done.code in (1, 2), (target, done)
        assert "Traceback" not in done.err, done.err


async def test_unknown_settings_are_warned_about(mesh: Mesh) -> None:
    """A misspelt variable is told, with the nearest name."""
    done = await mesh.run("agents", MESH_NATS_URI="x")
    assert "MESH_NATS_URI is not a setting of the mesh; did you mean MESH_NATS_URL?" in done.err
    done = await mesh.run("agents", MESH_HEARTBEAT_S="soon")
    assert (done.code, "MESH_HEARTBEAT_S='soon' cannot be used" in done.err) == (2, True)


async def test_commands_are_quick(mesh: Mesh) -> None:
    """Help comes in under 0.4 s, the first byte of an answer in under 0.8 s: the best of a few."""
    helps, sends = [math.inf], [math.inf]
    while len(helps) < 12 and (min(helps) > 0.4 or min(sends) > 0.8):
        with stopwatch() as stretch:
            assert (await mesh.run("--help")).code == 0
        helps.append(stretch.took_s)
        with stopwatch() as stretch:
            answer = await mesh.run("send", "echo", "x")
        # Each is an upper bound: the standstill may have come after the first byte.
        sends.append(min(answer.first_byte_s, stretch.took_s))
    assert min(helps) < 0.4, helps
    assert min(sends) < 0.8, sends


def test_the_command_line_does_not_import_faststream() -> None:
    """`mesh send` starts without FastStream, Starlette and the HTTP client."""
    code = (
        "import sys, mesh.cli, mesh.cli.sessions, mesh.client, mesh.runtime;"
        "heavy = {'faststream', 'starlette', 'uvicorn', 'httpx2', 'openai'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_a_control_plane_without_a_broker_ends(mesh: Mesh) -> None:
    """It tries for ten seconds, then says in one line what to do, instead of staying deaf."""
    done = await mesh.run("up", "control", MESH_NATS_URL="nats://127.0.0.1:9")
    assert done.code == 6, done
    assert "start one with `mesh up`" in done.err
    assert "Traceback" not in done.err


async def test_a_start_is_broken_off_at_once(tmp_path: Path) -> None:
    """A server with much to read takes its time; who does not want to wait need not."""
    began = tmp_path / "began"
    server = wrapper(tmp_path / "server", f"touch {began}\nexec sleep 100")
    environ = clean_environ(tmp_path / "data", MESH_NATS_SERVER=server)
    async with start_mesh("up", environ=environ) as up:
        await until(began.exists)
        assert await up.stop(within_s=15) == 0
        await up.says("stopping")
