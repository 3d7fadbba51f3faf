"""The HTTP application: its routes, and what holds for every answer.

Each answer has an `x-request-id`, each error the OpenAI envelope. Who may pass is decided by
`mesh.shim.guard`. Opens no connection and no port; see `mesh.shim.server`.
"""

import logging
from collections.abc import Sequence
from typing import Final

from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh.errors import MeshError
from mesh.shim.calls import CallEvents, CallResource
from mesh.shim.connection_test import ConnectionTests
from mesh.shim.cors import Cors
from mesh.shim.direct import DirectChat
from mesh.shim.door import Door
from mesh.shim.guard import Guard
from mesh.shim.health import Health, Live
from mesh.shim.http import REQUEST_ID, request_id, send_json
from mesh.shim.models import Model, Models
from mesh.shim.openai import ChatCompletions
from mesh.shim.registry import Agent, Agents, Node, Nodes
from mesh.shim.responses import ResponseCancel, ResponseResource, Responses
from mesh.shim.rules import LOOPBACK_RULES, Rules
from mesh.shim.status import BAD_REQUEST, NO_RETRY, SERVER, envelope, failure

logger = logging.getLogger(__name__)

_JSON: Final = "application/json"


def create_app(door: Door, rules: Rules = LOOPBACK_RULES) -> ASGIApp:
    """Make the application that answers for `door`, guarded by `rules`."""
    app: ASGIApp = Guard(Switch(_routes(door)), rules, door.access)
    if rules.cors_origins:
        app = Cors(app, rules.cors_origins)
    return Envelope(app)


class Switch:
    """Brings a request to its endpoint, and what goes wrong there into the envelope.

    Paths without parameters are looked up; Starlette's router does the rest. Through all of it a
    request takes a tenth of its time.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._exact = {
            (method, route.path): route.app
            for route in routes
            for method in route.methods or ()
            if "{" not in route.path
        }
        # A redirected POST loses its body in many clients: `Envelope` takes the slash off instead.
        router = Router(routes, redirect_slashes=False)
        self._routed = ExceptionMiddleware(
            router, handlers={HTTPException: _on_http_error, MeshError: _on_mesh_error}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        endpoint = self._exact.get((scope["method"], scope["path"]))
        if endpoint is None:
            # So the router raises what it refuses, instead of answering in plain text.
            scope["app"] = self
            await self._routed(scope, receive, send)
            return
        try:
            await endpoint(scope, receive, send)
        except MeshError as error:
            told = failure(error)
            await send_json(send, told.status, told.body, told.headers)


def _routes(door: Door) -> list[Route]:
    routes = [
        Route("/health", Health(door), methods=["GET"]),
        Route("/health/live", Live(), methods=["GET"]),
        Route("/api/agents/connection-test", ConnectionTests(door), methods=["GET"]),
    ]
    chat, models, model = ChatCompletions(door), Models(door), Model(door)
    call, events = CallResource(door), CallEvents(door)
    responses, response, cancel = Responses(door), ResponseResource(door), ResponseCancel(door)
    # Some clients add the /v1 by themselves, and some want it in the base URL.
    for prefix in ("/v1", ""):
        routes += [
            Route(f"{prefix}/chat/completions", chat, methods=["POST"]),
            Route(f"{prefix}/responses", responses, methods=["POST"]),
            Route(f"{prefix}/responses/{{id}}", response, methods=["GET"]),
            Route(f"{prefix}/responses/{{id}}/cancel", cancel, methods=["POST"]),
            Route(f"{prefix}/calls/{{id}}", call, methods=["GET", "DELETE"]),
            Route(f"{prefix}/calls/{{id}}/events", events, methods=["GET"]),
            Route(f"{prefix}/models", models, methods=["GET"]),
            Route(f"{prefix}/models/{{id:path}}", model, methods=["GET"]),
        ]
    agent, node = Agent(door), Node(door)
    routes += [
        Route("/api/agent/{id}/chat", DirectChat(door), methods=["POST"]),
        Route("/api/v1/agents", Agents(door), methods=["GET"]),
        Route("/api/v1/nodes", Nodes(door), methods=["GET"]),
        # The guide says /agent/, and most registries the plural.
        Route("/api/v1/agent/{id}", agent, methods=["GET"]),
        Route("/api/v1/agents/{id}", agent, methods=["GET"]),
        Route("/api/v1/node/{id}", node, methods=["GET"]),
        Route("/api/v1/nodes/{id}", node, methods=["GET"]),
    ]
    return routes


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
            body = envelope(message, SERVER, "internal_error")
            # An agent may have started by then.
            await send_json(answer, 500, body, NO_RETRY)


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
    # Not `request.url`: a Host header that is none would make it raise.
    asked = f"{request.method} {request.scope['path']}"
    message, code = f"{error.detail}: {asked}", "http_error"
    if error.status_code == 404:
        message, code = f"there is nothing at {asked}: look for a typo", "unknown_url"
    elif error.status_code == 405:
        message, code = f"{asked} is not possible: try another method", "method_not_supported"
    return Response(envelope(message, BAD_REQUEST, code), error.status_code, error.headers, _JSON)
