"""Presence of people: what a browser reports, what travels, what is kept, and what is shown.

A person may have several clients, each a tab of a browser; what they say together is worked out by
`mesh.presence`. The words of a report are those of Matrix.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from schemas.base import InstanceId, WireModel
from schemas.registry import State

MAX_MESSAGE_CHARS = 200

UserId = Annotated[
    str, StringConstraints(pattern=r"^@[!-9;-~]{1,120}:[!-~]{1,120}$", max_length=250)
]
"""A Matrix user: `@ann:example.org`."""


class PresenceStatus(StrEnum):
    """What a client says of itself."""

    ONLINE = "online"
    UNAVAILABLE = "unavailable"
    """Nobody has touched it for five minutes."""
    OFFLINE = "offline"
    """The page is hidden or closed."""


class PresenceState(StrEnum):
    """How a person is, by all clients together."""

    ONLINE = "online"
    AWAY = "away"
    OFFLINE = "offline"


class PresenceReport(WireModel):
    """Body of `POST /internal/matrix/presence/online`."""

    matrix_user_id: UserId
    access_token: str = Field(default="", max_length=4_096, repr=False)
    """The user's own token at the homeserver. Passed on to it, where there is one, and nowhere
    kept."""
    status: PresenceStatus
    status_msg: str | None = Field(default=None, max_length=MAX_MESSAGE_CHARS)
    client_id: InstanceId = "any"
    """The tab; who names none has one for all."""
    seq: int = Field(default=0, ge=0, le=2**53)
    """Grows with each report of a client, so that one that is late changes nothing. 0: it comes as
    it comes."""
    idle_ms: int = Field(default=0, ge=0, le=2**53)
    """How long ago somebody last touched the page."""


class PresenceHeartbeat(WireModel):
    """Body of `presence.heartbeat.<user>`, a core request: a client of a person says how it is.

    The token in the subject is the user id in base64url, without padding.
    """

    user: UserId
    client: InstanceId = "any"
    seq: int = Field(default=0, ge=0, le=2**53)
    status: PresenceStatus
    message: str = Field(default="", max_length=MAX_MESSAGE_CHARS)
    idle_ms: int = Field(default=0, ge=0, le=2**53)


class PresenceReceipt(WireModel):
    """The answer to a `PresenceHeartbeat`."""

    ok: bool = True
    is_late: bool = False
    """A newer one of the same client was known already: nothing has changed."""
    message: str = ""


class PresenceView(WireModel):
    """Answer to a report."""

    matrix_user_id: UserId
    state: PresenceState
    """Of the person, by all clients together."""
    matrix: str
    """What became of it at the homeserver: `off` (none is named), `sent`, `later` or
    `unreachable`."""


class PersonView(WireModel):
    """A person, now."""

    matrix_user_id: UserId
    state: PresenceState
    status_msg: str = ""
    last_active: str = ""
    """When a client was last touched, by the broker's clock, in ISO 8601."""
    last_seen: str = ""
    """When a client last reported."""


class AgentPresence(WireModel):
    """An agent, now."""

    agent_id: str
    state: State
    is_busy: bool = False
    """Whether all its slots are taken, by the last heartbeat or the traffic that a page shows."""
    is_draining: bool = False
    """Whether its processes finish what they have, take nothing more, and leave."""
    last_seen: str = ""


class PresenceList(WireModel):
    """Answer of `GET /api/v1/presence`: people and agents in one place."""

    people: tuple[PersonView, ...] = ()
    agents: tuple[AgentPresence, ...] = ()
