"""Several answers to one question: `n` of a chat request, as far as an agent's card goes."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import orjson
import pytest
from nats.aio.client import Client

from mesh import Agent, ChatRequest
from mesh.connection import Connection
from mesh.directory import Directory
from tests.conftest import Running
from tests.foreign import Reply, foreign_agent
from tests.shim import CHAT, HELLO, ask, chunks, error_of, online, serving

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
async def url(connection: Connection, directory: Directory) -> AsyncIterator[str]:
    """The door of these tests."""
    async with serving(connection, directory) as base:
        yield base


def answer_of(*texts: str, **fields: Any) -> bytes:
    """Return a completion with an answer for each text."""
    choices = [
        {
            "index": place,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        for place, text in enumerate(texts)
    ]
    return orjson.dumps({"choices": choices, **fields})


async def test_two_answers(
    url: str, agent_id: str, connection: Connection, directory: Directory, bare: Client
) -> None:
    """Byte by byte what the agent wrote, where it wrote all that clients look for."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    named = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": usage}
    body = answer_of("heads", "tails", **named)

    async def script(reply: Reply) -> None:
        await reply(body, JSON)

    async with (
        foreign_agent(agent_id, connection, directory, bare, script, max_choices=2),
        httpx2.AsyncClient(base_url=url, timeout=30) as http,
    ):
        answer = await http.post(CHAT, json=ask(agent_id, n=2))
    assert (answer.status_code, answer.content) == (200, body)


async def test_two_answers_are_completed(
    url: str, agent_id: str, connection: Connection, directory: Directory, bare: Client
) -> None:
    """Each of them, for the client that needs more than the agent wrote."""

    async def script(reply: Reply) -> None:
        await reply(answer_of("heads", "tails"), JSON)

    async with (
        foreign_agent(agent_id, connection, directory, bare, script, max_choices=2),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as ai,
    ):
        found = await ai.chat.completions.create(model=agent_id, messages=HELLO, n=2)
    assert [(one.index, one.message.content) for one in found.choices] == [
        (0, "heads"),
        (1, "tails"),
    ]
    assert found.model == agent_id


async def test_two_answers_are_cut_into_chunks(
    url: str, agent_id: str, connection: Connection, directory: Directory, bare: Client
) -> None:
    """For a client that streams, of an agent that does not."""

    async def script(reply: Reply) -> None:
        await reply(answer_of("heads", "tails"), JSON)

    async with (
        foreign_agent(agent_id, connection, directory, bare, script, max_choices=2),
        httpx2.AsyncClient(base_url=url, timeout=30) as http,
    ):
        answer = await http.post(CHAT, json=ask(agent_id, n=2, stream=True))
    *events, done = chunks(answer.text)
    assert done == "[DONE]"
    choices = [one["choices"][0] for one in events]
    assert [(one["index"], one["delta"].get("content")) for one in choices] == [
        *((0, ""), (0, "heads"), (0, None)),
        *((1, ""), (1, "tails"), (1, None)),
    ]
    assert [one["finish_reason"] for one in choices] == [None, None, "stop"] * 2
    assert len({(one["id"], one["created"]) for one in events}) == 1


async def test_chunks_of_two_answers_pass(
    url: str, agent_id: str, connection: Connection, directory: Directory, bare: Client
) -> None:
    """In turns, as the agent writes them."""
    written = [
        {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": None}]}
        for index, text in ((0, "he"), (1, "ta"), (0, "ads"), (1, "ils"))
    ]

    async def script(reply: Reply) -> None:
        for place, body in enumerate(written):
            head = {"mesh-kind": "chunk", "mesh-seq": str(place)}
            await reply(orjson.dumps(body), {**JSON, **head})
        head = {"mesh-kind": "final", "mesh-seq": str(len(written))}
        await reply(answer_of("heads", "tails"), {**JSON, **head})

    async with (
        foreign_agent(agent_id, connection, directory, bare, script, max_choices=2),
        httpx2.AsyncClient(base_url=url, timeout=30) as http,
    ):
        answer = await http.post(CHAT, json=ask(agent_id, n=2, stream=True))
    assert chunks(answer.text) == [*written, "[DONE]"]


@pytest.mark.parametrize(("served", "asked"), [(1, 2), (2, 3)])
async def test_more_than_an_agent_serves(
    url: str, agent_id: str, running: Running, directory: Directory, served: int, asked: int
) -> None:
    """The card says how many; the handler is not asked."""
    agent = Agent(agent_id, max_choices=served)

    @agent.chat
    async def count(request: ChatRequest) -> str:
        return str(request.n)

    async with (
        online(running, directory, agent),
        httpx2.AsyncClient(base_url=url, timeout=30) as http,
    ):
        refused = await http.post(CHAT, json=ask(agent_id, n=asked))
        taken = await http.post(CHAT, json=ask(agent_id, n=served))
    assert refused.status_code == 400
    error = error_of(refused)
    assert (error["code"], error["param"]) == ("unsupported_parameter", "n")
    assert taken.json()["choices"][0]["message"]["content"] == str(served)
