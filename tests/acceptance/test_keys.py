"""`mesh keys` as a person meets it: output, exit codes, and what a key opens."""

import json
import re
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.conftest import Mesh, clean_environ, running_mesh


async def made(mesh: Mesh, name: str, *options: str) -> tuple[str, str]:
    """Make a key, and return its id and its token."""
    done = await mesh.run("keys", "create", name, *options)
    assert done.code == 0, done.err
    token = done.out.strip()
    return token.split("_")[1], token


async def test_a_token_is_shown_once(mesh: Mesh) -> None:
    """On stdout and alone, so that a script can take it; nothing shows it again."""
    done = await mesh.run("keys", "create", "phone")
    assert re.fullmatch(r"mesh_[a-z0-9]{10}_[A-Za-z0-9_-]{43}\n", done.out)
    key_id, secret = done.out.strip().removeprefix("mesh_").split("_", 1)
    assert key_id in done.err
    assert secret not in done.err
    for arguments in (("list",), ("list", "--json"), ("revoke", key_id, "--json")):
        shown = await mesh.run("keys", *arguments)
        assert key_id in shown.out
        assert secret not in shown.out + shown.err
        assert "sha256" not in shown.out


async def test_a_key_with_an_end_and_agents(mesh: Mesh) -> None:
    """As JSON, for scripts: everything about it, and the token."""
    options = ("--agents", "echo, parrot", "--expires", "12h", "--json")
    made = json.loads((await mesh.run("keys", "create", "guest", *options)).out)
    assert made["token"].startswith(f"mesh_{made['id']}_")
    assert (made["name"], made["agents"], made["state"]) == ("guest", ["echo", "parrot"], "valid")
    found = json.loads((await mesh.run("keys", "list", "--json")).out)
    [listed] = [one for one in found if one["id"] == made["id"]]
    assert listed == {name: value for name, value in made.items() if name != "token"}
    table = (await mesh.run("keys", "list")).out
    assert re.search(rf"{made['id']} +guest +valid +\d{{4}}-.* UTC +echo, parrot\n", table)


async def test_a_mistyped_agent_is_told(mesh: Mesh) -> None:
    """The key is made all the same: the agent may come later."""
    done = await mesh.run("keys", "create", "typo", "--agents", "no-such-agent")
    assert (done.code, done.out[:5]) == (0, "mesh_")
    assert "no agent 'no-such-agent' is known yet" in done.err


async def test_revoking_tells_whom(mesh: Mesh) -> None:
    """By its id; a second time is no failure."""
    key_id, _ = await made(mesh, "lost phone")
    for _ in range(2):
        done = await mesh.run("keys", "revoke", key_id)
        assert (done.code, done.out) == (0, f"{key_id} (lost phone) is revoked.\n")
    assert re.search(rf"{key_id} +lost phone +revoked ", (await mesh.run("keys", "list")).out)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("revoke", "nobody0000"), 3, "mesh keys list"),
        (("revoke", "*"), 3, "no API key"),
        (("create", ""), 2, "cannot name a key"),
        (("create", "a\nb"), 2, "cannot name a key"),
        (("create", "x", "--agents", "a.b"), 2, "not a valid agent id"),
        (("create", "x", "--agents", "a,,b"), 2, "not a valid agent id"),
        (("create", "x", "--expires", "soon"), 2, "--expires"),
        (("create", "x", "--expires", "30"), 2, "such as 30d"),
        (("create", "x", "--expires", "0d"), 2, "lives for a second"),
        (("create", "x", "--expires", "999999d"), 2, "hundred years"),
    ],
)
async def test_what_cannot_be_done(
    mesh: Mesh, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """One line, an exit code, nothing made."""
    done = await mesh.run("keys", *arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert done.err.count("\n") == 1


async def test_no_broker(mesh: Mesh) -> None:
    """Exit code 6, as everywhere."""
    for arguments in (("create", "x"), ("list",), ("revoke", "x")):
        done = await mesh.run("keys", *arguments, MESH_NATS_URL="nats://127.0.0.1:1")
        assert done.code == 6


async def test_a_mesh_that_requires_keys(tmp_path: Path) -> None:
    """It says so when it starts, and the command makes what it wants."""
    async with running_mesh(clean_environ(tmp_path, MESH_HTTP_AUTH="keys")) as mesh:
        await mesh.up.says("API keys are required here: `mesh keys create NAME` makes one")
        _, token = await made(mesh, "first")
        async with httpx2.AsyncClient(base_url=mesh.http_url, timeout=30) as client:
            assert (await client.get("/models")).status_code == 401
            headers = {"authorization": f"Bearer {token}"}
            assert (await client.get("/models", headers=headers)).status_code == 200
