"""What passes is heard as it is stored, and can be read again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from nats.aio.client import Client

from mesh import Agent, CallContext, ChatRequest
from mesh.activity import Fact, What, listening, replay
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.errors import AgentFailedError
from tests.conftest import Running, until
from tests.shim import replier


async def heard(facts: AsyncIterator[Fact], agent: str, last: What) -> list[Fact]:
    """Return what is told of an agent, up to the first of a kind."""
    found: list[Fact] = []
    async with asyncio.timeout(20):
        async for fact in facts:
            if agent in (fact.agent, fact.caller):
                found.append(fact)
                if fact.what is last and fact.agent == agent:
                    return found
    raise AssertionError("the facts have ended")


async def test_what_is_heard_can_be_read_again(
    running: Running, client: MeshClient, connection: Connection, agent_id: str
) -> None:
    """But for the request, of which a mailbox keeps nothing."""
    leaf, agent = replier(f"{agent_id}-leaf"), Agent(agent_id)

    @agent.chat
    async def ask_on(request: ChatRequest, call: CallContext) -> str:
        if request.last_text == "fail":
            raise ValueError("a secret")
        await agent.publish("noon", {"at": "12:00"})
        return (await call.ask(leaf.id, request.last_text)).text

    again: list[Fact] = []

    async def is_kept(what: What) -> bool:
        """The history of the registry is copied from its bucket, a moment later."""
        found = [one async for one in replay(connection, 60)]
        again[:] = [one for one in found if agent_id in (one.agent, one.caller)]
        return what in {one.what for one in again}

    async with listening(connection) as facts:
        async with running(leaf, agent):
            await until(lambda: is_kept(What.KNOWN))
            await client.ask(agent_id, "a question")
            with pytest.raises(AgentFailedError):
                await client.ask(agent_id, "fail")
        live = await heard(facts, agent_id, What.OFFLINE)
    await until(lambda: is_kept(What.OFFLINE))
    told = {(one.what, one.agent, one.caller, one.call_id, one.code) for one in live}
    kept = {(one.what, one.agent, one.caller, one.call_id, one.code) for one in again}
    assert {one for one in told if one[0] is not What.ASKED} <= kept
    assert not [one for one in kept if one[0] is What.ASKED]
    # Leaving takes a placement out more than once.
    kinds = list(dict.fromkeys(one.what for one in again if one.agent == agent_id))
    assert [one for one in kinds if one not in (What.STORED, What.WORKING)] == [
        *(What.ONLINE, What.KNOWN, What.EVENT, What.ANSWERED, What.FAILED, What.OFFLINE)
    ]
    assert [one.at_ns for one in again] == sorted(one.at_ns for one in again)
    (asked,) = [one for one in live if one.what is What.ASKED and one.agent == leaf.id]
    assert (asked.caller, asked.body) == (agent_id, asked.body)
    (failed,) = [one for one in live if one.what is What.FAILED]
    assert failed.code == "agent_failed"
    assert failed.took_ms is not None


async def test_who_is_slow_is_told_that_something_is_missing(
    running: Running,
    client: MeshClient,
    connection: Connection,
    agent_id: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is kept without a limit for who does not read."""
    monkeypatch.setattr("mesh.activity.MAX_HELD", 3)
    async with running(replier(agent_id)), listening(connection) as facts:
        for _ in range(5):
            await client.ask(agent_id, "hello")
        await asyncio.sleep(0.2)
        for _ in range(3):
            await anext(facts)
        await client.ask(agent_id, "hello")
        await anext(facts)
    assert "came faster than they were taken" in caplog.text


async def test_much_is_read_again(connection: Connection, bare: Client, agent_id: str) -> None:
    """All of it, in order: a consumer may hold no more than a thousand unacknowledged."""
    stream = bare.jetstream(publish_async_max_pending=2_000)
    sent = [
        await stream.publish_async(f"agent.{agent_id}.event.tick", str(number).encode())
        for number in range(1_500)
    ]
    await asyncio.gather(*sent)
    found = [one async for one in replay(connection, 60) if one.agent == agent_id]
    assert [int(one.body) for one in found] == list(range(1_500))


async def test_since_the_beginning_of_time(connection: Connection) -> None:
    """Is no error."""
    async with aclosing(replay(connection, 10.0**11)) as facts:  # type: ignore[type-var]
        await anext(facts)
