"""Events: published by agents and people, heard at least once, also by who was away."""

import asyncio

from nats.aio.client import Client

from mesh import Agent, CallContext, ChatRequest, Event
from mesh.client import MeshClient
from tests.conftest import Running


def listener(agent_id: str, event: str, heard: "asyncio.Queue[Event]") -> Agent:
    """An agent that keeps what it hears."""
    agent = Agent(agent_id)

    @agent.on(event)
    async def note(event: Event) -> None:
        await heard.put(event)

    return agent


async def test_an_agent_hears_what_another_publishes(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """`agent.publish` in one process reaches `@agent.on` in another."""
    heard: asyncio.Queue[Event] = asyncio.Queue()
    source = Agent(f"{agent_id}-s")

    @source.chat
    async def work(request: ChatRequest) -> str:
        await source.publish("done", {"text": request.last_text})
        return "ok"

    async with running(listener(agent_id, f"{source.id}.done", heard)), running(source):
        await client.ask(source.id, "hello")
        event = await asyncio.wait_for(heard.get(), 30)
    assert (event.source, event.name, event.json()) == (source.id, "done", {"text": "hello"})


async def test_events_wait_for_a_listener_that_is_away(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """A subscription is durable: what happens meanwhile comes when the agent is back, in order."""
    heard: asyncio.Queue[Event] = asyncio.Queue()
    agent = listener(agent_id, f"{agent_id}-s.done", heard)
    async with running(agent):
        pass
    for number in range(3):
        await client.publish_event(f"{agent_id}-s", "done", str(number).encode())
    async with running(agent):
        events = [await asyncio.wait_for(heard.get(), 30) for _ in range(3)]
    assert sorted(one.text for one in events) == ["0", "1", "2"]


async def test_a_new_listener_is_not_flooded_with_the_past(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """Events from before the first registration are not delivered."""
    heard: asyncio.Queue[Event] = asyncio.Queue()
    await client.publish_event(f"{agent_id}-s", "done", b"old")
    async with running(listener(agent_id, f"{agent_id}-s.done", heard)):
        await client.publish_event(f"{agent_id}-s", "done", b"new")
        assert (await asyncio.wait_for(heard.get(), 30)).text == "new"


async def test_a_wildcard_hears_every_source(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """`*.name` hears that event of all agents, `agent.*` all events of one."""
    by_name: asyncio.Queue[Event] = asyncio.Queue()
    by_agent: asyncio.Queue[Event] = asyncio.Queue()
    name = f"e{agent_id}"
    async with running(
        listener(f"{agent_id}-1", f"*.{name}", by_name),
        listener(f"{agent_id}-2", f"{agent_id}-s.*", by_agent),
    ):
        await client.publish_event(f"{agent_id}-s", name, b"1")
        await client.publish_event(f"{agent_id}-s", "other.thing", b"2")
        assert (await asyncio.wait_for(by_name.get(), 30)).source == f"{agent_id}-s"
        heard = {(await asyncio.wait_for(by_agent.get(), 30)).name for _ in range(2)}
    assert heard == {name, "other.thing"}


async def test_a_listener_can_ask_other_agents(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """The second parameter of an event handler asks as its agent."""
    answers: asyncio.Queue[str] = asyncio.Queue()
    asker, answerer = Agent(agent_id), Agent(f"{agent_id}-a")

    @answerer.chat
    async def answer(request: ChatRequest, call: CallContext) -> str:
        return f"hello {call.source_agent}"

    @asker.on(f"{agent_id}-s.done")
    async def react(event: Event, call: CallContext) -> None:
        await answers.put((await call.ask(answerer.id, "x")).text)

    async with running(asker, answerer):
        await client.publish_event(f"{agent_id}-s", "done", b"{}")
        assert await asyncio.wait_for(answers.get(), 30) == f"hello {agent_id}"


async def test_any_nats_client_hears_events(
    agent_id: str, client: MeshClient, bare: Client
) -> None:
    """Events are plain messages on `agent.<id>.event.<name>`."""
    events = await bare.subscribe(f"agent.{agent_id}.event.>")
    await client.publish_event(agent_id, "done", b'{"x":1}')
    message = await events.next_msg(timeout=30)
    assert (message.subject, message.data) == (f"agent.{agent_id}.event.done", b'{"x":1}')
