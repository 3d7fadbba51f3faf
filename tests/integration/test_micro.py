"""Agents as NATS micro services, asked as nats-py's and NATS's own tools ask."""

import asyncio
from typing import Any

import orjson
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats

from mesh import Agent, ChatRequest
from mesh.client import MeshClient
from mesh.errors import AgentFailedError
from tests.conftest import Running


async def asked(bare: Client, subject: str, for_s: float = 0.3) -> list[dict[str, Any]]:
    """Return whatever answers within a moment: nobody knows how many there are."""
    found: list[Msg] = []

    async def on_message(message: Msg) -> None:
        found.append(message)

    inbox = bare.new_inbox()
    subscription = await bare.subscribe(inbox, cb=on_message)
    await bare.publish(subject, b"", reply=inbox)
    await bare.flush()
    await asyncio.sleep(for_s)
    await subscription.unsubscribe()
    return [orjson.loads(one.data) for one in found if one.data]


async def test_agents_are_services(
    running: Running, client: MeshClient, bare: Client, agent_id: str
) -> None:
    """Each instance of each agent, with where it is and what it has done."""
    agent = Agent(agent_id, description="Says \u202e it.", version="1.2.3")
    other = Agent(f"{agent_id}-other", version="not a version")

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        if request.last_text == "fail":
            raise ValueError("x")
        return "done"

    async with running(agent, other) as host, running(agent, node="node2") as second:
        for _ in range(4):
            await client.ask(agent_id, "hello")
        with pytest.raises(AgentFailedError):
            await client.ask(agent_id, "fail")
        everybody = [ServicePing.from_dict(one) for one in await asked(bare, "$SRV.PING")]
        mine = [one for one in everybody if one.name.startswith(agent_id)]
        assert sorted((one.name, one.metadata["node"], one.version) for one in mine) == [
            (agent_id, "node1", "1.2.3"),
            (agent_id, "node2", "1.2.3"),
            (other.id, "node1", "0.0.0"),
        ]
        assert {one.id for one in mine if one.name == agent_id} == {
            host.instance.instance,
            second.instance.instance,
        }
        infos = [ServiceInfo.from_dict(one) for one in await asked(bare, f"$SRV.INFO.{agent_id}")]
        assert [one.name for one in infos] == [agent_id, agent_id]
        assert infos[0].description == "Says ? it."
        assert infos[0].endpoints[0].subject == f"agent.{agent_id}.inbox"
        told = await asked(bare, f"$SRV.STATS.{agent_id}")
        done = [ServiceStats.from_dict(one).endpoints[0] for one in told]
        assert sum(one.num_requests for one in done) == 5
        assert [one.last_error for one in done if one.num_errors] == ["failed"]
        assert all(one.average_processing_time < 10**9 for one in done)
        assert sum(one.processing_time for one in done) > 0
        one = f"$SRV.STATS.{agent_id}.{host.instance.instance}"
        assert [told["id"] for told in await asked(bare, one)] == [host.instance.instance]
    assert [one for one in await asked(bare, "$SRV.PING") if one["name"] == agent_id] == []


@pytest.mark.parametrize(
    "subject",
    ["$SRV.PING.nobody-at-all", "$SRV.WHAT", "$SRV.PING.{id}.wrong", "$SRV.INFO.{id}.x.y"],
)
async def test_who_is_not_asked_says_nothing(
    running: Running, bare: Client, agent_id: str, subject: str
) -> None:
    """Another name, another instance, another verb."""
    async with running(Agent(agent_id)):
        told = await asked(bare, subject.format(id=agent_id))
    assert [one for one in told if one.get("name") == agent_id] == []
