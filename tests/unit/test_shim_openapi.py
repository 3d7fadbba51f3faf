"""The OpenAPI document: valid, complete, and nothing in it that the code does not do."""

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema
import orjson
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31

from mesh.errors import MeshError
from mesh.headers import MAX_TIMEOUT_S
from mesh.shim.app import create_app, make_endpoints, make_routes, operations_of
from mesh.shim.door import Door
from mesh.shim.openai import read_request
from mesh.shim.openapi import make_document
from mesh.shim.operations import Operation
from mesh.shim.status import REFUSALS, TABLE, UNSUPPORTED, WRONG_METHOD, failure, refusal
from schemas.completion import ChatCompletionRequest
from schemas.terms import TargetFields, TermFields

NOWHERE: Any = None
DOOR = Door(NOWHERE, NOWHERE, NOWHERE)
OPERATIONS = list(operations_of(make_endpoints(DOOR)))
LISTED = [one for one in OPERATIONS if one.is_listed]
DOCUMENT = make_document(OPERATIONS, requires_keys=False)
ENVELOPE = {"$ref": "#/components/schemas/ErrorEnvelope"}

Described = tuple[str, str, dict[str, Any]]


def described() -> Iterator[Described]:
    """Yield path, method and Operation Object of everything in the document."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, {**operation, "responses": resolved(operation["responses"])}


def plain(path: str) -> str:
    return re.sub(r":\w+\}", "}", path)


def every(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a document."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value:
        if isinstance(one, dict | list):
            yield from every(one)


def resolve(reference: str) -> Any:
    found: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def resolved(responses: dict[str, Any]) -> dict[str, Any]:
    return {
        status: resolve(one["$ref"]) if "$ref" in one else one for status, one in responses.items()
    }


def test_it_is_openapi() -> None:
    """The specification's own schema accepts it, as JSON would carry it."""
    jsonschema.validate(orjson.loads(orjson.dumps(DOCUMENT)), OPENAPI_31)


def test_every_schema_is_one() -> None:
    """Each component is a JSON schema of the dialect that OpenAPI 3.1 means."""
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_reference_leads_somewhere() -> None:
    """A model that is used and not there would break each generator of clients."""
    references = [one["$ref"] for one in every(DOCUMENT) if "$ref" in one]
    assert references
    for reference in references:
        assert resolve(reference), reference


def test_every_route_is_described() -> None:
    """A route that somebody adds is in the document, or says that it is a page."""
    hidden = {path for one in OPERATIONS if not one.is_listed for path in one.paths}
    canonical = {path: one.path for one in LISTED for path in one.paths}
    for route in make_routes(make_endpoints(DOOR)):
        if route.path in hidden:
            assert not route.path.startswith(("/v1", "/api"))
            continue
        methods = {method.upper() for method in DOCUMENT["paths"][plain(canonical[route.path])]}
        assert set(route.methods or ()) - {"HEAD"} <= methods


@pytest.mark.parametrize("operation", LISTED, ids=lambda one: one.id)
async def test_every_operation_has_a_route(operation: Operation) -> None:
    """Each path that leads to it is found by the application, with its method."""
    transport = httpx2.ASGITransport(create_app(DOOR))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        for path in operation.paths:
            answer = await client.request(operation.method, re.sub(r"\{.*?\}", "x", path))
            code = answer.json().get("error", {}).get("code")
            assert code not in ("unknown_url", "method_not_supported"), path


def test_names_are_unique() -> None:
    """Operation ids name functions of generated clients, and anchors of the page."""
    ids = [one.id for one in OPERATIONS]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & set(DOCUMENT["components"]["schemas"])


def test_failures_are_those_that_the_door_knows() -> None:
    """Status and code of each failure stand in the one table of them."""
    rows = [*TABLE.values(), *REFUSALS, UNSUPPORTED]
    known = {(row.status, row.code) for row in rows}
    for path, method, operation in described():
        failures = {int(s): one for s, one in operation["responses"].items() if int(s) >= 400}
        told = {(status, code) for status, one in failures.items() for code in one["x-codes"]}
        assert told <= known, (path, method)
        assert all(all(one["x-codes"].values()) for one in failures.values()), (path, method)


def test_everything_the_door_refuses_is_told() -> None:
    """Each refusal is documented somewhere, but for the method that no operation has."""
    told = {
        code
        for _, _, operation in described()
        for one in operation["responses"].values()
        for code in one.get("x-codes", ())
    }
    assert {row.code for row in REFUSALS} - told == {WRONG_METHOD.code}
    assert {row.code for row in TABLE.values() if row.ends_calls} <= told


def test_failures_have_one_shape() -> None:
    """Clients read the envelope, whatever happened; health says more beside it."""
    for path, _, operation in described():
        for status, one in operation["responses"].items():
            if int(status) >= 400 and (path, status) != ("/health", "503"):
                assert one["content"]["application/json"]["schema"] == ENVELOPE, (path, status)


@pytest.mark.parametrize("error_class", list(TABLE))
def test_the_envelope_is_what_is_sent(error_class: type[MeshError]) -> None:
    """The model of errors fits each that is told."""
    schema = {**ENVELOPE, "components": DOCUMENT["components"]}
    jsonschema.validate(orjson.loads(failure(error_class("it broke")).body), schema)
    jsonschema.validate(orjson.loads(refusal(REFUSALS[0], "it broke").body), schema)


@pytest.mark.parametrize("operation", LISTED, ids=lambda one: one.id)
def test_every_word_is_said(operation: Operation) -> None:
    """Summary, parameters and answers are described, and examples are told for required ones."""
    written = DOCUMENT["paths"][plain(operation.path)][operation.method.lower()]
    assert written["summary"][0].isupper()
    assert any(int(status) < 400 for status in written["responses"])
    assert all(one["description"] for one in resolved(written["responses"]).values())
    assert all(one["description"] for one in written.get("parameters", ()))
    in_path = {one["name"] for one in written.get("parameters", ()) if one["in"] == "path"}
    assert in_path == set(re.findall(r"\{(\w+)\}", plain(operation.path)))


def test_links_lead_to_operations() -> None:
    """A link names an operation that takes an id in its path, and an example that exists."""
    takers = {one["operationId"] for path, _, one in described() if "{id}" in path}
    for _, _, operation in described():
        for one in operation["responses"].values():
            for link in one.get("links", {}).values():
                content = operation["requestBody"]["content"]["application/json"]
                assert link["operationId"] in takers
                assert link["x-example"] in content["examples"]


def test_what_passes_through_is_described_and_not_checked() -> None:
    """Tools and their like are in the document, and none of the door's business."""
    properties = DOCUMENT["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    for name in ("tools", "tool_choice", "response_format", "temperature", "max_tokens"):
        assert name in properties
    body = {"model": "a", "messages": [{"role": "user"}], "tools": "odd", "temperature": [1]}
    assert read_request(orjson.dumps(body)).model_extra == {"tools": "odd", "temperature": [1]}


def test_what_is_said_to_the_mesh_is_described() -> None:
    """With the door's own limits; `agent_id` only where the path names nobody."""
    assert set(TargetFields.model_fields) - set(TermFields.model_fields) == {"agent_id"}
    timeout = DOCUMENT["components"]["schemas"]["DirectQuestion"]["properties"]["timeout"]
    assert timeout["anyOf"][0]["maximum"] == MAX_TIMEOUT_S


def test_fields_have_the_docstrings_that_stand_below_them() -> None:
    """Of parents too: the words are written once, in the models."""
    properties = DOCUMENT["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert properties["messages"]["description"].startswith("The conversation")
    assert properties["agent_id"]["description"].startswith("The agent.")
    assert set(ChatCompletionRequest.model_fields) == set(properties)


def test_keys_are_asked_for_where_they_are_required() -> None:
    """Without them everything is open; with them only what says so."""
    assert DOCUMENT["security"] == [{}, {"apiKey": []}]
    assert make_document(OPERATIONS, requires_keys=True)["security"] == [{"apiKey": []}]
    is_open = {path for path, _, one in described() if one.get("security") == []}
    assert is_open == {"/health", "/health/live", "/openapi.json"}
