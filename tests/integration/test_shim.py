"""The HTTP door with the real OpenAI client, sync and async, streamed and not."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from mesh import Agent, CallContext, ChatReply, ChatRequest
from mesh.connection import Connection
from mesh.directory import Directory
from tests.conftest import Running
from tests.shim import HELLO, online, replier, serving, speaker


@pytest.fixture(scope="module")
async def url(connection: Connection, directory: Directory) -> AsyncIterator[str]:
    """The door of these tests."""
    async with serving(connection, directory) as base:
        yield base


@pytest.fixture
async def ai(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The OpenAI client, pointed at the door with a key that nobody gave out."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_a_chat_completion(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """An agent answers as a model does."""
    async with online(running, directory, replier(agent_id)):
        found = await ai.chat.completions.create(model=agent_id, messages=HELLO)
    [choice] = found.choices
    assert choice.message.content == "You said: hello"
    assert (choice.finish_reason, choice.index, choice.message.role) == ("stop", 0, "assistant")
    assert (found.object, found.model) == ("chat.completion", agent_id)
    assert found.id.startswith("chatcmpl-")
    assert found.created > 1_700_000_000
    assert found.usage
    assert found.usage.total_tokens == 5
    extra: Any = found.model_extra
    assert extra["mesh"]["agent_id"] == agent_id
    assert extra["mesh"]["node"] == "node1"


async def test_a_streamed_completion(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """Tokens come one by one, with one id, and no usage unless it is asked for."""
    async with online(running, directory, speaker(agent_id)):
        stream = await ai.chat.completions.create(model=agent_id, messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "hel", "lo", None]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("make", [speaker, replier])
async def test_usage_of_a_stream_on_demand(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory, make: Any
) -> None:
    """`include_usage` adds one last chunk without choices, of agents that stream and others."""
    async with online(running, directory, make(agent_id)):
        stream = await ai.chat.completions.create(
            model=agent_id, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        *others, last = [chunk async for chunk in stream]
    assert last.choices == []
    assert last.usage
    assert last.usage.total_tokens == 5
    assert all(one.choices and one.usage is None for one in others)


async def test_an_agent_that_does_not_stream_is_streamed(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """The client need not know how the agent answers."""
    async with online(running, directory, replier(agent_id)):
        stream = await ai.chat.completions.create(model=agent_id, messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert [one.choices[0].delta.content for one in chunks] == ["", "You said: hello", None]
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_the_stream_helper(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """The client's strict accumulator, which demands a finish reason, is content."""
    async with (
        online(running, directory, speaker(agent_id)),
        ai.chat.completions.stream(model=agent_id, messages=HELLO) as stream,
    ):
        events = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "hello"
    assert "content.done" in events


async def test_the_sync_client(
    url: str, agent_id: str, running: Running, directory: Directory
) -> None:
    """Plain and streamed, from a thread."""

    def ask() -> tuple[str | None, list[str | None]]:
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
            whole = client.chat.completions.create(model=agent_id, messages=HELLO)
            parts = client.chat.completions.create(model=agent_id, messages=HELLO, stream=True)
            return whole.choices[0].message.content, [
                part.choices[0].delta.content for part in parts
            ]

    async with online(running, directory, speaker(agent_id)):
        whole, parts = await asyncio.to_thread(ask)
    assert whole == "hello"
    assert parts == ["", "hel", "lo", None]


@pytest.mark.parametrize(
    "naming",
    [
        {"model": "{id}"},
        {"model": "{id}@node1"},
        {"model": "gpt-4o", "extra_body": {"agent_id": "{id}", "target_node": "node1"}},
        {"model": "gpt-4o", "extra_headers": {"X-Mesh-Agent": "{id}"}},
        {"model": "{id}", "extra_headers": {"X-Mesh-Target-Node": "node1"}},
    ],
)
async def test_the_ways_to_name_an_agent(
    ai: openai.AsyncOpenAI,
    agent_id: str,
    running: Running,
    directory: Directory,
    naming: dict[str, Any],
) -> None:
    """The guide's fields, headers, and the model."""
    named: Any = {
        key: value.format(id=agent_id)
        if isinstance(value, str)
        else {name: text.format(id=agent_id) for name, text in value.items()}
        for key, value in naming.items()
    }
    async with online(running, directory, replier(agent_id)):
        found = await ai.chat.completions.create(messages=HELLO, **named)
    assert found.model == agent_id


async def test_the_agent_learns_who_asks(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """The guide's `source_agent` and `source_node`, or this door when nobody says."""
    agent = Agent(agent_id)

    @agent.chat
    async def who(request: ChatRequest, call: CallContext) -> str:
        return f"{call.source_agent} on {call.source_node}"

    source = {"source_agent": "daarwizz", "source_node": "node7"}
    async with online(running, directory, agent):
        named = await ai.chat.completions.create(model=agent_id, messages=HELLO, extra_body=source)
        unnamed = await ai.chat.completions.create(model=agent_id, messages=HELLO)
    assert named.choices[0].message.content == "daarwizz on node7"
    assert unnamed.choices[0].message.content == "http on node1"


async def test_what_the_door_does_not_know_reaches_the_agent(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """Tools, sampling, content parts and vendors' fields pass through."""
    asked: list[ChatRequest] = []
    agent = Agent(agent_id)
    tool = {"type": "function", "function": {"name": "look", "arguments": '{"at":"sun"}'}}

    @agent.chat
    async def look(request: ChatRequest) -> ChatReply:
        asked.append(request)
        calls = [{"id": "t1", **tool}]
        return ChatReply(content=None, tool_calls=calls, finish_reason="tool_calls")

    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "what "}] * 2}]
    tools: Any = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    options: Any = {"tools": tools, "temperature": 0.5, "extra_body": {"vendor": {"x": [1]}}}
    async with online(running, directory, agent):
        whole = await ai.chat.completions.create(model=agent_id, messages=parts, **options)
        stream = await ai.chat.completions.create(
            model=agent_id, messages=parts, stream=True, **options
        )
        chunks = [chunk async for chunk in stream]
    assert asked[0].last_text == "what what "
    extra: Any = asked[0].model_extra
    assert (extra["tools"], extra["temperature"], extra["vendor"]) == (tools, 0.5, {"x": [1]})
    [called] = whole.choices[0].message.tool_calls or []
    assert called.model_dump()["function"] == tool["function"]
    assert whole.choices[0].message.content is None
    assert whole.choices[0].finish_reason == "tool_calls"
    [delta] = chunks[1].choices[0].delta.tool_calls or []
    assert (delta.index, delta.id) == (0, "t1")
