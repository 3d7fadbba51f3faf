"""The Responses API under openai-agents, which uses it by default, and pydantic-ai."""

from collections.abc import AsyncIterator
from typing import Any

import agents
import openai
import pytest
from openai.types.responses import ResponseTextDeltaEvent
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

import mesh
from mesh import ChatRequest
from mesh.directory import Directory
from tests.conformance.models import DAY, FORM, Day, recorder, tool_user
from tests.conftest import Running
from tests.shim import USAGE, online, speaker

CITY = '{"city": "Kyiv"}'
UNTRACED = agents.RunConfig(tracing_disabled=True)


def breaker(agent_id: str) -> mesh.Agent:
    """An agent that fails half-way."""
    agent = mesh.Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> AsyncIterator[str]:
        yield "half"
        raise ValueError("no sun today")

    return agent


def model_of(agent_id: str, ai: openai.AsyncOpenAI) -> agents.Model:
    """Return a mesh agent as openai-agents' default kind of model."""
    return agents.OpenAIResponsesModel(model=agent_id, openai_client=ai)


def required_by(request: ChatRequest) -> Any:
    """Return the fields that an answer must have by the form that is asked for."""
    return (request.model_extra or {})["response_format"]["json_schema"]["schema"]["required"]


def shown(event: Any) -> str:
    """Return the text that an event of a streamed run brings."""
    data = event.data if event.type == "raw_response_event" else None
    return data.delta if isinstance(data, ResponseTextDeltaEvent) else ""


@agents.function_tool
def day_length(city: str) -> str:
    """Tell how long the day is in a city."""
    return f"16 hours in {city}"


async def test_openai_agents_runs(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """A question, an answer, and what it took; then another one in the same conversation."""
    agent = agents.Agent(name="Speaker", instructions="Speak.", model=model_of(agent_id, ai))
    async with online(running, directory, speaker(agent_id)):
        first = await agents.Runner.run(agent, "hello", run_config=UNTRACED)
        again: Any = [*first.to_input_list(), {"role": "user", "content": "and again"}]
        second = await agents.Runner.run(agent, again, run_config=UNTRACED)
    assert first.final_output == second.final_output == "hello"
    assert first.context_wrapper.usage.total_tokens == USAGE.total_tokens


async def test_openai_agents_streams(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """Token by token."""
    agent = agents.Agent(name="Speaker", model=model_of(agent_id, ai))
    async with online(running, directory, speaker(agent_id)):
        result = agents.Runner.run_streamed(agent, "hello", run_config=UNTRACED)
        parts = [text async for event in result.stream_events() if (text := shown(event))]
    assert parts == ["hel", "lo"]
    assert result.final_output == "hello"
    assert result.context_wrapper.usage.total_tokens == USAGE.total_tokens


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_openai_agents_uses_a_tool(
    *,
    ai: openai.AsyncOpenAI,
    agent_id: str,
    running: Running,
    directory: Directory,
    is_streamed: bool,
) -> None:
    """The mesh agent calls a function of the client, and goes on with what it returned."""
    agent = agents.Agent(name="Sun", model=model_of(agent_id, ai), tools=[day_length])
    async with online(running, directory, tool_user(agent_id, {"day_length": CITY})):
        if is_streamed:
            result: Any = agents.Runner.run_streamed(agent, "How long?", run_config=UNTRACED)
            async for _ in result.stream_events():
                pass
        else:
            result = await agents.Runner.run(agent, "How long?", run_config=UNTRACED)
    assert result.final_output == "The tool says: 16 hours in Kyiv"
    assert [item.type for item in result.new_items] == [
        "tool_call_item",
        "tool_call_output_item",
        "message_output_item",
    ]


async def test_openai_agents_reads_a_form(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """The answer is an object of the client."""
    agent = agents.Agent(name="Sun", model=model_of(agent_id, ai), output_type=Day)
    model, asked = recorder(agent_id, FORM)
    async with online(running, directory, model):
        result = await agents.Runner.run(agent, "How long?", run_config=UNTRACED)
    assert result.final_output == DAY
    assert required_by(asked[0]) == ["city", "hours"]


async def test_openai_agents_raises(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """Before the stream the client's class, in it the framework's, both with our words."""
    nobody = agents.Agent(name="Nobody", model=model_of("nobody", ai))
    with pytest.raises(openai.NotFoundError, match="nobody"):
        await agents.Runner.run(nobody, "hello", run_config=UNTRACED)
    async with online(running, directory, breaker(agent_id)):
        broken = agents.Agent(name="Broken", model=model_of(agent_id, ai))
        result = agents.Runner.run_streamed(broken, "hello", run_config=UNTRACED)
        with pytest.raises(agents.exceptions.ModelBehaviorError, match="no sun today"):
            async for _ in result.stream_events():
                pass


def pydantic_model(agent_id: str, ai: openai.AsyncOpenAI) -> OpenAIResponsesModel:
    """Return a mesh agent as a model of pydantic-ai."""
    return OpenAIResponsesModel(agent_id, provider=OpenAIProvider(openai_client=ai))


async def test_pydantic_ai_runs(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """A question and its answer, and another one with the first as history."""
    agent = Agent(pydantic_model(agent_id, ai), instructions="Speak.")
    async with online(running, directory, speaker(agent_id)):
        first = await agent.run("hello")
        second = await agent.run("and again", message_history=first.all_messages())
    assert first.output == second.output == "hello"
    assert first.response.finish_reason == "stop"
    assert (first.usage.input_tokens, first.usage.output_tokens) == (
        USAGE.prompt_tokens,
        USAGE.completion_tokens,
    )


async def test_pydantic_ai_streams(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """Token by token."""
    async with (
        online(running, directory, speaker(agent_id)),
        Agent(pydantic_model(agent_id, ai)).run_stream("hello") as result,
    ):
        parts = [part async for part in result.stream_text(delta=True, debounce_by=None)]
    assert parts == ["hel", "lo"]
    assert result.usage.total_tokens == USAGE.total_tokens


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_pydantic_ai_uses_a_tool(
    *,
    ai: openai.AsyncOpenAI,
    agent_id: str,
    running: Running,
    directory: Directory,
    is_streamed: bool,
) -> None:
    """The mesh agent calls a function of the client, and goes on with what it returned."""
    agent = Agent(pydantic_model(agent_id, ai))

    @agent.tool_plain
    def day_length(city: str) -> str:
        return f"16 hours in {city}"

    async with online(running, directory, tool_user(agent_id, {"day_length": CITY})):
        if is_streamed:
            async with agent.run_stream("How long?") as result:
                output = await result.get_output()
        else:
            output = (await agent.run("How long?")).output
    assert output == "The tool says: 16 hours in Kyiv"


async def test_pydantic_ai_reads_a_form(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """The answer itself is JSON of the form."""
    model, asked = recorder(agent_id, FORM)
    async with online(running, directory, model):
        agent = Agent(pydantic_model(agent_id, ai), output_type=NativeOutput(Day))
        result = await agent.run("How long?")
    assert result.output == DAY
    assert required_by(asked[0]) == ["city", "hours"]


async def test_pydantic_ai_raises(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """With the framework's own class, and our status and words."""
    with pytest.raises(ModelHTTPError, match="nobody") as caught:
        await Agent(pydantic_model("nobody", ai)).run("hello")
    assert caught.value.status_code == 404
    async with (
        online(running, directory, breaker(agent_id)),
        Agent(pydantic_model(agent_id, ai)).run_stream("hello") as result,
    ):
        with pytest.raises(ModelHTTPError, match="no sun today") as broken:
            await result.get_output()
    assert broken.value.status_code == 500
