"""The user's guide, row by row: its systems at its addresses, its agent, its curl lines.

Only hosts and ports are changed. Daarwizz runs on node1 and Solarius on node2.
"""

import asyncio
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Mesh, clean_environ, running_mesh

SCRIPT = Path(__file__).parent / "cross_node_agent.py"
SUN = "When does the sun rise and set in Kyiv on 2026-06-21?"
SUN_SAID = "the day lasts 16 h 27 min"
DAYS = "Is the day longer in Kyiv or in Lisbon on 2026-06-21?"
DAYS_SAID = "The day is longest in Kyiv, 1 h 34 min longer than in Lisbon."


@pytest.fixture(scope="module")
async def guide(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """The guide's two nodes, in one `mesh up`."""
    async with (
        running_mesh(clean_environ(tmp_path_factory.mktemp("guide"))) as mesh,
        mesh.start("run", "handlers.daarwizz:agent", "--node", "node1") as node1,
        mesh.start("run", "handlers.solarius:agent", "--node", "node2") as node2,
    ):
        await node1.says("agent daarwizz runs on node1")
        await node2.says("agent solarius runs on node2")
        yield mesh


def addresses(mesh: Mesh) -> dict[str, str]:
    """Return what stands here for the guide's addresses."""
    return {
        "http://localhost:9102": mesh.http_url.removesuffix("/v1"),
        "http://localhost:9205": mesh.registry_url,
        "http://localhost:8899": mesh.monitor_url,
        "http://localhost:8222": mesh.varz_url,
    }


async def output_of(*command: str, **environ: str) -> str:
    """Run a command to its end, and return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0, (out + err).decode()
    return out.decode()


async def run_agent(mesh: Mesh, *arguments: str) -> str:
    """Run the guide's agent as its user does, from his own folder."""
    places = addresses(mesh)
    said = await output_of(
        *(sys.executable, str(SCRIPT), *arguments),
        ROUTER=places["http://localhost:9102"],
        REGISTRY=places["http://localhost:9205"],
        NATS=mesh.nats_url,
    )
    return said.strip()


async def curl(mesh: Mesh, line: str) -> tuple[int, Any]:
    """Run one of the guide's curl lines, and return status and JSON."""
    for address, here in addresses(mesh).items():
        line = line.replace(address, here)
    said = await output_of(*shlex.split(line), "-sS", "--noproxy", "*", "-w", "\n%{http_code}")
    body, _, status = said.rpartition("\n")
    return int(status), json.loads(body)


@pytest.mark.parametrize(
    ("agent", "text", "said"),
    [("solarius", SUN, SUN_SAID), ("daarwizz", DAYS, DAYS_SAID)],
    ids=["solarius", "daarwizz"],
)
@pytest.mark.parametrize("way", ["ask", "publish", "chat"])
async def test_the_cross_node_agent(
    guide: Mesh, way: str, agent: str, text: str, said: str
) -> None:
    """Through registry and router, by NATS, and by direct HTTP: the answer comes across nodes."""
    assert said in await run_agent(guide, way, agent, text)


async def test_the_cross_node_agent_asks_for_nobody(guide: Mesh) -> None:
    """The registry says so, before anything is sent."""
    with pytest.raises(AssertionError, match="404 Not Found"):
        await run_agent(guide, "ask", "solaris", SUN)


@pytest.mark.parametrize("port", [9102, 9205, 8899])
async def test_health_of_each_system(guide: Mesh, port: int) -> None:
    """Router, registry and monitor: each is healthy at its own port."""
    status, body = await curl(guide, f"curl http://localhost:{port}/health")
    assert (status, body["status"], body["node"]) == (200, "ok", "node1")


async def test_the_nodes_of_the_registry(guide: Mesh) -> None:
    """Both, with what runs there."""
    status, body = await curl(guide, "curl http://localhost:9205/api/v1/nodes")
    assert status == 200
    found = {one["node"]: one for one in body["nodes"]}
    assert found.keys() == {"node1", "node2"}
    assert {one["state"] for one in body["nodes"]} == {"online"}
    assert found["node2"]["agents"] == [{"agent_id": "solarius", "state": "online"}]
    assert {one["role"] for one in found["node1"]["processes"]} == {"registrar", "http", "host"}


async def test_the_agents_of_the_registry(guide: Mesh) -> None:
    """Both, with their nodes; and those of one node."""
    status, body = await curl(guide, "curl http://localhost:9205/api/v1/agents")
    found = [(one["agent_id"], one["node"]) for one in body["agents"]]
    assert (status, found) == (200, [("daarwizz", "node1"), ("solarius", "node2")])
    _, body = await curl(guide, "curl 'http://localhost:9205/api/v1/agents?node=node2'")
    assert [one["agent_id"] for one in body["agents"]] == ["solarius"]


async def test_one_agent_of_the_registry(guide: Mesh) -> None:
    """At least node, endpoint and model."""
    status, body = await curl(guide, "curl http://localhost:9205/api/v1/agent/solarius")
    registry = addresses(guide)["http://localhost:9205"]
    assert status == 200
    assert (body["node"], body["state"]) == ("node2", "online")
    assert body["endpoint"] == f"{registry}/api/agent/solarius/chat"
    assert isinstance(body["model"], str)


async def test_the_router(guide: Mesh) -> None:
    """With all of the guide's fields."""
    request = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": SUN}],
        "agent_id": "solarius",
        "target_node": "node2",
        "source_agent": "daarwizz",
        "source_node": "node1",
    }
    status, body = await curl(
        guide,
        "curl -X POST http://localhost:9102/v1/chat/completions "
        f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(request))}",
    )
    assert status == 200
    assert SUN_SAID in body["choices"][0]["message"]["content"]
    assert body["mesh"]["node"] == "node2"


async def test_direct_chat(guide: Mesh) -> None:
    """The answer comes back in the same call."""
    status, body = await curl(
        guide,
        "curl -X POST http://localhost:9102/api/agent/solarius/chat "
        f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps({'message': SUN}))}",
    )
    assert status == 200
    assert (body["agent_id"], body["node"]) == ("solarius", "node2")
    assert SUN_SAID in body["response"]
    assert body["call_id"]


async def test_the_endpoint_of_an_agent_is_where_it_answers(guide: Mesh) -> None:
    """What the registry says can be called as it stands."""
    _, found = await curl(guide, "curl http://localhost:9205/api/v1/agent/solarius")
    body = shlex.quote(json.dumps({"message": SUN}))
    header = "-H 'Content-Type: application/json'"
    status, answer = await curl(guide, f"curl {found['endpoint']} {header} -d {body}")
    assert status == 200
    assert SUN_SAID in answer["response"]


async def test_the_connection_test(guide: Mesh) -> None:
    """It tests every method, and reports agents, nodes and a summary."""
    status, body = await curl(guide, "curl http://localhost:8899/api/agents/connection-test")
    assert status == 200
    assert {"agents", "nodes", "summary"} <= body.keys()


async def test_the_monitoring_of_nats(guide: Mesh) -> None:
    """The broker's own numbers."""
    status, body = await curl(guide, "curl http://localhost:8222/varz")
    assert (status, "jetstream" in body) == (200, True)
