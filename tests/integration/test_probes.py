"""The connection test: what it tries, what it says, and that it ends."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from nats.aio.client import Client

from mesh.access import Access
from mesh.client import MeshClient
from mesh.connection import Connection, open_connection
from mesh.directory import Directory
from mesh.settings import Settings
from mesh.shim.connection_test import TESTS_AT_ONCE
from mesh.shim.rules import Rules
from schemas.registry import State
from tests.brisk import BriskMesh, brisk_mesh
from tests.conftest import Running, mesh_environ, until
from tests.integration.test_pings import Costly, busy, is_empty, waiting_in
from tests.pace import stopwatch
from tests.shim import error_of, online, serving

PATH = "/api/agents/connection-test"
HOST = """
import os
from mesh import Agent, ChatRequest

agent = Agent(os.environ["TEST_AGENT"], concurrency=1)

@agent.chat
async def answer(request: ChatRequest) -> str:
    return "here"
"""


@pytest.fixture(scope="module")
async def base(connection: Connection, directory: Directory) -> AsyncIterator[str]:
    """The URL of a door."""
    async with serving(connection, directory) as url:
        yield url


@pytest.fixture(scope="module")
async def http(base: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of it."""
    async with httpx2.AsyncClient(base_url=base, timeout=30) as client:
        yield client


async def report_of(http: httpx2.AsyncClient, **wanted: Any) -> dict[str, Any]:
    """Run the connection test, and return its report."""
    answer = await http.get(PATH, params=wanted)
    assert answer.status_code == 200, answer.text
    report: dict[str, Any] = answer.json()
    return report


def states(report: dict[str, Any]) -> dict[str, str]:
    """Return the states of a report's only agent, by method; of its nodes by `node method`."""
    (agent,) = report["agents"]
    found = {method: outcome["state"] for method, outcome in agent["methods"].items()}
    for place in agent["nodes"]:
        for method, outcome in place["methods"].items():
            found[f"{place['node']} {method}"] = outcome["state"]
    return found


async def test_every_way_to_an_agent_is_tried(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """On two nodes, each by itself, and over the router; and no handler runs."""
    first, second = Costly(agent_id), Costly(agent_id)
    async with (
        online(running, directory, first.agent),
        online(running, directory, second.agent, node="node2"),
    ):
        await until(lambda: directory.agent(agent_id).nodes == ("node1", "node2"))
        report = await report_of(http, agent=agent_id)
    found = states(report)
    assert found.keys() == {
        *("presence", "registry", "inbox", "router", "direct"),
        *("node1 inbox", "node2 inbox"),
    }
    assert set(found.values()) == {"ok"}, report
    assert report["agents"][0]["methods"]["inbox"]["latency_ms"] > 0
    assert [one["method"] for one in report["broker"]].count("registry") == 1
    assert report["summary"]["state"] == report["agents"][0]["state"] == "ok"
    assert (first.runs, second.runs) == (0, 0)


async def test_a_node_is_tried_as_far_as_it_can_be(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """This node's router answers; another's is not tried, and the report says why."""
    async with (
        online(running, directory, Costly(agent_id).agent),
        online(running, directory, Costly(f"{agent_id}-b").agent, node="node2"),
    ):
        here = (await report_of(http, node="node1", method="router"))["nodes"]
        there = (await report_of(http, node="node2", method="router"))["nodes"]
        alive = (await report_of(http, node="node2", method="presence"))["nodes"]
    assert [one["methods"]["router"]["state"] for one in here] == ["ok"]
    assert [one["methods"]["router"]["state"] for one in there] == ["not_tried"]
    assert "NAT" in there[0]["methods"]["router"]["detail"]
    assert "heartbeat" in alive[0]["methods"]["presence"]["detail"]


async def test_an_agent_without_a_free_slot_is_busy(
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    client: MeshClient,
    bare: Client,
) -> None:
    """By every way that needs a slot; and once the pings' time is over, none lies about."""
    costly = Costly(agent_id)
    async with online(running, directory, costly.agent), busy(client, costly):
        # Told after half a second, on a machine that has other things to do.
        report = await report_of(http, agent=agent_id, timeout=5)
        found = states(report)
        for place in ("inbox", "router", "direct", "node1 inbox"):
            assert found.pop(place) == "busy", report
        assert set(found.values()) == {"ok"}, report
        assert report["summary"]["state"] == "degraded"

        async def are_gone() -> bool:
            # The call in progress is left.
            return await waiting_in(bare, f"agent.{agent_id}.inbox") == 1

        await until(are_gone, within_s=8)
    await until(lambda: is_empty(bare, agent_id))
    assert costly.runs == 1


async def test_an_agent_that_is_offline_gets_no_ping(
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    bare: Client,
) -> None:
    """It would lie in its mailbox: the state is told at once, with what to do."""
    async with online(running, directory, Costly(agent_id).agent):
        pass
    await until(lambda: directory.agent(agent_id).state is State.OFFLINE)
    sent = await bare.subscribe(f"agent.{agent_id}.inbox.>")
    also = await bare.subscribe(f"agent.{agent_id}.inbox")
    report = await report_of(http, agent=agent_id)
    found = states(report)
    assert found.pop("registry") == "ok"
    assert set(found.values()) == {"offline"}
    assert report["agents"][0]["state"] == "offline"
    assert "mesh run" in report["agents"][0]["methods"]["inbox"]["fix"]
    assert (sent.pending_msgs, also.pending_msgs) == (0, 0)


@asynccontextmanager
async def process_of(
    agent_id: str, settings: Settings, folder: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run an agent in a process that can be stopped."""
    (folder / "stopped.py").write_text(HOST)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mesh", "run", "stopped:agent"),
        env={**mesh_environ(settings), "TEST_AGENT": agent_id},
        cwd=folder,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        await process.wait()


async def test_a_stopped_process_is_found(
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    settings: Settings,
    directory: Directory,
    bare: Client,
    tmp_path: Path,
) -> None:
    """Its mailbox takes pings and nobody answers: a timeout at the limit, then offline."""
    async with process_of(agent_id, settings, tmp_path) as process:
        await until(lambda: directory.agent_record(agent_id) is not None)
        await until(lambda: directory.agent(agent_id).state is State.ONLINE)
        await until(lambda: answers(http, agent_id))
        # With a call unfinished in its only slot it would be taken for busy.
        await until(lambda: is_empty(bare, agent_id))
        process.send_signal(signal.SIGSTOP)
        with stopwatch() as stretch:
            report = await report_of(http, agent=agent_id, timeout=1)
        found = states(report)
        for place in ("inbox", "router", "direct", "node1 inbox"):
            assert found[place] == "timeout", report
        assert found["registry"] == "ok"
        assert all(one["state"] in ("ok", "not_tried") for one in report["broker"])
        # Limit, half a second to find out why, and a loaded machine.
        assert stretch.took_s < 3, stretch
        await until(lambda: directory.agent(agent_id).state is State.OFFLINE)
        assert states(await report_of(http, agent=agent_id))["presence"] == "offline"


async def answers(http: httpx2.AsyncClient, agent_id: str) -> bool:
    """Tell whether an agent's mailbox works."""
    return states(await report_of(http, agent=agent_id, method="inbox"))["inbox"] == "ok"


async def test_results_stream_in_as_they_come(
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    client: MeshClient,
) -> None:
    """First how many there will be, then each result when it is there, then the summary."""
    costly, events, times = Costly(agent_id), [], []
    wanted = {"agent": agent_id, "timeout": "3"}
    async with (
        online(running, directory, costly.agent),
        busy(client, costly),
        http.stream("GET", PATH, params=wanted, headers={"Accept": "text/event-stream"}) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                events.append(orjson.loads(line.removeprefix("data: ")))
                times.append(time.monotonic())
    plan, *results, end = events
    assert plan["planned"] == len(results)
    assert {one["method"] for one in results} >= {"inbox", "router", "presence", "broker"}
    assert end["summary"]["busy"] == 4
    assert sum(end["summary"][one] for one in ("ok", "busy", "not_tried")) == len(results)
    # What is busy is known at the limit; the rest does not wait for it.
    assert times[-1] - times[0] > 2.9
    assert times[4] - times[0] < 2, times


async def test_two_requests_at_once_share_a_test(
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    client: MeshClient,
    bare: Client,
) -> None:
    """The same query is run once, another one by itself."""
    costly = Costly(agent_id)
    async with online(running, directory, costly.agent), busy(client, costly):
        sent = await bare.subscribe(f"agent.{agent_id}.inbox")
        wanted = {"agent": agent_id, "timeout": 1, "method": "inbox"}
        one, same, other = await asyncio.gather(
            report_of(http, **wanted),
            report_of(http, **wanted),
            report_of(http, agent=agent_id, timeout=0.9, method="inbox"),
        )
        assert one == same != other
        assert sent.pending_msgs == 2


async def test_many_different_tests_wait_for_their_turn(
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    client: MeshClient,
    bare: Client,
) -> None:
    """Else whoever asks with ever other time limits has any number of tries in flight."""
    costly = Costly(agent_id)
    async with online(running, directory, costly.agent), busy(client, costly):
        sent = await bare.subscribe(f"agent.{agent_id}.inbox")
        limits = [0.5 + number / 100 for number in range(TESTS_AT_ONCE + 2)]
        asking = [
            asyncio.create_task(report_of(http, agent=agent_id, timeout=one, method="inbox"))
            for one in limits
        ]
        await until(lambda: sent.pending_msgs == TESTS_AT_ONCE)
        assert not any(one.done() for one in asking)
        assert sent.pending_msgs == TESTS_AT_ONCE
        await asyncio.gather(*asking)
        assert sent.pending_msgs == len(limits)


async def test_a_test_ends_with_the_last_who_watches(
    base: str, agent_id: str, running: Running, directory: Directory, client: MeshClient
) -> None:
    """A client that leaves takes its test with it."""
    costly = Costly(agent_id)
    async with online(running, directory, costly.agent), busy(client, costly):
        before = names_of_tasks()
        async with httpx2.AsyncClient(base_url=base, timeout=30) as leaver:
            wanted = {"agent": agent_id, "timeout": "10"}
            asking = asyncio.create_task(leaver.get(PATH, params=wanted))
            await until(lambda: "_SharedTest._run" in names_of_tasks() - before)
            asking.cancel()
            await asyncio.wait({asking})
        await until(lambda: "_SharedTest._run" not in names_of_tasks(), within_s=10)


def names_of_tasks() -> set[str]:
    """Return what runs in this process."""
    return {getattr(one.get_coro(), "__qualname__", "") for one in asyncio.all_tasks()}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("agent=no.id", "agent"),
        ("agent=nobody-ever", "agent"),
        ("agent=a&agent=b", "agent"),
        ("node=No", "node"),
        ("node=nowhere", "node"),
        ("method=telepathy", "method"),
        ("timeout=0", "timeout"),
        ("timeout=11", "timeout"),
        ("timeout=-1", "timeout"),
        ("timeout=1e3", "timeout"),
        ("timeout=%FF", "timeout"),
    ],
)
async def test_a_query_that_cannot_be_is_refused(
    query: str, param: str, http: httpx2.AsyncClient
) -> None:
    """400, and which parameter it is."""
    answer = await http.get(f"{PATH}?{query}")
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


async def test_only_get_is_possible(http: httpx2.AsyncClient) -> None:
    """As it says."""
    assert (await http.post(PATH)).status_code == 405


async def test_a_guarded_router_is_asked_with_the_key_of_the_request(
    agent_id: str, running: Running, connection: Connection, directory: Directory
) -> None:
    """The test tries the doors as whoever asks for it."""
    issued = await Access(connection).create("probe")
    rules = Rules(requires_keys=True)
    async with (
        online(running, directory, Costly(agent_id).agent),
        serving(connection, directory, rules) as base,
        httpx2.AsyncClient(base_url=base, timeout=30) as http,
    ):
        refused = await http.get(PATH, params={"agent": agent_id})
        assert refused.status_code == 401
        for name, value in (
            ("Authorization", f"Bearer {issued.token}"),
            ("X-Api-Key", issued.token),
        ):
            answer = await http.get(PATH, params={"agent": agent_id}, headers={name: value})
            assert states(answer.json())["router"] == "ok", answer.text


async def test_a_key_for_some_agents_tests_those(
    agent_id: str, running: Running, connection: Connection, directory: Directory
) -> None:
    """A test of everybody would tell, and cost, more than the key is for."""
    issued = await Access(connection).create("probe", agents=[agent_id])
    rules = Rules(requires_keys=True)
    async with (
        online(running, directory, Costly(agent_id).agent),
        serving(connection, directory, rules) as base,
        httpx2.AsyncClient(base_url=base, timeout=30) as http,
    ):
        http.headers["Authorization"] = f"Bearer {issued.token}"
        everybody = await http.get(PATH)
        other = await http.get(PATH, params={"agent": "somebody"})
        own = await report_of(http, agent=agent_id)
    assert (everybody.status_code, other.status_code) == (403, 403)
    assert own["agents"][0]["methods"]["inbox"]["state"] == "ok"


@pytest.fixture(scope="module")
async def fresh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BriskMesh]:
    """Broker, control plane, and nothing in it."""
    async with brisk_mesh(tmp_path_factory.mktemp("fresh")) as mesh:
        yield mesh


async def test_a_healthy_mesh_is_ok(fresh: BriskMesh, agent_id: str) -> None:
    """Everything that can be tried from here works: broker, monitoring, nodes, agents."""
    async with (
        fresh.hosting(Costly(agent_id).agent),
        serving(
            fresh.connection, fresh.directory, monitor_url=fresh.settings.nats_monitor_url
        ) as base,
        httpx2.AsyncClient(base_url=base, timeout=30) as http,
    ):
        report = await report_of(http)
    assert report["summary"]["state"] == "ok", report
    assert {one["method"]: one["state"] for one in report["broker"]} == dict.fromkeys(
        ("broker", "jetstream", "registry", "monitoring"), "ok"
    )
    assert [one["node"] for one in report["nodes"]] == ["node1"]
    assert set(report["nodes"][0]["methods"]) == {"registry", "presence", "router"}


@pytest.mark.parametrize(
    ("monitor", "state", "said"),
    [
        ("", "not_tried", "it is not known where"),
        ("http://127.0.0.1:9", "failed", "http://127.0.0.1:9 does not answer"),
        ("router", "failed", "/healthz says 404"),
    ],
)
async def test_broker_monitoring_that_is_not_there(
    monitor: str, state: str, said: str, connection: Connection, directory: Directory, base: str
) -> None:
    """Not set, gone, or another program's: each is told, with the setting to look at."""
    url = base if monitor == "router" else monitor
    async with (
        serving(connection, directory, monitor_url=url) as own,
        httpx2.AsyncClient(base_url=own, timeout=30) as http,
    ):
        report = await report_of(http, method="monitoring")
    (found,) = report["broker"]
    assert (found["state"], said in found["detail"]) == (state, True), found
    assert "MESH_NATS_MONITOR_URL" in found["fix"]


async def test_a_hundred_agents_are_tested_quickly(fresh: BriskMesh, agent_id: str) -> None:
    """Six hundred tries take about a second."""
    agents = [Costly(f"{agent_id}-{number}").agent for number in range(100)]
    async with (
        fresh.hosting(*agents),
        serving(fresh.connection, fresh.directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=40) as http,
    ):
        with stopwatch() as stretch:
            report = await report_of(http, timeout=10)
    mine = [one for one in report["agents"] if one["agent_id"].startswith(f"{agent_id}-")]
    assert [one["state"] for one in mine] == ["ok"] * 100
    assert stretch.took_s < 8, stretch


async def test_a_broker_that_is_gone_is_the_finding(
    settings: Settings, agent_id: str, running: Running, directory: Directory
) -> None:
    """The test runs all the same, ends in time, and says that nothing works."""
    async with (
        online(running, directory, Costly(agent_id).agent),
        open_connection(settings.nats_url, name="test lost") as lost,
        serving(lost, directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=30) as http,
    ):
        await lost.client.close()
        with stopwatch() as stretch:
            report = await report_of(http, agent=agent_id, timeout=1)
    assert report["summary"]["state"] == "failed"
    assert {one["state"] for one in report["broker"]} <= {"failed", "timeout", "not_tried"}
    assert stretch.took_s < 5, stretch
