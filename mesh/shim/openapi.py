"""The OpenAPI document of this server, made once of what its endpoints say of themselves.

Source of its form: the OpenAPI specification, 3.1.1. Makes no page; see `mesh.shim.docs`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from mesh import codec, errors
from mesh.shim.components import Mode, Use, make_components
from mesh.shim.failures import Told, failures_of
from mesh.shim.http import CALL_ID, REQUEST_ID, send_json
from mesh.shim.operations import Answer, Events, Model, Operation, Parameter, Tag
from schemas.base import ID_RULE
from schemas.door import ApiDocument, ErrorEnvelope

Json = dict[str, Any]

API_VERSION: Final = "1"
"""Of the HTTP API, not of the program: that is not for everybody to know."""
INTRODUCTION: Final = f"""\
Agents that run anywhere in the mesh, asked at one address. OpenAI clients work as they are: take \
`/v1` here as their base URL, and the id of an agent as the model.

Every path of `/v1` is also there without it. A slash at the end does no harm.

**Keys.** Where keys are required, send `Authorization: Bearer mesh_…`; `mesh keys create NAME` \
makes one.

**Errors** have one shape, `ErrorEnvelope`. Programs look at `code`, people read `message`. \
`Retry-After` says when to try again; `x-should-retry: false` says that the same request would \
fail again, or start an agent once more.

**Ids** of agents and nodes are {ID_RULE}.

**Every answer** has an `x-request-id`: yours, if you sent one."""

_HEADERS: Final[Mapping[str, tuple[str, Json]]] = {
    REQUEST_ID: ("Names this request in the server's log.", {"type": "string"}),
    CALL_ID: ("The id of the call.", {"type": "string"}),
    "location": ("Where the call can be looked at.", {"type": "string"}),
    "retry-after": ("Seconds to wait before another try.", {"type": "integer"}),
    "retry-after-ms": ("The same in milliseconds.", {"type": "integer"}),
    "x-should-retry": (
        "`false` when the same request would fail again, or start an agent once more.",
        {"type": "string", "enum": ["false"]},
    ),
    "www-authenticate": ("How to say who you are.", {"type": "string"}),
}
_KEY: Final = "apiKey"
_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream"


class OpenApi:
    """`GET /openapi.json`: the document."""

    operations = (
        Operation(
            "getOpenApi",
            "GET",
            "/openapi.json",
            Tag.DOCUMENTATION,
            "Read this document",
            description="For people, the same is at `/docs`.",
            answers=(Answer(200, "An OpenAPI 3.1 document.", ApiDocument),),
            is_open=True,
        ),
    )

    def __init__(self, document: Json) -> None:
        self._body = codec.dumps(document)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await send_json(send, 200, self._body, {"cache-control": "no-cache"})


class AsyncApi:
    """`GET /asyncapi.json`: what travels on NATS, as `handlers.asyncapi` has written it."""

    operations = (
        Operation(
            "getAsyncApi",
            "GET",
            "/asyncapi.json",
            Tag.DOCUMENTATION,
            "Read the AsyncAPI document of the subjects on NATS",
            answers=(Answer(200, "An AsyncAPI 3.0 document.", ApiDocument),),
            is_open=True,
            is_listed=False,
        ),
    )

    def __init__(self) -> None:
        self._body = files("schemas").joinpath("asyncapi.json").read_bytes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await send_json(send, 200, self._body, {"cache-control": "no-cache"})


def make_document(operations: Iterable[Operation], *, requires_keys: bool) -> Json:
    """Return the document of these operations, as plain data."""
    listed = [one for one in operations if one.is_listed]
    references, schemas = make_components(use for one in listed for use in _uses(one))
    paths: dict[str, Json] = {}
    writer = _Writer(references)
    for one in listed:
        path = paths.setdefault(_plain_path(one.path), {})
        path[one.method.lower()] = writer.operation(one)
    key: Json = {_KEY: []}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Agent mesh", "version": API_VERSION, "description": INTRODUCTION},
        # Wherever the document was found.
        "servers": [{"url": "/"}],
        "security": [key] if requires_keys else [{}, key],
        "tags": [{"name": one.title, "description": one.about} for one in _used_tags(listed)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": dict(sorted(writer.failures.items())),
            "headers": {
                name: {"description": meaning, "schema": schema}
                for name, (meaning, schema) in _HEADERS.items()
            },
            "securitySchemes": {_KEY: {"type": "http", "scheme": "bearer"}},
        },
    }


class _Writer:
    """Writes operations, with references to the models they use."""

    def __init__(self, references: Mapping[Use, Json]) -> None:
        self._references = references
        self.failures: dict[str, Json] = {}
        """Many operations fail in the same way: each way is written once, and named."""

    def operation(self, one: Operation) -> Json:
        """Write one Operation Object."""
        written: Json = {
            "operationId": one.id,
            "tags": [one.tag.title],
            "summary": one.summary,
            "description": one.description,
        }
        if one.parameters:
            written["parameters"] = [_parameter(it) for it in one.parameters]
        if one.request is not None:
            content: Json = {"schema": self._reference(one.request, "validation")}
            if one.examples:
                content["examples"] = {name: {"value": it} for name, it in one.examples.items()}
            written["requestBody"] = {"required": True, "content": {_JSON: content}}
        written["responses"] = {
            **{str(it.status): self._answer(it) for it in one.answers},
            **{str(it): self._named(one, it, ways) for it, ways in failures_of(one).items()},
        }
        if one.is_open:
            written["security"] = []
        return written

    def _answer(self, one: Answer) -> Json:
        written: Json = {"description": one.meaning, "headers": _headers(one.headers)}
        content: Json = {}
        if one.model is not None:
            content[_JSON] = {"schema": self._reference(one.model)}
        if one.events is not None:
            content[_EVENTS] = {"schema": self._event(one.events)}
        if content:
            written["content"] = content
        if one.links:
            written["links"] = {
                it.to: {
                    "operationId": it.to,
                    "parameters": {"id": "$response.body#/id"},
                    "x-example": it.example,
                }
                for it in one.links
            }
        return written

    def _named(self, one: Operation, status: int, ways: Sequence[Told]) -> Json:
        """Keep a failure under a name made of its codes, and return a reference to it."""
        written = self._failure(one, status, ways)
        name = plain = ".".join([str(status), *(it.row.code for it in ways)])
        number = 1
        while self.failures.setdefault(name, written) != written:
            number += 1
            name = f"{plain}-{number}"
        return {"$ref": f"#/components/responses/{name}"}

    def _failure(self, one: Operation, status: int, ways: Sequence[Told]) -> Json:
        model: Model = one.special_failures.get(status, ErrorEnvelope)
        return {
            "description": "\n".join(f"- `{it.row.code}`: {it.meaning}" for it in ways),
            "headers": _headers(_failure_headers(one, ways)),
            "content": {_JSON: {"schema": self._reference(model)}},
            "x-codes": {it.row.code: it.meaning for it in ways},
        }

    def _event(self, one: Events) -> Json:
        """Write the schema of each event: before OpenAPI 3.2 there is no other place for it."""
        models = [self._reference(it) for it in one.models]
        if one.fails_with_envelope:
            models.append(self._reference(ErrorEnvelope))
        encoded: Json = {"contentMediaType": _JSON, "contentSchema": {"anyOf": models}}
        data: Json = {"type": "string", **encoded}
        if one.ends_with_done:
            data = {"type": "string", "anyOf": [{"const": "[DONE]"}, encoded]}
        return {
            "description": "One event.",
            "type": "object",
            "properties": {"data": data},
            "required": ["data"],
        }

    def _reference(self, model: Model, mode: Mode = "serialization") -> Json:
        return dict(self._references[model, mode])


def _uses(one: Operation) -> Iterable[Use]:
    yield ErrorEnvelope, "serialization"
    if one.request is not None:
        yield one.request, "validation"
    for model in one.special_failures.values():
        yield model, "serialization"
    for answer in one.answers:
        if answer.model is not None:
            yield answer.model, "serialization"
        for model in answer.events.models if answer.events is not None else ():
            yield model, "serialization"


def _parameter(one: Parameter) -> Json:
    written: Json = {
        "name": one.name,
        "in": one.place,
        "required": one.place == "path",
        "description": one.meaning,
        "schema": dict(one.schema),
    }
    if one.example:
        written["example"] = one.example
    return written


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (REQUEST_ID, *names)}


def _failure_headers(one: Operation, ways: Iterable[Told]) -> list[str]:
    names = ["x-should-retry"]
    rows = [way.row for way in ways]
    if errors.AgentFailedError in one.failures and any(row.ends_calls for row in rows):
        names.append(CALL_ID)
    if any(row.retry_after_s is not None for row in rows):
        names += ["retry-after", "retry-after-ms"]
    if any(row.asks_for_key for row in rows):
        names.append("www-authenticate")
    return names


def _plain_path(path: str) -> str:
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def _used_tags(operations: Sequence[Operation]) -> list[Tag]:
    used = {one.tag for one in operations}
    return [tag for tag in Tag if tag in used]
