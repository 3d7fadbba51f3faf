"""Agents that behave as language models do: they call tools, and fill in forms."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from pydantic import BaseModel

from mesh import Agent, ChatDelta, ChatReply, ChatRequest
from tests.shim import USAGE

FORM = '{"city": "Kyiv", "hours": 16}'


class Day(BaseModel):
    """What `FORM` is, filled in."""

    city: str
    hours: int


DAY = Day(city="Kyiv", hours=16)


def recorder(agent_id: str, answer: str = "seen") -> tuple[Agent, list[ChatRequest]]:
    """An agent that answers always the same, and the requests it has had."""
    agent, asked = Agent(agent_id), list[ChatRequest]()

    @agent.chat
    async def record(request: ChatRequest) -> ChatReply:
        asked.append(request)
        return ChatReply(content=answer, usage=USAGE)

    return agent, asked


def tool_user(agent_id: str, arguments: Mapping[str, str], *, streams: bool = True) -> Agent:
    """An agent that calls each tool it is offered once, and then tells what the last one said.

    `arguments` are those of each tool. It says them in pieces, as models do, or all at once.
    """
    agent = Agent(agent_id)

    async def in_pieces(request: ChatRequest) -> AsyncIterator[ChatDelta | str]:
        name = _next_tool(request)
        if name is None:
            yield "The tool says: "
            yield request.last_text
            return
        text = arguments[name]
        begun = {"index": 0, "id": f"call_{name}", "type": "function"}
        yield ChatDelta(tool_calls=[{**begun, "function": {"name": name, "arguments": ""}}])
        for piece in (text[:5], text[5:]):
            yield ChatDelta(tool_calls=[{"index": 0, "function": {"arguments": piece}}])
        yield ChatDelta(usage=USAGE)

    async def at_once(request: ChatRequest) -> ChatReply:
        name = _next_tool(request)
        if name is None:
            return ChatReply(content=f"The tool says: {request.last_text}", usage=USAGE)
        call = {"id": f"call_{name}", "function": {"name": name, "arguments": arguments[name]}}
        return ChatReply(tool_calls=[call], usage=USAGE)

    agent.chat(in_pieces if streams else at_once)
    return agent


def _next_tool(request: ChatRequest) -> str | None:
    """Return the first tool that was not called yet."""
    options: Mapping[str, Any] = request.model_extra or {}
    asked: list[Mapping[str, Any]] = [message.model_extra or {} for message in request.messages]
    called = {call["function"]["name"] for one in asked for call in one.get("tool_calls") or ()}
    offered = [tool["function"]["name"] for tool in options.get("tools") or ()]
    return next((name for name in offered if name not in called), None)
