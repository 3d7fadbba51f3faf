"""What the HTTP door answers for itself: errors, its health, and agents as models.

Answers to calls stand in `schemas.completion` and `schemas.call`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from schemas.base import WireModel


class ApiError(WireModel):
    """An error as OpenAI clients read it."""

    message: str
    """What happened, and what to do next."""
    type: str
    """The kind: `invalid_request_error`, `authentication_error`, `permission_error`,
    `rate_limit_error` or `server_error`."""
    param: str | None = None
    """The field or header to blame."""
    code: str
    """What happened, for programs."""


class ErrorEnvelope(WireModel):
    """Body of every answer with a status of 400 and more."""

    error: ApiError


class LiveView(WireModel):
    """Body of `GET /health/live`."""

    status: Literal["ok"] = "ok"


class HealthView(WireModel):
    """Body of `GET /health`. Where keys are required, who shows none learns the status only."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    status: Literal["ok", "unavailable"]
    node: str = ""
    """The machine that this server runs on."""
    broker: Literal["connected", "disconnected"] = "connected"
    agents_online: int = 0
    version: str = ""


class UnhealthyView(HealthView):
    """Body of `GET /health` when no call can be taken: an error envelope too."""

    error: ApiError


class ModelObject(WireModel):
    """An agent as OpenAI clients list it."""

    id: str
    """What to put into `model` of a request."""
    object: Literal["model"] = "model"
    created: int
    """When the agent was first seen, in seconds since 1970; 0 where nobody knows."""
    owned_by: Literal["mesh"] = "mesh"
    name: str
    """For people: the id, and the nodes where the agent runs."""


class ModelList(WireModel):
    """Body of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: tuple[ModelObject, ...]


class ApiDocument(BaseModel):
    """An OpenAPI document, as far as there is a word to say about it here."""

    model_config = ConfigDict(frozen=True, extra="allow")

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
