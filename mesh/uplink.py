"""The way on from the server of a site to the hub, which its clients cannot see.

When it breaks, whatever was under way is lost, and they are not told: they keep their connection
to the site's server. So one of them asks the hub a small question each second, and takes an answer
after a silence as a reconnect. Elsewhere the broker has JetStream itself, and nobody asks.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import nats.errors
from nats.aio.client import Client

from mesh.nats_client import is_guarded
from mesh.streams import REGISTRY

logger = logging.getLogger(__name__)

PERIOD_S: Final = 1.0
"""Shorter than the 2 s that the site's server waits before it connects again (nats/leaf)."""
PATIENCE_S: Final = 2.0
"""A link that is half open says nothing at all."""
_QUESTION: Final = f"$JS.API.DIRECT.GET.{REGISTRY}"
_NOBODY: Final = b'{"last_by_subj":"$KV.registry.nobody"}'
"""JetStream answers 404 from memory."""


def has_uplink(client: Client) -> bool:
    """Tell whether JetStream is behind the broker, not in it. Known once there is a connection.

    Only a user with credentials is sent to such a one; else JetStream is off: a full disk, say.
    """
    return is_guarded(client) and not client._server_info.get("jetstream")


async def watch_uplink(client: Client, on_return: Callable[[], Awaitable[None]]) -> None:
    """Call `on_return` whenever the hub answers again; runs until cancelled."""
    is_lost = False
    while True:
        is_there = await _is_there(client)
        if is_lost and is_there:
            await on_return()
        elif not is_there and not is_lost:
            logger.warning("the site's server has lost the hub; waiting for it")
        is_lost = not is_there
        await asyncio.sleep(PERIOD_S)


async def ask_hub(client: Client, timeout_s: float) -> None:
    """Ask JetStream for a key that is not there: the smallest question that everybody may ask.

    Raises:
        nats.errors.Error: no answer, or none in time.
    """
    await client.request(_QUESTION, _NOBODY, timeout=timeout_s)


async def _is_there(client: Client) -> bool:
    try:
        await ask_hub(client, PATIENCE_S)
    except nats.errors.Error:
        return False
    return True
