"""Calls as resources over HTTP: looked at, waited for, stopped, read on, at any replica."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from mesh import Agent, ChatRequest, subjects
from mesh import headers as h
from mesh.callers import new_instance_id
from mesh.connection import Connection, open_connection
from mesh.directory import Directory
from mesh.settings import Settings
from mesh.streams import INBOX, REPLY
from tests.calls import Held
from tests.conftest import Running, mesh_environ, until
from tests.replicas import (
    NUMBERS,
    Events,
    Replica,
    counter,
    make_offline,
    post,
    read_events,
    text_of,
    two_replicas,
    view,
)
from tests.shim import CHAT, ask, error_of, online, replier, serving


@pytest.fixture
async def replicas(
    settings: Settings, control: asyncio.subprocess.Process
) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two shims; at the end every call has one answer."""
    async with two_replicas(settings.nats_url) as both:
        yield both


@pytest.fixture
def http(replicas: tuple[Replica, Replica]) -> httpx2.AsyncClient:
    """The first of them."""
    return replicas[0].http


@pytest.fixture
def other(replicas: tuple[Replica, Replica]) -> httpx2.AsyncClient:
    """The second of them."""
    return replicas[1].http


@pytest.fixture
def key() -> dict[str, str]:
    """The header of an idempotent request, with a key that no other test uses."""
    return {"Idempotency-Key": new_instance_id()}


# Background


async def test_a_background_call(
    http: httpx2.AsyncClient,
    other: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
) -> None:
    """202 at once, with where to look; any replica says how it went."""
    held = Held(agent_id)
    async with online(running, directory, held.agent):
        answer = await post(http, ask(agent_id, background=True))
        assert answer.status_code == 202
        accepted = answer.json()
        call_id = accepted["id"]
        assert (accepted["object"], accepted["state"]) == ("mesh.call", "stored")
        assert answer.headers["mesh-call-id"] == call_id
        assert answer.headers["location"] == f"/v1/calls/{call_id}"
        await until(lambda: held.started == 1)
        waiting = asyncio.create_task(view(other, call_id, wait_s=10))
        held.go.set()
        found = await waiting
    assert (found["state"], found["agent"], found["node"]) == ("answered", agent_id, "node1")
    assert (found["attempt"], found["timeout_ms"], found["error"]) == (1, 3_600_000, None)
    assert text_of(found["result"]) == "hello, attempt 1"
    assert found["result"]["id"] == f"chatcmpl-{call_id}"


async def test_a_background_call_to_an_agent_that_is_offline(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """It waits in the mailbox, and is answered when the agent is back."""
    await make_offline(running, directory, agent_id)
    call_id = (await post(http, ask(agent_id, background=True))).json()["id"]
    found = await view(http, call_id)
    assert (found["state"], found["attempt"], found["node"]) == ("stored", 0, "")
    waiting = asyncio.create_task(view(http, call_id, wait_s=20))
    async with running(replier(agent_id)):
        assert text_of((await waiting)["result"]) == "You said: hello"


async def test_a_background_call_that_expires(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Nobody was there to answer: the record says so, as an error."""
    await make_offline(running, directory, agent_id)
    call_id = (await post(http, ask(agent_id, background=True, timeout=1))).json()["id"]
    found = await view(http, call_id, wait_s=10)
    assert (found["state"], found["result"]) == ("expired", None)
    assert found["error"]["code"] == "agent_timeout"
    answer = await http.get(f"/v1/calls/{call_id}/events")
    assert (answer.status_code, error_of(answer)["code"]) == (504, "agent_timeout")


@pytest.mark.parametrize("is_idempotent", [False, True])
async def test_a_background_call_to_a_full_mailbox(
    *,
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    connection: Connection,
    settings: Settings,
    key: dict[str, str],
    is_idempotent: bool,
) -> None:
    """429, and nothing is on record: the same request may come again."""
    await make_offline(running, directory, agent_id)
    publisher, subject = connection.publisher, subjects.inbox(agent_id)
    sent = [
        await publisher.submit(subject, b"x", {h.TTL: "60"}) for _ in range(settings.mailbox_max)
    ]
    await asyncio.gather(*sent)
    headers = key if is_idempotent else {}
    answer = await http.post(CHAT, json=ask(agent_id, background=True), headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (429, "agent_busy")
    assert answer.headers["retry-after"] == "1"
    manager = connection.client.jsm()
    info = await manager.stream_info(REPLY, subjects_filter=f"agent.http.reply.*.*.{agent_id}")
    assert not info.state.subjects
    await manager.purge_stream(INBOX, subject=subject)
    answer = await http.post(CHAT, json=ask(agent_id, background=True), headers=headers)
    assert answer.status_code == 202


# Look, wait, stop


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"/v1/calls/{'f' * 32}", 404, "call_not_found"),
        ("DELETE", f"/v1/calls/{'f' * 32}", 404, "call_not_found"),
        ("GET", f"/v1/calls/{'f' * 32}/events", 404, "call_not_found"),
        ("GET", "/v1/calls/a.b", 400, "invalid_value"),
        ("GET", "/v1/calls/*", 400, "invalid_value"),
        ("GET", "/v1/calls/%3E/events", 400, "invalid_value"),
        ("GET", "/v1/calls/a%20b", 400, "invalid_value"),
        ("GET", f"/v1/calls/{'a' * 65}", 400, "invalid_value"),
        ("POST", f"/v1/calls/{'f' * 32}", 405, "method_not_supported"),
    ],
)
async def test_calls_that_cannot_be_looked_at(
    http: httpx2.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    """Unknown, and impossible."""
    answer = await http.request(method, path)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)


@pytest.mark.parametrize(
    "query",
    ["?wait=x", "?wait=-1", "?wait=301", "?wait=1e9", "/events?after=x", "/events?after=-1"],
)
async def test_queries_that_cannot_be(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory, query: str
) -> None:
    """The field is named."""
    async with online(running, directory, replier(agent_id)):
        call_id = (await post(http, ask(agent_id))).headers["mesh-call-id"]
    answer = await http.get(f"/v1/calls/{call_id}{query}")
    assert answer.status_code == 400
    assert error_of(answer)["param"] in ("wait", "after")


async def test_a_wait_that_is_too_short(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """The record comes as it is."""
    held = Held(agent_id)
    async with online(running, directory, held.agent):
        call_id = (await post(http, ask(agent_id, background=True))).json()["id"]
        await until(lambda: held.started == 1)
        assert (await view(http, call_id, wait_s=1))["state"] == "working"
        held.go.set()


async def test_every_answer_names_its_call(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Plain or streamed, and it can be looked at by that name."""
    async with online(running, directory, replier(agent_id)):
        for stream in (False, True):
            answer = await post(http, ask(agent_id, stream=stream))
            found = await view(http, answer.headers["mesh-call-id"])
            assert text_of(found["result"]) == "You said: hello"


async def test_a_call_is_deleted_at_another_replica(
    http: httpx2.AsyncClient,
    other: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
) -> None:
    """What runs is stopped, who waits is told, and the record says it."""
    held = Held(agent_id)
    async with online(running, directory, held.agent):
        call_id = (await post(http, ask(agent_id, background=True))).json()["id"]
        await until(lambda: held.started == 1)
        waiting = asyncio.create_task(view(http, call_id, wait_s=10))
        answer = await other.delete(f"/v1/calls/{call_id}")
        assert answer.status_code == 200
        assert (answer.json()["state"], answer.headers["mesh-call-id"]) == ("cancelled", call_id)
        assert (await waiting)["error"]["code"] == "call_cancelled"
        await until(lambda: held.stopped == 1)
        events = await other.get(f"/v1/calls/{call_id}/events")
        assert (events.status_code, error_of(events)["code"]) == (409, "call_cancelled")


async def test_a_waiting_client_hears_that_its_call_was_deleted(
    http: httpx2.AsyncClient,
    other: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    connection: Connection,
) -> None:
    """Plain and attached: it is on record after a moment, so that it can be found and stopped."""
    held = Held(agent_id)
    async with online(running, directory, held.agent):
        asking = asyncio.create_task(post(http, ask(agent_id)))
        pattern = f"agent.http.reply.*.*.{agent_id}"
        manager = connection.client.jsm()
        found: list[str] = []

        async def is_on_record() -> bool:
            info = await manager.stream_info(REPLY, subjects_filter=pattern)
            found[:] = [subject.split(".")[4] for subject in info.state.subjects or {}]
            return bool(found)

        await until(is_on_record)
        answer = await other.delete(f"/v1/calls/{found[0]}")
        assert answer.json()["state"] == "cancelled"
        refused = await asking
    assert (refused.status_code, error_of(refused)["code"]) == (409, "call_cancelled")


async def test_a_finished_call_cannot_be_deleted(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Its answer stands."""
    async with online(running, directory, replier(agent_id)):
        call_id = (await post(http, ask(agent_id))).headers["mesh-call-id"]
        answer = await http.delete(f"/v1/calls/{call_id}")
    assert (answer.status_code, answer.json()["state"]) == (200, "answered")
    assert (await view(http, call_id))["state"] == "answered"


# Events


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_stream_is_read_on_at_any_replica(
    http: httpx2.AsyncClient,
    other: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    seed: int,
) -> None:
    """The client is cut again and again while the agent speaks: no chunk is lost or doubled."""
    chance = random.Random(seed)
    agent = counter(agent_id, pause_s=0.003)
    read, cuts = Events(), 0
    async with online(running, directory, agent):
        body = ask(agent_id, stream=True)
        headers = {"X-Mesh-On-Disconnect": "detach"}
        async with http.stream("POST", CHAT, json=body, headers=headers) as answer:
            call_id = answer.headers["mesh-call-id"]
            await read.read(answer, at_most=chance.randrange(1, 40))
        while not read.is_done:
            at = chance.choice((http, other))
            path = f"/v1/calls/{call_id}/events"
            params = {"after": len(read.payloads)}
            async with at.stream("GET", path, params=params) as answer:
                await read.read(answer, at_most=chance.randrange(1, 40))
            cuts += 1
    assert cuts > 4
    assert read.text == NUMBERS
    assert len(read.payloads) == 202, "role, 200 parts, finish"


async def test_a_browser_reads_on_by_itself(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """An EventSource sends the id of the last event that it saw."""
    async with online(running, directory, counter(agent_id)):
        call_id = (await post(http, ask(agent_id, stream=True))).headers["mesh-call-id"]
    events = await read_events(http, call_id)
    assert events.ids == list(range(1, 203))
    answer = await http.get(f"/v1/calls/{call_id}/events", headers={"Last-Event-ID": "199"})
    rest = [line for line in answer.text.splitlines() if line.startswith("id: ")]
    assert rest == ["id: 200", "id: 201", "id: 202"]


async def test_the_events_of_a_finished_stream(
    other: httpx2.AsyncClient,
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
) -> None:
    """All of them, as the first reader had them; or what is left; or 204: browsers stop then."""
    async with online(running, directory, counter(agent_id)):
        answer = await post(http, ask(agent_id, stream=True))
        call_id = answer.headers["mesh-call-id"]
    first = Events()
    await first.read(answer)
    events = await read_events(other, call_id)
    assert (events.payloads, events.is_done) == (first.payloads, True)
    assert (await read_events(other, call_id, after=150)).payloads == first.payloads[150:]
    for after in (202, 500):
        nothing = await other.get(f"/v1/calls/{call_id}/events", params={"after": after})
        assert (nothing.status_code, nothing.content) == (204, b"")
        assert nothing.headers["mesh-call-id"] == call_id


async def test_the_events_of_an_answer_that_was_not_streamed(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """The whole answer is one chunk; while there is none, the reader waits."""
    held = Held(agent_id)
    async with online(running, directory, held.agent):
        call_id = (await post(http, ask(agent_id, background=True))).json()["id"]
        reading = asyncio.create_task(read_events(http, call_id))
        await until(lambda: held.started == 1)
        held.go.set()
        events = await reading
    assert (events.text, events.ids, events.is_done) == ("hello, attempt 1", [1, 2, 3], True)
    assert (await read_events(http, call_id, after=2)).ids == [3]
    assert (await http.get(f"/v1/calls/{call_id}/events?after=3")).status_code == 204


async def test_the_events_of_a_call_that_failed(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Before any chunk the failure has its HTTP status; behind some it is an event."""
    plain, streaming = Agent(agent_id), Agent(f"{agent_id}-b")

    @plain.chat
    async def fail(request: ChatRequest) -> str:
        raise ValueError("cloudy")

    @streaming.chat
    async def fail_late(request: ChatRequest) -> AsyncIterator[str]:
        yield "half"
        raise ValueError("cloudy")

    async with online(running, directory, plain, streaming):
        early = (await post(http, ask(plain.id))).headers["mesh-call-id"]
        late = (await post(http, ask(streaming.id, stream=True))).headers["mesh-call-id"]
    answer = await http.get(f"/v1/calls/{early}/events")
    assert (answer.status_code, error_of(answer)["code"]) == (502, "agent_error")
    assert answer.headers["mesh-call-id"] == early
    events = await read_events(http, late)
    assert (events.text, events.is_done) == ("half", False)
    assert events.error
    assert "cloudy" in events.error["message"]


async def test_two_readers_at_once(
    http: httpx2.AsyncClient,
    other: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
) -> None:
    """Beside the client that asked: each has all of it."""
    async with online(running, directory, counter(agent_id, pause_s=0.003)):
        call_id = (await post(http, ask(agent_id, stream=True, background=True))).json()["id"]
        one, two, half = await asyncio.gather(
            read_events(http, call_id),
            read_events(other, call_id),
            read_events(other, call_id, 100),
        )
    assert one.text == two.text == NUMBERS
    assert half.payloads == one.payloads[100:]


DYING = """
import asyncio, os, signal
from collections.abc import AsyncIterator
from mesh import Agent, CallContext, ChatRequest

agent = Agent(os.environ["AGENT"])

@agent.chat
async def speak(request: ChatRequest, call: CallContext) -> AsyncIterator[str]:
    for number in range(5):
        yield f"{number} "
    await asyncio.Event().wait()
"""


async def test_a_stream_whose_agent_is_killed_half_way(
    *,
    http: httpx2.AsyncClient,
    other: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    settings: Settings,
    tmp_path: Path,
) -> None:
    """Who has seen the first attempt gets an error; who has seen nothing gets the second alone."""
    (tmp_path / "dying.py").write_text(DYING)
    environ = {**mesh_environ(settings), "AGENT": agent_id}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mesh", "run", "dying:agent"), env=environ, cwd=tmp_path
    )
    await until(lambda: directory.agent_record(agent_id) is not None)
    first = Events()
    body = ask(agent_id, stream=True, background=True)
    call_id = (await post(http, body)).json()["id"]
    watching = asyncio.create_task(read_events(other, call_id))
    async with http.stream("GET", f"/v1/calls/{call_id}/events") as answer:
        await first.read(answer, at_most=6)
    assert first.text == "0 1 2 3 4 "
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    async with running(counter(agent_id, pause_s=0.003)):
        watched = await asyncio.wait_for(watching, 30)
        assert watched.text == first.text
        assert not watched.is_done
        assert watched.error
        assert watched.error["code"] == "stream_restarted"
        refused = await other.get(f"/v1/calls/{call_id}/events", params={"after": 6})
        assert (refused.status_code, error_of(refused)["code"]) == (502, "stream_restarted")
        events = await read_events(other, call_id)
    assert (events.text, events.is_done) == (NUMBERS, True)
    assert (await view(http, call_id))["attempt"] == 2
    assert (await read_events(http, call_id)).payloads == events.payloads


# Waiting for an agent


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_field", [False, True])
async def test_a_call_that_waits_for_its_agent(
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    *,
    is_field: bool,
    stream: bool,
) -> None:
    """Asked to, by a field or a header, a plain call waits for an agent that is offline."""
    await make_offline(running, directory, agent_id)
    wish = {"wait": True} if is_field else {}
    headers = {} if is_field else {"X-Mesh-Wait": "true"}
    body = ask(agent_id, stream=stream, **wish)
    asking = asyncio.create_task(http.post(CHAT, json=body, headers=headers))
    await asyncio.sleep(1.5)
    assert not asking.done()
    async with running(replier(agent_id)):
        answer = await asking
    assert answer.status_code == 200
    assert "You said: hello" in answer.text


async def test_a_call_that_does_not_wait(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Not asked to, or asked not to: 503 with `Retry-After`, also in the background."""
    await make_offline(running, directory, agent_id)
    for fields, headers in (
        ({}, {}),
        ({"wait": False}, {"X-Mesh-Wait": "true"}),
        ({"background": True, "wait": False}, {}),
        ({"background": True}, {"X-Mesh-Wait": "no"}),
    ):
        answer = await http.post(CHAT, json=ask(agent_id, **fields), headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "agent_offline")
        assert answer.headers["retry-after"] == "2"


# Clients that leave, doors that close, brokers that are away


def footprint(replica: Replica) -> tuple[int, int]:
    """Return how many subscriptions and tasks there are because of somebody who waits."""
    waiting = ("Waiting._watch", "EventStream", "follow_call", "_Follower", "CallResource")
    coroutines = (task.get_coro() for task in asyncio.all_tasks())
    names = [getattr(one, "__qualname__", "") for one in coroutines]
    return len(replica.connection.client._subs), sum(one.startswith(waiting) for one in names)


@pytest.mark.parametrize("asked", ["wait", "events", "keyed", "keyed stream"])
async def test_nothing_is_left_of_a_client_that_leaves(
    replicas: tuple[Replica, Replica],
    agent_id: str,
    running: Running,
    directory: Directory,
    key: dict[str, str],
    asked: str,
) -> None:
    """No subscription and no task, and the call goes on; ten times each."""
    replica = replicas[0]
    http, held = replica.http, Held(agent_id)
    async with online(running, directory, held.agent):
        body = ask(agent_id, background=True)
        call_id = (await http.post(CHAT, json=body, headers=key)).json()["id"]
        await until(lambda: held.started == 1)
        before = footprint(replica)

        def leave_soon() -> asyncio.Task[httpx2.Response]:
            if asked == "wait":
                work = http.get(f"/v1/calls/{call_id}", params={"wait": 60})
            elif asked == "events":
                work = http.get(f"/v1/calls/{call_id}/events")
            else:
                plain = ask(agent_id, user=asked, stream=asked == "keyed stream")
                own = {"Idempotency-Key": key["Idempotency-Key"] + asked}
                work = http.post(CHAT, json=plain, headers=own)
            return asyncio.create_task(work)

        clients = [leave_soon() for _ in range(10)]
        await until(lambda: footprint(replica)[0] >= before[0] + 10)
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)
        await until(lambda: footprint(replica) == before, within_s=10)
        held.go.set()
        assert (await view(http, call_id, wait_s=10))["state"] == "answered"
    assert held.stopped == 0


async def test_nothing_is_left_of_answers(
    replicas: tuple[Replica, Replica], agent_id: str, running: Running, directory: Directory
) -> None:
    """After hundred calls of all kinds there are as many subscriptions and tasks as before."""
    http = replicas[0].http
    async with online(running, directory, counter(agent_id, count=3)):

        async def one(number: int) -> None:
            headers = {"Idempotency-Key": new_instance_id()}
            body = ask(agent_id, stream=bool(number % 2))
            answer = await http.post(CHAT, json=body, headers=headers)
            call_id = answer.headers["mesh-call-id"]
            await read_events(http, call_id)
            await view(http, call_id, wait_s=5)
            await http.delete(f"/v1/calls/{call_id}")

        await one(0)
        before = footprint(replicas[0])
        await asyncio.gather(*(one(number) for number in range(25)))
        await until(lambda: footprint(replicas[0]) == before)


async def test_a_client_that_leaves_before_its_request_is_stored(
    settings: Settings, agent_id: str, running: Running, directory: Directory
) -> None:
    """It asked for an answer and left at once: nothing is run for it when the agent is back."""
    held = Held(agent_id)
    held.go.set()
    await make_offline(running, directory, agent_id)
    async with two_replicas(settings.nats_url) as (replica, _):
        asking = [
            asyncio.create_task(replica.http.post(CHAT, json=ask(agent_id, wait=True)))
            for _ in range(10)
        ]
        manager = replica.connection.client.jsm()
        subject = subjects.inbox(agent_id)

        async def stored() -> int:
            info = await manager.stream_info(INBOX, subjects_filter=subject)
            return (info.state.subjects or {}).get(subject, 0)

        async def are_stored() -> bool:
            return await stored() == 10

        async def are_gone() -> bool:
            return await stored() == 0

        await until(are_stored)
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)
        await until(are_gone)
    async with running(held.agent):
        pass
    assert held.started == 0


@pytest.mark.parametrize("asked", ["keyed", "background", "look", "events", "delete"])
async def test_a_lost_broker(
    settings: Settings,
    agent_id: str,
    running: Running,
    directory: Directory,
    key: dict[str, str],
    asked: str,
) -> None:
    """503 and when to come again, whatever was asked for."""
    async with (
        online(running, directory, replier(agent_id)),
        open_connection(settings.nats_url, name="test lost") as lost,
        serving(lost, directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=30) as client,
    ):
        await lost.client.close()
        call = f"/v1/calls/{'f' * 32}"
        answer = await {
            "keyed": lambda: client.post(CHAT, json=ask(agent_id), headers=key),
            "background": lambda: client.post(CHAT, json=ask(agent_id, background=True)),
            "look": lambda: client.get(call),
            "events": lambda: client.get(f"{call}/events"),
            "delete": lambda: client.delete(call),
        }[asked]()
    assert (answer.status_code, error_of(answer)["code"]) == (503, "broker_unavailable")
    assert answer.headers["retry-after"] == "2"
