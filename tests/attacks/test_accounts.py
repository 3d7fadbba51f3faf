"""The mesh on two accounts: the same code as in one, and attacks by a user with rights of its own.

CORE owns JetStream and the control plane. The user of host2, agent `c`, is the attacker.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh import Agent, codec, streams, subjects
from mesh import headers as h
from mesh.access import Access
from mesh.activity import listening, replay
from mesh.call_trace import Hop, read_trace
from mesh.callers import Caller, new_instance_id
from mesh.calls import Call
from mesh.client import MeshClient, open_client
from mesh.connection import Connection, open_connection
from mesh.dead_letters import Reason, read_letters
from mesh.directory import Directory, follow_directory
from mesh.errors import (
    BrokerUnreachableError,
    CallNotFoundError,
    NotPermittedError,
)
from mesh.history import read_history, read_last
from mesh.inbox import ReplyInbox
from mesh.presence import read_people, say, user_token
from mesh.questions import encode_question
from mesh.registry import beat
from mesh.runtime import describe_process
from mesh.streams import PRESENCE
from schemas.presence import PresenceHeartbeat, PresenceStatus
from schemas.registry import Announcement, Heartbeat, Role, State
from tests.accounts.mesh import (
    CALM_S,
    DENIED,
    DIRECT_REGISTRY,
    PULL_INBOX,
    TARGETS,
    Mesh,
    answer,
    answered,
    canaries,
    is_idle,
    two_hosts,
)
from tests.conftest import until

PRESENCE_KEY: Final = f"$KV.{subjects.PRESENCE_BUCKET}."


@pytest.fixture(scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh on two accounts."""
    async with two_hosts(tmp_path_factory.mktemp("accounts")) as found:
        yield found


@pytest.fixture(scope="module")
async def connection(mesh: Mesh) -> AsyncIterator[Connection]:
    """The connection of a person."""
    async with open_connection(mesh.accounts.login("ann"), name="ann") as opened:
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
    async with open_connection(mesh.accounts.login("control"), name="core") as opened:
        yield opened


@pytest.fixture
async def mallory(mesh: Mesh) -> AsyncIterator[Client]:
    """The attacker: the user of host2, with bare nats-py."""
    client = await mesh.accounts.bare("host2")
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
    assert b'"id":"b"' in await answer(connection.client, "registry.get.b")
    assert b'"node":"node2"' in await answer(connection.client, "registry.list")


async def test_a_repeated_request_runs_once(mesh: Mesh, ann: MeshClient, core: Connection) -> None:
    """The agent finds its own answer in the ledger, with rights to nothing but its answers."""
    body = b'{"messages":[{"role":"user","content":"once"}]}'
    call = await ann.start("b", body, timeout_s=5)
    await call.result()
    headers = {h.REPLY_TO: call.reply_subject, h.CORRELATION_ID: call.id, h.RETRY: "1"}
    await core.publisher.publish(subjects.inbox("b"), body, headers)
    await until(lambda: is_idle(core, "b"))
    assert mesh.runs.count(call.id) == 1


async def test_a_caller_reads_its_own_answer_again(connection: Connection, ann: MeshClient) -> None:
    """An answer that came while nobody listened is read from the stream, by its owner."""
    call = await ann.start("b", b'{"messages":[{"role":"user","content":"x"}]}', timeout_s=5)
    final = await call.result()
    missed = Call(call.id, "b", call.reply_subject, timeout_s=0.1)
    ReplyInbox(connection, "ann", new_instance_id()).expect(missed)
    assert (await missed.result()).body == final.body


async def test_a_worker_buries_what_it_may_not_answer(core: Connection, mallory: Client) -> None:
    """Across the accounts, under its own name, which is all that it has a right to."""
    await mallory.publish("agent.b.inbox", b"bury me", headers={h.REPLY_TO: "$KV.registry.agent.b"})

    async def is_buried() -> bool:
        letters = [one async for one in read_letters(core, "b")]
        return (Reason.REFUSED, b"bury me") in [(one.reason, one.body) for one in letters]

    await until(is_buried)
    await until(lambda: is_idle(core, "b"))


async def test_an_empty_message_stops_nobody(
    ann: MeshClient, core: Connection, mallory: Client
) -> None:
    """An empty message ends a pull between accounts (nats-server #6149); a fresh one follows."""
    await mallory.publish("agent.b.inbox")

    async def is_refused() -> bool:
        return await read_last(core, streams.REPLY, "agent.b.reply") is not None

    await until(is_refused)
    # More than the pull that was cut had asked for: none of them may be lost with it.
    replies = await asyncio.gather(*(ann.ask("b", f"{n}", timeout_s=5) for n in range(20)))
    assert [one.text for one in replies] == [f"b on ann: {n}" for n in range(20)]


@pytest.mark.parametrize(
    ("reply_to", "body"),
    [
        ("agent.ann.reply.i.k.a", b"x"),
        ("agent.ann.reply.i.k", b"x"),
        ("agent.a.reply", b"x"),
        ("", b'{"source_agent": "ann", "message": "x"}'),
    ],
)
async def test_a_reply_that_is_denied_holds_no_slot(
    reply_to: str, body: bytes, core: Connection, mallory: Client
) -> None:
    """A request that wants its answer where the agent may not publish is refused at once."""
    await mallory.request("agent.b.inbox", body, headers={h.REPLY_TO: reply_to} if reply_to else {})
    await until(lambda: is_idle(core, "b"), within_s=10)


async def test_a_trace_does_not_tell_the_call(mesh: Mesh, ann: MeshClient) -> None:
    """Whoever knows a call's id could answer it, and a trace is passed to every nested agent."""
    call = await ann.start("c", b'{"messages":[{"role":"user","content":"x"}]}', timeout_s=5)
    await call.result()
    assert mesh.traces[-1]
    assert mesh.traces[-1] != call.id


async def test_own_calls_can_be_traced(
    mesh: Mesh, ann: MeshClient, connection: Connection, core: Connection
) -> None:
    """A person sees the hops of a call of hers, and at the hub also what was done for it."""
    call = await ann.start("c", encode_question("c", "hi", stream=False))
    await call.result()
    await until(lambda: is_idle(core, "c"))
    mine = await read_trace(connection, call.id)
    assert [one.hop for one in mine.steps if one.hop is not Hop.RECORDED] == [
        *(Hop.STORED, Hop.BEGAN, Hop.ANSWERED, Hop.ACKNOWLEDGED)
    ]
    assert mine.children == []
    whole = await read_trace(core, call.id)
    (below,) = whole.children
    assert (below.caller, below.agent) == ("c", "b")
    with pytest.raises(CallNotFoundError):
        await read_trace(connection, below.call_id)


async def test_a_reply_subject_reaches_nothing_in_core(core: Connection, mallory: Client) -> None:
    """A reply subject is not checked against the rights of its sender, and still leads nowhere."""
    before = await canaries(core)
    for target in TARGETS:
        await mallory.publish(f"{PULL_INBOX}.c", b'{"no_wait":true}', reply=target)
        missing = "$JS.API.DIRECT.GET.REPLY.agent.c.reply.none.none.c"
        await mallory.publish(missing, b"", reply=target)
        await mallory.publish(DIRECT_REGISTRY, b'{"seq":1}', reply=target)
        await mallory.publish("registry.get.c", b"", reply=target)
        await mallory.publish("agent.c.event.attack", b"{}", reply=target)
        await mallory.publish("registry.list", b"", reply=target)
        await mallory.publish("registry.history.c", b"{}", reply=target)
        await mallory.publish("registry.waiting.c", b'{"sequence":1}', reply=target)
        await mallory.publish(f"registry.discard.c.{'0' * 32}", b"", reply=target)
        await mallory.publish("$JS.API.DIRECT.GET.OBJ_bodies.body.c.x.0", b"", reply=target)
        await mallory.publish("$JS.ACK.INBOX.c.1.1.1.1.1", b"+NXT", reply=target)
    await mallory.flush()
    await asyncio.sleep(CALM_S)
    assert await canaries(core) == before
    await core.client.jsm().consumer_info(streams.INBOX, "b")


@pytest.mark.parametrize(
    "headers",
    [
        {"Nats-Rollup": "all"},
        {"Nats-Rollup": "sub"},
        {"Nats-Schedule": "@at 2030-01-01T00:00:00Z", "Nats-Schedule-Target": "agent.b.inbox"},
        {"Nats-Marker-Reason": "Purge"},
        {"KV-Operation": "PURGE"},
        {"Nats-Incr": "+1"},
        {"Nats-Batch-Id": "x", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"},
    ],
    ids="+".join,
)
async def test_jetstreams_own_headers_do_no_harm(
    core: Connection, mallory: Client, headers: dict[str, str]
) -> None:
    """On every subject where the attacker may put something: nothing of others is gone."""
    await core.publisher.publish(subjects.event("a", "kept"), b"{}", {})
    before = await canaries(core)
    manager = core.client.jsm()
    kept = (await manager.stream_info(streams.EVENT)).state.messages
    for subject in ("agent.c.event.x", "agent.c.reply", "dead.c", "registry.withdraw.c"):
        with contextlib.suppress(nats.errors.Error):
            await mallory.request(subject, b"{}", headers=headers, timeout=1)
    await mallory.flush()
    await until(lambda: is_idle(core, streams.REGISTRAR_WITHDRAW, streams.CONTROL))
    after = await canaries(core)
    for name in (streams.INBOX, streams.REPLY, streams.DEAD, "card"):
        assert after[name] >= before[name], name
    assert (await manager.stream_info(streams.EVENT)).state.messages >= kept


async def test_rights_of_others_are_denied(core: Connection, mallory: Client) -> None:
    """What is not on the list does not reach CORE, whether AGENTS imports it or not."""
    before = await canaries(core)
    assert not any(await asyncio.gather(*(answered(mallory, one) for one in DENIED)))
    assert await canaries(core) == before


async def test_the_batched_read_is_refused(ann: MeshClient, mallory: Client) -> None:
    """The subject in its body could be anybody's: it is not exported, and says so at once."""
    await ann.ask("b", "a secret", timeout_s=5)
    body = b'{"batch":10,"seq":1,"next_by_subj":"agent.ann.reply.>"}'
    with pytest.raises(nats.errors.NoRespondersError):
        await mallory.request("$JS.API.DIRECT.GET.REPLY", body, timeout=5)


@pytest.mark.parametrize(
    "pattern",
    ["agent.ann.reply.>", "agent.>", ">", "agent.*.reply.>", "agent.c.replyx.>", "*.*.*.>"],
)
async def test_a_history_is_of_own_calls_only(
    ann: MeshClient, mallory: Client, pattern: str
) -> None:
    """The subject in the body is looked at, not only the one that the broker proves."""
    await ann.ask("b", "a secret", timeout_s=5)
    body = b'{"batch":10,"seq":1,"next_by_subj":"%b"}'
    told = await mallory.request("registry.history.c", body % pattern.encode(), timeout=5)
    assert told.headers == {"Status": "403", "Description": "refused"}
    assert told.data == b""


async def test_a_long_history_comes_in_parts(core: Connection, connection: Connection) -> None:
    """More than the control plane holds at once: who asks goes on where it ended."""
    subject = "agent.ann.reply.i.long.b"
    for number in range(8):
        await core.publisher.publish(subject, bytes(900_000), {h.TTL: "60", h.SEQ: str(number)})
    found = await read_history(connection, streams.REPLY, subject)
    assert [one.headers[h.SEQ] for one in found] == [str(number) for number in range(8)]
    assert {len(one.body) for one in found} == {900_000}


async def test_whether_anothers_request_waits_is_not_told(
    mesh: Mesh, core: Connection, mallory: Client
) -> None:
    """Every place of the stream is tried: none is the attacker's."""
    await core.publisher.publish(subjects.inbox("offline"), b"x", {h.MSG_ID: "waits"})
    info = await core.client.jsm().stream_info(streams.INBOX)
    for sequence in range(info.state.first_seq, info.state.last_seq + 1):
        told = await answer(mallory, "registry.waiting.c", b'{"sequence":%d}' % sequence)
        assert b'"is_waiting":false' in told
    await core.client.jsm().purge_stream(streams.INBOX, subject=subjects.inbox("offline"))


async def test_a_limited_read_shows_own_answers_only(ann: MeshClient, mallory: Client) -> None:
    """With wildcards an agent reads the newest of its own answers, whoever was answered after."""
    await ann.ask("c", "mine", timeout_s=5)
    await ann.ask("b", "a secret", timeout_s=5)
    found = await answer(mallory, "$JS.API.DIRECT.GET.REPLY.agent.*.reply.*.*.c")
    assert b"mine" in found


async def test_others_are_not_overheard(ann: MeshClient, mallory: Client) -> None:
    """No subscription shows what is for others: inboxes, requests, answers."""
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    for subject in ("_INBOX.>", "_INBOX_ann.>", "delivered.>", "delivered.ann.>", "agent.>", ">"):
        await mallory.subscribe(subject, cb=hear)
    await ann.ask("b", "a secret", timeout_s=5)
    assert heard == []


async def test_api_keys_stay_in_core(core: Connection, mallory: Client) -> None:
    """No user of AGENTS reads a hash or the shared secret, forges a key, or revokes one."""
    access = Access(core)
    issued = await access.create("door")
    secret = await access.idempotency_secret()
    subject = f"$KV.access.key.{issued.key.id}"
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    for one in ("$KV.access.>", "$KV.>", "registry.event.>", "audit.>"):
        await mallory.subscribe(one, cb=hear)
    body = b'{"batch":10,"seq":1,"next_by_subj":"$KV.access.>"}'
    for request, data in (
        (f"$JS.API.DIRECT.GET.{streams.ACCESS}.{subject}", b""),
        (f"$JS.API.DIRECT.GET.{streams.ACCESS}", body),
        (f"$JS.API.STREAM.MSG.GET.{streams.ACCESS}", b'{"seq":1}'),
        (f"$JS.API.DIRECT.GET.{streams.REGISTRY}.{subject}", b""),
    ):
        assert await answered(mallory, request, data) is None
    found = await answer(mallory, DIRECT_REGISTRY, b'{"last_by_subj":"%b"}' % subject.encode())
    assert not found
    await mallory.publish(subject, b"", headers={"KV-Operation": "DEL"})
    await mallory.publish("$KV.access.secret.idempotency", b"known")
    await mallory.flush()
    await core.client.flush()
    assert (await Access(core).verify(issued.token)).id == issued.key.id
    assert await Access(core).idempotency_secret() == secret
    await access.revoke(issued.key.id)
    await core.client.flush()
    await asyncio.sleep(CALM_S)
    assert [one for one in heard if issued.key.sha256.encode() in one.data] == []


async def test_the_traffic_is_the_hubs_business(connection: Connection) -> None:
    """Who has no right to see it is told so, and not left in silence."""
    with pytest.raises(NotPermittedError, match="look at the hub"):
        async with listening(connection):
            pass
    with pytest.raises(NotPermittedError):
        await anext(replay(connection, 60))


async def test_presence_is_the_hubs_business(
    core: Connection, directory: Directory, mallory: Client
) -> None:
    """Nobody behind the border says how a person is, hears it, or reads it; by any way there is."""
    ann = PresenceHeartbeat(
        user="@ann:example.org", client="tab", seq=1, status=PresenceStatus.ONLINE
    )
    forged = ann.model_copy(update={"seq": 2, "status": PresenceStatus.OFFLINE})
    heard: list[Msg] = []

    async def on_message(message: Msg) -> None:
        heard.append(message)

    for pattern in ("presence.>", "presence.event.>", f"{PRESENCE_KEY}>"):
        await mallory.subscribe(pattern, cb=on_message)
    await say(core, ann)
    (kept,) = await read_history(core, PRESENCE, f"{PRESENCE_KEY}>")
    subject = subjects.presence_heartbeat(user_token(ann.user))
    direct = f"$JS.API.DIRECT.GET.{PRESENCE}"
    asked = b'{"last_by_subj":"%b"}' % kept.subject.encode()
    for one in (direct, f"{direct}.{kept.subject}", f"$JS.API.STREAM.MSG.GET.{PRESENCE}"):
        assert await answered(mallory, one, asked) is None
    assert await answered(mallory, subject, codec.encode(forged)) is None
    for one in (kept.subject, f"presence.event.{kept.subject.removeprefix(PRESENCE_KEY)}"):
        await mallory.publish(one, codec.encode(forged))
    # What the broker or the registrar sends with its own rights, led there by a reply subject.
    await mallory.publish("registry.get.c", b"", reply=subject)
    await mallory.publish(DIRECT_REGISTRY, b'{"seq":1}', reply=kept.subject)
    await mallory.flush()
    await asyncio.sleep(CALM_S)
    people = await read_people(core, directory.clock)
    assert [(one.matrix_user_id, one.state.value) for one in people.views()] == [
        (ann.user, "online")
    ]
    assert heard == []


async def test_a_registry_event_cannot_be_forged(directory: Directory, mallory: Client) -> None:
    """Only what the bucket republishes changes anybody's view of the registry."""
    target = "registry.event.agent.b"
    card = await answer(mallory, DIRECT_REGISTRY, b'{"last_by_subj":"$KV.registry.agent.c"}')
    # The genuine record of another key; then a pulled message with headers of its choice.
    await mallory.publish(DIRECT_REGISTRY, b'{"last_by_subj":"$KV.registry.agent.c"}', reply=target)
    await mallory.publish(f"{PULL_INBOX}.c", b'{"batch":40,"expires":1000000000}', reply=target)
    forged = {"Nats-Stream": streams.REGISTRY, "Nats-Subject": "$KV.registry.agent.c.inbox"}
    for _ in range(40):
        await mallory.publish("agent.c.inbox", card, headers=forged)
    await mallory.flush()
    await asyncio.sleep(CALM_S)
    assert [one.card.id for one in directory.agents()] == ["a", "b", "c"]


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
    await mallory.flush()
    await until(lambda: is_idle(core, streams.REGISTRAR_ANNOUNCE, streams.CONTROL))
    await asyncio.sleep(CALM_S)
    after = await canaries(core)
    kept = (streams.INBOX, streams.REPLY, streams.DEAD, "card")
    assert [after[one] for one in kept] == [before[one] for one in kept]


async def test_a_node_speaks_for_itself_only(mesh: Mesh, directory: Directory) -> None:
    """A host can neither say goodbye for a process of another node, nor pose as a registrar."""
    victim = next(one for one in directory.instances() if one.node == "node1")
    async with open_connection(mesh.accounts.login("host2"), name="mallory") as mallory:
        posing = victim.model_copy(update={"node": "node2"})
        receipt = await beat(mallory, Heartbeat(instance=posing, leaving=True))
        assert not receipt.ok
        registrar = describe_process("node2", Role.REGISTRAR)
        assert not (await beat(mallory, Heartbeat(instance=registrar))).ok
        with pytest.raises(BrokerUnreachableError):
            await beat(mallory, Heartbeat(instance=victim, leaving=True), timeout_s=CALM_S)
    assert directory.state_on("b", "node1") is State.ONLINE
