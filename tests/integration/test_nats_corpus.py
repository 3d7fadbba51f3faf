"""What can be put into a mailbox by hand, and by hypothesis: it ends, typed, and hurts nobody.

Every message of a list, or of an example that hypothesis makes, is published to one agent. Then
the mailbox must be empty, every reply subject must hold one terminal frame, no error may have a
code that is not ours, and the agent must answer an ordinary question.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.js.errors import APIError

from mesh import Agent, ChatRequest
from mesh.client import MeshClient
from mesh.connection import Connection
from mesh.errors import MeshError
from mesh.history import read_history
from mesh.streams import REPLY
from tests.calls import TERMINAL
from tests.conftest import Running, until

CALLER = "corpus"
ASKED = '{"messages":[{"role":"user","content":%s}]}'
CHAT = (ASKED % '"hello"').encode()
JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Sent:
    """A message for the mailbox. A `reply_to` is added unless it has one."""

    body: bytes = CHAT
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    has_reply: bool = True


BODIES = {
    "empty": b"",
    "null": b"null",
    "array": b"[]",
    "string": b'"x"',
    "object": b"{}",
    "truncated": CHAT[:-3],
    "trailing garbage": CHAT + b"}",
    "byte order mark": b"\xef\xbb\xbf" + CHAT,
    "utf-16": CHAT.decode().encode("utf-16"),
    "lone surrogate": (ASKED % r'"\ud800"').encode(),
    "overlong utf-8": b"\xc0\x80",
    "five byte utf-8": b"\xf8\x88\x80\x80\x80",
    "not a number": (ASKED % "NaN").encode(),
    "infinite temperature": b'{"messages":[{"role":"user","content":"x"}],"temperature":Infinity}',
    "too large a number": b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    "400 digits": b'{"messages":[{"role":"user","content":"x"}],"n":' + b"9" * 400 + b"}",
    "minus zero": b'{"messages":[{"role":"user","content":"x"}],"n":-0}',
    "a key twice": b'{"messages":[],"messages":[{"role":"user","content":"x"}]}',
    "ten deep": (ASKED % ("[" * 10 + "]" * 10)).encode(),
    "a thousand deep": (ASKED % ("[" * 1_000 + "]" * 1_000)).encode(),
    "a hundred thousand deep": b"[" * 100_000 + b"]" * 100_000,
    "many keys": json.dumps({str(one): one for one in range(50_000)}).encode(),
    "no messages": b'{"messages":[]}',
    "unknown role": b'{"messages":[{"role":"wizard","content":"x"}]}',
    "system only": b'{"messages":[{"role":"system","content":"x"}]}',
    "content of a number": b'{"messages":[{"role":"user","content":5}]}',
    "tool call without id": b'{"messages":[{"role":"assistant","tool_calls":[{"function":{}}]}]}',
    "image at a metadata address": b'{"messages":[{"role":"user","content":[{"type":"image_url",'
    b'"image_url":{"url":"http://169.254.169.254/"}}]}]}',
    "hot": b'{"messages":[{"role":"user","content":"x"}],"temperature":"hot"}',
    "many choices": b'{"messages":[{"role":"user","content":"x"}],"n":1000000000}',
    "legacy": b'{"message":"hello"}',
    "legacy of a list": b'{"message":["hello"]}',
    "prototype": b'{"__proto__":{"a":1},"constructor":{},"message":"hello"}',
    "imitates an envelope": (
        ASKED % json.dumps('{"error":{"code":"dead"}}\r\nmesh-kind: final')
    ).encode(),
    "terminal codes": (ASKED % json.dumps("\x1b[2J\x07\u202e")).encode(),
    "the largest": (ASKED % json.dumps("x" * 900_000)).encode(),
}

HEADERS = {
    "none": {},
    "content type of nothing": {"content-type": ""},
    "content type with charset": {"content-type": "APPLICATION/JSON; charset=utf-16"},
    "unknown content type": {"content-type": "image/png"},
    "no time": {"mesh-timeout-ms": "0"},
    "negative time": {"mesh-timeout-ms": "-1"},
    "endless time": {"mesh-timeout-ms": str(2**63)},
    "time as text": {"mesh-timeout-ms": "2026-11-26T12:00:00"},
    "arabic digits": {"mesh-timeout-ms": "١٢٣"},
    "another sender": {"mesh-source-agent": "solarius"},
    "a sender that is none": {"mesh-source-agent": "a.b *>"},
    "another node": {"mesh-target-node": "elsewhere"},
    "nine hops": {"mesh-hops": ",".join(f"a{one}" for one in range(9))},
    "no hop": {"mesh-hops": ",,,"},
    "a version of the future": {"mesh-version": "99"},
    "marked as a retry": {"mesh-retry": "1"},
    "marked as idempotent": {"mesh-idempotency": "1"},
    "kept for ever": {"mesh-keep-s": "9" * 15},
    "a ping": {"mesh-ping": "1"},
    "a replay of nothing": {"mesh-replay-of": "nobody"},
    "a frame": {"mesh-kind": "final", "mesh-seq": "5", "mesh-attempt": "0"},
    "a status": {"Status": "503", "Description": "no responders"},
    "stored elsewhere": {
        "Nats-Stream": "REPLY",
        "Nats-Subject": "agent.x.reply",
        "Nats-Sequence": "1",
    },
    "traced": {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-ff"},
    "upper case": {"MESH-PING": "1", "Reply_To": "agent.x.reply"},
    "long": {"x-long": "y" * 60_000},
    "many": {f"x-{one}": "y" for one in range(3_000)},
    "not ascii": {"x-name": "Zoë 😀"},
}

REFUSED = {
    "dead in a second": {"Nats-TTL": "never mind"},
    "another stream expected": {"Nats-Expected-Stream": "REPLY"},
    "another sequence expected": {"Nats-Expected-Last-Sequence": "1"},
    "rolled up": {"Nats-Rollup": "all"},
    "scheduled": {
        "Nats-Schedule": "@at 2099-01-01T00:00:00Z",
        "Nats-Schedule-Target": "agent.x.inbox",
    },
    "counted": {"Nats-Incr": "+1"},
}
"""JetStream does not take these, for the streams of the mesh allow none of it."""

REPLY_TO = {
    "the api": "$JS.API.STREAM.DELETE.INBOX",
    "a key": "$KV.registry.agent.x",
    "another agent's name": f"agent.{CALLER}.reply.i.c.somebody-else",
    "an inbox": "agent.x.inbox",
    "its own inbox": "agent.{agent}.inbox",
    "a wildcard": f"agent.{CALLER}.reply.>",
    "a star": f"agent.{CALLER}.reply.*.c",
    "with a space": f"agent.{CALLER}.reply.i.c d",
    "with an empty token": f"agent.{CALLER}.reply..c",
    "an event": f"agent.{CALLER}.event.x",
    "a cancel": "agent.{agent}.cancel.c",
    "an announcement": "registry.announce.{agent}.node1",
    "the system": "$SYS.REQ.SERVER.PING",
}


@pytest.fixture
async def echo(agent_id: str, running: Running) -> AsyncIterator[str]:
    """An agent that repeats what it is told."""
    agent = Agent(agent_id)

    @agent.chat
    async def answer(request: ChatRequest) -> str:
        return request.last_text

    async with running(agent):
        yield agent_id


@dataclass(frozen=True, slots=True)
class Door:
    """The mailbox of the agent, and a look at what became of it."""

    agent: str
    bare: Client
    connection: Connection
    client: MeshClient
    numbers: "count[int]" = field(default_factory=count)

    async def publish(self, sent: Sequence[Sent]) -> list[str]:
        """Put messages into the mailbox, and return the reply subjects that were added."""
        subjects = []
        for one in sent:
            headers = {**one.headers, "correlation_id": uuid4().hex}
            if one.has_reply:
                subject = f"agent.{CALLER}.reply.i{next(self.numbers)}.{headers['correlation_id']}"
                headers["reply_to"] = f"{subject}.{self.agent}"
                subjects.append(headers["reply_to"])
            await self.bare.jetstream().publish(
                f"agent.{self.agent}.inbox", one.body, headers=headers
            )
        return subjects

    async def is_empty(self) -> bool:
        """Tell whether every message is settled."""
        info = await self.bare.jsm().stream_info(
            "INBOX", subjects_filter=f"agent.{self.agent}.inbox"
        )
        return not info.state.subjects

    async def require_sanity(self, answered: Sequence[str]) -> None:
        """Wait until all is settled; see that each answer is one, and that the agent is well."""
        await until(self.is_empty, within_s=60)
        frames = await read_history(self.connection, REPLY, f"agent.{CALLER}.reply.>")
        terminal = [one for one in frames if one.headers.get("mesh-kind") in TERMINAL]
        counts = Counter(one.subject for one in terminal if one.subject in answered)
        assert counts == dict.fromkeys(answered, 1)
        for one in terminal:
            if one.headers["mesh-kind"] == "error":
                assert json.loads(one.body)["error"]["code"] in CODES, one.body[:300]
        assert (await self.client.ask(self.agent, "still here", timeout_s=30)).text == "still here"


def _codes(kind: type[MeshError]) -> set[str]:
    return {kind.code}.union(*(_codes(one) for one in kind.__subclasses__()))


CODES = _codes(MeshError)


@pytest.fixture
def door(echo: str, bare: Client, connection: Connection, client: MeshClient) -> Door:
    """The NATS door of the agent."""
    return Door(echo, bare, connection, client)


async def test_bodies(door: Door) -> None:
    """As JSON, and as nothing in particular."""
    typed = [Sent(body) for body in BODIES.values()]
    untyped = [Sent(body, {}) for body in BODIES.values()]
    await door.require_sanity(await door.publish(typed + untyped))


async def test_bodies_without_a_reply_subject(door: Door) -> None:
    """Answered for all to hear, or for nobody."""
    await door.publish([Sent(body, {}, has_reply=False) for body in BODIES.values()])
    await door.require_sanity([])


async def test_headers(door: Door) -> None:
    """Whatever else they say, the answer goes to the reply subject. No time is no answer."""
    answered = await door.publish([Sent(headers={**JSON, **one}) for one in HEADERS.values()])
    await door.require_sanity(answered)


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED)
async def test_headers_that_the_broker_refuses(door: Door, headers: dict[str, str]) -> None:
    """Nothing is stored, and who sent it is told."""
    with pytest.raises(APIError):
        await door.publish([Sent(headers=headers)])
    await door.require_sanity([])


async def test_replies_that_may_not_go_there(door: Door) -> None:
    """No answer, nothing deleted, nobody deceived: each is a dead letter."""
    for subject in REPLY_TO.values():
        headers = {**JSON, "reply_to": subject.format(agent=door.agent)}
        await door.publish([Sent(headers=headers, has_reply=False)])
    await door.require_sanity([])
    info = await door.bare.jsm().stream_info("DEAD", subjects_filter=f"dead.{door.agent}")
    assert (info.state.subjects or {})[f"dead.{door.agent}"] == len(REPLY_TO)


async def test_one_id_many_times(door: Door) -> None:
    """P2, F28: the same request, and others under its id, in any order: one answer."""
    call_id = uuid4().hex
    reply_to = f"agent.{CALLER}.reply.i.{call_id}.{door.agent}"
    jetstream = door.bare.jetstream()
    for body in (CHAT, CHAT, b'{"message":"another"}', b"", CHAT):
        for message_id in (call_id, uuid4().hex):
            headers = {"reply_to": reply_to, "correlation_id": call_id, "mesh-retry": "1"}
            await jetstream.publish(
                f"agent.{door.agent}.inbox", body, headers={**headers, "Nats-Msg-Id": message_id}
            )
    await door.require_sanity([reply_to])


VALUES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=80),
    st.integers().map(str),
    st.sampled_from(["", "0", "-1", "1e999", "agent.x.reply", "_INBOX.x", "*", ">", "null"]),
)
NAMES = st.sampled_from(
    [
        *("content-type", "mesh-source-agent", "mesh-source-node", "mesh-target-node"),
        *("mesh-timeout-ms", "mesh-hops", "mesh-retry", "mesh-idempotency", "mesh-keep-s"),
        *("mesh-ping", "mesh-replay-of", "mesh-kind", "mesh-seq", "mesh-attempt", "traceparent"),
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANY_JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "role", "content", "message", "type", "text", "n", "tools"]
            )
            | st.text(max_size=8),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
ANY_BODY = st.binary(max_size=200) | ANY_JSON.map(
    lambda value: json.dumps(value).encode("utf-8", "surrogatepass")
)
ANY_SENT = st.builds(Sent, ANY_BODY, st.dictionaries(NAMES, VALUES, max_size=5))


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(sent=st.lists(ANY_SENT, min_size=5, max_size=25))
async def test_whatever_hypothesis_thinks_of(door: Door, sent: list[Sent]) -> None:
    """Each is answered once, whatever it is."""
    await door.require_sanity(await door.publish(sent))
