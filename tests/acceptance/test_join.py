"""A second machine joins: by a token that works once, over TLS or a WebSocket, or by an address."""

import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson
import pytest

from mesh.trust.invites import JoinToken
from tests.acceptance.conftest import Mesh, clean_environ, run_mesh, running_mesh, start_mesh
from tests.brokers import free_port
from tests.conftest import until


@dataclass(frozen=True, slots=True)
class Hub:
    """A secure hub with a certificate for 127.0.0.1, and both its doors for other machines."""

    mesh: Mesh
    websocket_port: int

    async def invite(self, node: str, *options: str) -> str:
        """Return a token for a node."""
        done = await self.mesh.run("keys", "invite", node, *options)
        assert done.code == 0, done.err
        return done.out.strip()

    @property
    def websocket(self) -> str:
        """Where it takes WebSockets."""
        return f"wss://127.0.0.1:{self.websocket_port}"


@pytest.fixture(scope="module")
async def hub(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hub]:
    """A hub, and an agent that passes on what it is asked: `echo hello` asks echo."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "asker.py").write_text(
        "from mesh import Agent\nagent = Agent('asker')\n\n@agent.chat\n"
        "async def ask(request, call):\n"
        "    to, _, text = request.last_text.partition(' ')\n"
        "    return f'{to} said: {(await call.ask(to, text)).text}'\n"
    )
    port = free_port()
    environ = clean_environ(
        folder / "data", MESH_NATS_WEBSOCKET_PORT=str(port), TEST_CWD=str(folder)
    )
    made = await run_mesh("keys", "init", "--host", "127.0.0.1", environ=environ)
    assert made.code == 0, made.err
    async with running_mesh(environ) as mesh:
        assert mesh.nats_url.startswith("tls://")
        assert (await mesh.run("keys", "agent", "asker")).code == 0
        async with mesh.start("run", "asker:agent") as host:
            await host.says("agent asker runs on node1")
            yield Hub(mesh, port)


def laptop(folder: Path) -> dict[str, str]:
    """Return the environment of another machine, which knows of no mesh."""
    environ = clean_environ(folder / "laptop")
    return {name: value for name, value in environ.items() if name != "MESH_NODE"}


def kept(folder: Path) -> list[Path]:
    """Return what a machine has kept of a mesh that it has joined."""
    return list((folder / "laptop").rglob("joined.json"))


@pytest.mark.parametrize("way", ["tls", "websocket"])
async def test_a_second_machine_joins(hub: Hub, tmp_path: Path, way: str) -> None:
    """Within three seconds it is a node with an agent that answers, and with a door of its own."""
    node, environ = f"node-{way}", laptop(tmp_path)
    options = ("--url", hub.websocket) if way == "websocket" else ()
    token = await hub.invite(node, "--agents", "echo", *options)
    started = time.monotonic()
    async with start_mesh("join", token, environ=environ) as joined:
        await joined.says(f"mesh is up on {node}")
        door = await joined.says(r"OpenAI +(\S+)")
        async with start_mesh("run", "handlers.echo:agent", environ=environ) as host:
            await host.says(f"agent echo runs on {node}")
            answer = await hub.mesh.run("send", "--node", node, "echo", "hello")
            took_s = time.monotonic() - started
            assert (answer.out, answer.code) == ("hello\n", 0), answer.err
            assert took_s < 15.0, "three seconds alone, more beside other tests"
            back = await run_mesh("send", "asker", "echo and back", environ=environ)
            assert back.out == "echo said: and back\n"
            async with httpx2.AsyncClient() as http:
                body = {"model": "asker", "messages": [{"role": "user", "content": "echo hi"}]}
                said = await http.post(f"{door}/chat/completions", json=body)
            assert said.json()["choices"][0]["message"]["content"] == "echo said: hi"
            await _calls_are_resources(door, body)
            nodes = await hub.mesh.run("nodes")
            assert f"{node}" in nodes.out
    used = await run_mesh("join", token, environ=laptop(tmp_path / "other"))
    assert (used.code, used.out) == (4, "")
    assert "was used already" in used.err
    # What is kept is enough for the next start.
    async with start_mesh("up", environ=environ) as again:
        await again.says(f"mesh is up on {node}")
        assert "control" not in again.text


async def _calls_are_resources(door: str, body: dict[str, Any]) -> None:
    """Also behind the account boundary: in the background, looked at, resumed; and repeated."""
    asked = {**body, "messages": [{"role": "user", "content": "echo again"}], "background": True}
    async with httpx2.AsyncClient(timeout=20) as http:
        headers = {"Idempotency-Key": door}
        made = await http.post(f"{door}/chat/completions", json=asked, headers=headers)
        assert made.status_code == 202, made.text
        call = made.json()["id"]
        again = await http.post(f"{door}/chat/completions", json=asked, headers=headers)
        assert again.json()["id"] == call

        async def is_answered() -> bool:
            record = (await http.get(f"{door}/calls/{call}")).json()
            assert record["state"] in ("stored", "working", "answered"), record
            return bool(record["state"] == "answered")

        await until(is_answered)
        events = await http.get(f"{door}/calls/{call}/events")
        assert "echo said: again" in events.text


async def test_a_machine_runs_only_what_it_was_invited_for(hub: Hub, tmp_path: Path) -> None:
    """Another agent is refused here, before anything is announced."""
    environ = laptop(tmp_path)
    token = await hub.invite("node-few", "--agents", "other")
    assert (await run_mesh("join", "--only-keep", token, environ=environ)).code == 0
    told = await run_mesh("run", "handlers.echo:agent", environ=environ)
    assert told.code == 4
    assert "do not allow to run echo" in told.err
    assert "`mesh keys agent echo --node node-few`" in told.err


async def test_a_machine_that_is_revoked(hub: Hub, tmp_path: Path) -> None:
    """It is out, and can be invited again under the same name."""
    environ = laptop(tmp_path)
    token = await hub.invite("node-gone")
    assert (await run_mesh("join", "--only-keep", token, environ=environ)).code == 0
    taken = await hub.mesh.run("keys", "invite", "node-gone")
    assert taken.code == 2
    assert "already" in taken.err
    assert (await hub.mesh.run("keys", "revoke", "node-gone")).code == 0
    out = await run_mesh("send", "asker", "x", environ=environ)
    assert out.code == 4
    assert "does not let node-gone in" in out.err
    token = await hub.invite("node-gone")
    assert (await run_mesh("join", "--only-keep", token, environ=environ)).code == 0
    assert (await run_mesh("agents", environ=environ)).code == 0


async def test_what_is_kept_is_of_one_mesh(hub: Hub, mesh: Mesh, tmp_path: Path) -> None:
    """A token that is refused changes nothing of it, and another broker has nothing of it."""
    environ = laptop(tmp_path)
    token = await hub.invite("node-kept")
    assert (await run_mesh("join", "--only-keep", token, environ=environ)).code == 0
    authority = tmp_path / "laptop" / "joined-ca.pem"
    before = authority.read_bytes()
    other = JoinToken.parse(token)
    changed = replace(other, authority=await strangers_authority(tmp_path / "stranger"))
    for refused in (token, changed.text()):
        assert (await run_mesh("join", refused, environ=environ)).code != 0
    assert authority.read_bytes() == before
    assert (await run_mesh("nodes", environ=environ)).code == 0
    elsewhere = {**environ, "MESH_NATS_URL": mesh.nats_url}
    assert (await run_mesh("send", "echo", "hi", environ=elsewhere)).out == "hi\n"


async def test_an_invite_is_taken_back(hub: Hub, tmp_path: Path) -> None:
    """By the name that it is for."""
    token = await hub.invite("node-unwanted")
    done = await hub.mesh.run("keys", "revoke", "node-unwanted")
    assert (done.code, done.err) == (0, "the invite of node-unwanted is taken back\n")
    told = await run_mesh("join", token, environ=laptop(tmp_path))
    assert told.code == 4
    assert "taken back" in told.err


async def test_a_token_that_expires(hub: Hub, tmp_path: Path) -> None:
    """The broker does not let it in any more."""
    token = await hub.invite("node-late", "--expires", "1s")
    await asyncio.sleep(1.5)
    told = await run_mesh("join", token, environ=laptop(tmp_path))
    assert told.code == 4
    assert "has expired" in told.err
    assert not kept(tmp_path)


async def test_what_is_no_token(hub: Hub, tmp_path: Path) -> None:
    """Half of one, another word, one that somebody has changed: one line, and nothing is kept."""
    token = await hub.invite("node-half")
    packed = token.removeprefix("mesh-join-")
    body = orjson.loads(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)))
    # A hub of somebody else, whose certificate this authority has not signed.
    authority = await strangers_authority(tmp_path / "stranger")
    changed = replace(JoinToken.parse(token), authority=authority).text()
    for text, code, hint in (
        ("hello", 4, "no join token"),
        (token[:-10], 4, "no join token"),
        ("", 4, "no join token"),
        (changed, 6, "certificate verify failed"),
    ):
        told = await run_mesh("join", text, environ=laptop(tmp_path))
        assert (told.code, told.out) == (code, ""), text
        assert hint in told.err
        assert "Traceback" not in told.err
        assert body["seed"] not in told.err
    assert not kept(tmp_path)


async def strangers_authority(folder: Path) -> str:
    """Return the authority of another mesh."""
    made = await run_mesh("keys", "init", "--host", "127.0.0.1", environ=clean_environ(folder))
    assert made.code == 0, made.err
    return (folder / "keys" / "tls" / "ca.pem").read_text()


async def test_nothing_is_said_to_a_broker_without_tls(hub: Hub, tmp_path: Path) -> None:
    """Somebody in between takes the encryption away: the machine does not even say its name."""
    environ = clean_environ(tmp_path / "plain")
    async with running_mesh(environ) as plain:
        port = urlsplit(plain.nats_url).port
        token = await hub.invite("node-plain", "--url", f"tls://127.0.0.1:{port}")
        told = await run_mesh("join", token, environ=laptop(tmp_path))
        assert told.code == 6
        assert "offers no TLS" in told.err
        control = await plain.run("up", "control", MESH_NATS_URL=f"tls://127.0.0.1:{port}")
        assert control.code == 6
        assert "offers no TLS" in control.err
        assert "Traceback" not in control.err


async def test_the_hub_joins_nobody(hub: Hub) -> None:
    """It has a mesh of its own there."""
    told = await hub.mesh.run("join", "nats://127.0.0.1:1")
    assert told.code == 4
    assert "is the hub of a mesh itself" in told.err


async def test_an_open_mesh_is_joined_by_its_address(mesh: Mesh, tmp_path: Path) -> None:
    """No token, as nobody is asked; a secure one says that it wants one."""
    environ = laptop(tmp_path)
    async with start_mesh("join", mesh.nats_url, "--node", "desk", environ=environ) as joined:
        await joined.says("mesh is up on desk")
        assert (await run_mesh("send", "echo", "hi", environ=environ)).out == "hi\n"
        nodes = await mesh.run("nodes", "--json")
        assert "desk" in {one["node"] for one in orjson.loads(nodes.out)}


async def test_a_secure_mesh_is_not_joined_by_its_address(hub: Hub, tmp_path: Path) -> None:
    """Even who trusts its authority needs a token."""
    keys = Path(hub.mesh.environ["MESH_DATA_DIR"]) / "keys" / "tls" / "ca.pem"
    environ: dict[str, Any] = {**laptop(tmp_path), "SSL_CERT_FILE": str(keys)}
    told = await run_mesh("join", hub.mesh.nats_url, environ=environ)
    assert told.code == 4
    assert "asks who we are" in told.err


@pytest.mark.parametrize("is_secure", [False, True])
async def test_a_hub_does_not_listen_in_the_open(tmp_path: Path, is_secure: bool) -> None:
    """Without keys, or without a certificate, it takes words to do so."""
    environ = clean_environ(tmp_path, MESH_NATS_HOST="0.0.0.0")
    if is_secure:
        await run_mesh("keys", "init", environ=environ)
    told = await run_mesh("up", environ=environ)
    assert told.code == 2
    assert ("read everything" if is_secure else "do everything") in told.err
    async with start_mesh("up", "--open-to-network", environ=environ) as up:
        await up.says("mesh is up")


@pytest.mark.parametrize("variable", ["MESH_NATS_WEBSOCKET_PORT", "MESH_NATS_LEAF_PORT"])
@pytest.mark.parametrize("is_secure", [False, True])
async def test_a_door_for_elsewhere_needs_a_certificate(
    tmp_path: Path, variable: str, is_secure: bool
) -> None:
    """It is not left out in silence."""
    environ = clean_environ(tmp_path, **{variable: "7422"})
    if is_secure:
        await run_mesh("keys", "init", environ=environ)
    told = await run_mesh("up", environ=environ)
    assert told.code == 2
    assert f"{variable}=7422 is for a secure mesh with a certificate" in told.err


async def test_an_agent_that_may_not_hear_is_told_before_it_runs(hub: Hub, tmp_path: Path) -> None:
    """Not by silence: what it listens to stands in its credentials, or it does not start."""
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "hearer.py").write_text(
        "from mesh import Agent\nagent = Agent('hearer')\n\n@agent.on('asker.done')\n"
        "async def hear(event):\n    print('heard', event.json())\n"
    )
    environ: dict[str, Any] = {**laptop(tmp_path), "TEST_CWD": str(folder)}
    token = await hub.invite("deaf", "--agents", "hearer")
    assert (await run_mesh("join", "--only-keep", token, environ=environ)).code == 0
    told = await run_mesh("run", "hearer:agent", environ=environ)
    assert (told.code, told.out) == (4, "")
    assert "do not allow to hear asker.done" in told.err
    assert "--on asker.done" in told.err


async def test_a_node_checks_what_it_may(hub: Hub, tmp_path: Path) -> None:
    """`mesh check` and `mesh doctor` find no fault where there is only no right."""
    environ = laptop(tmp_path)
    token = await hub.invite("checker")
    async with start_mesh("join", token, environ=environ) as joined:
        await joined.says("mesh is up on checker")
        port = urlsplit(await joined.says(r"OpenAI +(\S+)")).port
        own: dict[str, Any] = {**environ, "MESH_HTTP_PORTS": str(port)}
        checked = await run_mesh("check", environ=own)
        assert "✓" in checked.out
        assert "✗" not in checked.out
        assert "permissions" not in checked.err
        examined = await run_mesh("doctor", environ=own)
        assert examined.code == 0, examined.out
        assert "the hub's" in examined.out


async def test_a_node_that_is_revoked_ends(hub: Hub, tmp_path: Path) -> None:
    """Its door does not knock for ever, and says what to do."""
    environ = laptop(tmp_path)
    token = await hub.invite("gone")
    async with start_mesh("join", token, environ=environ) as joined:
        await joined.says("mesh is up on gone")
        assert (await hub.mesh.run("keys", "revoke", "gone")).code == 0
        await joined.says("let into the mesh no more: join again")
        assert await asyncio.wait_for(joined.process.wait(), 30) == 4


async def test_nobody_calls_under_a_name_that_is_not_his(hub: Hub, tmp_path: Path) -> None:
    """It is refused, and not done under another one in silence."""
    environ = laptop(tmp_path)
    token = await hub.invite("plain")
    await run_mesh("join", "--only-keep", token, environ=environ)
    told = await run_mesh("send", "asker", "echo x", "--from", "asker", environ=environ)
    assert (told.code, told.out) == (4, "")
    assert "do not allow to call as asker, but as plain" in told.err


async def test_what_is_promised_is_seen(hub: Hub) -> None:
    """An invite that nobody has taken stands in the list, and can be taken back."""
    await hub.invite("promised", "--agents", "echo")
    listed = await hub.mesh.run("keys", "users")
    assert re.search(r"promised +node +promised +echo +invited", listed.out), listed.out
    assert (await hub.mesh.run("keys", "revoke", "promised")).code == 0
    assert "promised" not in (await hub.mesh.run("keys", "users")).out


async def test_the_hub_invites_not_itself(hub: Hub) -> None:
    """Nor does it name one address where there are several."""
    told = await hub.mesh.run("keys", "invite", "node1")
    assert told.code == 2
    servers = "tls://a.example:4222,tls://b.example:4222"
    invited = await hub.mesh.run("keys", "invite", "many", "--json", MESH_NATS_URL=servers)
    assert json.loads(invited.out)["url"] == servers


async def test_no_file_is_no_token(tmp_path: Path) -> None:
    """Who names a file is told of the file."""
    told = await run_mesh("join", "./token.txt", environ=laptop(tmp_path))
    assert told.code == 2
    assert "no file that can be read" in told.err
