"""Three agents on two hosts behind the account boundary, and what attacks on them try.

The tests that use it log in as a person, as the control plane, or as the attacker.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import nats.errors
from nats.aio.client import Client

from mesh import Agent, CallContext, ChatReply, ChatRequest, registry, streams
from mesh.connection import Connection, open_connection
from mesh.events import Event
from mesh.runtime import AgentHost
from mesh.settings import Settings
from mesh.trust.login import Login
from tests.accounts.server import Accounts, accounts_server
from tests.conftest import control_plane, until

CALM_S: Final = 0.5
"""How long an attack is given to have an effect. Everything legitimate takes milliseconds."""

PULL_INBOX: Final = "$JS.API.CONSUMER.MSG.NEXT.INBOX"
DIRECT_REGISTRY: Final = "$JS.API.DIRECT.GET.KV_registry"

TARGETS: Final = (
    "$JS.API.STREAM.PURGE.INBOX",
    "$JS.API.STREAM.DELETE.INBOX",
    "$JS.API.CONSUMER.DELETE.INBOX.b",
    "$KV.registry.agent.b",
    "agent.b.inbox",
    "registry.withdraw.b",
    "dead.b",
    "agent.ann.reply.i.c.b",
    "registry.event.agent.b",
    "_INBOX_ann.x",
)
"""Where an attacker would like the answer to its request to go."""

DENIED: Final = (
    "$JS.API.STREAM.PURGE.INBOX",
    "$JS.API.STREAM.MSG.GET.REPLY",
    "$JS.API.CONSUMER.MSG.NEXT.INBOX.b",
    "$JS.API.CONSUMER.MSG.NEXT.INBOX.*",
    "$JS.API.CONSUMER.MSG.NEXT.EVENT.b@on=a=done",
    "$JS.API.CONSUMER.CREATE.REPLY.x.agent.c.reply.>",
    "$JS.API.DIRECT.GET.REPLY.agent.ann.reply.>",
    "$JS.API.DIRECT.GET.REPLY.agent.*.reply.>",
    "$JS.API.DIRECT.GET.REPLY.agent.*.reply.*.*.b",
    "$JS.API.DIRECT.GET.REPLY.agent.*.reply.*.*.*",
    "$JS.API.DIRECT.GET.REPLY.>",
    "$O.bodies.C.x",
    "$O.bodies.M.eA==",
    "$JS.API.STREAM.PURGE.OBJ_bodies",
    "$JS.API.STREAM.MSG.GET.OBJ_bodies",
    "$JS.API.DIRECT.GET.OBJ_bodies",
    "$JS.API.DIRECT.GET.OBJ_bodies.$O.bodies.C.>",
    "$JS.API.DIRECT.GET.OBJ_bodies.>",
    "$JS.API.DIRECT.GET.OBJ_bodies.body.>",
    "$JS.API.DIRECT.GET.OBJ_bodies.body.ann.x.0",
    "$JS.API.DIRECT.GET.OBJ_bodies.body.*.*.*",
    "$JS.API.DIRECT.GET.OBJ_bodies.body.c.>",
    "body.ann.x",
    "body.ann.x.0.0",
    "$KV.registry.agent.b",
    "$KV.registry.identity.UCK5N7N66OBOINFXAYC2ACJQYFSOD4VYNU6APEJTAVFZB2SVHLKGEW7L",
    "registry.event.identity.UCK5N7N66OBOINFXAYC2ACJQYFSOD4VYNU6APEJTAVFZB2SVHLKGEW7L",
    "$SYS.REQ.CLAIMS.UPDATE",
    "$SYS.REQ.SERVER.PING",
    "$JS.API.STREAM.DELETE.INBOX",
    "$JS.API.STREAM.UPDATE.INBOX",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.INFO.REPLY",
    "$JS.API.STREAM.SNAPSHOT.REPLY",
    "$JS.API.STREAM.RESTORE.X",
    "$JS.API.CONSUMER.DELETE.INBOX.b",
    "$JS.API.CONSUMER.DURABLE.CREATE.INBOX.x",
    "$JS.API.META.LEADER.STEPDOWN",
    "$JS.ACK.INBOX.b.1.1.1.1.1",
    "$JS.ACK.INBOX.*.1.1.1.1.1",
    "_INBOX_ann.x.y",
    "_R_.x.y",
    "agent.b.event.done",
    "agent.b.reply",
    "agent.ann.reply.i.c.b",
    "registry.announce.b.node2",
    "registry.announce.c.node1",
    "registry.withdraw.b",
    "registry.history.ann",
    "registry.history.*",
    "registry.waiting.b",
    "registry.join.anything",
    "registry.heartbeat.node1.x",
    "registry.event.agent.b",
    "delivered.ann.reply.i.c.b",
    "dead.b",
)
"""What the attacker has no right to publish."""


class Mesh:
    """Three agents on two hosts, a client, and what they saw."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self.events: list[Any] = []
        self.traces: list[str] = []
        self.runs: list[str] = []
        self.a, self.b, self.c = Agent("a"), Agent("b"), Agent("c")
        self._tell()

    def _tell(self) -> None:
        @self.a.chat
        async def stream(request: ChatRequest) -> AsyncIterator[str]:
            for word in request.last_text.split():
                yield f"{word} "

        @self.b.chat
        async def repeat(request: ChatRequest, context: CallContext) -> ChatReply:
            self.runs.append(context.id)
            self.traces.append(context.lineage.trace_id)
            text = f"b on {context.source_agent}: {request.last_text}"
            return ChatReply(content=text, file=context.file)

        @self.b.on("a.done")
        async def on_done(event: Event) -> None:
            self.events.append(event.json())

        @self.c.chat
        async def ask_on(request: ChatRequest, context: CallContext) -> str:
            return f"c heard {(await context.ask('b', request.last_text)).text}"


@asynccontextmanager
async def two_hosts(folder: Path) -> AsyncIterator[Mesh]:
    """Run a mesh on two accounts, with a control plane and all three agents."""
    async with accounts_server(folder) as accounts:
        found = Mesh(accounts)
        async with (
            control_plane(accounts.settings("control", "hub")),
            host(accounts, "host1", "node1", found.a, found.b),
            host(accounts, "host2", "node2", found.c),
        ):
            yield found


@asynccontextmanager
async def host(accounts: Accounts, user: str, node: str, *agents: Agent) -> AsyncIterator[None]:
    """Run agents as `user`."""
    async with hosting(accounts.settings(user, node), *agents):
        yield


@asynccontextmanager
async def hosting(settings: Settings, *agents: Agent) -> AsyncIterator[None]:
    """Run agents with the credentials of some settings."""
    login = Login.of(settings)
    async with open_connection(login, name=login.name, patience_s=10) as connection:
        running = AgentHost(connection, agents, node=settings.node, settings=settings)
        stop = asyncio.Event()
        task = asyncio.create_task(running.run(stop))
        try:
            await until(running.ready.is_set)
            yield
        finally:
            stop.set()
            await task


async def answer(client: Client, subject: str, body: bytes = b"") -> bytes:
    """Return what a request brings."""
    return (await client.request(subject, body, timeout=30)).data


async def answered(client: Client, subject: str, body: bytes = b"") -> bytes | None:
    """Return what a request brings, or None when it is denied or nobody answers."""
    try:
        return (await client.request(subject, body, timeout=CALM_S)).data
    except nats.errors.Error:
        return None


async def canaries(core: Connection) -> dict[str, int]:
    """Return what an attack would change: messages per stream, and the revision of a card.

    Of the replies, which expire by themselves, the place of the last one.
    """
    manager = core.client.jsm()
    states = {str(one.config.name): one.state for one in await manager.streams_info()}
    found = {name: state.messages for name, state in states.items()}
    found[streams.REPLY] = states[streams.REPLY].last_seq
    card = await manager.get_msg(streams.REGISTRY, subject=f"{registry.KEY_PREFIX}agent.b")
    watched = (
        *(streams.INBOX, streams.REPLY, streams.CONTROL, streams.DEAD, streams.REGISTRY),
        streams.BODIES,
    )
    return {**{name: found[name] for name in watched}, "card": card.seq or 0}


async def is_idle(core: Connection, durable: str, stream: str = streams.INBOX) -> bool:
    """Tell whether everything for a durable was delivered and settled."""
    info = await core.client.jsm().consumer_info(stream, durable)
    return not info.num_pending and not info.num_ack_pending
