"""The direct way to an agent over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import orjson
import pytest

from mesh import Agent, CallContext, ChatRequest
from mesh.connection import Connection
from mesh.directory import Directory
from tests.conftest import Running
from tests.shim import error_of, online, replier, serving, speaker


@pytest.fixture(scope="module")
async def http(connection: Connection, directory: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the door of these tests."""
    async with (
        serving(connection, directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
    ):
        yield client


async def test_a_message_is_answered(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """In the same exchange, with who answered and where."""
    async with online(running, directory, replier(agent_id)):
        answer = await http.post(f"/api/agent/{agent_id}/chat", json={"message": "hello"})
    assert answer.status_code == 200
    found = answer.json()
    assert (found["agent_id"], found["node"]) == (agent_id, "node1")
    assert found["response"] == "You said: hello"
    assert found["call_id"] == answer.headers["mesh-call-id"]
    assert found["usage"]["total_tokens"] == 5


@pytest.mark.parametrize(
    ("fields", "headers"), [({"stream": True}, {}), ({}, {"Accept": "text/event-stream"})]
)
async def test_an_answer_can_be_streamed(
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    fields: dict[str, Any],
    headers: dict[str, str],
) -> None:
    """Part by part, and at the end the whole of it."""
    async with online(running, directory, speaker(agent_id)):
        answer = await http.post(
            f"/api/agent/{agent_id}/chat", json={"message": "hi", **fields}, headers=headers
        )
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [orjson.loads(one[6:]) for one in answer.text.split("\n\n") if one]
    assert [one["delta"] for one in events[:-1]] == ["hel", "lo"]
    assert (events[-1]["done"], events[-1]["response"]) == (True, "hello")


async def test_who_asks_is_passed_on(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """And the node is honoured."""
    agent = Agent(agent_id)

    @agent.chat
    async def who(request: ChatRequest, call: CallContext) -> str:
        return f"{call.source_agent}@{call.source_node}"

    body = {"message": "hi", "source_agent": "daarwizz", "source_node": "node7"}
    async with online(running, directory, agent, node="node2"):
        answer = await http.post(
            f"/api/agent/{agent_id}/chat", json={**body, "target_node": "node2"}
        )
        elsewhere = await http.post(
            f"/api/agent/{agent_id}/chat", json={**body, "target_node": "node77"}
        )
    assert answer.json()["response"] == "daarwizz@node7"
    assert elsewhere.status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", "body"),
        (b"[]", "body"),
        ({}, "message"),
        ({"message": ""}, "message"),
        ({"message": "   "}, "message"),
        ({"message": 7}, "message"),
        ({"message": ["a"]}, "message"),
        ({"message": "hi", "stream": "perhaps"}, "stream"),
        ({"message": "hi", "timeout": -1}, "timeout"),
        ({"message": "hi", "agent_id": "somebody-else"}, "path"),
    ],
)
async def test_a_bad_message_is_blamed(
    http: httpx2.AsyncClient,
    agent_id: str,
    running: Running,
    directory: Directory,
    body: Any,
    param: str,
) -> None:
    """The client is told which field it is."""
    async with online(running, directory, replier(agent_id)):
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        answer = await http.post(
            f"/api/agent/{agent_id}/chat",
            content=content,
            headers={"content-type": "application/json"},
        )
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


async def test_nobody_is_there(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Unknown is 404, offline is 503 until the client says that it waits."""
    unknown = await http.post("/api/agent/nobody-at-all/chat", json={"message": "hi"})
    bad = await http.post("/api/agent/a.b/chat", json={"message": "hi"})
    async with online(running, directory, replier(agent_id)):
        pass
    offline = await http.post(f"/api/agent/{agent_id}/chat", json={"message": "hi"})
    waiting = asyncio.create_task(
        http.post(f"/api/agent/{agent_id}/chat", json={"message": "hi", "wait": True})
    )
    async with online(running, directory, replier(agent_id)):
        assert (await waiting).json()["response"] == "You said: hi"
    assert (unknown.status_code, bad.status_code, offline.status_code) == (404, 400, 503)
    assert "retry-after" in offline.headers


async def test_a_ping_does_not_run_the_agent(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """The way is tried, and nothing is spent."""
    agent = Agent(agent_id)
    asked = []

    @agent.chat
    async def costly(request: ChatRequest) -> str:
        asked.append(request)
        return "expensive"

    async with online(running, directory, agent):
        answer = await http.post(
            f"/api/agent/{agent_id}/chat", json={"message": "hi"}, headers={"X-Mesh-Ping": "1"}
        )
    assert answer.json()["response"] == "pong"
    assert asked == []


async def test_what_is_said_beside_the_message(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Fields of chat reach the agent; those for the mesh do not."""
    agent, asked = Agent(agent_id), list[ChatRequest]()

    @agent.chat
    async def note(request: ChatRequest) -> str:
        asked.append(request)
        return "noted"

    body = {"message": "hi", "metadata": {"a": "b"}, "temperature": 0.5}
    ours = {"agent_id": agent_id, "source_agent": "daarwizz", "timeout": 9, "wait": True}
    async with online(running, directory, agent):
        await http.post(f"/api/agent/{agent_id}/chat", json={**body, **ours})
    assert asked[0].model_extra == {"metadata": {"a": "b"}, "temperature": 0.5}
    assert asked[0].last_text == "hi"


async def test_a_whole_conversation(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """Instead of one message, and never both."""
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    path = f"/api/agent/{agent_id}/chat"
    async with online(running, directory, replier(agent_id)):
        answer = await http.post(path, json={"messages": said})
        both = await http.post(path, json={"messages": said, "message": "hi"})
        wrong = await http.post(path, json={"messages": [{"content": "hi"}]})
        several = await http.post(path, json={"messages": said, "n": 2})
    assert answer.json()["response"] == "You said: hello"
    assert [one.status_code for one in (both, wrong, several)] == [400] * 3
    params = [error_of(one)["param"] for one in (both, wrong, several)]
    assert params == ["message", "messages.0.role", "n"]


async def test_a_message_in_the_background(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """The call is a resource, as it is from any other door."""
    async with online(running, directory, replier(agent_id)):
        answer = await http.post(
            f"/api/agent/{agent_id}/chat", json={"message": "hi", "background": True}
        )
        found = await http.get(f"{answer.headers['location']}?wait=5")
    assert answer.status_code == 202
    assert found.json()["result"]["choices"][0]["message"]["content"] == "You said: hi"


async def test_an_answer_that_breaks_off(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """The last event is the error, and none says that it is done."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> AsyncIterator[str]:
        yield "half"
        raise ValueError("no sun today")

    async with online(running, directory, agent):
        answer = await http.post(
            f"/api/agent/{agent_id}/chat", json={"message": "hi", "stream": True}
        )
    events = [orjson.loads(one[6:]) for one in answer.text.split("\n\n") if one]
    assert events[0] == {"delta": "half"}
    assert events[-1]["error"]["code"] == "agent_error"
