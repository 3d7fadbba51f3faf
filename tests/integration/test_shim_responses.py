"""The Responses API with the real OpenAI client: asked, streamed, looked up, cancelled."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from mesh import Agent, CallContext, ChatReply, ChatRequest
from mesh.connection import Connection
from mesh.directory import Directory
from schemas.registry import State
from tests.conftest import Running, until
from tests.shim import online, replier, serving, speaker

ITEMS: Any = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]


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


def patient(agent_id: str) -> tuple[Agent, asyncio.Event]:
    """An agent that answers when the event is set."""
    agent, go_on = Agent(agent_id), asyncio.Event()

    @agent.chat
    async def wait(request: ChatRequest) -> str:
        await go_on.wait()
        return "done"

    return agent, go_on


async def ended(ai: openai.AsyncOpenAI, response_id: str) -> Response:
    """Look a response up until it has ended."""
    found: list[Response] = []

    async def has_ended() -> bool:
        found.append(await ai.responses.retrieve(response_id))
        return found[-1].status not in ("queued", "in_progress")

    await until(has_ended)
    return found[-1]


@pytest.mark.parametrize("said", ["hello", ITEMS])
async def test_a_response(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory, said: Any
) -> None:
    """An agent answers as a model does."""
    async with online(running, directory, replier(agent_id)):
        found = await ai.responses.create(
            model=agent_id, input=said, metadata={"a": "b"}, temperature=0.5
        )
    assert found.output_text == "You said: hello"
    assert (found.object, found.status, found.model) == ("response", "completed", agent_id)
    assert (found.metadata, found.temperature) == ({"a": "b"}, 0.5)
    assert found.created_at > 1_700_000_000
    assert found.usage
    assert (found.usage.input_tokens, found.usage.total_tokens) == (3, 5)
    extra: Any = found.model_extra
    assert extra["mesh"]["node"] == "node1"
    assert found.id == f"resp_{extra['mesh']['call_id']}"


@pytest.mark.parametrize("make", [speaker, replier])
async def test_a_streamed_response(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory, make: Any
) -> None:
    """Whether the agent streams or not; the last event has all of it."""
    async with online(running, directory, make(agent_id)):
        stream = await ai.responses.create(model=agent_id, input="hello", stream=True)
        events = [event async for event in stream]
    text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == text
    assert text in ("hello", "You said: hello")
    assert last.response.usage
    assert last.response.usage.total_tokens == 5


async def test_the_stream_helper(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """The client's strict accumulator is content with the order of events."""
    async with (
        online(running, directory, speaker(agent_id)),
        ai.responses.stream(model=agent_id, input="hello") as stream,
    ):
        shown = [event.delta async for event in stream if "text.delta" in event.type]  # type: ignore[union-attr]
        final = await stream.get_final_response()
    assert shown == ["hel", "lo"]
    assert final.output_text == "hello"


async def test_the_sync_client(
    url: str, agent_id: str, running: Running, directory: Directory
) -> None:
    """Plain and streamed, from a thread, and without `/v1`."""

    def ask() -> tuple[str, str]:
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
            whole = client.responses.create(model=agent_id, input="hello")
            with client.responses.stream(model=agent_id, input="hello") as stream:
                return whole.output_text, stream.get_final_response().output_text

    async with online(running, directory, speaker(agent_id)):
        assert await asyncio.to_thread(ask) == ("hello", "hello")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_function_and_back(
    *,
    ai: openai.AsyncOpenAI,
    agent_id: str,
    running: Running,
    directory: Directory,
    is_streamed: bool,
) -> None:
    """The agent sees chat: tools, its own call, and what the function returned."""
    agent, asked = Agent(agent_id), list[ChatRequest]()
    function = {"name": "look", "arguments": '{"at":"sun"}'}
    call = {"id": "t1", "type": "function", "function": function}

    @agent.chat
    async def look(request: ChatRequest) -> ChatReply:
        asked.append(request)
        if request.messages[-1].role == "tool":
            return ChatReply(content=f"It shines: {request.last_text}")
        return ChatReply(content=None, tool_calls=[call], finish_reason="tool_calls")

    tools: Any = [{"type": "function", "name": "look", "parameters": {}, "strict": False}]
    said: list[Any] = [{"role": "user", "content": "look"}]

    async def ask() -> Response:
        if not is_streamed:
            return await ai.responses.create(model=agent_id, input=said, tools=tools)
        async with ai.responses.stream(model=agent_id, input=said, tools=tools) as stream:
            return await stream.get_final_response()

    async with online(running, directory, agent):
        first = await ask()
        [called] = first.output
        assert called.type == "function_call"
        assert (called.name, called.arguments, called.call_id) == ("look", '{"at":"sun"}', "t1")
        said += [
            called.to_dict(),
            {"type": "function_call_output", "call_id": called.call_id, "output": "16 h"},
        ]
        second = await ask()
    assert second.output_text == "It shines: 16 h"
    extra: Any = asked[0].model_extra
    named = {"name": "look", "parameters": {}, "strict": False}
    assert extra["tools"] == [{"type": "function", "function": named}]
    assert [message.role for message in asked[1].messages] == ["user", "assistant", "tool"]
    assert (asked[1].messages[1].model_extra or {})["tool_calls"] == [call]


@pytest.mark.parametrize(
    "naming",
    [
        {"model": "{id}@node1"},
        {"model": "gpt-4o", "extra_body": {"agent_id": "{id}", "target_node": "node1"}},
        {"model": "gpt-4o", "extra_headers": {"X-Mesh-Agent": "{id}"}},
    ],
)
async def test_the_ways_to_name_an_agent(
    ai: openai.AsyncOpenAI,
    agent_id: str,
    running: Running,
    directory: Directory,
    naming: dict[str, Any],
) -> None:
    """The same as everywhere at this door."""
    named: Any = {
        key: value.format(id=agent_id)
        if isinstance(value, str)
        else {name: text.format(id=agent_id) for name, text in value.items()}
        for key, value in naming.items()
    }
    async with online(running, directory, replier(agent_id)):
        found = await ai.responses.create(input="hello", **named)
    assert found.model == agent_id


async def test_the_agent_learns_who_asks(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """By its context; the body that it gets is plain chat."""
    agent = Agent(agent_id)

    @agent.chat
    async def who(request: ChatRequest, call: CallContext) -> str:
        return f"{call.source_agent}, {sorted(request.model_extra or ())}"

    source = {"source_agent": "daarwizz", "timeout": 9}
    async with online(running, directory, agent):
        found = await ai.responses.create(model=agent_id, input="hello", extra_body=source)
    assert found.output_text == "daarwizz, []"


async def test_a_background_response(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """Queued at once, in progress while the agent works, then completed."""
    agent, go_on = patient(agent_id)
    async with online(running, directory, agent):
        begun = await ai.responses.create(model=agent_id, input="hello", background=True)
        assert (begun.status, begun.background, begun.output) == ("queued", True, [])

        async def is_worked_on() -> bool:
            return (await ai.responses.retrieve(begun.id)).status == "in_progress"

        await until(is_worked_on)
        go_on.set()
        found = await ended(ai, begun.id)
    assert (found.id, found.status, found.output_text) == (begun.id, "completed", "done")
    assert found.background


async def test_a_response_that_waits_for_its_agent(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """In the background an agent may be away, and answers when it is back."""
    async with online(running, directory, replier(agent_id)):
        pass
    await until(lambda: directory.agent(agent_id).state is State.OFFLINE)
    begun = await ai.responses.create(model=agent_id, input="hello", background=True)
    assert (await ai.responses.retrieve(begun.id)).status == "queued"
    async with online(running, directory, replier(agent_id)):
        found = await ended(ai, begun.id)
    assert found.output_text == "You said: hello"


async def test_a_streamed_background_response(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """Its client may leave: the agent goes on, and the answer can be looked up."""
    agent, go_on = Agent(agent_id), asyncio.Event()

    @agent.chat
    async def speak(request: ChatRequest) -> AsyncIterator[str]:
        yield "hel"
        await go_on.wait()
        yield "lo"

    async with online(running, directory, agent):
        stream = await ai.responses.create(
            model=agent_id, input="hello", background=True, stream=True
        )
        created = await anext(aiter(stream))
        assert created.type == "response.created"
        await stream.close()
        go_on.set()
        found = await ended(ai, created.response.id)
    assert (found.status, found.output_text) == ("completed", "hello")


async def test_a_cancelled_response(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """The agent is stopped; a second time changes nothing."""
    agent, _ = patient(agent_id)
    async with online(running, directory, agent):
        begun = await ai.responses.create(model=agent_id, input="hello", background=True)
        first = await ai.responses.cancel(begun.id)
        second = await ai.responses.cancel(begun.id)
    assert (first.id, first.status, first.error) == (begun.id, "cancelled", None)
    assert second.status == "cancelled"


async def test_a_failed_background_response(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """It is a response too, with the error in it."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> str:
        raise ValueError("no sun today")

    async with online(running, directory, agent):
        begun = await ai.responses.create(model=agent_id, input="hello", background=True)
        found = await ended(ai, begun.id)
    assert found.status == "failed"
    assert found.error
    assert (str(found.error.code), found.error.message) == (
        "agent_error",
        "ValueError: no sun today",
    )


async def test_an_answered_response_is_looked_up(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """As long as its frames are kept, whoever asked."""
    async with online(running, directory, replier(agent_id)):
        asked = await ai.responses.create(model=agent_id, input="hello")
        found = await ai.responses.retrieve(asked.id)
    assert (found.id, found.output) == (asked.id, asked.output)


async def test_a_failed_agent(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """An early failure has its status; of a later one the client raises from the stream."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> AsyncIterator[str]:
        if request.last_text == "late":
            yield "the sun is "
        raise ValueError("no sun today")

    seen = set()

    async def read() -> None:
        stream = await ai.responses.create(model=agent_id, input="late", stream=True)
        async for event in stream:
            seen.add(event.type)

    async with online(running, directory, agent):
        for is_streamed in (False, True):
            with pytest.raises(openai.InternalServerError, match="no sun today") as caught:
                await ai.responses.create(model=agent_id, input="early", stream=is_streamed)
            assert (caught.value.status_code, caught.value.code) == (502, "agent_error")
        with pytest.raises(openai.APIError, match="no sun today") as raised:
            await read()
    assert raised.value.code == "agent_error"
    assert {"response.output_text.delta", "response.failed"} <= seen
