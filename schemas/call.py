"""A call as a resource: what `GET /v1/calls/{id}` answers.

The states mean exactly what they say; `mesh.calls.CallState` has them.
"""

from typing import Literal

from schemas.base import WireModel
from schemas.completion import ChatCompletion
from schemas.door import ApiError

State = Literal["stored", "working", "answered", "failed", "expired", "cancelled"]


class CallView(WireModel):
    """Where a call stands, and what it ended with."""

    id: str
    object: Literal["mesh.call"] = "mesh.call"
    state: State
    agent: str = ""
    """Empty where neither its caller nor an agent has said it yet."""
    node: str = ""
    """Where an agent is at it, or was; empty as long as the request waits."""
    attempt: int = 0
    """The delivery that spoke last; 0 as long as no agent has."""
    chunks: int = 0
    """Parts of a streamed answer so far."""
    created_at: str = ""
    """By the broker's clock, in RFC 3339."""
    timeout_ms: int | None = None
    """The deadline, counted from the moment the request was stored."""
    result: ChatCompletion | None = None
    """The whole answer, once there is one."""
    error: ApiError | None = None
    """Why there is none."""
    events: str = ""
    """Where the answer can be read as a stream."""
