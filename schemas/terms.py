"""What a client can say to the HTTP door about a call, beside the question itself.

`mesh.shim.target` and `mesh.shim.terms` read these fields, each by itself: this is how they are
documented, and no message is validated with it.
"""

from typing import Annotated

from pydantic import BaseModel, Field

from schemas.base import Id

_Seconds = Annotated[float, Field(gt=0, le=86_400)]


class TermFields(BaseModel):
    """Fields that the door reads of each request that asks an agent."""

    target_node: Id | None = None
    """Only the instance on this node may answer."""
    source_agent: Id | None = None
    """Who asks."""
    source_node: Id | None = None
    """Where who asks runs."""
    timeout: _Seconds | None = None
    """The deadline, in seconds from now: 120 when nothing is said, 3600 in the background."""
    wait: bool | None = None
    """Whether an agent that is offline gets the call when it is back, instead of an error 503."""
    background: bool | None = None
    """Whether to answer 202 as soon as the call is stored, which is then at `/v1/calls/{id}`."""


class TargetFields(TermFields):
    """Those of a request whose path names nobody."""

    agent_id: Id | None = None
    """The agent. With it, `model` names nobody and may be anything."""


MESH_FIELDS = frozenset(TargetFields.model_fields)
"""What a body says to the mesh, and not to an agent or to the model behind it."""
