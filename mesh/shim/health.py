"""Whether this process lives, and whether it can serve. Answers without asking anybody."""

from typing import Any

from starlette.types import Receive, Scope, Send

from mesh import codec
from mesh.errors import BrokerUnreachableError
from mesh.shim.door import Door
from mesh.shim.guard import is_stranger
from mesh.shim.http import send_json
from mesh.shim.operations import Answer, Operation, Tag
from mesh.shim.status import failure
from mesh.version import VERSION
from schemas.door import HealthView, LiveView, UnhealthyView


class Live:
    """`GET /health/live`: the process answers, and that is all it says."""

    operations = (
        Operation(
            "getLiveness",
            "GET",
            "/health/live",
            Tag.HEALTH,
            "See whether this server lives",
            description="It does not look any further: restart it when there is no answer.",
            answers=(Answer(200, "It lives.", LiveView),),
            is_open=True,
        ),
    )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await send_json(send, 200, codec.dumps({"status": "ok"}))


class Health:
    """`GET /health`: ready to take calls, or 503. Who needs a key and shows none learns no more."""

    operations = (
        Operation(
            "getHealth",
            "GET",
            "/health",
            Tag.HEALTH,
            "See whether this server can take calls",
            answers=(Answer(200, "It can.", HealthView),),
            failures=(BrokerUnreachableError,),
            special_failures={503: UnhealthyView},
            is_open=True,
        ),
    )

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        is_ready = self._door.is_connected
        found: dict[str, Any] = {"status": "ok" if is_ready else "unavailable"}
        if not is_stranger(scope):
            found |= self._details(is_ready)
        if is_ready:
            await send_json(send, 200, codec.dumps(found))
            return
        told = failure(BrokerUnreachableError("not connected to the broker; trying again"))
        body = codec.dumps({**found, **codec.loads(told.body)})
        await send_json(send, told.status, body, told.headers)

    def _details(self, is_ready: bool) -> dict[str, Any]:
        return {
            "node": self._door.caller.node,
            "broker": "connected" if is_ready else "disconnected",
            "agents_online": self._door.client.directory.online_count(),
            "version": VERSION,
        }
