"""Vercel's AI SDK, which validates every chunk: tests/node/ai-sdk.mjs asks, we look."""

from collections.abc import AsyncIterator

import pytest

from mesh import Agent, ChatRequest
from mesh.directory import Directory
from tests.conformance.models import FORM, recorder, tool_user
from tests.conformance.node import Ask, script
from tests.conftest import Running
from tests.shim import USAGE, online, replier, speaker

pytestmark = pytest.mark.npm


@pytest.fixture
def ask(door: str) -> Ask:
    """Ask the SDK for a scenario."""
    return script("ai-sdk.mjs", door)


async def test_a_text(ask: Ask, agent_id: str, running: Running, directory: Directory) -> None:
    """Whole, and token by token with usage at its end."""
    async with online(running, directory, speaker(agent_id)):
        whole = await ask("plain", agent_id)
        streamed = await ask("stream", agent_id)
    ended = {"total": USAGE.total_tokens, "finishReason": "stop"}
    assert whole == {"text": "hello", **ended}
    assert streamed == {"texts": ["hel", "lo"], **ended}


@pytest.mark.parametrize("scenario", ["tools", "streamed-tools"])
async def test_tools(
    ask: Ask, agent_id: str, running: Running, directory: Directory, scenario: str
) -> None:
    """The SDK runs the function that the agent calls, and asks again with its result."""
    async with online(running, directory, tool_user(agent_id, {"look": '{"at": "the sun"}'})):
        found = await ask(scenario, agent_id)
    assert found == {"text": "The tool says: the sun shines", "steps": 2}


async def test_structured_output(
    ask: Ask, agent_id: str, running: Running, directory: Directory
) -> None:
    """The form reaches the agent, and the answer becomes an object."""
    agent, asked = recorder(agent_id, FORM)
    async with online(running, directory, agent):
        found = await ask("form", agent_id)
    assert found == {"city": "Kyiv", "hours": 16}
    assert "response_format" in (asked[0].model_extra or {})


async def test_the_fields_of_the_mesh(
    ask: Ask, agent_id: str, running: Running, directory: Directory
) -> None:
    """`providerOptions` carries `agent_id`, whatever the model is called."""
    async with online(running, directory, replier(agent_id)):
        assert await ask("fields", agent_id) == {"text": "You said: hello"}


async def test_an_unknown_model(ask: Ask) -> None:
    """Our words, not only a status."""
    found = await ask("failure", "nobody")
    assert (found["name"], found["status"]) == ("AI_APICallError", 404)
    assert "nobody" in found["message"]


async def test_an_agent_that_fails_half_way(
    ask: Ask, agent_id: str, running: Running, directory: Directory
) -> None:
    """What was shown stays shown, and the end is an error."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> AsyncIterator[str]:
        yield "half"
        raise ValueError("no sun today")

    async with online(running, directory, agent):
        found = await ask("streamed-failure", agent_id)
    assert found["texts"] == ["half"]
    assert found["finishReason"] == "error"
    assert "no sun today" in found["message"]
