"""A secure mesh as its operator meets it: keys, credentials, and who is cut off."""

import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.acceptance.conftest import Mesh, clean_environ, run_mesh, running_mesh


@pytest.fixture(scope="module")
async def secure(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh with keys, an echo agent and a person."""
    environ = clean_environ(tmp_path_factory.mktemp("secure") / "data")
    made = await run_mesh("keys", "init", environ=environ)
    assert made.code == 0, made.err
    async with running_mesh(environ) as running:
        refused = await running.run("run", "handlers.echo:agent")
        assert refused.code == 4
        assert "`mesh keys agent echo --node node1`" in refused.err
        assert (await running.run("keys", "agent", "echo")).code == 0
        assert (await running.run("keys", "user", "ann")).code == 0
        async with running.start("run", "handlers.echo:agent") as host:
            await host.says("agent echo runs")
            yield running


def creds(mesh: Mesh, name: str) -> str:
    """Return where somebody's credentials lie."""
    return str(Path(mesh.environ["MESH_DATA_DIR"]) / "keys" / "creds" / f"{name}.creds")


def secrets(data_dir: Path) -> list[str]:
    """Return every seed and every token that the hub has."""
    files = [*data_dir.rglob("*.nk"), *data_dir.rglob("*.creds")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [line for line in lines if len(line) > 50 and " " not in line]


async def test_the_operator_and_a_person_call(secure: Mesh) -> None:
    """On the hub nothing has to be said; elsewhere a file of credentials."""
    assert (await secure.run("send", "echo", "hello")).out == "hello\n"
    ann = await secure.run("send", "echo", "hello from ann", MESH_CREDS=creds(secure, "ann"))
    assert (ann.out, ann.err) == ("hello from ann\n", "")


async def test_clients_of_the_door_need_to_know_nothing(secure: Mesh) -> None:
    """HTTP is what it was."""
    body = {"model": "echo", "messages": [{"role": "user", "content": "over http"}]}
    async with httpx2.AsyncClient() as http:
        answer = await http.post(f"{secure.http_url}/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == "over http"


async def test_a_large_file_goes_through_an_agent(tmp_path: Path) -> None:
    """There by `--file` and back by `-o`, sent by a person."""
    environ = clean_environ(tmp_path / "data", TEST_CWD=str(tmp_path))
    assert (await run_mesh("keys", "init", environ=environ)).code == 0
    (tmp_path / "keeper.py").write_text(
        "from mesh import Agent, ChatReply\nagent = Agent('keeper')\n@agent.chat\n"
        "def answer(request, call):\n    return ChatReply(content='kept', file=call.file)\n"
    )
    sent, back = tmp_path / "sent.bin", tmp_path / "back.bin"
    sent.write_bytes(os.urandom(24_000_000))
    async with running_mesh(environ) as mesh:
        assert (await mesh.run("keys", "agent", "keeper")).code == 0
        assert (await mesh.run("keys", "user", "ann")).code == 0
        async with mesh.start("run", "keeper:agent") as host:
            await host.says("agent keeper runs")
            arguments = ("send", "keeper", "--file", str(sent), "-o", str(back))
            told = await mesh.run(*arguments, MESH_CREDS=creds(mesh, "ann"))
    assert (told.out, told.code) == ("kept\n", 0), told.err
    assert back.read_bytes() == sent.read_bytes()


async def test_large_questions_and_answers_over_http(secure: Mesh) -> None:
    """The door asks as itself, and reads what is for it."""
    text = "x" * 4_000_000
    body = {"model": "echo", "messages": [{"role": "user", "content": text}]}
    async with httpx2.AsyncClient(timeout=60) as http:
        answer = await http.post(f"{secure.http_url}/chat/completions", json=body)
        assert answer.json()["choices"][0]["message"]["content"] == text
        detached = await secure.run("send", "echo", "--detach", stdin=text.encode())
        found = await secure.run("wait", detached.out.strip())
    assert found.out == f"{text}\n"


async def test_everything_works_and_says_so(secure: Mesh) -> None:
    """`mesh check` tries every way; `mesh doctor` finds nothing."""
    ports = str(urlsplit(secure.http_url).port)
    options: dict[str, Any] = {"MESH_HTTP_PORTS": ports, "MESH_NATS_MONITOR_URL": secure.varz_url}
    checked = await secure.run("check", **options)
    assert checked.code == 0, checked.out
    assert (await secure.run("doctor", **options)).code == 0


async def test_the_demo_has_nothing_to_do_with_it(secure: Mesh) -> None:
    """On the machine of a hub it is an open mesh of its own."""
    shown = await run_mesh("demo", "--once", environ=secure.environ)
    assert shown.code == 0, shown.err
    assert shown.out.count("I asked solarius") == 3


async def test_who_shows_nothing_is_told_what_to_do(secure: Mesh, tmp_path: Path) -> None:
    """One line, with the next step, and an exit code of its own."""
    told = await secure.run("send", "echo", "x", MESH_DATA_DIR=str(tmp_path))
    assert told.code == 4
    assert "asks who we are: set MESH_CREDS" in told.err


async def test_keys_of_another_mesh(secure: Mesh, tmp_path: Path) -> None:
    """They open nothing here."""
    environ = clean_environ(tmp_path)
    await run_mesh("keys", "init", environ=environ)
    told = await secure.run("send", "echo", "x", MESH_DATA_DIR=str(tmp_path))
    assert told.code == 4
    assert "does not let cli in" in told.err


async def test_a_person_comes_back_for_an_answer(secure: Mesh, tmp_path: Path) -> None:
    """Its own calls can be looked at and waited for, from another process; others' cannot."""
    ann, bob = (creds(secure, name) for name in ("ann", "bert"))
    await secure.run("keys", "user", "bert")
    sent = await secure.run("send", "echo", "--detach", "later", MESH_CREDS=ann)
    call = sent.out.strip()
    assert (sent.code, len(call)) == (0, 32), sent.err
    waited = await secure.run("wait", call, MESH_CREDS=ann)
    assert (waited.out, waited.code) == ("later\n", 0), waited.err
    shown = await secure.run("call", call, MESH_CREDS=ann)
    assert "answered" in shown.out
    for command in ("wait", "call"):
        told = await secure.run(command, call, MESH_CREDS=bob)
        assert (told.code, told.out) == (3, "")


async def test_a_person_may_not_do_what_the_operator_may(secure: Mesh) -> None:
    """Nor read what the operator reads; and no traceback comes of it."""
    for command in (("dead", "list"), ("keys", "create", "x"), ("run", "handlers.echo:agent")):
        told = await secure.run(*command, MESH_CREDS=creds(secure, "ann"))
        assert told.code != 0, command
        assert "Traceback" not in told.err
        assert told.err.startswith("mesh: ")


async def test_who_is_revoked_is_cut_off(secure: Mesh, tmp_path: Path) -> None:
    """In the middle of everything, and can't come back with a copy."""
    await secure.run("keys", "agent", "gone", "--name", "gone")
    (tmp_path / "gone.py").write_text(
        "from mesh import Agent\nagent = Agent('gone')\n@agent.chat\ndef answer(request):\n"
        "    return 'here'\n"
    )
    copy = tmp_path / "copy.creds"
    shutil.copy(creds(secure, "gone"), copy)
    environ: dict[str, Any] = {"MESH_CREDS": str(copy), "TEST_CWD": str(tmp_path)}
    async with secure.start("run", "gone:agent", **environ) as host:
        await host.says("agent gone runs")
        assert (await secure.run("send", "gone", "x")).out == "here\n"
        started = time.monotonic()
        revoked = await secure.run("keys", "revoke", "gone")
        assert revoked.out == "gone is revoked: its connections are cut off.\n"
        await host.says("lets gone in no more: the credentials were revoked", within_s=5)
        assert time.monotonic() - started < 5
        assert await host.process.wait() == 4
    again = await secure.run("run", "gone:agent", **environ)
    assert again.code == 4
    assert "does not let gone in: the credentials are revoked or of another mesh" in again.err
    listed = await secure.run("keys", "users")
    assert [line.split()[-1] for line in listed.out.splitlines() if "gone" in line] == ["revoked"]


async def test_new_keys_end_the_old_ones(secure: Mesh, tmp_path: Path) -> None:
    """A copy of the old file opens nothing; the new file does."""
    await secure.run("keys", "user", "bob")
    copy = tmp_path / "copy.creds"
    shutil.copy(creds(secure, "bob"), copy)
    assert (await secure.run("keys", "rotate", "bob")).code == 0
    assert (await secure.run("send", "echo", "x", MESH_CREDS=str(copy))).code == 4
    assert (await secure.run("send", "echo", "x", MESH_CREDS=creds(secure, "bob"))).code == 0


async def test_no_secret_is_printed(secure: Mesh) -> None:
    """Neither by commands, nor by the hub, nor in what other users of the machine can see."""
    listed = await secure.run("keys", "users", "--json")
    shown = secure.up.text + listed.out + listed.err
    assert [one for one in secrets(Path(secure.environ["MESH_DATA_DIR"])) if one in shown] == []


async def test_broken_input_is_told(secure: Mesh) -> None:
    """Names that are none, taken ones, and who is not there."""
    for arguments, code in (
        (("user", "A.B"), 2),
        (("user", "echo"), 2),
        (("user", "cli"), 2),
        (("agent", "x", "--on", "nothing"), 2),
        (("rotate", "nobody"), 3),
        (("revoke", "nobody"), 3),
        (("revoke", "control"), 4),
        (("init",), 4),
    ):
        told = await secure.run("keys", *arguments)
        assert (told.code, told.out) == (code, ""), arguments
        assert told.err.startswith("mesh: "), arguments
        assert "Traceback" not in told.err


async def test_an_open_mesh_becomes_a_secure_one(tmp_path: Path) -> None:
    """With what it has stored; and it does not become an open one again by the loss of its keys."""
    environ = clean_environ(tmp_path / "data")
    async with running_mesh(environ) as mesh, mesh.start("run", "handlers.echo:agent") as host:
        await host.says("agent echo runs")
        assert (await mesh.run("send", "echo", "open")).out == "open\n"
    assert (await run_mesh("keys", "init", environ=environ)).code == 0
    async with running_mesh(environ) as mesh:
        known = await mesh.run("agents")
        assert "echo" in known.out, known.err
        await mesh.run("keys", "agent", "echo")
        async with mesh.start("run", "handlers.echo:agent") as host:
            await host.says("agent echo runs")
            assert (await mesh.run("send", "echo", "secure")).out == "secure\n"
    lost = await run_mesh("up", environ={**environ, "MESH_KEYS_DIR": str(tmp_path / "lost")})
    assert (lost.code, lost.out) == (1, "")
    assert "has the data of a secure mesh" in lost.err
    assert "MESH_KEYS_DIR" in lost.err
