"""Presence over HTTP: clients of people report how they are, and anybody may look who is there.

What a client says goes to the control plane, and to the homeserver where there is one. The token
that comes with it goes to the homeserver only.
"""

from typing import Final

from starlette.types import Receive, Scope, Send

from mesh import codec
from mesh.errors import BrokerUnreachableError, PresenceRefusedError
from mesh.nats_client import is_guarded
from mesh.presence import say
from mesh.shim.door import Door
from mesh.shim.guard import may_call
from mesh.shim.http import read_body, send_json
from mesh.shim.matrix import Passed
from mesh.shim.operations import Answer, Operation, Tag
from mesh.shim.site.rows import agent_rows
from mesh.shim.site.sources import Sources
from mesh.standing import Condition
from schemas.presence import (
    AgentPresence,
    PresenceHeartbeat,
    PresenceList,
    PresenceReport,
    PresenceView,
)
from schemas.registry import State

LIMIT_BYTES: Final = 16 * 1024


class PresenceReports:
    """`POST /internal/matrix/presence/online`: a client of a person says how it is."""

    operations = (
        Operation(
            "reportPresence",
            "POST",
            "/internal/matrix/presence/online",
            Tag.PRESENCE,
            "Say how somebody is",
            description="Every 30 s from each open page, and at once when something changes: "
            "`online`, `unavailable` after five minutes without activity, `offline` when the page "
            "is hidden or closed. Who says nothing for 90 s is offline.",
            request=PresenceReport,
            examples={
                "Somebody is there": {
                    "matrix_user_id": "@ann:example.org",
                    "access_token": "",
                    "status": "online",
                }
            },
            answers=(Answer(200, "It is known now.", PresenceView),),
            failures=(BrokerUnreachableError, PresenceRefusedError),
            aliases=("/api/internal/matrix/presence/online",),
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if is_guarded(self._door.connection.client):
            raise PresenceRefusedError(
                "a machine that has joined may not say who is there: report at the hub's door"
            )
        body = await read_body(scope, receive, LIMIT_BYTES)
        report = codec.validate(PresenceReport, codec.loads(body))
        said = PresenceHeartbeat(
            user=report.matrix_user_id,
            client=report.client_id,
            seq=report.seq,
            status=report.status,
            message=report.status_msg or "",
            idle_ms=report.idle_ms,
        )
        state = self._door.people.state_with(said)
        passed = Passed.OFF
        if self._door.matrix is not None:
            # First: who is not whom he says is nobody here, either.
            passed = await self._door.matrix.pass_on(
                said.user, report.access_token, state, said.message
            )
        await say(self._door.connection, said)
        view = PresenceView(matrix_user_id=said.user, state=state, matrix=passed.value)
        await send_json(send, 200, codec.encode(view))


class Presence:
    """`GET /api/v1/presence`: people and agents."""

    operations = (
        Operation(
            "listPresence",
            "GET",
            "/api/v1/presence",
            Tag.PRESENCE,
            "See who is there",
            description="People, by what their clients last said, and agents, by the registry.",
            answers=(Answer(200, "Everybody who was there within a day.", PresenceList),),
        ),
    )

    def __init__(self, door: Door, sources: Sources) -> None:
        self._door = door
        self._sources = sources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        directory = self._sources.directory
        rows = agent_rows(directory, self._sources.log, lambda agent: may_call(scope, agent))
        found = PresenceList(
            people=tuple(self._door.people.views()),
            agents=tuple(
                AgentPresence(
                    agent_id=row.id,
                    state=State.ONLINE if row.is_up else State(row.state),
                    is_busy=row.state is Condition.BUSY,
                    is_draining=row.state is Condition.DRAINING,
                    last_seen=directory.last_seen(directory.standing(row.id)),
                )
                for row in rows
            ),
        )
        await send_json(send, 200, codec.encode(found))
