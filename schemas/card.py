"""What an agent says about itself: the card that its host announces.

The registrar validates it and keeps it in the registry bucket; it never expires, so an agent
that is offline stays known.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

from schemas.base import Id, WireModel, is_id

MAX_DESCRIPTION_CHARS = 2_000
NODE_PREFIX = "node:"
ROLE_PREFIX = "role:"


def _require_caller(text: str) -> str:
    if not is_id(text.removeprefix(NODE_PREFIX).removeprefix(ROLE_PREFIX)):
        raise ValueError("not a caller: give an id, node:<id> or role:<role>")
    return text


CallerRule = Annotated[str, AfterValidator(_require_caller)]
"""Somebody who may call: an agent, or another caller, by id; a node; or a role in a secure mesh."""


class Subscription(WireModel):
    """One event an agent listens to. `source` and `name` may be `*`, for any."""

    source: str
    name: str


class AgentCard(WireModel):
    """An agent, wherever it runs."""

    id: Id
    description: str = Field(default="", max_length=MAX_DESCRIPTION_CHARS)
    version: str = Field(default="", max_length=64)
    model: str = Field(default="", max_length=200)
    """What answers behind the agent, when it is a language model: shown, never interpreted."""
    concurrency: int = Field(default=16, ge=1, le=1_000)
    """Calls that one process works on at once."""
    streams: bool = False
    """Whether answers can be streamed token by token."""
    max_choices: int = Field(default=1, ge=1, le=128)
    """The largest `n` of a chat request that it serves: how many answers to one question."""
    mailbox_max: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests that may wait for it, if that is fewer than the mesh allows to every agent."""
    callers: tuple[CallerRule, ...] = ()
    """Who may call it; empty: everybody."""
    subscriptions: tuple[Subscription, ...] = ()
