"""What processes count: every call once, by how it ended, on both sides."""

import asyncio
import socket
import time
from dataclasses import replace

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from handlers.mailboxes import Mailboxes
from mesh import Agent, ChatRequest, metrics
from mesh.access import Access
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.errors import AgentFailedError, CallCancelledError, CallTimeoutError, PortInUseError
from mesh.exposition import exposing, told, watch_lag_forever
from mesh.settings import Settings
from mesh.shim.rules import Rules
from tests.calls import Held, offline, question
from tests.conftest import Running, until
from tests.shim import CHAT, ask, online, replier, serving


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return what a page of metrics says, by name and values of labels."""
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "le")): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def counted() -> dict[tuple[str, ...], float]:
    """Return what this process has counted."""
    return samples(told().decode())


async def test_every_end_is_counted_on_both_sides(
    running: Running, client: MeshClient, agent_id: str
) -> None:
    """Answered, failed, expired, cancelled; how long it took, and how long it waited."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        match request.last_text:
            case "fail":
                raise ValueError("x")
            case "sleep":
                await asyncio.sleep(60)
        return "done"

    async with running(agent):
        for _ in range(3):
            await client.ask(agent_id, "hello")
        with pytest.raises(AgentFailedError):
            await client.ask(agent_id, "fail")
        with pytest.raises(CallTimeoutError):
            await client.ask(agent_id, "sleep", timeout_s=0.5)
        call = await client.start(agent_id, question(agent_id, "sleep"))
        await until(lambda: counted()["mesh_running", agent_id] == 1)
        assert counted()["mesh_calls_in_flight",] >= 1
        await client.cancel(call)
        with pytest.raises(CallCancelledError):
            await call.result()
        await until(lambda: counted().get(("mesh_handled_total", agent_id, "cancelled")) == 1)
        ping = await client.start(agent_id, question(agent_id), is_ping=True)
        await ping.result()
        await until(lambda: counted()["mesh_running", agent_id] == 0)
        found = counted()
    for outcome, times in (("answered", 3), ("failed", 1), ("expired", 1), ("cancelled", 1)):
        assert found["mesh_calls_total", agent_id, outcome] == times
        assert found["mesh_handled_total", agent_id, outcome] == times
    assert found["mesh_call_duration_seconds_count", agent_id] == 6
    assert 0.5 <= found["mesh_call_duration_seconds_sum", agent_id] < 10
    assert found["mesh_mailbox_wait_seconds_count", agent_id] == 6
    assert found["mesh_slots", agent_id] == agent.card.concurrency
    assert found["mesh_connected",] >= 1


async def test_a_door_tells_its_metrics(
    connection: Connection, directory: Directory, running: Running, agent_id: str
) -> None:
    """At /metrics; where keys are required, to who has one that is for all agents."""
    async with (
        online(running, directory, replier(agent_id)),
        serving(connection, directory) as url,
        httpx2.AsyncClient(base_url=url) as http,
    ):
        before = samples((await http.get("/metrics")).text)
        await http.post(CHAT, json=ask(agent_id))
        await http.get("/nowhere")
        answer = await http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        found = samples(answer.text)
        assert found["mesh_calls_total", agent_id, "answered"] == 1
        for status, more in (("200", 2), ("404", 1)):
            name = ("mesh_http_requests_total", status)
            assert found[name] - before.get(name, 0) == more
    access = Access(connection)
    for agents, expected in (((), 200), ((agent_id,), 403)):
        key = await access.create("prometheus", agents=agents)
        async with (
            serving(connection, directory, Rules(requires_keys=True)) as url,
            httpx2.AsyncClient(base_url=url) as http,
        ):
            assert (await http.get("/metrics")).status_code == 401
            shown = {"authorization": f"Bearer {key.token}"}
            assert (await http.get("/metrics", headers=shown)).status_code == expected


@pytest.fixture
def port() -> int:
    """A port that is free."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def test_a_port_of_its_own(settings: Settings, port: int) -> None:
    """For processes that are no door; one that is taken is told, and it ends with the process."""
    mine = replace(settings, metrics_port=port)
    async with exposing(mine), httpx2.AsyncClient() as http:
        answer = await http.get(f"http://127.0.0.1:{port}/metrics")
        assert "mesh_loop_lag_seconds" in answer.text
        with pytest.raises(PortInUseError, match="MESH_METRICS_PORT"):
            async with exposing(mine):
                pass
    async with httpx2.AsyncClient() as http:
        with pytest.raises(httpx2.ConnectError):
            await http.get(f"http://127.0.0.1:{port}/metrics")


async def test_mailboxes_are_looked_into(
    running: Running,
    client: MeshClient,
    connection: Connection,
    directory: Directory,
    agent_id: str,
) -> None:
    """How much waits, and since when; an empty one is not told of."""
    await offline(running, client, agent_id)
    for _ in range(3):
        await client.submit(agent_id, question(agent_id), timeout_s=60)
    watching = asyncio.create_task(Mailboxes(connection, directory).watch_forever())
    try:
        await until(lambda: counted().get(("mesh_mailbox_depth", agent_id)) == 3)
        await until(lambda: counted()["mesh_mailbox_oldest_seconds", agent_id] > 3)
        assert counted()["mesh_agents", "offline"] >= 1
        assert counted()["mesh_nodes", "online"] >= 1
        async with running(replier(agent_id)):
            await until(lambda: ("mesh_mailbox_depth", agent_id) not in counted())
    finally:
        watching.cancel()


async def test_a_late_loop_is_seen() -> None:
    """Somebody's code has held it up, and here that is us."""
    watching = asyncio.create_task(watch_lag_forever())
    await asyncio.sleep(0.6)

    time.sleep(0.9)  # noqa: ASYNC251
    try:
        await until(lambda: counted()["mesh_loop_lag_seconds",] > 0.3)
    finally:
        watching.cancel()


async def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch, agent_id: str) -> None:
    """Whatever ids are made up."""
    monkeypatch.setattr(metrics, "MAX_AGENTS", len(metrics._agents) + 2)
    for number in range(10):
        metrics.called(f"{agent_id}-{number}", "answered", 0.1)
    found = counted()
    assert found["mesh_calls_total", f"{agent_id}-1", "answered"] == 1
    assert ("mesh_calls_total", f"{agent_id}-2", "answered") not in found
    assert found["mesh_calls_total", metrics.OTHER, "answered"] >= 8


async def test_what_comes_again_is_counted(
    running: Running, client: MeshClient, agent_id: str
) -> None:
    """Where it comes to."""
    held = Held(agent_id)
    async with running(held.agent, grace_s=0.1):
        call = await client.start(agent_id, question(agent_id), timeout_s=60)
        await until(lambda: held.started == 1)
    # The host has left in the middle of it: the request comes again.
    async with running(held.agent):
        await until(lambda: held.started == 2, within_s=40)
        held.go.set()
        await call.result()
    assert counted()["mesh_redeliveries_total", agent_id] == 1
