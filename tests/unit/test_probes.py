"""The words of the connection test, without a mesh."""

import asyncio

import pytest

from mesh import probes
from mesh.http_probes import local_url
from mesh.nats_probes import Beat, Heartbeats, answered
from mesh.probe_report import ReportBuilder, summarise, verdict_of
from mesh.prober import Cell
from schemas.probe import Method, Outcome, ProbeResult, ProbeState, Verdict
from schemas.registry import State
from tests.conftest import until


def result(
    method: Method, state: ProbeState, agent: str | None = None, node: str | None = None
) -> ProbeResult:
    """Make a result."""
    return ProbeResult(method=method, state=state, agent_id=agent, node=node)


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        (["ok", "ok", "not_tried"], "ok"),
        (["ok", "busy"], "degraded"),
        (["ok", "offline"], "degraded"),
        (["timeout", "failed"], "failed"),
        (["not_tried"], "not_tried"),
        ([], "not_tried"),
    ],
)
def test_states_come_to_a_verdict(states: list[str], verdict: str) -> None:
    """What was not tried counts for nothing; anything else that is not ok spoils it."""
    assert verdict_of(ProbeState(one) for one in states) is Verdict(verdict)


@pytest.mark.parametrize("method", [Method.BROKER, Method.JETSTREAM])
def test_nothing_works_without_the_broker(method: Method) -> None:
    """However much of the rest still answers."""
    found = [result(method, ProbeState.TIMEOUT), result(Method.ROUTER, ProbeState.OK, node="n")]
    summary = summarise(found)
    assert (summary.state, summary.ok, summary.timeout) == (Verdict.FAILED, 1, 1)


def test_results_are_put_into_rows() -> None:
    """In whatever order they come: what is of the mesh, of a node, of an agent, of both."""
    builder = ReportBuilder()
    for one in (
        result(Method.INBOX, ProbeState.TIMEOUT, "b", "n2"),
        result(Method.INBOX, ProbeState.OK, "b"),
        result(Method.ROUTER, ProbeState.OK, node="n2"),
        result(Method.PRESENCE, ProbeState.OFFLINE, "a"),
        result(Method.BROKER, ProbeState.OK),
    ):
        builder.add(one)
    report = builder.report(builder.end())
    assert [one.method for one in report.broker] == ["broker"]
    assert [(one.node, one.state) for one in report.nodes] == [("n2", "ok")]
    assert [(one.agent_id, one.state) for one in report.agents] == [
        ("a", "offline"),
        ("b", "degraded"),
    ]
    assert report.agents[1].nodes[0].methods[Method.INBOX].state is ProbeState.TIMEOUT
    assert report.summary.ok == 3


@pytest.mark.parametrize(
    ("state", "instances", "outcome", "said"),
    [
        (State.ONLINE, ["old", "new"], ProbeState.OK, "heartbeat 1.0 s ago"),
        (State.ONLINE, ["old"], ProbeState.FAILED, "20.0 s ago: after 15 s it counts as dead"),
        (State.ONLINE, ["gone"], ProbeState.FAILED, "gone from the registry"),
        (State.OFFLINE, [], ProbeState.OFFLINE, "no process has a heartbeat"),
        (State.UNKNOWN, ["new"], ProbeState.FAILED, "no registrar is alive"),
    ],
)
def test_presence_is_the_newest_heartbeat(
    state: State, instances: list[str], outcome: ProbeState, said: str
) -> None:
    """Of several processes the one that was heard last counts."""
    beats = Heartbeats({"new": Beat(age_s=1, ttl_s=15), "old": Beat(age_s=20, ttl_s=15)})
    found = beats.outcome(state, instances)
    assert (found.state, said in found.detail) == (outcome, True), found


def test_an_answer_that_is_no_pong_is_told() -> None:
    """The way works; but a handler ran that should not have."""
    assert (answered("pong").state, answered("pong").fix) == (ProbeState.OK, "")
    assert answered("The sun is hot.").state is ProbeState.OK
    assert "update" in answered("The sun is hot.").fix


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("::1", "http://[::1]:1"),
        ("box.local", "http://box.local:1"),
    ],
)
def test_a_listening_address_is_made_one_to_connect_to(host: str, url: str) -> None:
    """Nobody can connect to all addresses at once."""
    assert local_url(host, 1) == url


async def test_no_more_than_a_number_is_tried_at_a_time() -> None:
    """However many wait for an answer."""
    running, go = 0, asyncio.Event()

    async def try_cell(cell: Cell) -> Outcome:
        nonlocal running
        running += 1
        await go.wait()
        return Outcome(state=ProbeState.OK)

    async def try_all() -> int:
        cells = [Cell(Method.INBOX, f"a{number}") for number in range(80)]
        return len([one async for one in probes.bounded(cells, try_cell)])

    trying = asyncio.create_task(try_all())
    await until(lambda: running == probes.MAX_IN_FLIGHT)
    await asyncio.sleep(10 * probes.ALONE_S)
    assert running == probes.MAX_IN_FLIGHT
    go.set()
    assert await trying == running == 80


async def test_the_whole_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known by then is told as not tried, and nothing goes on."""
    monkeypatch.setattr(probes, "WHOLE_LIMIT_S", 2.0)
    cancelled = []

    async def try_cell(cell: Cell) -> Outcome:
        try:
            await asyncio.sleep(0 if cell.agent == "quick" else 60)
        except asyncio.CancelledError:
            cancelled.append(cell.agent)
            raise
        return Outcome(state=ProbeState.OK)

    cells = [Cell(Method.INBOX, agent) for agent in ("slow", "quick", "slower")]
    found = {one.agent_id: one.state async for one in probes.bounded(cells, try_cell)}
    assert found == {"quick": "ok", "slow": "not_tried", "slower": "not_tried"}
    assert sorted(filter(None, cancelled)) == ["slow", "slower"]
