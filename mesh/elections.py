"""Who leads a stream on a cluster, and that it is somebody else now.

A server that dies takes with it what it had still to republish. Clients of the other servers notice
nothing of that: they are not reconnected. But the next leader is announced to everybody, so what is
done after a reconnect is done then, too. On a single server nobody is ever elected, and nothing is
listened for.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh import subjects
from mesh.nats_client import is_clustered

logger = logging.getLogger(__name__)

SETTLE_S: Final = 0.5
"""A new leader has stored all that is acknowledged; the replica that answers a read may lag."""

Hook = Callable[[], Awaitable[None]]


class Elections:
    """What one connection does when another server begins to lead."""

    def __init__(self, client: Client, run: Callable[[Hook], object]) -> None:
        self._client = client
        self._run = run
        self._hooks: dict[str, list[Hook]] = {}
        """By stream."""

    async def start(self) -> None:
        """Listen, if this is a cluster."""
        if is_clustered(self._client):
            await self._client.subscribe(subjects.ELECTION_ADVISORIES, cb=self._on_advisory)

    def on_leader(self, stream: str, hook: Hook) -> None:
        """Run `hook` a moment after a stream has a new leader, every time."""
        self._hooks.setdefault(stream, []).append(hook)

    def drop(self, stream: str, hook: Hook) -> None:
        """Stop running `hook`."""
        if hook in (hooks := self._hooks.get(stream, [])):
            hooks.remove(hook)

    async def _on_advisory(self, message: Msg) -> None:
        stream = subjects.parse_election(message.subject)
        for hook in self._hooks.get(stream, ()):
            logger.info("another server leads %s", stream)
            self._run(partial(_settled, hook))


async def _settled(hook: Hook) -> None:
    await asyncio.sleep(SETTLE_S)
    await hook()
