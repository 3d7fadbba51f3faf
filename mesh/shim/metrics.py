"""`GET /metrics`: what this door has counted, for Prometheus."""

import asyncio

from starlette.types import Receive, Scope, Send

from mesh.errors import NotAllowedError
from mesh.exposition import CONTENT_TYPE, told
from mesh.shim.guard import sees_everybody
from mesh.shim.http import send_body
from mesh.shim.operations import Operation, Tag


class Metrics:
    """The endpoint. Who needs a key needs one that is for all agents: their ids are in it."""

    operations = (
        Operation(
            "getMetrics",
            "GET",
            "/metrics",
            Tag.HEALTH,
            "Read the metrics of this server",
            is_listed=False,
        ),
    )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if not sees_everybody(scope):
            raise NotAllowedError("metrics are of all agents: ask for an API key that is, too")
        # With hundreds of agents it takes the time of a dozen calls.
        await send_body(send, 200, await asyncio.to_thread(told), CONTENT_TYPE)
