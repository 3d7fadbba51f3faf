"""The examples of parcels in the wire specification are what travels in a secure mesh.

`MESH_TEST_WRITE_WIRE=1` writes them instead, as in `tests.wire.test_specification`.
"""

import os
import re

import pytest

from mesh import Agent, ChatRequest
from mesh import headers as h
from mesh.callers import Caller, new_instance_id
from mesh.client import open_client
from mesh.connection import open_connection
from mesh.directory import load_directory
from tests.accounts.mesh import host
from tests.accounts.server import accounts_server
from tests.conftest import control_plane
from tests.wire.test_specification import README, Recorder, Seen, rendered

BLOCK = re.compile(r"```wire-secure ([a-z-]+)\n(.*?)```", re.DOTALL)
NAMES = ["parcel-request", "parcel-chunk"]


def shown(seen: Seen | None) -> str:
    """Show a message, without what changes from run to run."""
    text = rendered(seen) if seen else "nothing of this kind was sent\n"
    for pattern, name in (
        (r"body\.b\.[0-9a-f]{32}", "body.b.<nuid>"),
        (r"Nats-Msg-Id: <call>\.", "Nats-Msg-Id: <nuid>."),
        (r"Nats-Request-Info: .*", "Nats-Request-Info: <what the server adds at the border>"),
        (r"mesh-signature: [\w-]{86}", "mesh-signature: <signature>"),
        (r"mesh-signer: U[A-Z2-7]{55}", "mesh-signer: <key>"),
    ):
        text = re.sub(pattern, name, text)
    return text


@pytest.fixture(scope="module")
async def traffic(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a person sends to an agent, as it arrives in CORE."""
    folder, agent, recorder = tmp_path_factory.mktemp("wire"), Agent("b"), Recorder()
    sky = folder / "sky.png"
    sky.write_bytes(b"blue")

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return "seen"

    caller = Caller("ann", "laptop", new_instance_id())
    async with (
        accounts_server(folder) as accounts,
        control_plane(accounts.settings("control", "hub")),
        host(accounts, "host1", "node1", agent),
        open_connection(accounts.login("control"), name="witness") as core,
        open_connection(accounts.login("ann"), name="ann") as connection,
        open_client(connection, await load_directory(connection), caller) as client,
    ):
        for subject in ("agent.*.inbox", "body.>"):
            await core.client.subscribe(subject, cb=recorder.take)
        await core.client.flush()
        await client.ask("b", "x" * 1_100_000, file=sky, timeout_s=60)
    request = recorder.with_header(h.BODY)
    chunk = recorder.find(r"body\.b\.[0-9a-f]{32}\.0")
    return dict(zip(NAMES, map(shown, (request, chunk)), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_what_travels(name: str, traffic: dict[str, str]) -> None:
    """Subject, headers and body are those of a real message."""
    if os.environ.get("MESH_TEST_WRITE_WIRE"):
        text = README.read_text()
        README.write_text(
            BLOCK.sub(lambda one: f"```wire-secure {one[1]}\n{traffic[one[1]]}```", text)
        )
    blocks = dict(BLOCK.findall(README.read_text()))
    assert sorted(blocks) == sorted(NAMES)
    assert blocks[name] == traffic[name]
