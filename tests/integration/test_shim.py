"""The HTTP door: whom a request is for, and who sends it. Its shapes: see tests/conformance."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from mesh import Agent, CallContext, ChatRequest
from mesh.connection import Connection
from mesh.directory import Directory
from tests.conftest import Running
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
