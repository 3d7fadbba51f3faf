"""Whom a chat request is for, and who says it sends it.

Reads the body's fields, then the headers, then the `model`; asks nobody whether the agent exists.
Chat applications can only choose a `model`, SDKs can add fields, and all can set headers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh import subjects
from mesh.errors import InvalidIdError, InvalidInputError
from mesh.shim.operations import EXAMPLE_AGENT, Parameter
from schemas.base import ID_PATTERN

AGENT_HEADER: Final = "X-Mesh-Agent"
NODE_HEADER: Final = "X-Mesh-Target-Node"
SOURCE_AGENT_HEADER: Final = "X-Mesh-Source-Agent"
SOURCE_NODE_HEADER: Final = "X-Mesh-Source-Node"

ID_SCHEMA: Final = {"type": "string", "pattern": f"^{ID_PATTERN.pattern}$"}
AGENT_IN_PATH: Final = Parameter("id", "path", "The agent's id.", ID_SCHEMA, example=EXAMPLE_AGENT)
PLACE_PARAMETERS: Final = (
    Parameter(NODE_HEADER, "header", "`target_node` as a header.", ID_SCHEMA),
    Parameter(SOURCE_AGENT_HEADER, "header", "`source_agent` as a header.", ID_SCHEMA),
    Parameter(SOURCE_NODE_HEADER, "header", "`source_node` as a header.", ID_SCHEMA),
)
TARGET_PARAMETERS: Final = (
    Parameter(AGENT_HEADER, "header", "`agent_id` as a header.", ID_SCHEMA),
    *PLACE_PARAMETERS,
)

Headers = Mapping[str, str]
"""By lower-case name."""
Fields = Mapping[str, Any]
"""Of the body: those that the API itself does not know."""


@dataclass(slots=True)
class Target:
    """The agent, and the node if the request insists on one."""

    agent: str
    node: str | None = None


@dataclass(slots=True)
class Source:
    """Who says it sends the request; empty where it does not say."""

    agent: str = ""
    node: str = ""


@dataclass(slots=True)
class _Said:
    """A value, and where it stood."""

    value: str
    place: str


def read_target(model: str, fields: Fields, headers: Headers, *, path: str = "") -> Target:
    """Return whom a request is for; `path` is the agent that its path names, if it does.

    With the path, `agent_id` or its header given, `model` names no target and cannot contradict.

    Raises:
        InvalidIdError: an id breaks the grammar; `field` is where it stood.
        InvalidInputError: nobody is named, two different ones are, or a field is no string.
    """
    agent = _one_of(
        _Said(path, "path") if path else None,
        _field(fields, "agent_id"),
        _header(headers, AGENT_HEADER),
    )
    pinned = None
    if agent is None:
        agent, pinned = _read_model(model)
    node = _one_of(
        _field(fields, "target_node", is_optional=True), _header(headers, NODE_HEADER), pinned
    )
    return Target(_require_id(agent, "agent"), _require_id(node, "node") if node else None)


def read_source(fields: Fields, headers: Headers) -> Source:
    """Return who a request says it is from.

    Raises:
        InvalidIdError: an id breaks the grammar; `field` is where it stood.
        InvalidInputError: two different ones are named, or a field is no string.
    """
    agent = _one_of(
        _field(fields, "source_agent", is_optional=True), _header(headers, SOURCE_AGENT_HEADER)
    )
    node = _one_of(
        _field(fields, "source_node", is_optional=True), _header(headers, SOURCE_NODE_HEADER)
    )
    return Source(
        _require_id(agent, "agent") if agent else "", _require_id(node, "node") if node else ""
    )


def split_model(model: str) -> tuple[str, str | None]:
    """Split `solarius@node2` into agent and node; without `@` there is no node."""
    agent, has_node, node = model.partition("@")
    return agent, node if has_node else None


def _read_model(model: str) -> tuple[_Said, _Said | None]:
    if not model:
        raise InvalidInputError(
            "no agent is named: put its id into `model`, such as solarius or solarius@node2",
            field="model",
        )
    agent, node = split_model(model)
    if node == "":
        raise InvalidIdError(
            f"{model[:80]!r} names no node behind the @: add one, or leave the @ out",
            value="",
            field="model",
        )
    return _Said(agent, "model"), _Said(node, "model") if node else None


def _field(fields: Fields, name: str, *, is_optional: bool = False) -> _Said | None:
    """Read a field that OpenAI does not know. An empty optional one counts as missing."""
    value = fields.get(name)
    if value is None or (is_optional and value == ""):
        return None
    if not isinstance(value, str):
        raise InvalidInputError(f"{name}: must be a string", field=name)
    return _Said(value, name)


def _header(headers: Headers, name: str) -> _Said | None:
    # Chat applications fill headers from templates: an empty one is no choice.
    value = headers.get(name.lower(), "")
    return _Said(value, name) if value else None


def _one_of(*said: _Said | None) -> _Said | None:
    """Return the first of several that must agree."""
    given = [one for one in said if one is not None]
    for other in given[1:]:
        if other.value != given[0].value:
            first = given[0]
            raise InvalidInputError(
                f"{first.place} says {first.value[:80]!r} and {other.place} says "
                f"{other.value[:80]!r}: give one of them, or the same twice",
                field=first.place,
            )
    return given[0] if given else None


def _require_id(said: _Said, what: str) -> str:
    try:
        return subjects.require_id(said.value, what)
    except InvalidIdError as error:
        raise InvalidIdError(
            f"{said.place}: {error.message}", value=error.value, field=said.place
        ) from None
