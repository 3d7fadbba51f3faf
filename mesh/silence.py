"""Why a broker does not answer for a stream: it is away, has none such, or has stopped it.

nats-server 2.15.1 stops a stream when a write has failed, since its disk was full, say. Nobody
acknowledges then, and later nobody answers for that stream at all; with everything else the server
goes on, until it is started again.
"""

from datetime import datetime
from typing import Final

import nats.errors
import orjson
from nats.aio.client import Client
from nats.js.errors import APIError

from mesh.errors import BrokerUnreachableError, StreamMissingError, TransportError
from mesh.nats_client import is_clustered, is_guarded
from mesh.uplink import has_uplink

STALLED: Final = (
    "the broker is there and stores nothing, perhaps since its disk was full: `mesh doctor` tells"
)
LEADERLESS: Final = "no server of the cluster leads the stream at the moment"
CUT_OFF: Final = (
    "the hub does not answer through the server of this site, whose log says why: the hub is down, "
    "or the site's credentials are missing, revoked or outdated"
)
NEW_S: Final = 10.0
ALIVE_S: Final = 2.0
"""How quickly a broker answers that is there."""


async def is_alive(client: Client) -> bool:
    """Tell whether the broker answers a question that no stream is needed for."""
    try:
        await client.request("$JS.API.INFO", timeout=ALIVE_S)
    except nats.errors.Error:
        return False
    return True


async def explain(client: Client, error: StreamMissingError, subject: str) -> TransportError:
    """Return what it means that nobody answers for `subject` (wildcards allowed).

    `error` where there is no stream, or this user may not ask; else the stream was stopped, or is
    led by nobody for the moment.
    """
    if has_uplink(client):
        return BrokerUnreachableError(CUT_OFF)
    if is_guarded(client):
        return error
    silent = BrokerUnreachableError(LEADERLESS if is_clustered(client) else STALLED)
    try:
        name = await client.jsm(timeout=ALIVE_S).find_stream_name_by_subject(subject)
        info = await client.request(f"$JS.API.STREAM.INFO.{name}", timeout=ALIVE_S)
    except nats.errors.TimeoutError:  # A stream that was stopped does not answer this either.
        return silent
    except (APIError, nats.errors.Error):
        return error
    return error if _is_new(info.data) else silent


def _is_new(info: bytes) -> bool:
    """Tell whether a stream was made a moment ago, when it was missed perhaps."""
    try:
        said = orjson.loads(info)
        created, now = (datetime.fromisoformat(said[name]) for name in ("created", "ts"))
    except (KeyError, TypeError, ValueError):
        return False
    return (now - created).total_seconds() < NEW_S
