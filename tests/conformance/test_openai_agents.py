"""openai-agents over chat completions: tools, handoffs, streams. Its models are mesh agents."""

from typing import Any

import agents
import openai
import pytest
from openai.types.responses import ResponseTextDeltaEvent

from mesh.directory import Directory
from tests.conformance.models import DAY, FORM, Day, recorder, tool_user
from tests.conftest import Running
from tests.shim import USAGE, online, speaker

UNTRACED = agents.RunConfig(tracing_disabled=True)


@agents.function_tool
def day_length(city: str) -> str:
    """Tell how long the day is in a city."""
    return f"16 hours in {city}"


def model_of(agent_id: str, ai: openai.AsyncOpenAI) -> agents.Model:
    """Return a mesh agent as a model of the SDK."""
    return agents.OpenAIChatCompletionsModel(model=agent_id, openai_client=ai)


def worker(agent_id: str, ai: openai.AsyncOpenAI) -> "agents.Agent[Any]":
    """Return an agent of the SDK that has a tool."""
    return agents.Agent(name="Sun", model=model_of(agent_id, ai), tools=[day_length])


def texts(event: Any) -> str:
    """Return the text that an event of a streamed run brings."""
    data = event.data if event.type == "raw_response_event" else None
    return data.delta if isinstance(data, ResponseTextDeltaEvent) else ""


async def test_a_run(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """A question, an answer, and what it took."""
    agent = agents.Agent(name="Speaker", instructions="Speak.", model=model_of(agent_id, ai))
    async with online(running, directory, speaker(agent_id)):
        result = await agents.Runner.run(agent, "hello", run_config=UNTRACED)
    assert result.final_output == "hello"
    assert result.context_wrapper.usage.total_tokens == USAGE.total_tokens


async def test_a_streamed_run(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """Token by token, with usage at the end when it is asked for."""
    agent = agents.Agent(
        name="Speaker",
        model=model_of(agent_id, ai),
        model_settings=agents.ModelSettings(include_usage=True),
    )
    async with online(running, directory, speaker(agent_id)):
        result = agents.Runner.run_streamed(agent, "hello", run_config=UNTRACED)
        shown = [text async for event in result.stream_events() if (text := texts(event))]
    assert shown == ["hel", "lo"]
    assert result.final_output == "hello"
    assert result.context_wrapper.usage.total_tokens == USAGE.total_tokens


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_tool(
    *,
    ai: openai.AsyncOpenAI,
    agent_id: str,
    running: Running,
    directory: Directory,
    is_streamed: bool,
) -> None:
    """The mesh agent calls a function of the client, and goes on with what it returned."""
    model = tool_user(agent_id, {"day_length": '{"city": "Kyiv"}'})
    async with online(running, directory, model):
        if is_streamed:
            result: Any = agents.Runner.run_streamed(
                worker(agent_id, ai), "How long?", run_config=UNTRACED
            )
            shown = "".join([texts(event) async for event in result.stream_events()])
            assert shown == result.final_output
        else:
            result = await agents.Runner.run(worker(agent_id, ai), "How long?", run_config=UNTRACED)
    assert result.final_output == "The tool says: 16 hours in Kyiv"
    assert [item.type for item in result.new_items] == [
        "tool_call_item",
        "tool_call_output_item",
        "message_output_item",
    ]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_handoff(
    *,
    ai: openai.AsyncOpenAI,
    agent_id: str,
    running: Running,
    directory: Directory,
    is_streamed: bool,
) -> None:
    """One mesh agent hands over to another, who uses a tool and answers."""
    front, back = f"{agent_id}-front", f"{agent_id}-back"
    triage = agents.Agent(name="Triage", model=model_of(front, ai), handoffs=[worker(back, ai)])
    async with online(
        running,
        directory,
        tool_user(front, {"transfer_to_sun": "{}"}),
        tool_user(back, {"day_length": '{"city": "Lisbon"}'}),
    ):
        if is_streamed:
            result: Any = agents.Runner.run_streamed(triage, "How long?", run_config=UNTRACED)
            async for _ in result.stream_events():
                pass
        else:
            result = await agents.Runner.run(triage, "How long?", run_config=UNTRACED)
    assert result.last_agent.name == "Sun"
    assert result.final_output == "The tool says: 16 hours in Lisbon"


async def test_an_output_type(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """The answer is an object of the client."""
    model, asked = recorder(agent_id, FORM)
    agent = agents.Agent(name="Sun", model=model_of(agent_id, ai), output_type=Day)
    async with online(running, directory, model):
        result = await agents.Runner.run(agent, "How long?", run_config=UNTRACED)
    assert result.final_output == DAY
    form: Any = (asked[0].model_extra or {})["response_format"]
    assert form["json_schema"]["schema"]["required"] == ["city", "hours"]


async def test_a_failure_is_raised(ai: openai.AsyncOpenAI) -> None:
    """With the client's own class."""
    agent = agents.Agent(name="Nobody", model=model_of("nobody", ai))
    with pytest.raises(openai.NotFoundError, match="nobody"):
        await agents.Runner.run(agent, "hello", run_config=UNTRACED)
