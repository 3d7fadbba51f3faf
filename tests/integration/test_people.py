"""Presence of people over HTTP and NATS, on a real broker with a real control plane."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from nats.aio.client import Client

from mesh import Agent, ChatRequest, codec, subjects
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.presence import follow_people, read_people, user_token
from mesh.shim.rules import Rules
from schemas.presence import PresenceHeartbeat, PresenceReceipt, PresenceStatus
from tests.conftest import Running, until
from tests.shim import online, replier, serving

REPORT = "/internal/matrix/presence/online"


@pytest.fixture
async def http(connection: Connection, directory: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """A door that knows who is there."""
    async with (
        follow_people(connection, directory.clock) as people,
        serving(connection, directory, people=people) as url,
        httpx2.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client


def body(user: str, status: str = "online", **more: Any) -> dict[str, Any]:
    """Return the guide's body."""
    return {"matrix_user_id": user, "access_token": "secret-token", "status": status, **more}


async def state_of(http: httpx2.AsyncClient, user: str) -> str:
    """Return how somebody is, as the door tells it."""
    found = (await http.get("/api/v1/presence")).json()
    return next((one["state"] for one in found["people"] if one["matrix_user_id"] == user), "")


@pytest.mark.parametrize("path", [REPORT, f"/api{REPORT}"])
async def test_the_guides_body(http: httpx2.AsyncClient, agent_id: str, path: str) -> None:
    """As it is, without anything beside it."""
    user = f"@{agent_id}:example.org"
    for status, state in (("online", "online"), ("unavailable", "away"), ("offline", "offline")):
        answer = await http.post(path, json=body(user, status, status_msg="in a meeting"))
        assert answer.status_code == 200
        told = {"matrix_user_id": user, "state": state, "matrix": "off"}
        assert answer.json() == told
        await until(lambda wanted=state: is_so(http, user, wanted))
    found = (await http.get("/api/v1/presence")).json()
    (ann,) = [one for one in found["people"] if one["matrix_user_id"] == user]
    assert ann["status_msg"] == "in a meeting"
    assert ann["last_seen"]


async def is_so(http: httpx2.AsyncClient, user: str, state: str) -> bool:
    """Tell whether somebody is shown so."""
    return await state_of(http, user) == state


async def test_several_tabs(http: httpx2.AsyncClient, agent_id: str) -> None:
    """Closing one does not close the other."""
    user = f"@{agent_id}:example.org"
    for tab in ("a", "b"):
        await http.post(REPORT, json=body(user, client_id=tab, seq=1))
    left = await http.post(REPORT, json=body(user, "offline", client_id="a", seq=2))
    assert left.json()["state"] == "online"
    last = await http.post(REPORT, json=body(user, "offline", client_id="b", seq=2))
    assert last.json()["state"] == "offline"


async def test_a_report_that_is_late_changes_nothing(
    http: httpx2.AsyncClient, agent_id: str
) -> None:
    """A goodbye overtakes the heartbeat before it, say."""
    user = f"@{agent_id}:example.org"
    await http.post(REPORT, json=body(user, "offline", client_id="a", seq=8))
    await until(lambda: is_so(http, user, "offline"))
    late = await http.post(REPORT, json=body(user, "online", client_id="a", seq=7))
    assert late.status_code == 200
    await http.post(REPORT, json=body(f"@x{agent_id}:example.org"))
    await until(lambda: is_so(http, f"@x{agent_id}:example.org", "online"))
    assert await state_of(http, user) == "offline"
    await http.post(REPORT, json=body(user, "online", client_id="a", seq=9))
    await until(lambda: is_so(http, user, "online"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"matrix_user_id": "ann"}, "matrix_user_id"),
        ({"status": "busy"}, "status"),
        ({"status_msg": "x" * 500}, "status_msg"),
        ({"client_id": "a.b"}, "client_id"),
        ({"seq": -1}, "seq"),
        ({"seq": 2**60}, "seq"),
        ({"idle_ms": -5}, "idle_ms"),
        ({"access_token": 5}, "access_token"),
    ],
)
async def test_what_is_no_report(
    http: httpx2.AsyncClient, change: dict[str, Any], field: str
) -> None:
    """Says which field; and never the token."""
    answer = await http.post(REPORT, json=body("@ann:example.org") | change)
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]
    assert "secret-token" not in answer.text


async def test_a_foreign_page_cannot_report(http: httpx2.AsyncClient) -> None:
    """Nor can a form."""
    foreign = {"origin": "https://evil.example"}
    assert (await http.post(REPORT, json=body("@a:b"), headers=foreign)).status_code == 403
    assert (await http.post(REPORT, content=b"x=1")).status_code == 415
    assert (await http.get(REPORT)).status_code == 405


async def test_any_nats_client_can_report(
    connection: Connection, directory: Directory, bare: Client, agent_id: str
) -> None:
    """On its user's subject, and on no other."""
    said = PresenceHeartbeat(user=f"@{agent_id}:example.org", status=PresenceStatus.ONLINE)
    subject = subjects.presence_heartbeat(user_token(said.user))
    answer = await bare.request(subject, codec.encode(said), timeout=10)
    assert codec.decode(PresenceReceipt, answer.data).ok
    other = subjects.presence_heartbeat(user_token("@other:example.org"))
    answer = await bare.request(other, codec.encode(said), timeout=10)
    assert not codec.decode(PresenceReceipt, answer.data).ok

    async def is_there() -> bool:
        views = (await read_people(connection, directory.clock)).views()
        return any(one.matrix_user_id == said.user for one in views)

    await until(is_there)


async def test_reports_that_overtake_each_other(
    connection: Connection, directory: Directory, bare: Client, agent_id: str
) -> None:
    """However close they come: what was said last, by the client's own count, is what is known."""
    subject = subjects.presence_heartbeat(user_token(f"@{agent_id}:example.org"))
    for tab in range(40):
        said = [
            PresenceHeartbeat(
                user=f"@{agent_id}:example.org", client=f"tab{tab % 10}", seq=seq, status=status
            )
            for seq, status in (
                (10 * tab + 2, PresenceStatus.OFFLINE),
                (10 * tab + 1, PresenceStatus.ONLINE),
            )
        ]
        answers = [
            codec.decode(PresenceReceipt, answer.data)
            for answer in await asyncio.gather(
                *(bare.request(subject, codec.encode(one), timeout=10) for one in said)
            )
        ]
        assert [one.is_late for one in answers] == [False, True], tab


async def test_agents_are_in_the_same_place(
    http: httpx2.AsyncClient, running: Running, directory: Directory, agent_id: str
) -> None:
    """Online, and offline with the time when they were last seen."""
    async with online(running, directory, replier(agent_id)):
        assert await agent_state(http, agent_id) == ("online", True)
    await until(lambda: is_offline(http, agent_id))


async def test_an_agent_that_has_no_slot_is_busy_and_one_that_leaves_is_draining(
    http: httpx2.AsyncClient,
    running: Running,
    directory: Directory,
    client: MeshClient,
    agent_id: str,
) -> None:
    """Told by its heartbeats: at this door nobody hears the traffic. Draining is said at once."""
    free, leaving = asyncio.Event(), asyncio.Event()
    agent = Agent(agent_id, concurrency=1)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        await free.wait()
        return "done"

    async def is_now(*wanted: Any) -> bool:
        found = (await http.get("/api/v1/presence")).json()["agents"]
        shown = [one for one in found if one["agent_id"] == agent_id]
        return [(one["state"], one["is_busy"], one["is_draining"]) for one in shown] == [wanted]

    async def serve() -> None:
        async with online(running, directory, agent):
            await leaving.wait()

    serving_it = asyncio.create_task(serve())
    await until(lambda: is_now("online", False, False))
    asking = asyncio.create_task(client.ask(agent_id, "hello"))
    await until(lambda: is_now("online", True, False))
    leaving.set()
    await until(lambda: is_now("online", False, True))
    free.set()
    assert (await asking).text == "done"
    await serving_it
    await until(lambda: is_now("offline", False, False))


async def agent_state(http: httpx2.AsyncClient, agent: str) -> tuple[str, bool]:
    """Return an agent's state, and whether it says when it was seen."""
    found = (await http.get("/api/v1/presence")).json()["agents"]
    (one,) = [one for one in found if one["agent_id"] == agent]
    return one["state"], bool(one["last_seen"])


async def is_offline(http: httpx2.AsyncClient, agent: str) -> bool:
    """Tell whether an agent is shown as gone, and since when."""
    return await agent_state(http, agent) == ("offline", True)


async def test_a_change_is_on_an_open_page_at_once(http: httpx2.AsyncClient, agent_id: str) -> None:
    """Within a second."""
    user = f"@{agent_id}:example.org"
    async with http.stream("GET", "/", headers={"accept": "text/event-stream"}) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        await http.post(REPORT, json=body(user))
        async with asyncio.timeout(2):
            async for line in lines:
                if user in line and "online" in line:
                    return
    raise AssertionError("the page was told nothing")


async def test_the_token_is_nowhere(
    http: httpx2.AsyncClient, bare: Client, caplog: pytest.LogCaptureFixture, agent_id: str
) -> None:
    """Neither on the broker, nor in a log, nor in an answer."""
    seen: list[bytes] = []

    async def see(message: Any) -> None:
        seen.append(message.data)

    subscription = await bare.subscribe(">", cb=see)
    answer = await http.post(REPORT, json=body(f"@{agent_id}:example.org"))
    await until(lambda: any(agent_id.encode() in one for one in seen))
    await subscription.unsubscribe()
    assert not any(b"secret-token" in one for one in seen)
    assert "secret-token" not in answer.text + caplog.text


async def test_keys_guard_it(connection: Connection, directory: Directory) -> None:
    """Where the door requires keys, nobody is told and nobody tells without one."""
    rules = Rules(requires_keys=True)
    async with (
        serving(connection, directory, rules) as url,
        httpx2.AsyncClient(base_url=url) as http,
    ):
        assert (await http.get("/api/v1/presence")).status_code == 401
        assert (await http.post(REPORT, json=body("@a:b"))).status_code == 401
