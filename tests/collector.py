"""An OpenTelemetry collector of the test's own: takes OTLP over HTTP, and keeps what it is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web


@dataclass(frozen=True, slots=True)
class Told:
    """A span, as it was told."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, str]
    resource: dict[str, str]
    error: str


@dataclass(slots=True)
class Collector:
    """What has come in."""

    url: str = ""
    spans: list[Told] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    is_broken: bool = False
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        """Take an export, as OTLP/HTTP has it."""
        if self.is_broken:
            return web.Response(status=503)
        body = await request.read()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        for group in orjson.loads(body)["resourceSpans"]:
            resource = _values(group["resource"]["attributes"])
            for scope in group["scopeSpans"]:
                self.spans += [_told(one, resource) for one in scope["spans"]]
        self.came.set()
        return web.json_response({})

    def named(self, name: str) -> list[Told]:
        """Return the spans of a name."""
        return [one for one in self.spans if one.name == name]


def _told(span: dict[str, Any], resource: dict[str, str]) -> Told:
    return Told(
        name=span["name"],
        trace_id=span["traceId"],
        span_id=span["spanId"],
        parent_id=span.get("parentSpanId", ""),
        kind=span["kind"],
        start_ns=int(span["startTimeUnixNano"]),
        end_ns=int(span["endTimeUnixNano"]),
        attributes=_values(span["attributes"]),
        resource=resource,
        error=span.get("status", {}).get("message", ""),
    )


def _values(attributes: list[dict[str, Any]]) -> dict[str, str]:
    return {one["key"]: str(next(iter(one["value"].values()))) for one in attributes}


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Run a collector on a free port."""
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        server: Any = site._server
        found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield found
    finally:
        await runner.cleanup()
