"""The wire specification is true: its examples are what a real run sends, byte for byte.

`schemas/README.md` shows messages in blocks like ```` ```wire request ````. A scenario is run on a
real broker, everything that travels is recorded, what changes from run to run is replaced by
names in angle brackets, and each block must be equal to its message.

`MESH_TEST_WRITE_WIRE=1` writes the blocks instead. Do that only with a change of the wire that
is meant, and put the reason into the changelog.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from mesh import Agent, ChatRequest, errors, headers, registry, subjects
from mesh.access import Access
from mesh.callers import Caller, new_instance_id
from mesh.client import MeshClient, open_client
from mesh.connection import Connection
from mesh.directory import Directory
from mesh.errors import AgentFailedError, CallCancelledError
from mesh.questions import encode_question
from mesh.signatures import sign
from mesh.trust.credentials import Credentials
from mesh.trust.jwts import unlimited_token
from mesh.trust.nkeys import KeyPair, Kind
from schemas.registry import Identity, UserRole
from tests.bare import connect_bare
from tests.conftest import Running, until

README = Path(__file__).parent.parent.parent / "schemas" / "README.md"
BLOCK = re.compile(r"```wire ([a-z-]+)\n(.*?)```", re.DOTALL)

KEY = KeyPair.from_seed("SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU")
PERSON = Identity(key=KEY.public, name="ann", role=UserRole.PERSON, speaks_for=("ann",))

NAMES = [
    "request",
    "final",
    "chunk-role",
    "chunk",
    "chunk-finish",
    "final-of-stream",
    "working",
    "stored",
    "signed-request",
    "identity-record",
    "cancel",
    "error",
    "ping",
    "pong",
    "bare-request",
    "bare-answer",
    "event",
    "announce",
    "agent-record",
    "placement-record",
    "instance-record",
    "node-record",
    "reign-record",
    "heartbeat",
    "withdraw",
    "access-record",
    "dead-letter",
    "claimed-request",
    "object-meta",
]


@dataclass(frozen=True, slots=True)
class Seen:
    """A message that travelled."""

    subject: str
    headers: dict[str, str]
    body: bytes


class Recorder:
    """Keeps every message of the mesh, and finds one again."""

    def __init__(self) -> None:
        self._seen: list[Seen] = []

    async def take(self, message: Msg) -> None:
        """Keep a message."""
        self._seen.append(Seen(message.subject, dict(message.headers or {}), message.data))

    def find(self, pattern: str, **headers: str) -> Seen | None:
        """Return the first message on a matching subject with these headers."""
        wanted = {name.replace("_", "-"): value for name, value in headers.items()}
        for seen in self._seen:
            if re.fullmatch(pattern, seen.subject) and wanted.items() <= seen.headers.items():
                return seen
        return None

    def with_header(self, name: str) -> Seen | None:
        """Return the first message that has a header."""
        return next((one for one in self._seen if name in one.headers), None)

    def last(self, pattern: str) -> Seen | None:
        """Return the last message on a matching subject."""
        found = (one for one in reversed(self._seen) if re.fullmatch(pattern, one.subject))
        return next(found, None)

    def answer_to(self, request: Seen | None) -> Seen | None:
        """Return the first frame that answers a request."""
        reply_to = request.headers["reply_to"] if request else ""
        return self.find(re.escape(reply_to), mesh_kind="final")


def normalised(text: str) -> str:
    """Replace what changes from run to run by its name."""
    for pattern, name in (
        (r"[0-9a-f]{32}\.[0-9a-f]{12}\b", "<call>.<upload>"),
        (r"Nats-Msg-Id: [0-9a-f]{32}\.meta", "Nats-Msg-Id: <nuid>.meta"),
        (r'"nuid":"[0-9a-f]{32}"', '"nuid":"<nuid>"'),
        (r"SHA-256=[\w=-]+", "SHA-256=<base64url of the digest>"),
        (r"\$O\.bodies\.M\.[\w=-]+", "$O.bodies.M.<base64url of the name>"),
        (r"reply\.[0-9a-f]{32}\.[0-9a-f]{32}", "reply.<instance>.<call>"),
        (r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", "00-<trace>-<span>-01"),
        (r"mesh-request: \d+/\d+", "mesh-request: <sequence>/<stored ns>"),
        (r"mesh-ran-ms: \d+\.\d", "mesh-ran-ms: <ms>"),
        (r"chatcmpl-[0-9a-f]{32}", "chatcmpl-<call>"),
        (r'"call_id":"[0-9a-f]{32}"', '"call_id":"<call>"'),
        (r'"instance":"[0-9a-f]{32}"', '"instance":"<instance>"'),
        (r"(correlation_id|Nats-Msg-Id): [0-9a-f]{32}", r"\1: <call>"),
        (r"mesh-instance: [0-9a-f]{32}", "mesh-instance: <instance>"),
        (r"((?:node-b|node1|instance|solarius)\.)[0-9a-f]{32}", r"\1<instance>"),
        (r"Nats-Msg-Id: [0-9a-f]{32}\.", "Nats-Msg-Id: <call>."),
        (r"cancel\.[0-9a-f]{32}", "cancel.<call>"),
        (r'"sequence":\d+', '"sequence":<sequence>'),
        (r'"created":\d+', '"created":<seconds>'),
        (r"seq-\d+", "seq-<sequence>"),
        (r"_INBOX\.\w+", "_INBOX.<token>"),
        (r"INBOX\.\d+", "INBOX.<sequence>"),
        (r"(Nats-(?:Last-|Expected-Last-Subject-)?Sequence): \d+", r"\1: <sequence>"),
        (r"Nats-Time-Stamp: \S+", "Nats-Time-Stamp: <time>"),
        (r'"pid":\d+', '"pid":<pid>'),
        (r'"host":"[^"]*"', '"host":"<host>"'),
        (r'"mesh_version":"[^"]*"', '"mesh_version":"<version>"'),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\+00:00|Z)", "<time>"),
        (r"(\$KV\.access\.key\.|{\"id\":\")[a-z0-9]{10}\b", r"\1<key>"),
        (r"[0-9a-f]{64}", "<sha256>"),
    ):
        text = re.sub(pattern, name, text)
    return text


def rendered(seen: Seen) -> str:
    """Show a message: subject, headers by name, an empty line, the body."""
    headers = "".join(f"{name}: {value}\n" for name, value in sorted(seen.headers.items()))
    return normalised(f"{seen.subject}\n{headers}\n{seen.body.decode()}\n")


def solarius() -> Agent:
    """An agent that streams, is slow, or fails, as it is asked to."""
    agent = Agent("solarius", description="Answers questions about the sun.", concurrency=4)

    @agent.chat
    async def answer(request: ChatRequest) -> AsyncIterator[str]:
        match request.last_text:
            case "slow":
                await asyncio.sleep(0.5)
            case "long":
                await asyncio.sleep(60)
            case "fail":
                raise ValueError("cloudy")
        yield "It is "
        yield "noon."

    return agent


@pytest.fixture(scope="module")
async def traffic(
    running: Running,
    connection: Connection,
    directory: Directory,
    nats_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """What a scenario sends, by the name of its block."""
    recorder = Recorder()
    witness = await connect_bare(nats_url)
    for subject in ("agent.>", "registry.>", "dead.>", "$KV.access.>", "$O.>"):
        await witness.subscribe(subject, cb=recorder.take)
    caller = Caller("daarwizz", "node1", new_instance_id())
    async with open_client(connection, directory, caller) as client:
        async with running(solarius(), node="node-b") as host:
            await client.ask("solarius", "plain")
            plain = recorder.find(r"agent\.solarius\.inbox")
            final = recorder.find(r"agent\.daarwizz\.reply\..*", mesh_kind="final")
            _ = [part async for part in client.stream("solarius", "stream")]
            await client.ask("solarius", "slow")
            with pytest.raises(AgentFailedError):
                await client.ask("solarius", "fail")
            await _cancel_one(client)
            ping = encode_question("solarius", "ping", stream=False)
            await (await client.start("solarius", ping, timeout_s=3, is_ping=True)).result()
            sky = tmp_path_factory.mktemp("wire") / "sky.png"
            sky.write_bytes(b"blue")
            await client.ask("solarius", "x" * 1_100_000, file=sky)
            await witness.publish("agent.solarius.inbox", b"What time is it?")
            await until(lambda: recorder.find(r"agent\.solarius\.reply") is not None)
            await client.publish_event("solarius", "noon", b'{"at":"12:00"}')
            for subject in (r"registry\.heartbeat\.node-b\..*", r"registry\.event\.reign\.node1"):
                await until(lambda subject=subject: recorder.find(subject) is not None)
        await Access(connection).create("phone", agents=["solarius"], lifetime_s=86_400)
        await registry.put(connection, registry.identity_key(KEY.public), PERSON)
        await witness.publish("agent.nobody.inbox", b"Anybody there?")
        await until(lambda: recorder.find(r"dead\.nobody") is not None)
    await witness.close()
    return {
        name: rendered(seen) if seen else "nothing of this kind was sent\n"
        for name, seen in _named(recorder, host.instance.instance, plain, final).items()
    }


async def _cancel_one(client: MeshClient) -> None:
    call = await client.start("solarius", encode_question("solarius", "long", stream=False))
    await until(lambda: call.sequence > 0)
    await client.cancel(call)
    with pytest.raises(CallCancelledError):
        await call.result()


def _named(
    recorder: Recorder, instance: str, plain: Seen | None, final: Seen | None
) -> dict[str, Seen | None]:
    reply, last = r"agent\.daarwizz\.reply\..*", {"mesh_seq": "4"}
    return {
        "request": plain,
        "final": final,
        "chunk-role": recorder.find(reply, mesh_kind="chunk"),
        "chunk": recorder.find(reply, mesh_kind="chunk", mesh_seq="1"),
        "chunk-finish": recorder.find(reply, mesh_kind="chunk", mesh_seq="3"),
        "final-of-stream": recorder.find(reply, mesh_kind="final", **last),
        "working": recorder.find(reply, mesh_kind="working"),
        "stored": recorder.find(reply, mesh_kind="stored"),
        "signed-request": _signed(),
        "identity-record": recorder.find(r"registry\.event\.identity\..*"),
        "cancel": recorder.find(r"agent\.solarius\.cancel\..*"),
        "error": recorder.find(reply, mesh_kind="error"),
        "ping": recorder.find(r"agent\.solarius\.inbox", mesh_ping="1"),
        "pong": recorder.answer_to(recorder.find(r"agent\.solarius\.inbox", mesh_ping="1")),
        "bare-request": Seen("agent.solarius.inbox", {}, b"What time is it?"),
        "bare-answer": recorder.find(r"agent\.solarius\.reply"),
        "event": recorder.find(r"agent\.solarius\.event\..*"),
        "announce": recorder.find(r"registry\.announce\.solarius\.node-b"),
        "agent-record": recorder.find(r"registry\.event\.agent\.solarius"),
        "placement-record": recorder.find(r"registry\.event\.placement\.solarius\..*"),
        "instance-record": recorder.find(rf"registry\.event\.instance\.{instance}"),
        "node-record": recorder.find(r"registry\.event\.node\.node-b"),
        "reign-record": recorder.find(r"registry\.event\.reign\.node1"),
        "heartbeat": recorder.find(r"registry\.heartbeat\.node-b\..*"),
        "withdraw": recorder.find(r"registry\.withdraw\.solarius"),
        "access-record": recorder.find(r"\$KV\.access\.key\..*"),
        "dead-letter": recorder.find(r"dead\.nobody"),
        "claimed-request": recorder.with_header(headers.BODY),
        "object-meta": recorder.last(r"\$O\.bodies\.M\..*"),
    }


def _signed() -> Seen:
    """A request that is signed with a key that everybody has."""
    body = b'{"messages":[{"role":"user","content":"plain"}],"model":"solarius","stream":false}'
    sent = {
        headers.REPLY_TO: "agent.ann.reply.example.example-call.solarius",
        headers.CORRELATION_ID: "example-call",
        headers.CONTENT_TYPE: headers.JSON,
        headers.SOURCE_AGENT: "ann",
        headers.SOURCE_NODE: "node1",
        headers.TIMEOUT_MS: "60000",
    }
    token = unlimited_token(KeyPair.new(Kind.ACCOUNT), "ann", KEY.public)
    sign(Credentials.of(token, KEY), "agent.solarius.inbox", sent, body)
    return Seen("agent.solarius.inbox", sent, body)


@pytest.fixture(scope="module")
def blocks(traffic: dict[str, str]) -> dict[str, str]:
    """The specification's examples, by name."""
    if os.environ.get("MESH_TEST_WRITE_WIRE"):
        text = README.read_text()
        README.write_text(BLOCK.sub(lambda one: f"```wire {one[1]}\n{traffic[one[1]]}```", text))
    return dict(BLOCK.findall(README.read_text()))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_what_travels(
    name: str, blocks: dict[str, str], traffic: dict[str, str]
) -> None:
    """Subject, headers and body of the specification are those of a real message."""
    assert blocks[name] == traffic[name]


def test_every_example_is_held_by_a_test(blocks: dict[str, str]) -> None:
    """The specification shows nothing that is not compared."""
    assert sorted(blocks) == sorted(NAMES)


def test_every_subject_is_specified() -> None:
    """Each builder of subjects has its row."""
    text = README.read_text()
    for subject in (
        subjects.inbox("a", "n"),
        subjects.reply("c", "i", "k", "a"),
        subjects.bare_reply("a"),
        subjects.delivered("c", "i"),
        subjects.event("a", "e"),
        subjects.announce("a", "n"),
        subjects.withdraw("a"),
        subjects.heartbeat("n", "i"),
        subjects.lookup("a"),
        subjects.REGISTRY_LIST,
        subjects.REGISTRY_EVENTS,
        subjects.dead("a"),
        subjects.cancel("a", "k"),
    ):
        words = subject.replace(".a", ".<id>").replace(".n", ".<node>").replace(".c.", ".<caller>.")
        for token in (one for one in words.split(".") if len(one) > 1 and one[0] != "<"):
            assert token in text, f"{subject}: {token!r} is not in the specification"


def test_every_header_is_specified() -> None:
    """Each header of `mesh.headers` has its row."""
    text = README.read_text()
    names = [
        value
        for name, value in vars(headers).items()
        if name.isupper() and isinstance(value, str) and name not in ("JSON", "TEXT")
    ]
    assert len(names) > 15
    assert [one for one in names if f"`{one}`" not in text] == []


def test_every_error_code_is_specified() -> None:
    """A peer in another language must know what may come."""
    text = README.read_text()
    assert [code for code in sorted(wire_codes()) if f"`{code}`" not in text] == []


def wire_codes() -> set[str]:
    """The codes that an agent's error frame may carry."""
    found = [errors.CallError, errors.RegistryError, errors.InvalidInputError]
    for one in found:
        found += one.__subclasses__()
    return {one.code for one in found if one.__module__ == "mesh.errors"}
