"""The mesh on two accounts: the same code as in one, and attacks by a user with rights of its own.

CORE owns JetStream and the control plane. The user of host2, agent `c`, is the attacker.
"""

import asyncio
from collections.abc import AsyncIterator

import nats
import nats.errors
import orjson
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh import Agent, streams, subjects
from mesh import headers as h
from mesh.client import Caller, MeshClient, new_instance_id, open_client
from mesh.connection import Connection, open_connection
from mesh.directory import Directory, follow_directory
from mesh.errors import BrokerUnreachableError
from mesh.history import read_last
from mesh.registry import beat
from mesh.replies import is_answered, read_last_frame
from mesh.runtime import describe_process
from schemas.registry import Announcement, Heartbeat, Role, State
from tests.accounts.mesh import CALM_S, DENIED, TARGETS, Mesh, answered, canaries, host
from tests.accounts.server import accounts_server
from tests.conftest import control_plane, until


@pytest.fixture(scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh on two accounts."""
    async with accounts_server(tmp_path_factory.mktemp("accounts")) as accounts:
        found = Mesh(accounts)
        async with (
            control_plane(accounts.settings("control", "hub")),
            host(accounts, "host1", "node1", found.a, found.b),
            host(accounts, "host2", "node2", found.c),
        ):
            yield found


@pytest.fixture(scope="module")
async def connection(mesh: Mesh) -> AsyncIterator[Connection]:
    """The connection of a person."""
    async with open_connection(mesh.accounts.url("ann"), name="ann") as opened:
        yield opened


@pytest.fixture(scope="module")
async def directory(connection: Connection) -> AsyncIterator[Directory]:
    """The registry as the person sees it."""
    async with follow_directory(connection) as followed:
        yield followed


@pytest.fixture(scope="module")
async def ann(connection: Connection, directory: Directory) -> AsyncIterator[MeshClient]:
    """The person calls agents."""
    caller = Caller("ann", "laptop", new_instance_id())
    async with open_client(connection, directory, caller) as client:
        yield client


@pytest.fixture
async def core(mesh: Mesh) -> AsyncIterator[Connection]:
    """A connection that may do everything, to look at what an attack has done."""
    async with open_connection(mesh.accounts.url("control"), name="core") as opened:
        yield opened


@pytest.fixture
async def mallory(mesh: Mesh) -> AsyncIterator[Client]:
    """The attacker: the user of host2, with bare nats-py."""

    async def refused(error: Exception) -> None:
        """Do without nats-py's own handler, which logs every denial with a traceback."""

    client = await nats.connect(
        mesh.accounts.url("host2"), inbox_prefix="_INBOX_host2", error_cb=refused
    )
    yield client
    await client.close()


async def test_a_call_crosses_the_accounts(ann: MeshClient) -> None:
    """A person and an agent, both without JetStream, talk through it."""
    assert (await ann.ask("b", "hello", timeout_s=5)).text == "b on ann: hello"


async def test_a_streamed_answer_crosses_the_accounts(ann: MeshClient) -> None:
    """Every chunk arrives, in order."""
    parts = [part async for part in ann.stream("a", "one two three", timeout_s=5)]
    assert parts == ["one ", "two ", "three "]


async def test_a_nested_call_crosses_hosts(ann: MeshClient) -> None:
    """An agent asks an agent of another host."""
    assert (await ann.ask("c", "hi", timeout_s=5)).text == "c heard b on c: hi"


async def test_a_pinned_call_reaches_its_node(ann: MeshClient) -> None:
    """The durable of one node is pulled with the rights of that node."""
    assert (await ann.ask("b", "hi", node="node1", timeout_s=5)).text == "b on ann: hi"


async def test_an_event_reaches_its_subscriber(mesh: Mesh) -> None:
    """An event is stored in CORE and pulled from AGENTS."""
    await mesh.a.publish("done", {"n": 1})
    await until(lambda: {"n": 1} in mesh.events)


async def test_the_registry_is_followed(directory: Directory) -> None:
    """Placements and heartbeats of both hosts show in an account without the bucket."""
    await until(lambda: directory.state_on("b", "node1") is State.ONLINE)
    await until(lambda: directory.state_on("c", "node2") is State.ONLINE)


async def test_the_registrar_answers_look_ups(connection: Connection) -> None:
    """`registry.get` and `registry.list` are services of CORE."""
    assert b'"id":"b"' in (await answered(connection.client, "registry.get.b") or b"")
    assert b'"node":"node2"' in (await answered(connection.client, "registry.list") or b"")


async def test_a_repeated_request_runs_once(mesh: Mesh, ann: MeshClient, core: Connection) -> None:
    """The agent finds its own answer in the ledger, with rights to nothing but its answers."""
    body = b'{"messages":[{"role":"user","content":"once"}]}'
    call = await ann.start("b", body, timeout_s=5)
    await call.result()
    headers = {h.REPLY_TO: call.reply_subject, h.CORRELATION_ID: call.id, h.RETRY: "1"}
    await core.publisher.publish(subjects.inbox("b"), body, headers)
    manager = core.client.jsm()

    async def is_settled() -> bool:
        info = await manager.consumer_info(streams.INBOX, "b")
        return not info.num_pending and not info.num_ack_pending

    await until(is_settled, within_s=5)
    assert mesh.runs.count(call.id) == 1


async def test_a_caller_reads_its_own_answers_again(
    mesh: Mesh, connection: Connection, ann: MeshClient
) -> None:
    """After a lost connection the answer is read from the stream, by its owner and by nobody."""
    call = await ann.start("b", b'{"messages":[{"role":"user","content":"x"}]}', timeout_s=5)
    await call.result()
    found = await read_last_frame(connection, call.reply_subject, call.id)
    assert [frame.kind.is_terminal for frame in found] == [True]
    assert await is_answered(connection, call.reply_subject, call.id)


async def test_an_empty_message_stops_nobody(
    ann: MeshClient, core: Connection, mallory: Client
) -> None:
    """An empty message ends a pull between accounts (nats-server #6149); a fresh one follows."""
    await mallory.publish("agent.b.inbox")

    async def is_refused() -> bool:
        return await read_last(core, streams.REPLY, "agent.b.reply") is not None

    await until(is_refused)
    assert (await ann.ask("b", "still there", timeout_s=5)).text.endswith("still there")


async def test_a_trace_does_not_tell_the_call(mesh: Mesh, ann: MeshClient) -> None:
    """Whoever knows a call's id could answer it, and a trace is passed to every nested agent."""
    call = await ann.start("c", b'{"messages":[{"role":"user","content":"x"}]}', timeout_s=5)
    await call.result()
    assert mesh.traces[-1]
    assert mesh.traces[-1] != call.id


async def test_a_reply_subject_reaches_nothing_in_core(core: Connection, mallory: Client) -> None:
    """A reply subject is not checked against the rights of its sender, and still leads nowhere."""
    before = await canaries(core)
    pull = orjson.dumps({"batch": 1, "no_wait": True})
    for target in TARGETS:
        await mallory.publish("$JS.API.CONSUMER.MSG.NEXT.INBOX.c", pull, reply=target)
        missing = "$JS.API.DIRECT.GET.REPLY.agent.c.reply.none.none.c"
        await mallory.publish(missing, b"", reply=target)
        await mallory.publish("$JS.API.DIRECT.GET.KV_registry", b'{"seq":1}', reply=target)
        await mallory.publish("registry.get.c", b"", reply=target)
        await mallory.publish("agent.c.event.attack", b"{}", reply=target)
    await mallory.flush()
    await asyncio.sleep(CALM_S)
    assert await canaries(core) == before
    await core.client.jsm().consumer_info(streams.INBOX, "b")


async def test_rights_of_others_are_denied(core: Connection, mallory: Client) -> None:
    """What is not on the list does not reach CORE, whether AGENTS imports it or not."""
    before = await canaries(core)
    answers = await asyncio.gather(*(answered(mallory, one) for one in DENIED))
    assert [one for one in answers if one] == []
    assert await canaries(core) == before


async def test_the_batched_read_is_refused(ann: MeshClient, mallory: Client) -> None:
    """The subject in its body could be anybody's: it is not exported, and says so at once."""
    await ann.ask("b", "a secret", timeout_s=5)
    body = b'{"batch":10,"seq":1,"next_by_subj":"agent.ann.reply.>"}'
    with pytest.raises(nats.errors.NoRespondersError):
        await mallory.request("$JS.API.DIRECT.GET.REPLY", body, timeout=5)


async def test_a_limited_read_shows_own_answers_only(ann: MeshClient, mallory: Client) -> None:
    """With wildcards an agent reads the newest of its own answers, whoever was answered after."""
    await ann.ask("c", "mine", timeout_s=5)
    await ann.ask("b", "a secret", timeout_s=5)
    found = await answered(mallory, "$JS.API.DIRECT.GET.REPLY.agent.*.reply.*.*.c")
    assert found is not None
    assert b"mine" in found


async def test_others_are_not_overheard(ann: MeshClient, mallory: Client) -> None:
    """No subscription shows what is for others: inboxes, requests, answers."""
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    for subject in ("_INBOX.>", "_INBOX_ann.>", "delivered.>", "delivered.ann.>", "agent.>", ">"):
        await mallory.subscribe(subject, cb=hear)
    await mallory.flush()
    await ann.ask("b", "a secret", timeout_s=5)
    assert heard == []


async def test_a_registry_event_cannot_be_forged(
    directory: Directory, core: Connection, mallory: Client
) -> None:
    """What a reply subject brings to `registry.event.` is not taken for the bucket's."""
    # Stored by the attacker, with the headers of a genuine event, under two of its subjects.
    forged = {
        "Nats-Stream": streams.REGISTRY,
        "Nats-Subject": "$KV.registry.agent.b",
        "Nats-Sequence": "999999",
    }
    mine = "agent.ann.reply.x.y.c"
    await mallory.publish(mine, b"{}", headers=forged)
    target = "registry.event.agent.b"
    await mallory.publish(f"$JS.API.DIRECT.GET.REPLY.{mine}", b"", reply=target)
    body = orjson.dumps({"last_by_subj": "$KV.registry.agent.c"})
    await mallory.publish("$JS.API.DIRECT.GET.KV_registry", body, reply=target)
    await mallory.publish("agent.c.inbox", b"", headers=forged, reply=target)
    await mallory.flush()
    await asyncio.sleep(CALM_S)
    record = directory.agent_record("b")
    assert record is not None
    assert record.card.id == "b"


async def test_the_registrar_answers_the_announcer_only(core: Connection, mallory: Client) -> None:
    """A `reply_to` header does not make the registrar publish with its own rights."""
    before = await canaries(core)
    announcement = Announcement(
        card=Agent("c").card, instance=describe_process("node2", Role.HOST, ["c"])
    )
    for target in (*TARGETS, "agent.ann.reply", "agent.ann.reply.i.c.b"):
        await mallory.publish(
            subjects.announce("c", "node2"),
            announcement.model_dump_json().encode(),
            headers={h.REPLY_TO: target, h.CONTENT_TYPE: h.JSON},
        )

    async def is_read() -> bool:
        info = await core.client.jsm().consumer_info(streams.CONTROL, streams.REGISTRAR_ANNOUNCE)
        return not info.num_pending and not info.num_ack_pending

    await mallory.flush()
    await until(is_read)
    await asyncio.sleep(CALM_S)
    after = await canaries(core)
    kept = (streams.INBOX, streams.REPLY, streams.DEAD, "card")
    assert [after[one] for one in kept] == [before[one] for one in kept]


async def test_a_node_speaks_for_itself_only(mesh: Mesh, directory: Directory) -> None:
    """A host can neither say goodbye for a process of another node, nor pose as a registrar."""
    victim = next(one for one in directory.instances() if one.node == "node1")
    async with open_connection(mesh.accounts.url("host2"), name="mallory") as mallory:
        posing = victim.model_copy(update={"node": "node2"})
        receipt = await beat(mallory, Heartbeat(instance=posing, leaving=True))
        assert not receipt.ok
        registrar = describe_process("node2", Role.REGISTRAR)
        assert not (await beat(mallory, Heartbeat(instance=registrar))).ok
        with pytest.raises(BrokerUnreachableError):
            await beat(mallory, Heartbeat(instance=victim, leaving=True), timeout_s=CALM_S)
    assert directory.state_on("b", "node1") is State.ONLINE
