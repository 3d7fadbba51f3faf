"""Agents of a large process share durables: nothing that an agent is promised is lost by it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from nats.aio.client import Client

from mesh import Agent, ChatReply, ChatRequest, codec, registry
from mesh.callers import Caller, new_instance_id
from mesh.calls import CallState
from mesh.client import MeshClient, open_client
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory
from mesh.errors import AgentNotFoundError, DeadLetterError, MailboxFullError
from mesh.group_pull import CROWD, CROWD_PAUSE_S
from mesh.grouping import ALONE_MOST
from mesh.runtime import AgentHost
from mesh.settings import Settings
from mesh.streams import INBOX, MAX_DELIVER, REGISTRY, is_group, without
from schemas.frame import WorkingBody
from tests.brisk import brisk_broker
from tests.calls import question
from tests.conftest import Running, control_plane, until
from tests.integration.test_pressure import fill
from tests.integration.test_registry import host_process

LARGE = ALONE_MOST + 5


def crowd(agent_id: str, count: int = LARGE) -> list[str]:
    """Name the agents of a large process."""
    return [f"{agent_id}-{number}" for number in range(count)]


def echoes(ids: Sequence[str], where: str = "") -> list[Agent]:
    """Make agents that repeat what they are told, and say where they are."""
    found = []
    for one in ids:
        agent = Agent(one)

        @agent.chat
        async def answer(request: ChatRequest) -> str:
            return request.last_text + where

        found.append(agent)
    return found


async def durables(connection: Connection, agent_id: str) -> dict[str, set[str]]:
    """Return the durables that capture requests of some agents, with their subjects."""
    manager, found = connection.client.jsm(timeout=20), dict[str, set[str]]()
    offset = 0
    while page := await manager.consumers_info(INBOX, offset=offset):
        offset += len(page)
        for one in page:
            captured = set(one.config.filter_subjects or [one.config.filter_subject or ""])
            if any(agent_id in subject for subject in captured):
                found[str(one.name)] = captured
    return found


def group_of(directory: Directory, agent: str) -> str:
    record = directory.agent_record(agent)
    assert record is not None
    return record.group


async def test_a_large_process_has_few_durables(
    agent_id: str,
    running: Running,
    connection: Connection,
    directory: Directory,
    client: MeshClient,
) -> None:
    """One for every hundred agents, whoever of them is asked."""
    ids = crowd(agent_id, 130)
    async with running(*echoes(ids)):
        asked = await asyncio.gather(*(client.ask(one, one, timeout_s=30) for one in ids))
        assert [answer.text for answer in asked] == ids
    found = await durables(connection, agent_id)
    # Beside the agents each has a subject of its own, so that all of them can leave.
    assert sorted(len(one) - 1 for one in found.values()) == [30, 100]
    assert all(map(is_group, found))
    # They are offline now, and known: the next process takes up where this one ended.
    late = asyncio.create_task(client.ask(ids[0], "late", timeout_s=30))
    async with running(*echoes(ids)):
        assert (await late).text == "late"
    assert await durables(connection, agent_id) == found


async def test_replicas_share_the_same_groups(
    agent_id: str, running: Running, connection: Connection, client: MeshClient
) -> None:
    ids, seen = crowd(agent_id), Counter[str]()
    async with running(*echoes(ids, " here")), running(*echoes(ids, " there"), node="node2"):
        assert len(await durables(connection, agent_id)) == 1
        for _ in range(3):
            for one in ids:
                seen[(await client.ask(one, "hi", timeout_s=30)).text] += 1
    assert set(seen) == {"hi here", "hi there"}


async def test_the_mailbox_of_one_is_full_and_no_other(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    ids = crowd(agent_id)
    async with running(*echoes(ids)):
        pass
    await fill(bare, ids[0])
    with pytest.raises(MailboxFullError):
        await client.ask(ids[0], "one more", timeout_s=30)
    waiting = asyncio.create_task(client.ask(ids[1], "room", timeout_s=60))
    await bare.jsm().purge_stream(INBOX, subject=f"agent.{ids[0]}.inbox")
    async with running(*echoes(ids)):
        assert (await waiting).text == "room"


class Slow:
    """Agents of which one is slow: it answers when it may, and counts who asked."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.gate = asyncio.Event()
        self.began = Counter[str]()
        self.slow = Agent(ids[0], concurrency=1)
        self.others = echoes(ids[1:])

        @self.slow.chat
        async def answer(request: ChatRequest) -> str:
            self.began[request.last_text] += 1
            await self.gate.wait()
            return request.last_text

    @property
    def agents(self) -> list[Agent]:
        return [self.slow, *self.others]


@asynccontextmanager
async def slow_replicas(running: Running, ids: Sequence[str]) -> AsyncIterator[list[Slow]]:
    """Run two processes of the same agents."""
    async with AsyncExitStack() as stack:
        found = [Slow(ids), Slow(ids)]
        for number, one in enumerate(found):
            await stack.enter_async_context(running(*one.agents, node=f"node{number + 1}"))
        yield found


async def test_who_holds_up_the_others_gets_a_durable_of_his_own(
    agent_id: str,
    running: Running,
    connection: Connection,
    directory: Directory,
    client: MeshClient,
) -> None:
    """When what the group has delivered is worked on, once; nobody waits for him meanwhile."""
    ids = crowd(agent_id)
    async with slow_replicas(running, ids) as replicas:
        texts = [f"question {number}" for number in range(8 * CROWD)]
        asked = asyncio.gather(*(client.ask(ids[0], one, timeout_s=60) for one in texts))
        await until(lambda: ids[0] in directory.leaving())
        for one in ids[1:]:
            assert (await client.ask(one, one, timeout_s=10)).text == one
        assert ids[0] in directory.leaving(), "its requests are open"
        for replica in replicas:
            replica.gate.set()
        assert [answer.text for answer in await asked] == texts
        assert sum((one.began for one in replicas), Counter[str]()) == Counter(texts)
        await until(lambda: group_of(directory, ids[0]) == "")
        found = await durables(connection, agent_id)
        assert found.pop(ids[0]) == {f"agent.{ids[0]}.inbox"}
        assert not any(f"agent.{ids[0]}.inbox" in one for one in found.values())
        await shared_by_free_slots(client, replicas, ids[0])


async def shared_by_free_slots(client: MeshClient, replicas: list[Slow], agent: str) -> None:
    """With a durable of its own, one process that is busy leaves the rest to the other one."""
    busy, _ = replicas
    busy.began.clear()
    busy.gate.clear()
    async with asyncio.timeout(20):
        while not busy.began:
            first = asyncio.create_task(client.ask(agent, "first", timeout_s=60))
            await until(partial(_is_begun_or_done, busy, first))
    for number in range(10):
        assert (await client.ask(agent, str(number), timeout_s=10)).text == str(number)
    busy.gate.set()
    await first


def _is_begun_or_done(replica: Slow, asked: "asyncio.Task[ChatReply]") -> bool:
    return bool(replica.began) or asked.done()


async def test_one_of_them_runs_elsewhere_too(
    agent_id: str, running: Running, directory: Directory, client: MeshClient
) -> None:
    """A small process cannot pull for a whole group: the agent is taken out of it."""
    ids, seen = crowd(agent_id), Counter[str]()
    async with running(*echoes(ids, " here")), running(*echoes(ids[:1], " there"), node="node2"):
        await until(lambda: group_of(directory, ids[0]) == "")
        async with asyncio.timeout(20):
            while not (seen["hi here"] and seen["hi there"]):
                seen[(await client.ask(ids[0], "hi", timeout_s=30)).text] += 1
        assert (await client.ask(ids[1], "hi", timeout_s=30)).text == "hi here"


async def test_a_new_version_without_one_of_them(
    agent_id: str, running: Running, directory: Directory, client: MeshClient
) -> None:
    """It is ready while the old one still runs, and gets nothing for whom it does not know."""
    ids = crowd(agent_id)
    async with AsyncExitStack() as old:
        await old.enter_async_context(running(*echoes(ids, " old")))
        async with running(*echoes(ids[1:], " new"), node="node2"):
            assert (await client.ask(ids[0], "hi", timeout_s=30)).text == "hi old"
            await old.aclose()
            asked = await asyncio.gather(*(client.ask(one, "hi", timeout_s=30) for one in ids[1:]))
            assert {answer.text for answer in asked} == {"hi new"}
            await until(lambda: group_of(directory, ids[0]) == "")


async def test_a_new_version_with_more_of_them(
    agent_id: str, running: Running, directory: Directory, client: MeshClient
) -> None:
    """Also what was sent to a new one before anybody knew it."""
    ids = crowd(agent_id)
    async with running(*echoes(ids[:-2])):
        pass
    async with running(*echoes(ids)):
        asked = await asyncio.gather(*(client.ask(one, one, timeout_s=30) for one in ids))
        assert [answer.text for answer in asked] == ids
    assert group_of(directory, ids[0]) != group_of(directory, ids[-1])


async def test_work_that_is_bound_to_a_node(
    agent_id: str, running: Running, connection: Connection, client: MeshClient
) -> None:
    """Has a durable from the first request on, also where it is sent before its process starts."""
    ids = crowd(agent_id)
    async with running(*echoes(ids, " here")), running(*echoes(ids, " there"), node="node2"):
        for node, text in (("node1", "hi here"), ("node2", "hi there")):
            for _ in range(2):
                asked = await client.ask(ids[0], "hi", timeout_s=30, node=node)
                assert asked.text == text
    waiting = asyncio.create_task(client.ask(ids[1], "hi", timeout_s=60, node="node2"))
    await until(lambda: _has(connection, agent_id, f"{ids[1]}@node2"))
    async with running(*echoes(ids, " there"), node="node2"):
        assert (await waiting).text == "hi there"


async def _has(connection: Connection, agent_id: str, durable: str) -> bool:
    return durable in await durables(connection, agent_id)


async def test_a_small_process_that_has_grown(
    agent_id: str, running: Running, connection: Connection, client: MeshClient
) -> None:
    """Its agents had durables of their own: those that nobody uses are given up for a group."""
    ids = crowd(agent_id)
    async with running(*echoes(ids[:3])):
        pass
    waiting = asyncio.create_task(client.ask(ids[0], "waits", timeout_s=60))
    async with running(*echoes(ids)):
        assert (await waiting).text == "waits"
        assert (await client.ask(ids[1], "hi", timeout_s=30, node="node1")).text == "hi"
    shared = [one for one in await durables(connection, agent_id) if is_group(one)]
    assert len(shared) == 1


MODULE = """
import asyncio
from mesh import Agent

def repeating(one):
    agent = Agent(one)

    @agent.chat
    async def answer(request):
        await asyncio.sleep(60 if request.last_text == "die" else 0)
        return request.last_text

    return agent

agents = [repeating(one) for one in {ids!r}]
"""


async def test_the_process_dies(
    agent_id: str, running: Running, settings: Settings, client: MeshClient, tmp_path: Path
) -> None:
    """What it had is delivered to a replica, by the group; and to a process without the others."""
    ids = crowd(agent_id)
    (tmp_path / "many.py").write_text(MODULE.format(ids=ids))
    async with host_process(settings, "many:agents", "node3", tmp_path) as dying:
        await until(lambda: _is_asked(client, ids[0]))
        held = [await client.start(one, question(one, "die"), timeout_s=60) for one in ids[:3]]
        await until(lambda: all(call.state is CallState.WORKING for call in held))
        dying.kill()
        async with running(*echoes(ids[:1]), node="node2"), running(*echoes(ids[1:])):
            assert [(await call.reply()).text for call in held] == ["die"] * 3
            assert group_of(client.directory, ids[0]) == ""


async def _is_asked(client: MeshClient, agent: str) -> bool:
    with suppress(AgentNotFoundError):
        return (await client.ask(agent, "hi", timeout_s=10)).text == "hi"
    return False


@asynccontextmanager
async def crowded_mesh(tmp_path: Path, agents: Sequence[Agent]) -> AsyncIterator["Crowded"]:
    """Run agents in a mesh of their own, whose control plane may go and come."""
    async with brisk_broker(tmp_path) as (_, settings), AsyncExitStack() as stack:
        connection = await stack.enter_async_context(
            open_connection(settings.nats_url, name="test crowd")
        )
        control = await stack.enter_async_context(AsyncExitStack())
        await control.enter_async_context(control_plane(settings))
        directory = await stack.enter_async_context(follow_directory(connection))
        client = await stack.enter_async_context(
            open_client(connection, directory, Caller("t", "n", new_instance_id()))
        )
        it = Crowded(settings, connection, client, control)
        async with it.hosting(agents):
            yield it


@dataclass
class Crowded:
    """A mesh of its own."""

    settings: Settings
    connection: Connection
    client: MeshClient
    control: AsyncExitStack

    @asynccontextmanager
    async def hosting(self, agents: Sequence[Agent]) -> AsyncIterator[None]:
        """Run agents in this process."""
        async with open_connection(self.settings.nats_url, name="test crowd host") as connection:
            host = AgentHost(connection, agents, node="node1", settings=self.settings)
            stop = asyncio.Event()
            serving = asyncio.create_task(host.run(stop))
            try:
                async with asyncio.timeout(60):
                    await host.ready.wait()
                directory = self.client.directory
                await until(lambda: all(directory.agent_record(one.id) for one in agents))
                yield
            finally:
                stop.set()
                await serving


async def test_what_was_only_held_is_not_dead(
    agent_id: str, running: Running, client: MeshClient, bare: Client
) -> None:
    """A neighbour has killed the process each time. What some process has begun is dead."""
    ids = crowd(agent_id)
    async with running(*echoes(ids)):
        pass
    held, begun = [
        await client.start(ids[0], question(ids[0], text), timeout_s=60)
        for text in ("held", "begun")
    ]
    await until(lambda: begun.sequence > 0)
    pull = await bare.jetstream().pull_subscribe_bind(
        group_of(client.directory, ids[0]), stream=INBOX
    )
    for attempt in range(1, MAX_DELIVER):
        taken = await pull.fetch(2, timeout=30)
        if len(taken) < 2:
            taken += await pull.fetch(1, timeout=30)
        for message in taken:
            if attempt == 1 and b"begun" in message.data:
                frame = {"mesh-kind": "working", "correlation_id": begun.id}
                body = WorkingBody(agent=ids[0], node="node1", instance="i", attempt=1)
                await bare.jetstream().publish(
                    begun.reply_subject, codec.encode(body), headers=frame
                )
            await message.nak()
    await pull.unsubscribe()
    async with running(*echoes(ids)):
        assert (await held.reply()).text == "held"
        with pytest.raises(DeadLetterError):
            await begun.result()


async def test_a_registrar_that_dies_halfway(tmp_path: Path) -> None:
    """It has marked an agent and shortened the filter: the next one goes on."""
    ids = crowd("half")
    async with crowded_mesh(tmp_path, echoes(ids)) as mesh:
        await mesh.control.aclose()
        record = mesh.client.directory.agent_record(ids[0])
        assert record is not None
        manager = mesh.connection.client.jsm()
        info = await manager.consumer_info(INBOX, record.group)
        await manager.add_consumer(INBOX, without(info.config, ids[:1]))
        waiting = asyncio.create_task(mesh.client.ask(ids[0], "hi", timeout_s=30))
        leaving = record.model_copy(update={"is_leaving": True})
        await registry.put(mesh.connection, registry.agent_key(ids[0]), leaving)
        async with control_plane(mesh.settings):
            assert (await waiting).text == "hi"
            assert group_of(mesh.client.directory, ids[0]) == ""


async def test_no_registrar_and_one_that_is_flooded(tmp_path: Path) -> None:
    """The others are served all the same, after a moment."""
    slow = Slow(crowd("flood"))
    async with crowded_mesh(tmp_path, slow.agents) as mesh:
        await mesh.control.aclose()
        ids = [agent.id for agent in slow.agents]
        flood = asyncio.gather(*(mesh.client.ask(ids[0], "hi", timeout_s=60) for _ in range(320)))
        await until(lambda: bool(slow.began))
        asked = await asyncio.gather(
            *(mesh.client.ask(one, one, timeout_s=CROWD_PAUSE_S + 10) for one in ids[1:])
        )
        assert [answer.text for answer in asked] == ids[1:]
        slow.gate.set()
        await flood


async def test_the_registry_is_lost_and_the_durables_are_not(tmp_path: Path) -> None:
    """Whoever starts then has other neighbours, and is served all the same."""
    ids = crowd("lost", 2 * LARGE)
    async with crowded_mesh(tmp_path, echoes(ids[:LARGE])) as mesh:
        await mesh.connection.client.jsm().purge_stream(REGISTRY)
        async with mesh.hosting(echoes(ids[5:])):
            for one in ids:
                assert (await mesh.client.ask(one, one, timeout_s=30)).text == one


async def test_a_process_stops_under_load(
    agent_id: str, running: Running, client: MeshClient
) -> None:
    """It ends what it has begun, and begins nothing that it would not end."""
    ids, began = crowd(agent_id), Counter[str]()
    agents = [Agent(one) for one in ids]
    for agent in agents:

        @agent.chat
        async def answer(request: ChatRequest) -> str:
            began[request.last_text] += 1
            await asyncio.sleep(0.002)
            return request.last_text

    async def ask_on(agent: str, until_done: asyncio.Event) -> int:
        count = 0
        while not until_done.is_set():
            text = f"{agent} {count}"
            assert (await client.ask(agent, text, timeout_s=5)).text == text
            count += 1
        return count

    async with running(*agents):
        done = asyncio.Event()
        asking = asyncio.gather(*(ask_on(one, done) for one in ids))
        for _ in range(5):
            async with running(*agents, node="node2"):
                await asyncio.sleep(0.3)
        done.set()
        assert sum(await asking) == began.total()
    assert set(began.values()) == {1}
