"""The Responses API, byte by byte: streams, paths, retries, and what clients get wrong."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import orjson
import pytest
from nats.aio.client import Client

from mesh import Agent, ChatRequest
from mesh.access import Access
from mesh.callers import new_instance_id
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.shim.rules import Rules
from mesh.shim.sse import Pace
from tests.conftest import Running
from tests.foreign import Reply, foreign_agent
from tests.shim import error_of, online, replier, serving, speaker

PATH = "/v1/responses"
GOOD = "good-agent"


@pytest.fixture(scope="module")
async def http(connection: Connection, directory: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the door of these tests."""
    async with (
        serving(connection, directory) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
    ):
        yield client


def events_of(text: str) -> list[Any]:
    """Return what the events of a stream hold, and check that there is nothing else in it."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    found = []
    for block in (one for one in blocks if not one.startswith(":")):
        name, data = block.split("\n")
        found.append(orjson.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    return found


def types_of(events: list[Any]) -> list[str]:
    """Return the kinds of events."""
    return [one["type"].removeprefix("response.") for one in events]


STREAM = """\
event: response.created
data: {"type":"response.created","sequence_number":0,"response":{…}}

event: response.in_progress
data: {"type":"response.in_progress","sequence_number":1,"response":{…}}

event: response.output_item.added
data: {"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":\
{"id":"msg_<call>","type":"message","role":"assistant","status":"in_progress","content":[]}}

event: response.content_part.added
data: {"type":"response.content_part.added","sequence_number":3,"item_id":"msg_<call>",\
"output_index":0,"content_index":0,"part":{"type":"output_text","text":"","annotations":[],\
"logprobs":[]}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_<call>",\
"output_index":0,"content_index":0,"delta":"hel","logprobs":[]}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":5,"item_id":"msg_<call>",\
"output_index":0,"content_index":0,"delta":"lo","logprobs":[]}

event: response.output_text.done
data: {"type":"response.output_text.done","sequence_number":6,"item_id":"msg_<call>",\
"output_index":0,"content_index":0,"text":"hello","logprobs":[]}

event: response.content_part.done
data: {"type":"response.content_part.done","sequence_number":7,"item_id":"msg_<call>",\
"output_index":0,"content_index":0,"part":{"type":"output_text","text":"hello",\
"annotations":[],"logprobs":[]}}

event: response.output_item.done
data: {"type":"response.output_item.done","sequence_number":8,"output_index":0,"item":\
{"id":"msg_<call>","type":"message","role":"assistant","status":"completed","content":\
[{"type":"output_text","text":"hello","annotations":[],"logprobs":[]}]}}

event: response.completed
data: {"type":"response.completed","sequence_number":9,"response":{…}}

"""


async def test_a_stream_word_for_word(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """A name and a line of data for each event, and no `[DONE]`."""
    body = {"model": agent_id, "input": "hi", "stream": True}
    async with online(running, directory, speaker(agent_id)):
        answer = await http.post(PATH, json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    call_id = answer.headers["mesh-call-id"]
    assert {one["response"]["id"] for one in events_of(answer.text) if "response" in one} == {
        f"resp_{call_id}"
    }
    text = re.sub(r'"response":\{.*\}\}$', '"response":{…}}', answer.text, flags=re.MULTILINE)
    assert text.replace(call_id, "<call>") == STREAM


async def test_a_silent_agent_is_announced(
    connection: Connection, agent_id: str, running: Running, directory: Directory
) -> None:
    """Before it says anything the client knows the response's id."""
    go_on, agent = asyncio.Event(), Agent(agent_id)

    @agent.chat
    async def think(request: ChatRequest) -> str:
        await go_on.wait()
        return "done"

    async with (
        serving(connection, directory, pace=Pace(begin_after_s=0.1)) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
        online(running, directory, agent),
        client.stream(
            "POST", PATH, json={"model": agent_id, "input": "hi", "stream": True}
        ) as answer,
    ):
        parts = answer.aiter_text()
        text = await anext(parts)
        assert text.startswith("event: response.created\n")
        assert not go_on.is_set()
        go_on.set()
        text += "".join([part async for part in parts])
    assert types_of(events_of(text))[-1] == "completed"


async def test_an_agent_that_died_half_way(
    http: httpx2.AsyncClient,
    agent_id: str,
    connection: Connection,
    directory: Directory,
    bare: Client,
) -> None:
    """The second attempt is not glued to the first, and the end does not look like success."""
    head = {"content-type": "application/json", "mesh-kind": "chunk", "mesh-seq": "0"}
    chunk = orjson.dumps({"choices": [{"index": 0, "delta": {"content": "half"}}]})

    async def script(reply: Reply) -> None:
        await reply(chunk, {**head, "mesh-attempt": "1"})
        await reply(chunk, {**head, "mesh-attempt": "2"})

    async with foreign_agent(agent_id, connection, directory, bare, script):
        answer = await http.post(PATH, json={"model": agent_id, "input": "hi", "stream": True})
    *_, failed, error = events_of(answer.text)
    assert types_of([failed, error]) == ["failed", "error"]
    assert failed["response"]["output"][0]["content"][0]["text"] == "half"
    assert failed["response"]["error"]["code"] == error["code"] == "stream_restarted"


@pytest.mark.parametrize(
    "chunk",
    [
        b"{}",
        b"7",
        b'{"choices":[{"delta":{"content":7}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"function":7}]}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"function":{"name":{}}}]}}]}',
    ],
)
async def test_a_chunk_that_is_none(
    http: httpx2.AsyncClient,
    agent_id: str,
    connection: Connection,
    directory: Directory,
    bare: Client,
    chunk: bytes,
) -> None:
    """What a foreign agent writes breaks nothing here."""
    head = {"content-type": "application/json", "mesh-kind": "chunk", "mesh-seq": "0"}

    async def script(reply: Reply) -> None:
        await reply(chunk, head)

    async with foreign_agent(agent_id, connection, directory, bare, script):
        answer = await http.post(PATH, json={"model": agent_id, "input": "hi", "stream": True})
    if answer.status_code == 200:
        assert types_of(events_of(answer.text))[-2:] == ["failed", "error"]
    else:
        assert (answer.status_code, error_of(answer)["code"]) == (502, "bad_answer")


@pytest.mark.parametrize("path", [PATH, f"{PATH}/", "/responses", "/responses/"])
async def test_the_paths(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory, path: str
) -> None:
    """With `/v1` and without, with a slash at the end and without; also to look up and to stop."""
    async with online(running, directory, replier(agent_id)):
        asked = (await http.post(path, json={"model": agent_id, "input": "hi"})).json()
        one = f"{path.rstrip('/')}/{asked['id']}"
        found = await http.get(one)
        stopped = await http.post(f"{one}/cancel")
    assert found.json()["output"] == stopped.json()["output"] == asked["output"]


async def test_a_retry_is_the_same_response(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """With an `Idempotency-Key`, which another request cannot have."""
    asked, agent = [], Agent(agent_id)

    @agent.chat
    async def count(request: ChatRequest) -> str:
        asked.append(request)
        return "one"

    headers = {"Idempotency-Key": new_instance_id()}
    body = {"model": agent_id, "input": "hi", "metadata": {"a": "b"}}
    async with online(running, directory, agent):
        first = await http.post(PATH, json=body, headers=headers)
        again = await http.post(PATH, json=body, headers=headers)
        other = await http.post(PATH, json={**body, "input": "ho"}, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_key_reused")
    assert len(asked) == 1


async def test_a_deadline(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """By the header, as everywhere."""
    agent = Agent(agent_id)

    @agent.chat
    async def never(request: ChatRequest) -> str:
        await asyncio.Event().wait()
        return ""

    async with online(running, directory, agent):
        answer = await http.post(
            PATH, json={"model": agent_id, "input": "hi"}, headers={"X-Mesh-Timeout": "0.3"}
        )
    assert (answer.status_code, error_of(answer)["code"]) == (504, "agent_timeout")


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "param"),
    [
        ("GET", f"resp_{'0' * 32}", 404, "call_not_found", None),
        ("GET", "resp_nonsense!", 400, "invalid_value", "call_id"),
        ("POST", f"resp_{'0' * 32}/cancel", 404, "call_not_found", None),
        ("DELETE", "resp_1", 405, "method_not_supported", None),
        ("GET", "resp_1/input_items", 404, "unknown_url", None),
    ],
)
async def test_what_cannot_be_looked_up(
    http: httpx2.AsyncClient, method: str, path: str, status: int, code: str, param: str | None
) -> None:
    """Unknown ids and what is not served wear the envelope."""
    answer = await http.request(method, f"{PATH}/{path}")
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


async def test_a_response_is_not_streamed_again(
    http: httpx2.AsyncClient, agent_id: str, running: Running, directory: Directory
) -> None:
    """The events of the call are, and the client is told where."""
    async with online(running, directory, replier(agent_id)):
        asked = (await http.post(PATH, json={"model": agent_id, "input": "hi"})).json()
        answer = await http.get(f"{PATH}/{asked['id']}?stream=true")
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, "stream")
    assert f"/v1/calls/{asked['mesh']['call_id']}/events" in error["message"]


async def test_a_key_for_another_agent(
    connection: Connection, agent_id: str, running: Running, directory: Directory
) -> None:
    """It neither asks, nor looks up, nor stops."""
    access = Access(connection)
    own = await access.create("own", agents=[agent_id])
    foreign = await access.create("foreign", agents=["somebody-else"])
    body = {"model": agent_id, "input": "hi"}
    async with (
        serving(connection, directory, Rules(requires_keys=True)) as base,
        httpx2.AsyncClient(base_url=base, timeout=10) as client,
        online(running, directory, replier(agent_id)),
    ):
        good, bad = ({"authorization": f"Bearer {one.token}"} for one in (own, foreign))
        asked = (await client.post(PATH, json=body, headers=good)).json()
        one = f"{PATH}/{asked['id']}"
        assert (await client.get(one, headers=good)).status_code == 200
        refused = [
            await client.post(PATH, json=body, headers=bad),
            await client.get(one, headers=bad),
            await client.post(f"{one}/cancel", headers=bad),
        ]
    assert [answer.status_code for answer in refused] == [403] * 3


JUNK: tuple[Any, ...] = (7, -1, 1.5, True, "x", [], [7], {}, {"a": 1}, [[]], [{}], [{"type": 7}])
FIELDS = (
    *("model", "input", "instructions", "stream", "tools", "tool_choice", "temperature"),
    *("parallel_tool_calls", "top_p", "max_output_tokens", "reasoning", "text", "metadata"),
    *("previous_response_id", "conversation", "prompt", "n", "store", "include", "truncation"),
    *("max_tool_calls", "context_management", "stream_options", "background", "timeout", "wait"),
    *("agent_id", "target_node", "source_agent", "source_node", "messages"),
)


@pytest.mark.parametrize("field", FIELDS)
async def test_a_wrong_value_is_blamed(
    http: httpx2.AsyncClient, running: Running, directory: Directory, field: str
) -> None:
    """Whatever stands there, it is the client that is told, and which field it is."""
    async with online(running, directory, replier(GOOD)):
        for value in JUNK:
            answer = await http.post(PATH, json={"model": GOOD, "input": "hi", field: value})
            assert answer.status_code in (200, 400, 404), (field, value, answer.text)
            if answer.status_code == 400:
                param = error_of(answer)["param"]
                assert param.partition(".")[0] == field, (field, value)
