"""The HTTP application: its routes, and what holds for every answer.

Each answer has an `x-request-id`, each error the OpenAI envelope. Who may pass is decided by
`mesh.shim.guard`. Opens no connection and no port; see `mesh.shim.server`.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh import metrics, tracing
from mesh.errors import MeshError
from mesh.shim.a2a import A2A, AgentCards
from mesh.shim.calls import CallEvents, CallResource
from mesh.shim.connection_test import ConnectionTests
from mesh.shim.cors import Cors
from mesh.shim.direct import DirectChat
from mesh.shim.docs import Docs
from mesh.shim.door import Door
from mesh.shim.guard import Guard
from mesh.shim.health import Health, Live
from mesh.shim.http import REQUEST_ID, read_headers, release_body, request_id, send_json
from mesh.shim.metrics import Metrics
from mesh.shim.models import Model, Models
from mesh.shim.openai import ChatCompletions
from mesh.shim.openapi import AsyncApi, OpenApi, make_document
from mesh.shim.operations import Endpoint, Operation
from mesh.shim.pages import Pages
from mesh.shim.presence import Presence, PresenceReports
from mesh.shim.registry import Agent, Agents, Node, Nodes
from mesh.shim.responses import ResponseCancel, ResponseResource, Responses
from mesh.shim.rules import LOOPBACK_RULES, Rules
from mesh.shim.site.cabinet import CabinetPage
from mesh.shim.site.connections import ConnectionsPage
from mesh.shim.site.flow import FlowPage
from mesh.shim.site.login import Login, Logout
from mesh.shim.site.overview import OverviewPage
from mesh.shim.site.page import Site
from mesh.shim.status import (
    NO_RETRY,
    SERVER,
    UNKNOWN_URL,
    WRONG_METHOD,
    envelope,
    failure,
    refusal,
)

logger = logging.getLogger(__name__)

_JSON: Final = "application/json"


def create_app(door: Door, rules: Rules = LOOPBACK_RULES) -> ASGIApp:
    """Make the application that answers for `door`, guarded by `rules`."""
    endpoints = make_endpoints(door, rules)
    operations = list(operations_of(endpoints))
    app: ASGIApp = Guard(Switch(make_routes(endpoints)), rules, door.access, operations)
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
        scope["endpoint"] = endpoint
        try:
            await endpoint(scope, receive, send)
        except MeshError as error:
            told = failure(error)
            await send_json(send, told.status, told.body, told.headers)


def make_endpoints(door: Door, rules: Rules = LOOPBACK_RULES) -> list[Endpoint]:
    """Make everything that answers for `door`."""
    pages, tests = Pages(), ConnectionTests(door)
    site = Site(door, rules, pages, tests)
    endpoints: list[Endpoint] = [
        ChatCompletions(door),
        DirectChat(door),
        Responses(door),
        ResponseResource(door),
        ResponseCancel(door),
        CallResource(door),
        CallEvents(door),
        Models(door),
        Model(door),
        Agents(door),
        Agent(door),
        Nodes(door),
        Node(door),
        AgentCards(door, rules),
        A2A(door),
        tests,
        PresenceReports(door),
        Presence(door, site.sources),
        Health(door),
        Live(),
        Metrics(),
        *pages.files,
        OverviewPage(site),
        ConnectionsPage(site),
        FlowPage(site),
        CabinetPage(site),
        Login(pages, door.access, requires_keys=rules.requires_keys),
        Logout(),
    ]
    described = [*operations_of(endpoints), *OpenApi.operations]
    document = make_document(described, requires_keys=rules.requires_keys)
    return [*endpoints, OpenApi(document), AsyncApi(), Docs(door, document, pages)]


def operations_of(endpoints: Iterable[Endpoint]) -> Iterator[Operation]:
    """Yield what endpoints can do."""
    for endpoint in endpoints:
        yield from endpoint.operations


def make_routes(endpoints: Iterable[Endpoint]) -> list[Route]:
    """Return the routes to endpoints: one for each path, with all of its methods."""
    found: dict[str, tuple[Endpoint, list[str]]] = {}
    for endpoint in endpoints:
        for operation in endpoint.operations:
            for path in operation.paths:
                owner, methods = found.setdefault(path, (endpoint, []))
                assert owner is endpoint, f"two endpoints answer at {path}"
                methods.append(operation.method)
    return [Route(path, one, methods=methods) for path, (one, methods) in found.items()]


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
        if tracing.is_on() or any(name == b"traceparent" for name, _ in scope["headers"]):
            await self._traced(scope, receive, answer)
        else:
            await self._answer(scope, receive, answer)

    async def _traced(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        """Do it in the client's trace, and tell a collector of it, if there is one."""
        traceparent = read_headers(scope).get("traceparent", "")
        if not tracing.is_on():
            if (context := tracing.SpanContext.read(traceparent)) is not None:
                with tracing.inside(context):
                    await self._answer(scope, receive, answer)
            else:
                await self._answer(scope, receive, answer)
            return
        span = tracing.begin_request(scope["method"], scope["path"], traceparent)
        try:
            with tracing.inside(span.context):
                await self._answer(scope, receive, answer)
        finally:
            self._end(span, scope, answer)

    def _end(self, span: tracing.Span, scope: Scope, answer: "_Answer") -> None:
        """Tell of a request that has come to an endpoint. Strangers could send any number."""
        if (endpoint := scope.get("endpoint")) is not None:
            route = next(
                (one for one in endpoint.operations if one.method == scope["method"]), None
            )
            if route is not None:
                span.name = f"{route.method} {route.path}"
            error = str(answer.status) if answer.status >= 500 else ""
            span.end(error, ("http.response.status_code", answer.status))

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
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
        finally:
            release_body(scope)


class _Answer:
    """`send` that adds the request's id."""

    def __init__(self, send: Send, name: str) -> None:
        self._send = send
        self.request_id = name
        self.has_begun = False
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            self.status = message["status"]
            metrics.HTTP_REQUESTS.inc(str(self.status))
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
    told = refusal(UNKNOWN_URL, f"there is nothing at {asked}: /docs shows what there is")
    if error.status_code == WRONG_METHOD.status:
        allowed = (error.headers or {}).get("Allow", "")
        told = refusal(WRONG_METHOD, f"{asked} is not possible: {allowed or 'another method'} is")
    return Response(told.body, told.status, error.headers, _JSON)
