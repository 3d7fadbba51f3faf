"""pydantic-ai over chat completions: it validates every field of every answer."""

from collections.abc import AsyncIterator

import openai
import pytest
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

import mesh
from mesh import ChatRequest
from mesh.directory import Directory
from tests.conformance.models import DAY, FORM, Day, recorder, tool_user
from tests.conftest import Running
from tests.shim import USAGE, online, replier, speaker


def model_of(agent_id: str, ai: openai.AsyncOpenAI) -> OpenAIChatModel:
    """Return a mesh agent as a model of the framework."""
    return OpenAIChatModel(agent_id, provider=OpenAIProvider(openai_client=ai))


async def test_a_run(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """A question, an answer, and what it took."""
    async with online(running, directory, replier(agent_id)):
        result = await Agent(model_of(agent_id, ai), instructions="Speak.").run("hello")
    assert result.output == "You said: hello"
    assert (result.usage.input_tokens, result.usage.output_tokens) == (
        USAGE.prompt_tokens,
        USAGE.completion_tokens,
    )
    assert result.response.finish_reason == "stop"


async def test_a_streamed_run(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """Token by token; it asks for usage by itself."""
    async with (
        online(running, directory, speaker(agent_id)),
        Agent(model_of(agent_id, ai)).run_stream("hello") as result,
    ):
        shown = [part async for part in result.stream_text(delta=True, debounce_by=None)]
    assert shown == ["hel", "lo"]
    assert result.usage.total_tokens == USAGE.total_tokens


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
    agent = Agent(model_of(agent_id, ai))

    @agent.tool_plain
    def day_length(city: str) -> str:
        return f"16 hours in {city}"

    async with online(running, directory, model):
        if is_streamed:
            async with agent.run_stream("How long?") as result:
                output = await result.get_output()
        else:
            output = (await agent.run("How long?")).output
    assert output == "The tool says: 16 hours in Kyiv"


async def test_an_output_by_a_tool(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """The default way to a typed output: a tool that the model must call."""
    agent = Agent(model_of(agent_id, ai), output_type=ToolOutput(Day))
    async with online(running, directory, tool_user(agent_id, {"final_result": FORM})):
        whole = await agent.run("How long?")
        async with agent.run_stream("How long?") as result:
            streamed = await result.get_output()
    assert whole.output == streamed == DAY


@pytest.mark.parametrize("way", [NativeOutput, PromptedOutput])
async def test_an_output_by_the_answer(
    *,
    ai: openai.AsyncOpenAI,
    agent_id: str,
    running: Running,
    directory: Directory,
    way: type[NativeOutput[Day]] | type[PromptedOutput[Day]],
) -> None:
    """The answer itself is JSON of the form."""
    model, asked = recorder(agent_id, FORM)
    async with online(running, directory, model):
        result = await Agent(model_of(agent_id, ai), output_type=way(Day)).run("How long?")
    assert result.output == DAY
    assert "response_format" in (asked[0].model_extra or {})


async def test_a_failure_is_raised(ai: openai.AsyncOpenAI) -> None:
    """With the framework's own class, and our status and words."""
    with pytest.raises(ModelHTTPError, match="nobody") as caught:
        await Agent(model_of("nobody", ai)).run("hello")
    assert caught.value.status_code == 404


async def test_a_failure_half_way_is_raised(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """A stream that breaks off is no answer."""
    agent = mesh.Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> AsyncIterator[str]:
        yield "half"
        raise ValueError("no sun today")

    async with (
        online(running, directory, agent),
        Agent(model_of(agent_id, ai)).run_stream("hello") as result,
    ):
        with pytest.raises(ModelHTTPError, match="no sun today") as caught:
            await result.get_output()
    assert caught.value.status_code == 500
