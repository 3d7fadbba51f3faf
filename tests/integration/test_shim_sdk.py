"""The HTTP door with the real OpenAI client: models, failures, retries."""

from collections.abc import AsyncIterator

import openai
import pytest

from mesh import Agent, ChatRequest
from mesh.connection import Connection
from mesh.directory import Directory
from schemas.registry import State
from tests.conftest import Running, until
from tests.shim import HELLO, online, replier, serving


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


@pytest.mark.parametrize("name", ["nobody", "gpt-3.5-turbo", "openai/gpt-4o", "nobody@node1"])
async def test_an_unknown_model(ai: openai.AsyncOpenAI, name: str) -> None:
    """A model that is no agent is not found, whatever its name looks like."""
    with pytest.raises(openai.NotFoundError) as caught:
        await ai.models.retrieve(name)
    assert caught.value.code == "model_not_found"


async def test_a_failed_agent(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """The client raises its own class, with our words and the id of the request."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> str:
        raise ValueError("no sun today")

    async with online(running, directory, agent):
        with pytest.raises(openai.InternalServerError, match="no sun today") as caught:
            await ai.chat.completions.create(model=agent_id, messages=HELLO)
    error = caught.value
    assert (error.status_code, error.code, error.type) == (502, "agent_error", "server_error")
    assert error.request_id
    assert error.response.headers["x-should-retry"] == "false"


async def test_an_agent_that_fails_half_way(
    ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory
) -> None:
    """What was shown stays shown, and then the client raises."""
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> AsyncIterator[str]:
        yield "the sun is "
        raise ValueError("no sun today")

    shown = []
    async with online(running, directory, agent):
        stream = await ai.chat.completions.create(model=agent_id, messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="no sun today") as caught:
            shown += [chunk.choices[0].delta.content async for chunk in stream]
    assert caught.value.code == "agent_error"


async def test_the_client_retries_only_what_it_may(
    url: str, agent_id: str, running: Running, directory: Directory
) -> None:
    """With its default of two retries, a failed agent is asked once."""
    asked = 0
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> str:
        nonlocal asked
        asked += 1
        raise ValueError("no sun today")

    async with (
        online(running, directory, agent),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client,
    ):
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model=agent_id, messages=HELLO)
    assert asked == 1
