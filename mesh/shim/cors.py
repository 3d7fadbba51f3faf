"""CORS, for the pages that may call this door from elsewhere; only where the settings name some.

Starlette's middleware, with our envelope on what it refuses. A preflight shows no API key: this
stands before `mesh.shim.guard`.
"""

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from mesh.shim.status import FOREIGN_ORIGIN, refusal

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
EXPOSED: Final = (
    "x-request-id",
    "mesh-call-id",
    "location",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
)


class Cors(CORSMiddleware):
    """Answers preflights, and lets pages of `origins` read answers."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            # What is asked for is allowed: x-mesh-…, x-stainless-… and others have no pattern.
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight; a refusal wears the envelope."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        said = bytes(answer.body).decode()
        told = refusal(FOREIGN_ORIGIN, f"{said}: name the origin in MESH_HTTP_CORS_ORIGINS")
        return Response(told.body, told.status, told.headers, "application/json")
