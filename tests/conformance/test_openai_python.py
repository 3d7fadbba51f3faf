"""openai-python, async and sync: answers, streams, tools, structured output, models."""

import asyncio
from typing import Any

import openai
import pytest

from mesh.directory import Directory
from schemas.registry import State
from tests.conformance.models import DAY, FORM, Day, recorder, tool_user
from tests.conftest import Running, until
from tests.shim import HELLO, USAGE, online, replier, speaker

LOOK: Any = {
    "type": "function",
    "function": {
        "name": "look",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string"}},
            "required": ["at"],
            "additionalProperties": False,
        },
    },
}
ARGUMENTS = {"look": '{"at": "the sun"}'}


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
    assert found.usage.model_dump(include=set(USAGE.model_dump())) == USAGE.model_dump()
    extra: Any = found.model_extra
    assert (extra["mesh"]["agent_id"], extra["mesh"]["node"]) == (agent_id, "node1")


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
        ai.chat.completions.stream(
            model=agent_id, messages=HELLO, stream_options={"include_usage": True}
        ) as stream,
    ):
        shown = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert "".join(shown) == "hello"
    assert final.choices[0].message.content == "hello"
    assert final.choices[0].finish_reason == "stop"
    assert final.usage
    assert final.usage.total_tokens == 5


async def test_the_sync_client(
    door: str, agent_id: str, running: Running, directory: Directory
) -> None:
    """Plain, streamed, and by the helper, from a thread; and with a base URL without `/v1`."""

    def ask() -> list[str | None]:
        with openai.OpenAI(base_url=door, api_key="any", max_retries=0) as client:
            chat = client.chat.completions
            whole = chat.create(model=agent_id, messages=HELLO)
            parts = chat.create(model=agent_id, messages=HELLO, stream=True)
            shown = "".join(part.choices[0].delta.content or "" for part in parts)
            with chat.stream(model=agent_id, messages=HELLO) as stream:
                final = stream.get_final_completion()
            return [whole.choices[0].message.content, shown, final.choices[0].message.content]

    async with online(running, directory, speaker(agent_id)):
        assert await asyncio.to_thread(ask) == ["hello"] * 3


async def test_the_raw_answer(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """Whoever reports a problem has the id of the request and of the call, in streams too."""
    async with online(running, directory, speaker(agent_id)):
        chat = ai.chat.completions.with_raw_response
        plain = await chat.create(model=agent_id, messages=HELLO)
        streamed = await chat.create(model=agent_id, messages=HELLO, stream=True)
        named = await chat.create(
            model=agent_id, messages=HELLO, extra_headers={"x-request-id": "mine-1"}
        )
        await streamed.http_response.aread()
    assert plain.request_id
    assert plain.request_id.startswith("req_")
    assert plain.parse().id == f"chatcmpl-{plain.headers['mesh-call-id']}"
    assert plain.headers["content-type"] == "application/json"
    assert len(streamed.headers["mesh-call-id"]) == 32
    assert streamed.request_id != plain.request_id
    assert (named.request_id, named.parse()._request_id) == ("mine-1", "mine-1")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_structured_output(
    *,
    ai: openai.AsyncOpenAI,
    agent_id: str,
    running: Running,
    directory: Directory,
    is_streamed: bool,
) -> None:
    """The form reaches the agent, and what it fills in becomes an object of the client."""
    agent, asked = recorder(agent_id, FORM)
    async with online(running, directory, agent):
        if is_streamed:
            async with ai.chat.completions.stream(
                model=agent_id, messages=HELLO, response_format=Day
            ) as stream:
                found = await stream.get_final_completion()
        else:
            found = await ai.chat.completions.parse(
                model=agent_id, messages=HELLO, response_format=Day
            )
    assert found.choices[0].message.parsed == DAY
    form: Any = (asked[0].model_extra or {})["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["schema"]["required"] == ["city", "hours"]


@pytest.mark.parametrize("streams", [False, True])
async def test_a_tool_round_trip(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory, streams: bool
) -> None:
    """The agent calls, the client runs the tool, the agent goes on with its result."""
    messages: Any = list(HELLO)
    async with online(running, directory, tool_user(agent_id, ARGUMENTS, streams=streams)):
        asked = await ai.chat.completions.create(model=agent_id, messages=messages, tools=[LOOK])
        [choice] = asked.choices
        [call] = choice.message.tool_calls or []
        messages.append(choice.message)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "It shines."})
        told = await ai.chat.completions.create(model=agent_id, messages=messages, tools=[LOOK])
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert call.model_dump() == {
        "id": "call_look",
        "type": "function",
        "function": {"name": "look", "arguments": ARGUMENTS["look"]},
    }
    assert told.choices[0].message.content == "The tool says: It shines."
    assert told.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("streams", [False, True])
async def test_a_streamed_tool_call(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory, streams: bool
) -> None:
    """The helper puts the pieces together, and reads the arguments."""
    async with (
        online(running, directory, tool_user(agent_id, ARGUMENTS, streams=streams)),
        ai.chat.completions.stream(model=agent_id, messages=HELLO, tools=[LOOK]) as stream,
    ):
        events = [event async for event in stream]
        final = await stream.get_final_completion()
    [done] = [one for one in events if one.type == "tool_calls.function.arguments.done"]
    assert (done.name, done.arguments) == ("look", ARGUMENTS["look"])
    [call] = final.choices[0].message.tool_calls or []
    assert (call.id, call.function.parsed_arguments) == ("call_look", {"at": "the sun"})
    assert final.choices[0].finish_reason == "tool_calls"


async def test_what_the_door_does_not_know_reaches_the_agent(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """Roles, content parts, tools, sampling and vendors' fields pass through untouched."""
    parts = [
        {"type": "text", "text": "what "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "text", "text": "is it?"},
    ]
    calls = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    messages: Any = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "look", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "function", "name": "look", "content": None},
        {"role": "user", "content": parts},
    ]
    options: Any = {
        "tools": [LOOK],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "stop": ["\n"],
        "seed": 7,
        "reasoning_effort": "low",
        "metadata": {"a": "b"},
    }
    agent, asked = recorder(agent_id)
    async with online(running, directory, agent):
        await ai.chat.completions.create(
            model=agent_id, messages=messages, extra_body={"vendor": {"x": [1]}}, **options
        )
    [request] = asked
    assert [one.model_dump(exclude_unset=True) for one in request.messages] == messages
    assert request.last_text == "what is it?"
    assert request.model_extra == {**options, "vendor": {"x": [1]}}


async def test_models_are_agents(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """Those that can be called now; all that are known on demand."""
    async with online(running, directory, replier(agent_id)):
        listed = [model.id async for model in await ai.models.list()]
        one = await ai.models.retrieve(agent_id)
        pinned = await ai.models.retrieve(f"{agent_id}@node1")
    assert agent_id in listed
    assert (one.id, one.object, one.owned_by) == (agent_id, "model", "mesh")
    assert one.created > 1_700_000_000
    assert pinned.id == f"{agent_id}@node1"
    await until(lambda: directory.agent(agent_id).state is State.OFFLINE)
    online_now = [model.id async for model in await ai.models.list()]
    known = [model.id async for model in await ai.models.list(extra_query={"all": "1"})]
    assert agent_id not in online_now
    assert agent_id in known
