"""A2A 1.0 as its official SDK's client speaks it: send, stream, get, cancel, subscribe."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
import pytest
from a2a.client import Client, ClientConfig, create_client
from a2a.helpers import new_data_part, new_text_message, new_url_part
from a2a.types import (
    CancelTaskRequest,
    GetTaskRequest,
    Message,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskState,
)
from a2a.utils.errors import (
    ContentTypeNotSupportedError,
    InvalidParamsError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from mesh import Agent, ChatRequest
from mesh.access import Access
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.shim.rules import Rules
from tests.calls import Held
from tests.conftest import Running, until
from tests.shim import online, replier, serving


@pytest.fixture
async def door(connection: Connection, directory: Directory) -> AsyncIterator[str]:
    """A door."""
    async with serving(connection, directory) as url:
        yield url


@asynccontextmanager
async def speaking(door: str, agent: str, *, streaming: bool = False) -> AsyncIterator[Client]:
    """Make the SDK's client for an agent, by its card."""
    async with httpx.AsyncClient(timeout=30) as http:
        config = ClientConfig(streaming=streaming, httpx_client=http)
        yield await create_client(f"{door}/a2a/{agent}", client_config=config)


def saying(text: str, **configuration: Any) -> SendMessageRequest:
    """Return a message of a user."""
    message = new_text_message(text, role=Role.ROLE_USER)
    return SendMessageRequest(
        message=message, configuration=SendMessageConfiguration(**configuration)
    )


async def task_of(client: Client, request: SendMessageRequest) -> Task:
    """Send, and return the task that is the answer."""
    (answer,) = [one async for one in client.send_message(request)]
    assert answer.HasField("task")
    return answer.task


def text_of(task: Task) -> str:
    """Return the answer of a task."""
    (artifact,) = task.artifacts
    return "".join(part.text for part in artifact.parts)


async def test_a_card_tells_how_to_speak(
    door: str, running: Running, directory: Directory, agent_id: str
) -> None:
    """Where, in which version, and what it is good for; each agent has one."""
    agent = replier(agent_id)
    async with online(running, directory, agent), httpx2.AsyncClient(base_url=door) as http:
        answer = await http.get(f"/a2a/{agent_id}/.well-known/agent-card.json")
        card = answer.json()
        assert (card["name"], card["skills"][0]["id"]) == (agent_id, agent_id)
        assert card["supportedInterfaces"] == [
            {
                "url": f"{door}/a2a/{agent_id}",
                "protocolBinding": "JSONRPC",
                "protocolVersion": "1.0",
            }
        ]
        missing = await http.get("/a2a/nobody-at-all/.well-known/agent-card.json")
        assert missing.status_code == 404


async def test_a_card_behind_a_proxy(
    connection: Connection, directory: Directory, running: Running, agent_id: str
) -> None:
    """Names the address by which clients reach the door: a key must not go in the clear."""
    public = "https://mesh.example.org/below"
    async with (
        online(running, directory, replier(agent_id)),
        serving(connection, directory, public_url=f"{public}/") as url,
        httpx2.AsyncClient(base_url=url) as http,
    ):
        card = (await http.get(f"/a2a/{agent_id}/.well-known/agent-card.json")).json()
    assert card["supportedInterfaces"][0]["url"] == f"{public}/a2a/{agent_id}"


async def test_send_and_get(
    door: str, running: Running, directory: Directory, agent_id: str
) -> None:
    """A task that has ended, and is there to be looked at again."""
    async with online(running, directory, replier(agent_id)), speaking(door, agent_id) as client:
        task = await task_of(client, saying("hello"))
        assert task.status.state == TaskState.TASK_STATE_COMPLETED
        assert text_of(task) == "You said: hello"
        again = await client.get_task(GetTaskRequest(id=task.id))
        assert text_of(again) == "You said: hello"
        with_data = saying("read this")
        with_data.message.parts.append(new_data_part({"sun": [1, 2]}))
        assert text_of(await task_of(client, with_data)).endswith('{"sun":[1.0,2.0]}')


async def test_a_message_that_comes_twice_is_asked_once(
    door: str, running: Running, directory: Directory, agent_id: str
) -> None:
    """The same task; the same id with other words is refused."""
    asked: list[str] = []
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        asked.append(request.last_text)
        return f"answer {len(asked)}"

    async with online(running, directory, agent), speaking(door, agent_id) as client:
        request = saying("hello")
        first, second = [await task_of(client, request) for _ in range(2)]
        assert (first.id, text_of(first)) == (second.id, text_of(second))
        assert asked == ["hello"]
        request.message.parts[0].text = "something else"
        with pytest.raises(InvalidParamsError, match="another request"):
            await task_of(client, request)


async def test_an_answer_is_streamed(
    door: str, running: Running, directory: Directory, agent_id: str
) -> None:
    """The task, its work, each part as it comes, and its end."""
    more = asyncio.Event()
    agent = Agent(agent_id)

    @agent.chat
    async def speak(request: ChatRequest):  # type: ignore[no-untyped-def]
        yield "hel"
        await more.wait()
        yield "lo"

    async with (
        online(running, directory, agent),
        speaking(door, agent_id, streaming=True) as client,
    ):
        kinds, text = [], ""
        async for one in client.send_message(saying("hi")):
            kind = str(one.WhichOneof("payload"))
            kinds.append(kind)
            if kind == "artifact_update":
                text += "".join(part.text for part in one.artifact_update.artifact.parts)
                assert one.artifact_update.append == (text != "hel")
                more.set()
            last = one
        assert kinds == [
            *("task", "status_update", "artifact_update", "artifact_update", "status_update")
        ]
        assert text == "hello"
        assert last.status_update.status.state == TaskState.TASK_STATE_COMPLETED
        task = await client.get_task(GetTaskRequest(id=last.status_update.task_id))
        assert text_of(task) == "hello"


async def test_an_agent_that_does_not_stream(
    door: str, running: Running, directory: Directory, agent_id: str
) -> None:
    """Comes as one part."""
    async with (
        online(running, directory, replier(agent_id)),
        speaking(door, agent_id, streaming=True) as client,
    ):
        events = [one async for one in client.send_message(saying("hi"))]
        parts = [one.artifact_update for one in events if one.HasField("artifact_update")]
        (part,) = parts
        assert part.last_chunk
        assert part.artifact.parts[0].text == "You said: hi"


async def test_return_at_once_subscribe_and_cancel(
    door: str, running: Running, directory: Directory, agent_id: str
) -> None:
    """A task goes on by itself; who comes later hears the rest; and it can be stopped."""
    held = Held(agent_id)
    async with (
        online(running, directory, held.agent),
        speaking(door, agent_id) as client,
        speaking(door, agent_id, streaming=True) as other,
    ):
        first = await task_of(client, saying("one", return_immediately=True))
        assert first.status.state == TaskState.TASK_STATE_SUBMITTED
        await until(lambda: held.started == 1)
        states: list[int] = []

        async def listen() -> None:
            heard = [one async for one in other.subscribe(SubscribeToTaskRequest(id=first.id))]
            updates = [one.status_update for one in heard if one.HasField("status_update")]
            states.extend(one.status.state for one in updates)

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0.2)
        held.go.set()
        await asyncio.wait_for(listening, 20)
        assert states[-1] == TaskState.TASK_STATE_COMPLETED
        held.go.clear()
        second = await task_of(client, saying("two", return_immediately=True))
        await until(lambda: held.started == 2)
        stopped = await client.cancel_task(CancelTaskRequest(id=second.id))
        assert stopped.status.state == TaskState.TASK_STATE_CANCELED
        await until(lambda: held.stopped == 1)
        with pytest.raises(TaskNotCancelableError):
            await client.cancel_task(CancelTaskRequest(id=second.id))
        with pytest.raises(UnsupportedOperationError):
            async for _ in other.subscribe(SubscribeToTaskRequest(id=second.id)):
                pass


async def test_failures_are_states(
    door: str, running: Running, directory: Directory, agent_id: str
) -> None:
    """Of a task that has begun; with what went wrong, in words."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> str:
        raise ValueError("the sun does not shine")

    async with online(running, directory, agent):
        async with speaking(door, agent_id) as client:
            task = await task_of(client, saying("x"))
            assert task.status.state == TaskState.TASK_STATE_FAILED
            assert "the sun does not shine" in task.status.message.parts[0].text
        async with speaking(door, agent_id, streaming=True) as client:
            events = [one async for one in client.send_message(saying("x"))]
            assert events[-1].status_update.status.state == TaskState.TASK_STATE_FAILED


async def test_what_cannot_be_is_refused(
    door: str, running: Running, directory: Directory, agent_id: str
) -> None:
    """By the error that A2A has for it."""
    other = replier(f"{agent_id}-other")
    async with (
        online(running, directory, replier(agent_id), other),
        speaking(door, agent_id) as client,
        speaking(door, other.id) as elsewhere,
    ):
        task = await task_of(client, saying("hello"))
        for ask in (
            client.get_task(GetTaskRequest(id="0" * 32)),
            elsewhere.get_task(GetTaskRequest(id=task.id)),
        ):
            with pytest.raises(TaskNotFoundError):
                await ask
        with pytest.raises(InvalidParamsError):
            await client.get_task(GetTaskRequest(id="not an id"))
        with_file = saying("look")
        with_file.message.parts.append(new_url_part("https://example.org/x.png"))
        with pytest.raises(ContentTypeNotSupportedError):
            await task_of(client, with_file)
        follow_up = saying("and then?")
        follow_up.message.task_id = task.id
        with pytest.raises(UnsupportedOperationError):
            await task_of(client, follow_up)
        with pytest.raises(InvalidParamsError):
            await task_of(
                client, SendMessageRequest(message=Message(message_id="m1", role=Role.ROLE_USER))
            )


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"{", {}, -32700),
        (b"[]", {}, -32600),
        (b'{"jsonrpc":"1.0","method":"GetTask"}', {}, -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"Nonsense"}', {}, -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":{}}', {}, -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":[]}', {}, -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ListTasks"}', {}, -32004),
        (b'{"jsonrpc":"2.0","id":1,"method":"GetExtendedAgentCard"}', {}, -32007),
        (b'{"jsonrpc":"2.0","id":1,"method":"CreateTaskPushNotificationConfig"}', {}, -32003),
        (b'{"jsonrpc":"2.0","id":1,"method":"GetTask"}', {"a2a-version": "0.3"}, -32009),
        (b'{"jsonrpc":"2.0","id":1,"method":"GetTask"}', {"a2a-version": ""}, -32009),
        (b'{"jsonrpc":"2.0","id":1,"method":"GetTask"}', {"a2a-version": "x" * 300}, -32009),
    ],
)
async def test_requests_that_are_none(
    door: str,
    running: Running,
    directory: Directory,
    agent_id: str,
    body: bytes,
    headers: dict[str, str],
    code: int,
) -> None:
    """Have the codes of JSON-RPC and of A2A, and the id of what they answer."""
    async with online(running, directory, replier(agent_id)), httpx2.AsyncClient() as http:
        said = {"content-type": "application/json", "a2a-version": "1.0", **headers}
        answer = await http.post(f"{door}/a2a/{agent_id}", content=body, headers=said)
    assert answer.status_code == 200
    told = answer.json()
    assert told["error"]["code"] == code
    assert told["error"]["message"]
    assert told["id"] == (1 if code not in (-32700, -32600) else None)
    if code <= -32001 and code > -32100:
        assert told["error"]["data"][0]["domain"] == "a2a-protocol.org"


async def test_an_agent_that_nobody_knows(door: str) -> None:
    """Is told as the mesh tells it."""
    async with httpx2.AsyncClient() as http:
        body = {"jsonrpc": "2.0", "id": 7, "method": "SendMessage", "params": {}}
        said = {"a2a-version": "1.0"}
        answer = await http.post(f"{door}/a2a/nobody-at-all", json=body, headers=said)
    error = answer.json()["error"]
    assert error["code"] == -32602
    assert "no agent 'nobody-at-all'" in error["message"]
    assert error["data"][0]["reason"] == "AGENT_NOT_FOUND"


async def test_keys_guard_it(
    connection: Connection, directory: Directory, running: Running, agent_id: str
) -> None:
    """The card says so, and a key for another agent is refused; tasks of two keys are apart."""
    async with (
        online(running, directory, replier(agent_id)),
        serving(connection, directory, Rules(requires_keys=True)) as door,
    ):
        access = Access(connection)
        mine, theirs = [await access.create(name) for name in ("mine", "theirs")]
        foreign = await access.create("x", agents=["somebody"])
        async with httpx2.AsyncClient(base_url=door) as http:
            path = f"/a2a/{agent_id}"
            assert (await http.get(f"{path}/.well-known/agent-card.json")).status_code == 401
            message = {"messageId": "m1", "role": "ROLE_USER", "parts": [{"text": "hi"}]}
            rpc = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage"}
            body = {**rpc, "params": {"message": message}}
            ids = []
            for issued in (mine, mine, theirs):
                shown = {"authorization": f"Bearer {issued.token}", "a2a-version": "1.0"}
                card = (await http.get(f"{path}/.well-known/agent-card.json", headers=shown)).json()
                assert (
                    card["securitySchemes"]["key"]["httpAuthSecurityScheme"]["scheme"] == "Bearer"
                )
                told = (await http.post(path, json=body, headers=shown)).json()
                ids.append(told["result"]["task"]["id"])
            assert ids[0] == ids[1] != ids[2]
            shown = {"authorization": f"Bearer {foreign.token}", "a2a-version": "1.0"}
            refused = (await http.post(path, json=body, headers=shown)).json()
            assert refused["error"]["data"][0]["reason"] == "NOT_ALLOWED"
