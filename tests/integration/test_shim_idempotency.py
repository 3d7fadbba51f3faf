"""Retries with an `Idempotency-Key`: one call, one answer, at any replica, through any fault."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mesh import Agent, ChatRequest
from mesh.callers import new_instance_id
from mesh.directory import Directory
from mesh.settings import Settings
from tests.calls import Held, own_mesh
from tests.conftest import Running, until
from tests.replicas import (
    NUMBERS,
    Events,
    Replica,
    counter,
    make_offline,
    replica_at,
    two_replicas,
)
from tests.shim import CHAT, ask, error_of, online, replier

Post = Callable[..., Coroutine[Any, Any, httpx2.Response]]


@pytest.fixture
async def replicas(
    settings: Settings, control: asyncio.subprocess.Process
) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two shims; at the end every call has one answer."""
    async with two_replicas(settings.nats_url) as both:
        yield both


@pytest.fixture
def post(replicas: tuple[Replica, Replica]) -> Post:
    """Asks with one key, at the replica of this number."""
    key = new_instance_id()

    async def send(at: int, body: dict[str, Any], key: str = key, **options: Any) -> Any:
        headers = {"Idempotency-Key": key, **options.pop("headers", {})}
        return await replicas[at].http.post(CHAT, json=body, headers=headers)

    return send


@pytest.mark.parametrize("stream", [False, True])
async def test_twenty_at_once(
    post: Post, agent_id: str, running: Running, directory: Directory, *, stream: bool
) -> None:
    """The handler runs once, and every client gets the same bytes."""
    held = Held(agent_id)
    async with online(running, directory, held.agent):
        asking = [
            asyncio.create_task(post(number % 2, ask(agent_id, stream=stream)))
            for number in range(20)
        ]
        await until(lambda: held.started == 1)
        held.go.set()
        answers = await asyncio.gather(*asking)
    assert {one.status_code for one in answers} == {200}
    assert len({one.headers["mesh-call-id"] for one in answers}) == 1
    assert held.started == 1
    if not stream:
        assert len({one.content for one in answers}) == 1


async def test_a_retry_of_a_finished_call(
    post: Post, agent_id: str, running: Running, directory: Directory
) -> None:
    """The stored answer, byte by byte, also when its agent is gone."""
    held = Held(agent_id)
    held.go.set()
    async with online(running, directory, held.agent):
        first = await post(0, ask(agent_id))
        assert (await post(1, ask(agent_id))).content == first.content
    await until(lambda: directory.agent(agent_id).state == "offline")
    again = await post(1, ask(agent_id))
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["mesh-call-id"] == first.headers["mesh-call-id"]
    assert held.started == 1


async def test_a_retry_of_a_streamed_call(
    post: Post,
    replicas: tuple[Replica, Replica],
    agent_id: str,
    running: Running,
    directory: Directory,
) -> None:
    """All chunks from the start, while the agent speaks and after it has spoken."""
    body = ask(agent_id, stream=True)
    key = new_instance_id()
    headers = {"Idempotency-Key": key}
    cut, again = Events(), Events()
    async with online(running, directory, counter(agent_id, pause_s=0.003)):
        async with replicas[0].http.stream("POST", CHAT, json=body, headers=headers) as answer:
            await cut.read(answer, at_most=20)
        async with replicas[1].http.stream("POST", CHAT, json=body, headers=headers) as answer:
            await again.read(answer)
    assert (again.text, again.is_done) == (NUMBERS, True)
    assert again.payloads[:20] == cut.payloads
    last = Events()
    await last.read(await post(0, body, key))
    assert last.payloads == again.payloads


async def test_other_requests_with_the_same_key(
    post: Post, agent_id: str, running: Running, directory: Directory
) -> None:
    """Another text, another agent, another node: 409, whether the first runs or is done."""
    held, second = Held(agent_id), Held(f"{agent_id}-b")
    others: list[tuple[dict[str, Any], dict[str, str]]] = [
        (ask(agent_id, user="other"), {}),
        (ask("x"), {"X-Mesh-Agent": second.agent.id}),
        (ask("x"), {"X-Mesh-Agent": agent_id, "X-Mesh-Target-Node": "node1"}),
    ]
    async with online(running, directory, held.agent, second.agent):
        asking = asyncio.create_task(post(0, ask("x"), headers={"X-Mesh-Agent": agent_id}))
        await until(lambda: held.started == 1)
        for is_done in (False, True):
            if is_done:
                held.go.set()
                assert (await asking).status_code == 200
            for at, (body, headers) in enumerate(others):
                refused = await post(at % 2, body, headers=headers)
                assert refused.status_code == 409
                error = error_of(refused)
                assert error["code"] == "idempotency_key_reused"
                call_id = "" if not is_done else (await asking).headers["mesh-call-id"]
                assert not call_id or call_id not in refused.text, "an id is a capability"
    assert (held.started, second.started) == (1, 0)


async def test_two_different_requests_at_the_same_moment(
    post: Post, agent_id: str, running: Running, directory: Directory
) -> None:
    """One of them is the call, the other is refused; the agent may be as fast as it likes."""
    async with online(running, directory, replier(agent_id)):
        for _ in range(10):
            key = new_instance_id()
            answers = await asyncio.gather(
                *(post(at, ask(agent_id, user=str(at)), key) for at in (0, 1))
            )
            assert sorted(one.status_code for one in answers) == [200, 409]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_retry_of_a_call_that_failed(
    post: Post, agent_id: str, running: Running, directory: Directory, *, stream: bool
) -> None:
    """The same failure: the work is not repeated."""
    agent, runs = Agent(agent_id), 0

    @agent.chat
    async def fail(request: ChatRequest) -> str:
        nonlocal runs
        runs += 1
        raise ValueError("cloudy")

    async with online(running, directory, agent):
        first = await post(0, ask(agent_id, stream=stream))
        again = await post(1, ask(agent_id, stream=stream))
    assert first.status_code == again.status_code == 502
    assert first.content == again.content
    assert again.headers["x-should-retry"] == "false"
    assert runs == 1


async def test_a_retry_of_a_call_that_expired(
    post: Post, agent_id: str, running: Running, directory: Directory
) -> None:
    """Both are told at the deadline, and a third one later at once."""
    await make_offline(running, directory, agent_id)
    body = ask(agent_id, wait=True, timeout=1)
    answers = [*await asyncio.gather(post(0, body), post(1, body)), await post(1, body)]
    assert {one.status_code for one in answers} == {504}
    assert len({one.headers["mesh-call-id"] for one in answers}) == 1


async def test_a_retry_after_nothing_was_sent(
    post: Post, agent_id: str, running: Running, directory: Directory
) -> None:
    """A refusal uses the key up only if the request was stored: here the agent was offline."""
    await make_offline(running, directory, agent_id)
    refused = await post(0, ask(agent_id))
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    async with online(running, directory, replier(agent_id)):
        assert (await post(0, ask(agent_id))).status_code == 200


async def test_a_retry_in_the_background(
    post: Post, agent_id: str, running: Running, directory: Directory
) -> None:
    """202 each time, with the same call and the state that it has."""
    held = Held(agent_id)
    async with online(running, directory, held.agent):
        body = ask(agent_id, background=True)
        first = (await post(0, body)).json()
        assert first["state"] == "stored"
        held.go.set()
        call = f"/v1/calls/{first['id']}"

        async def is_answered() -> bool:
            again = await post(1, body)
            assert (again.status_code, again.headers["location"]) == (202, call)
            return bool(again.json()["state"] == "answered")

        await until(is_answered)
    assert held.started == 1


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("k" * 255, 200),
        ("a key with spaces, 100 % ASCII!", 200),
        ("k" * 256, 400),
        ("ключ", 400),
        ("a\tb", 400),
    ],
)
async def test_keys(
    post: Post, agent_id: str, running: Running, directory: Directory, key: str, status: int
) -> None:
    """Printable ASCII, up to 255 characters."""
    held = Held(agent_id)
    held.go.set()
    async with online(running, directory, held.agent):
        for at in (0, 1):
            answer = await post(at, ask(agent_id), key.encode())
            assert answer.status_code == status
            if status == 400:
                assert error_of(answer)["param"] == "Idempotency-Key"
    assert held.started == (1 if status == 200 else 0)


async def test_a_retry_through_kills(settings: Settings, tmp_path: Path) -> None:
    """The shim is another one, the broker was killed twice: before the answer, and after it."""
    held = Held("lasting")
    headers = {"Idempotency-Key": "through kills"}
    async with own_mesh(settings, tmp_path, held.agent) as mesh:
        body = ask("lasting", timeout=60)
        async with replica_at(mesh.broker.url) as one:
            await until(lambda: directory_knows(one, "lasting"))
            asking = asyncio.create_task(one.http.post(CHAT, json=body, headers=headers))
            await until(lambda: held.started == 1)
            await mesh.broker.kill()
            held.go.set()
            first = await asking
            assert first.status_code == 200
        await mesh.broker.kill()
        async with replica_at(mesh.broker.url) as two:
            again = await two.http.post(CHAT, json=body, headers=headers)
            assert (again.status_code, again.content) == (200, first.content)
    assert held.started == 1


async def directory_knows(replica: Replica, agent_id: str) -> bool:
    """Tell whether a replica sees an agent online."""
    answer = await replica.http.get(f"/v1/models/{agent_id}")
    return answer.status_code == 200
