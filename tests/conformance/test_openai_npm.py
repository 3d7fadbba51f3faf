"""The openai npm client, each time in a fresh Node.js: tests/node/openai.mjs asks, we look."""

import asyncio
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
    """Ask the client for a scenario."""
    return script("openai.mjs", door)


async def test_a_chat_completion(
    ask: Ask, agent_id: str, running: Running, directory: Directory
) -> None:
    """An agent answers as a model does."""
    async with online(running, directory, replier(agent_id)):
        found = await ask("plain", agent_id)
    assert found["choices"][0]["message"]["content"] == "You said: hello"
    assert found["usage"] == USAGE.model_dump()
    assert found["mesh"]["agent_id"] == agent_id
    assert found["request_id"].startswith("req_")
    assert found["is_named"]


async def test_a_stream(ask: Ask, agent_id: str, running: Running, directory: Directory) -> None:
    """Token by token, and usage in the last chunk."""
    async with online(running, directory, speaker(agent_id)):
        found = await ask("stream", agent_id)
    assert found["texts"] == ["", "hel", "lo", None, None]
    assert found["reasons"] == [None, None, None, "stop", None]
    assert (found["ids"], found["usage"]) == (1, USAGE.model_dump())


async def test_the_stream_helper(
    ask: Ask, agent_id: str, running: Running, directory: Directory
) -> None:
    """The strict accumulator, which throws at a stream without a finish reason, is content."""
    async with online(running, directory, speaker(agent_id)):
        found = await ask("helper", agent_id)
    assert found["shown"] == "hello"
    assert found["choice"]["message"]["content"] == "hello"
    assert found["choice"]["finish_reason"] == "stop"


async def test_structured_output(
    ask: Ask, agent_id: str, running: Running, directory: Directory
) -> None:
    """The form reaches the agent, and the answer becomes an object."""
    agent, asked = recorder(agent_id, FORM)
    async with online(running, directory, agent):
        found = await ask("form", agent_id)
    assert found == {"parsed": {"city": "Kyiv", "hours": 16}}
    assert (asked[0].model_extra or {})["response_format"]["json_schema"]["name"] == "day"


@pytest.mark.parametrize("scenario", ["tools", "streamed-tools"])
async def test_tools(
    ask: Ask, agent_id: str, running: Running, directory: Directory, scenario: str
) -> None:
    """The client runs the function that the agent calls, and asks again with its result."""
    async with online(running, directory, tool_user(agent_id, {"look": '{"at": "the sun"}'})):
        found = await ask(scenario, agent_id)
    assert found == {"content": "The tool says: the sun shines", "requests": 2}


async def test_models(ask: Ask, agent_id: str, running: Running, directory: Directory) -> None:
    """Agents are listed, and looked up one by one."""
    async with online(running, directory, replier(agent_id)):
        found = await ask("models", agent_id)
    assert agent_id in found["ids"]
    assert (found["one"]["id"], found["one"]["owned_by"]) == (agent_id, "mesh")


async def test_an_unknown_model(ask: Ask) -> None:
    """The client's own class, with all that it knows of an error."""
    found = await ask("failure", "nobody")
    assert found.pop("requestID").startswith("req_")
    assert "nobody" in found.pop("message")
    assert found == {
        "name": "NotFoundError",
        "status": 404,
        "code": "model_not_found",
        "type": "invalid_request_error",
        "param": "model",
        "requests": 1,
    }


async def test_a_bad_request(ask: Ask) -> None:
    """The field that is wrong is named."""
    found = await ask("bad-request", "nobody")
    assert (found["name"], found["code"], found["param"]) == (
        "BadRequestError",
        "unsupported_parameter",
        "n",
    )


@pytest.mark.parametrize(
    ("scenario", "status", "texts"),
    [("failure", 502, None), ("streamed-failure", None, ["", "the sun is "])],
)
async def test_a_failed_agent(
    *,
    ask: Ask,
    agent_id: str,
    running: Running,
    directory: Directory,
    scenario: str,
    status: int | None,
    texts: list[str] | None,
) -> None:
    """What was shown stays shown, then the client throws; and it does not ask again."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> AsyncIterator[str]:
        yield "the sun is "
        raise ValueError("no sun today")

    async with online(running, directory, agent):
        found = await ask(scenario, agent_id)
    assert (found.get("status"), found.get("texts")) == (status, texts)
    assert (found["code"], found["type"]) == ("agent_error", "server_error")
    assert "no sun today" in found["message"]
    assert found["requests"] == 1


async def test_a_client_that_goes_away_stops_the_agent(
    ask: Ask, agent_id: str, running: Running, directory: Directory
) -> None:
    """Whether it leaves the loop over a stream or dies: its connection is gone."""
    was_stopped = asyncio.Event()
    agent = Agent(agent_id)

    @agent.chat
    async def work(request: ChatRequest) -> AsyncIterator[str]:
        try:
            yield "half"
            await asyncio.Event().wait()
        finally:
            was_stopped.set()

    async with online(running, directory, agent):
        assert await ask("leave", agent_id) == {"text": "half"}
        await asyncio.wait_for(was_stopped.wait(), 30)
