"""The OpenAPI document in the shape in which a page shows it: chapters, operations, fields.

Reads nothing but the document. How it looks stands in `templates/docs.html`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

Json = Mapping[str, Any]

_PLACES: Final = ("path", "query", "header")
_LIMITS: Final[Mapping[str, str]] = {
    "exclusiveMinimum": "more than {}",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "maxLength": "at most {} characters",
}

Type = tuple[tuple[str, str], ...]
"""Words, each with the model it leads to, or with nothing."""


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter, or a property of a body."""

    name: str
    type: Type
    is_required: bool
    meaning: str
    limits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """One way to answer, or to fail."""

    status: str
    meaning: str
    bodies: tuple[tuple[str, Type], ...]
    """What it can be: the content type, and the model."""
    codes: Mapping[str, str]
    """Of a failure: what each code means."""


@dataclass(frozen=True, slots=True)
class Described:
    """One operation."""

    id: str
    method: str
    path: str
    summary: str
    meaning: str
    is_open: bool
    parameters: Mapping[str, tuple[Field, ...]]
    """By the place where they stand."""
    body: tuple[Field, ...]
    body_type: Type
    replies: tuple[Reply, ...]
    failures: tuple[Reply, ...]
    raw: Json


@dataclass(frozen=True, slots=True)
class Chapter:
    """The operations of one tag."""

    title: str
    meaning: str
    operations: tuple[Described, ...]

    @property
    def anchor(self) -> str:
        """Where it stands on the page."""
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True, slots=True)
class DescribedModel:
    """One component schema. An enumeration has values, an object fields."""

    name: str
    meaning: str
    fields: tuple[Field, ...]
    limits: tuple[str, ...]

    @property
    def names_required(self) -> bool:
        """Whether to mark the fields that are always there; else those that may be missing."""
        return sum(one.is_required for one in self.fields) * 2 <= len(self.fields)


def read_chapters(document: Json) -> tuple[Chapter, ...]:
    """Return the operations of a document, by tag."""
    described = [
        (operation["tags"][0], _operation(document, path, method, operation))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return tuple(
        Chapter(
            tag["name"],
            tag["description"],
            tuple(one for name, one in described if name == tag["name"]),
        )
        for tag in document["tags"]
    )


def read_models(document: Json) -> tuple[DescribedModel, ...]:
    """Return the models of a document, by name."""
    return tuple(
        DescribedModel(
            name,
            schema.get("description", ""),
            tuple(_fields(schema, hides_null=False)),
            tuple(_limits(schema)),
        )
        for name, schema in document["components"]["schemas"].items()
    )


def _operation(document: Json, path: str, method: str, operation: Json) -> Described:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = body.get("schema", {})
    replies = [
        _reply(status, _resolved(document, one)) for status, one in operation["responses"].items()
    ]
    return Described(
        id=operation["operationId"],
        method=method.upper(),
        path=path,
        summary=operation["summary"],
        meaning=operation["description"],
        is_open=operation.get("security") == [],
        parameters={place: tuple(_parameters(operation, place)) for place in _PLACES},
        body=tuple(_fields(_resolved(document, schema), hides_null=True)),
        body_type=_type(schema) if schema else (),
        replies=tuple(one for one in replies if not one.codes),
        failures=tuple(one for one in replies if one.codes),
        raw=operation,
    )


def _parameters(operation: Json, place: str) -> Iterator[Field]:
    for one in operation.get("parameters", ()):
        if one["in"] == place:
            schema = one["schema"]
            limits = tuple(_limits(schema))
            yield Field(one["name"], _type(schema), one["required"], one["description"], limits)


def _reply(status: str, reply: Json) -> Reply:
    bodies = []
    for media, content in reply.get("content", {}).items():
        schema = content["schema"]
        if media == "text/event-stream":
            bodies.append(("events", _event_type(schema)))
        else:
            bodies.append(("JSON", _type(schema)))
    return Reply(status, reply["description"], tuple(bodies), reply.get("x-codes", {}))


def _event_type(schema: Json) -> Type:
    data = schema["properties"]["data"]
    ways = data.get("anyOf", [data])
    encoded = next(one for one in ways if "contentSchema" in one)
    ends = (("`[DONE]`", ""),) if len(ways) > 1 else ()
    return _joined([*(_type(one) for one in encoded["contentSchema"]["anyOf"]), ends])


def _fields(schema: Json, *, hides_null: bool) -> Iterator[Field]:
    required = schema.get("required", ())
    for name, described in schema.get("properties", {}).items():
        is_required = name in required
        shown = _without_null(described) if hides_null and not is_required else described
        meaning, limits = described.get("description", ""), tuple(_limits(shown))
        yield Field(name, _type(shown), is_required, meaning, limits)


def _type(schema: Json) -> Type:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return ((name, f"#{name}"),)
    if "anyOf" in schema:
        return _joined([_type(one) for one in schema["anyOf"]])
    if schema.get("type") == "array":
        return (("array of ", ""), *_type(schema.get("items", {})))
    if schema.get("additionalProperties") not in (None, True, False):
        return (("object of ", ""), *_type(schema["additionalProperties"]))
    return ((schema.get("type", "anything"), ""),)


def _joined(types: list[Type]) -> Type:
    known = [one for one in dict.fromkeys(types) if one]
    words: list[tuple[str, str]] = []
    for number, one in enumerate(known):
        words += [(" or ", ""), *one] if number else one
    return tuple(words)


def _limits(schema: Json) -> Iterator[str]:
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from _limits(one)
    if "enum" in schema:
        yield " or ".join(f"`{one}`" for one in schema["enum"])
    if "const" in schema:
        yield f"`{schema['const']}`"
    elif schema.get("default") not in (None, "", [], {}, False):
        yield f"otherwise `{schema['default']}`"
    for keyword, words in _LIMITS.items():
        if keyword in schema:
            yield words.format(_number(schema[keyword]))
    if schema.get("minItems"):
        yield "not empty"


def _number(value: float) -> float:
    return int(value) if value == int(value) else value


def _without_null(schema: Json) -> Json:
    if "anyOf" not in schema:
        return schema
    left = [one for one in schema["anyOf"] if one.get("type") != "null"]
    return {**schema, "anyOf": left}


def _resolved(document: Json, schema: Json) -> Json:
    if "$ref" not in schema:
        return schema
    _, kind, name = schema["$ref"].rsplit("/", 2)
    found: Json = document["components"][kind][name]
    return found
