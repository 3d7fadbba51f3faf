"""Calls across the mesh: plain, streamed, nested, pinned, failing."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from mesh import Agent, CallContext, ChatReply, ChatRequest
from mesh.client import MeshClient
from mesh.errors import AgentFailedError, AgentNotFoundError, MailboxFullError
from tests.conftest import Running


async def test_an_agent_answers_a_question(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """A question to an agent comes back as its answer."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return f"You said: {request.last_text}"

    async with running(agent):
        reply = await client.ask(agent_id, "hello")
    assert reply.text == "You said: hello"
