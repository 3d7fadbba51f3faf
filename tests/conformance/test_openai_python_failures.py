"""openai-python when something is wrong: its error classes, its retries, its time-outs."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest

from mesh import Agent, ChatRequest, subjects
from mesh import headers as h
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.settings import DEFAULT_HTTP_BODY_MAX_BYTES, Settings
from mesh.shim.app import create_app
from mesh.shim.door import Door
from schemas.registry import State
from tests.conftest import Running, until
from tests.shim import HELLO, online, replier


class Counting(openai.AsyncOpenAI):
    """A client that remembers how it was answered: a retry is one answer more."""

    def __init__(self, transport: httpx2.AsyncBaseTransport | None = None, **options: Any) -> None:
        self.answers: list[int] = []
        http = httpx2.AsyncClient(transport=transport, event_hooks={"response": [self._count]})
        super().__init__(api_key="any", http_client=http, **options)

    async def _count(self, response: httpx2.Response) -> None:
        self.answers.append(response.status_code)


@pytest.mark.parametrize("name", ["nobody", "gpt-3.5-turbo", "openai/gpt-4o", "nobody@node1"])
async def test_an_unknown_model(ai: openai.AsyncOpenAI, name: str) -> None:
    """A model that is no agent is not found, whatever its name looks like."""
    with pytest.raises(openai.NotFoundError) as caught:
        await ai.models.retrieve(name)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_nobody_to_ask(ai: openai.AsyncOpenAI, is_streamed: bool) -> None:
    """A stream that never began is refused as a plain answer is."""
    with pytest.raises(openai.NotFoundError, match="nobody") as caught:
        await ai.chat.completions.create(model="nobody", messages=HELLO, stream=is_streamed)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"extra_body": {"target_node": "a b"}}, "invalid_value", "target_node"),
    ],
)
async def test_a_bad_request(
    ai: openai.AsyncOpenAI, options: dict[str, Any], code: str, param: str
) -> None:
    """The field that is wrong is named where clients look for it."""
    asked: Any = {"model": "nobody", "messages": HELLO, **options}
    with pytest.raises(openai.BadRequestError) as caught:
        await ai.chat.completions.create(**asked)
    assert (caught.value.type, caught.value.code, caught.value.param) == (
        "invalid_request_error",
        code,
        param,
    )


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("post", "/embeddings", {}, 404, "unknown_url"),
        ("delete", "/models", {}, 405, "method_not_supported"),
        (
            "post",
            "/chat/completions",
            {"content-type": "text/plain"},
            415,
            "unsupported_media_type",
        ),
        ("post", "/chat/completions", {}, 413, "payload_too_large"),
    ],
)
async def test_what_never_came_to_an_agent(
    ai: openai.AsyncOpenAI,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    """The client can tell why, whoever on our side refuses it."""
    size = DEFAULT_HTTP_BODY_MAX_BYTES if status == 413 else 1
    body = {"model": "nobody", "messages": HELLO, "user": "x" * size}
    with pytest.raises(openai.APIStatusError) as caught:
        await getattr(ai, method)(path, cast_to=object, body=body, options={"headers": headers})
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


async def test_a_full_mailbox(
    *,
    ai: openai.AsyncOpenAI,
    agent_id: str,
    running: Running,
    directory: Directory,
    connection: Connection,
    settings: Settings,
) -> None:
    """The request was not stored: the client's own class, and when to come again."""
    agent = Agent(agent_id, concurrency=1)

    @agent.chat
    async def never(request: ChatRequest) -> str:
        await asyncio.Event().wait()
        return ""

    async with online(running, directory, agent, grace_s=0):
        publisher, subject = connection.publisher, subjects.inbox(agent_id)
        headers = {h.TTL: "2", h.TIMEOUT_MS: "2000"}
        sent = [await publisher.submit(subject, b"x", headers) for _ in range(settings.mailbox_max)]
        await asyncio.gather(*sent)
        with pytest.raises(openai.RateLimitError) as caught:
            await ai.chat.completions.create(model=agent_id, messages=HELLO)
    assert (caught.value.type, caught.value.code) == ("rate_limit_error", "agent_busy")
    told = caught.value.response.headers
    assert (told["retry-after"], told["retry-after-ms"]) == ("1", "1000")
    assert "x-should-retry" not in told
    assert told["mesh-call-id"]


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

    async with online(running, directory, agent):
        stream = await ai.chat.completions.create(model=agent_id, messages=HELLO, stream=True)
        shown = [(await anext(stream)).choices[0].delta.content for _ in range(2)]
        with pytest.raises(openai.APIError, match="no sun today") as caught:
            await anext(stream)
    assert shown == ["", "the sun is "]
    assert (caught.value.code, caught.value.type) == ("agent_error", "server_error")


async def test_an_offline_agent_is_asked_again(
    door: str, agent_id: str, running: Running, directory: Directory
) -> None:
    """The client waits as long as it is told to, and the agent is back by then."""
    async with online(running, directory, replier(agent_id)):
        pass
    await until(lambda: directory.agent(agent_id).state is State.OFFLINE)
    async with Counting(base_url=f"{door}/v1", max_retries=1) as client:
        asking = asyncio.create_task(client.chat.completions.create(model=agent_id, messages=HELLO))
        await until(lambda: client.answers == [503])
        async with online(running, directory, replier(agent_id)):
            found = await asking
    assert found.choices[0].message.content == "You said: hello"
    assert client.answers == [503, 200]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(("headers", "status"), [({}, 502), ({"X-Mesh-Timeout": "0.3"}, 504)])
async def test_an_agent_that_may_have_started_is_asked_once(
    *,
    door: str,
    agent_id: str,
    running: Running,
    directory: Directory,
    headers: dict[str, str],
    status: int,
    is_streamed: bool,
) -> None:
    """With its default of two retries, the client repeats neither a failure nor a deadline."""
    asked = 0
    agent = Agent(agent_id)

    @agent.chat
    async def fail(request: ChatRequest) -> str:
        nonlocal asked
        asked += 1
        if headers:
            await asyncio.Event().wait()
        raise ValueError("no sun today")

    async with online(running, directory, agent), Counting(base_url=f"{door}/v1") as client:
        assert client.max_retries == 2
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(
                model=agent_id, messages=HELLO, stream=is_streamed, extra_headers=headers
            )
    assert caught.value.status_code == status
    assert client.answers == [status]
    assert asked == 1


async def test_a_bug_of_ours_is_not_asked_again() -> None:
    """Nobody knows how far the request came: perhaps to an agent."""
    broken: Any = None
    transport = httpx2.ASGITransport(create_app(Door(broken, broken, broken)))
    async with Counting(transport, base_url="http://127.0.0.1/v1") as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.models.list()
    assert caught.value.code == "internal_error"
    assert client.answers == [500]


async def test_a_key_for_another_question_is_not_asked_again(
    door: str, agent_id: str, running: Running, directory: Directory
) -> None:
    """The client repeats a 409 by itself, where a repetition cannot help."""
    key = {"Idempotency-Key": agent_id}
    async with online(running, directory, replier(agent_id)), Counting(base_url=door) as client:
        await client.chat.completions.create(model=agent_id, messages=HELLO, extra_headers=key)
        with pytest.raises(openai.ConflictError) as caught:
            await client.chat.completions.create(
                model=agent_id, messages=[*HELLO, *HELLO], extra_headers=key
            )
    assert caught.value.code == "idempotency_key_reused"
    assert client.answers == [200, 409]


@pytest.mark.parametrize("way", ["plain", "streamed", "helper", "time-out"])
async def test_a_client_that_goes_away_stops_the_agent(
    *, ai: openai.AsyncOpenAI, agent_id: str, running: Running, directory: Directory, way: str
) -> None:
    """By cancelling, by closing the stream, or as it has waited for long enough."""
    has_begun, was_stopped = asyncio.Event(), asyncio.Event()
    agent = Agent(agent_id)

    @agent.chat
    async def work(request: ChatRequest) -> AsyncIterator[str]:
        has_begun.set()
        try:
            yield "half"
            await asyncio.Event().wait()
        finally:
            was_stopped.set()

    chat: Any = ai.chat.completions
    asked: Any = {"model": agent_id, "messages": HELLO}
    async with online(running, directory, agent):
        if way == "plain":
            asking = asyncio.create_task(chat.create(**asked))
            await has_begun.wait()
            asking.cancel()
        elif way == "streamed":
            async with await chat.create(**asked, stream=True) as stream:
                assert [(await anext(stream)).choices[0].delta.content for _ in "ab"] == [
                    "",
                    "half",
                ]
        elif way == "helper":
            async with chat.stream(**asked) as stream:
                await anext(stream)
        else:
            with pytest.raises(openai.APITimeoutError):
                await chat.create(**asked, timeout=0.5)
        await asyncio.wait_for(was_stopped.wait(), 30)
