"""The HTTP application: its routes, and what holds for every answer.

Each answer has an `x-request-id`, each error the OpenAI envelope. Opens no connection and no
port; see `mesh.shim.server`.
"""

import logging
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh.errors import MeshError
from mesh.shim.connection_test import ConnectionTests
from mesh.shim.door import Door
from mesh.shim.health import Health, Live
from mesh.shim.http import REQUEST_ID, request_id, send_json
from mesh.shim.openai import ChatCompletions, Model, Models
from mesh.shim.status import BAD_REQUEST, SERVER, envelope, failure

logger = logging.getLogger(__name__)

_JSON: Final = "application/json"


def create_app(door: Door) -> Starlette:
    """Make the application that answers for `door`."""
    app = Starlette(
        routes=_routes(door),
        middleware=[Middleware(Envelope)],
        exception_handlers={HTTPException: _on_http_error, MeshError: _on_mesh_error},
    )
    # A redirected POST loses its body in many clients: `Envelope` takes the slash off instead.
    app.router.redirect_slashes = False
    return app


def _routes(door: Door) -> list[Route]:
    routes = [
        Route("/health", Health(door), methods=["GET"]),
        Route("/health/live", Live(), methods=["GET"]),
        Route("/api/agents/connection-test", ConnectionTests(door), methods=["GET"]),
    ]
    chat, models, model = ChatCompletions(door), Models(door), Model(door)
    # Some clients add the /v1 by themselves, and some want it in the base URL.
    for prefix in ("/v1", ""):
        routes += [
            Route(f"{prefix}/chat/completions", chat, methods=["POST"]),
            Route(f"{prefix}/models", models, methods=["GET"]),
            Route(f"{prefix}/models/{{id:path}}", model, methods=["GET"]),
        ]
    # The most frequent first: routes are tried in this order.
    return sorted(routes, key=lambda route: route.path != "/v1/chat/completions")


class Envelope:
    """Names every request, forgives a trailing slash, and lets no failure out undressed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and see to its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, request_id(scope))
        path = scope["path"]
        if path.endswith("/") and path != "/":
            scope["path"] = path.rstrip("/") or "/"
        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            logger.debug("request %s: the client left", answer.request_id)
        except Exception:
            # Of a bug the client learns the request's id, and the log the rest.
            logger.exception("request %s failed", answer.request_id)
            if answer.has_begun:
                raise
            message = f"this server failed; its log has request {answer.request_id}"
            await send_json(answer, 500, envelope(message, SERVER, "internal_error"))


class _Answer:
    """`send` that adds the request's id."""

    def __init__(self, send: Send, name: str) -> None:
        self._send = send
        self.request_id = name
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            named = (REQUEST_ID.encode(), self.request_id.encode())
            message["headers"] = [*message.get("headers", ()), named]
        await self._send(message)


async def _on_mesh_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, MeshError)
    told = failure(error)
    return Response(told.body, told.status, told.headers, _JSON)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Dress what the router refuses: there is no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.url.path}"
    message, code = f"{error.detail}: {asked}", "http_error"
    if error.status_code == 404:
        message, code = f"there is nothing at {asked}: look for a typo", "unknown_url"
    elif error.status_code == 405:
        message, code = f"{asked} is not possible: try another method", "method_not_supported"
    return Response(envelope(message, BAD_REQUEST, code), error.status_code, error.headers, _JSON)
