"""One trace across two nodes, told to a collector by real processes; and a restart, seen in it."""

import asyncio
import signal

import httpx2

from tests.acceptance.conftest import Mesh, OwnMesh
from tests.collector import Collector, Told, collecting
from tests.conftest import until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"


def only(collector: Collector, name: str) -> Told:
    """Return the one span of a name."""
    (found,) = collector.named(name)
    return found


async def test_one_trace_across_two_nodes(own_mesh: OwnMesh, agents: dict[str, str]) -> None:
    """From the client's own span through the door, two agents on two nodes, and back."""
    async with collecting() as collector:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        async with (
            own_mesh(**environ) as mesh,
            mesh.start("run", "handlers.daarwizz:agent", MESH_NODE="west", **environ) as one,
            mesh.start("run", "handlers.solarius:agent", MESH_NODE="east", **environ) as two,
            httpx2.AsyncClient(timeout=30) as http,
        ):
            await one.says("agent daarwizz runs on west")
            await two.says("agent solarius runs on east")
            answer = await http.post(
                f"{mesh.http_url}/chat/completions",
                json={
                    "model": "daarwizz",
                    "messages": [{"role": "user", "content": "Berlin or Oslo?"}],
                },
                headers={"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"},
            )
            assert answer.status_code == 200
            await until(lambda: bool(collector.named("call daarwizz")))
            await until(lambda: bool(collector.named("handle daarwizz")))
            await until(lambda: bool(collector.named("handle solarius")))
    # The chain, each span below the one before.
    names = [
        *("POST /v1/chat/completions", "call daarwizz", "handle daarwizz"),
        *("call solarius", "handle solarius"),
    ]
    chain = [only(collector, name) for name in names]
    assert {one.trace_id for one in chain} == {TRACE}
    assert [one.parent_id for one in chain] == [CLIENT_SPAN, *(one.span_id for one in chain[:-1])]
    node = mesh.environ["MESH_NODE"]
    places = [one.resource["mesh.node"] for one in chain]
    assert places == [node, node, "west", "west", "east"]
    assert [one.resource["service.name"] for one in chain[:3]] == [
        *("mesh-door", "mesh-door", "mesh-host daarwizz")
    ]
    call_id = answer.headers["mesh-call-id"]
    for agent, call, handle in (
        ("daarwizz", chain[1], chain[2]),
        ("solarius", chain[3], chain[4]),
    ):
        for name, above in (
            (f"publish agent.{agent}.inbox", call),
            (f"wait in agent.{agent}.inbox", call),
        ):
            assert only(collector, name).parent_id == above.span_id
        (reply,) = [
            one for one in collector.spans if one.parent_id == handle.span_id and one.kind == 4
        ]
        assert reply.name == f"reply of {agent}"
        assert call.start_ns <= handle.start_ns <= reply.start_ns <= reply.end_ns <= handle.end_ns
    assert {one.attributes["mesh.call_id"] for one in chain[1:3]} == {call_id}
    assert not [one for one in collector.spans if one.error]
    assert b"Berlin" not in b"".join(collector.bodies)


async def test_a_restart_is_seen_in_the_trace(own_mesh: OwnMesh, agents: dict[str, str]) -> None:
    """Why a call was slow: its first agent died, its second one answered, with their times."""
    async with collecting() as collector:
        told = collector.url
        async with own_mesh(OTEL_EXPORTER_OTLP_ENDPOINT=told, **agents) as mesh:
            async with mesh.start(
                *("run", "slow_agent:agent"), WHO="first", STUCK="1", MESH_NODE="west"
            ) as first:
                await first.says("agent slow runs")
                asking = asyncio.create_task(mesh.run("send", "slow", "hi", "--timeout", "40"))
                await first.says("working attempt 1")
                await until(lambda: bool(collector.named("wait in agent.slow.inbox")))
                await first.stop(signal.SIGKILL)
            async with mesh.start(
                *("run", "slow_agent:agent"), WHO="second", MESH_NODE="east"
            ) as second:
                await second.says("agent slow runs")
                assert (await asking).code == 0
                await until(lambda: bool(collector.named("handle slow, attempt 2")))
    call = only(collector, "call slow")
    waits = [
        only(collector, "wait in agent.slow.inbox"),
        only(collector, "wait in agent.slow.inbox, attempt 2"),
    ]
    assert [one.resource["mesh.node"] for one in waits] == ["west", "east"]
    assert {one.parent_id for one in waits} == {call.span_id}
    assert {one.trace_id for one in waits} == {call.trace_id}
    # Both since it was stored; the second one until it came again, which takes the ack wait.
    assert abs(waits[1].start_ns - waits[0].start_ns) / 1e9 < 0.5
    assert (waits[1].end_ns - waits[0].end_ns) / 1e9 > 8
    assert not collector.named("handle slow")
    handled = only(collector, "handle slow, attempt 2")
    assert handled.attributes["mesh.outcome"] == "answered"
    assert call.start_ns < handled.start_ns < call.end_ns


async def test_a_collector_that_is_away_costs_no_call(mesh: Mesh) -> None:
    """It is said once, and the call goes on."""
    nowhere = "http://127.0.0.1:1"
    done = await mesh.run("send", "echo", "hello", OTEL_EXPORTER_OTLP_ENDPOINT=nowhere)
    assert (done.code, done.out) == (0, "hello\n")
    assert "Traceback" not in done.err
