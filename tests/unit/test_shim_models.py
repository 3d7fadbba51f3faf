"""Agents as models, and for how long a written list is true."""

from types import SimpleNamespace
from typing import Any, cast

import httpx2

from mesh import codec
from mesh.directory import Directory
from mesh.registry import Entry
from mesh.shim.door import Door
from mesh.shim.models import Models, model_object
from mesh.standing import AgentStanding
from schemas.base import WireModel
from schemas.card import AgentCard
from schemas.registry import AgentRecord, Instance, Placement, Role, State

HOST = Instance(instance="i1", node="node1", role=Role.HOST, agents=("solarius",))
REGISTRAR = Instance(instance="r1", node="node1", role=Role.REGISTRAR)


def test_a_model_is_an_agent() -> None:
    """With the time since when it is known, and where it runs."""
    record = AgentRecord(card=AgentCard(id="solarius"), registered_at="2026-11-22T20:00:00+00:00")
    one = AgentStanding("solarius", record, State.ONLINE, ("node1", "node2"), ())
    assert model_object(one, "solarius") == {
        "id": "solarius",
        "object": "model",
        "created": 1795377600,
        "owned_by": "mesh",
        "name": "solarius (node1, node2)",
    }
    unknown = AgentStanding("s", AgentRecord(card=AgentCard(id="s")), State.OFFLINE, (), ())
    assert model_object(unknown, "s")["created"] == 0


async def test_a_list_is_written_again_after_a_change() -> None:
    """Each change of who can be called is in the next answer, and so is the registrar's end."""
    directory = Directory()
    revisions = iter(range(1, 100))

    def put(key: str, value: WireModel | None) -> None:
        body = codec.encode(value) if value else None
        directory.apply(Entry(key, body, next(revisions)))

    door: Any = SimpleNamespace(client=SimpleNamespace(directory=directory))
    transport = httpx2.ASGITransport(Models(cast(Door, door)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:

        async def models() -> tuple[list[str], list[str]]:
            """Who can be called, and who is known."""
            found = [(await client.get(f"/v1/models{query}")).json() for query in ("", "?all=1")]
            callable_, known = ([one["name"] for one in body["data"]] for body in found)
            return callable_, known

        assert await models() == ([], [])
        put("instance.r1", REGISTRAR)
        put("agent.solarius", AgentRecord(card=AgentCard(id="solarius"), nodes=("node3",)))
        assert await models() == ([], ["solarius (node3)"])
        put("instance.i1", HOST)
        put("placement.solarius.i1", Placement(agent="solarius", node="node1", instance="i1"))
        assert await models() == (["solarius (node1)"], ["solarius (node1)"])
        put("instance.i1", None)
        assert await models() == ([], ["solarius (node3)"])
        # With nobody to say that it is offline, it may be there.
        put("instance.r1", None)
        assert await models() == (["solarius (node3)"], ["solarius (node3)"])
        directory.replace(())
        assert await models() == ([], [])


async def test_a_list_is_written_once() -> None:
    """A heartbeat changes nothing in it."""
    directory = Directory()
    directory.apply(Entry("instance.i1", codec.encode(HOST), 1))
    door: Any = SimpleNamespace(client=SimpleNamespace(directory=directory))
    transport = httpx2.ASGITransport(Models(cast(Door, door)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.get("/v1/models")).json()["data"] == []
        written = directory.standings()
        directory.apply(Entry("instance.i1", codec.encode(HOST), 2))
        assert (await client.get("/v1/models")).json()["data"] == []
        assert directory.standings() is written
