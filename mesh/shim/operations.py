"""What an endpoint does, said once: its routes, its documentation, and who may use it.

Each endpoint class declares its operations beside its code. `mesh.shim.app` makes routes of them,
`mesh.shim.openapi` the document, `mesh.shim.docs` the page. Knows no endpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal, Protocol

from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from mesh.errors import MeshError
from mesh.shim.status import Row

Model = type[BaseModel]
Schema = Mapping[str, Any]
"""A JSON schema."""
Failing = type[MeshError] | Row
"""One way to fail: `mesh.shim.status` knows what it is over HTTP."""

EXAMPLE_AGENT: Final = "echo"
EXAMPLE_NODE: Final = "node1"
"""Whom the examples ask, and where. A page names what is there instead."""

_TEXT: Final[Schema] = {"type": "string"}


class Tag(Enum):
    """A chapter of the documentation, and what it is about. They stand in this order."""

    CHAT = ("Chat", "Ask an agent, as OpenAI's clients ask a model.")
    RESPONSES = (
        "Responses",
        "The same by OpenAI's Responses API, which many clients take by default. A response is a "
        "call by another name: nothing else is remembered, so that each request brings the whole "
        "conversation.",
    )
    CALLS = (
        "Calls",
        "Every call has an id, which the header `Mesh-Call-Id` of its answer tells. For a day it "
        "can be looked at, read again, and stopped as long as it runs; from any server of the "
        "mesh, also after a restart. Who knows the id may.",
    )
    REGISTRY = (
        "Registry",
        "Who is known, where it runs, and when it was last heard of. An API key that is for some "
        "agents shows no others.",
    )
    PRESENCE = (
        "Presence",
        "Who is there: people, by their browsers, and agents. A page reports by "
        "`static/presence.js`, which counts activity, hidden pages and closed ones.",
    )
    MODELS = ("Models", "To OpenAI's clients, agents are models.")
    HEALTH = ("Health", "For load balancers and supervisors. These need no API key.")
    DOCUMENTATION = ("Documentation", "This API, for programs.")

    def __init__(self, title: str, about: str) -> None:
        self.title = title
        self.about = about


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of a path, a query string, or a header."""

    name: str
    place: Literal["path", "query", "header"]
    meaning: str
    schema: Schema = field(default_factory=lambda: _TEXT)
    example: str = ""


@dataclass(frozen=True, slots=True)
class Events:
    """A stream of server-sent events."""

    models: Sequence[Model]
    """What the `data` of one can be, as JSON."""
    fails_with_envelope: bool = True
    """Whether the last one of a stream that failed is an error envelope."""
    ends_with_done: bool = False
    """Whether the last one of a stream that did not fail has `[DONE]` as its data."""


@dataclass(frozen=True, slots=True)
class Link:
    """What can be done with an answer: its `id` names what another operation takes in its path."""

    to: str
    """The id of that operation."""
    example: str
    """Which example of a request is answered so."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How an operation answers that has not failed."""

    status: int
    meaning: str
    model: Model | None = None
    """The JSON body."""
    events: Events | None = None
    """The body when it is streamed instead."""
    headers: Sequence[str] = ()
    """Names that `mesh.shim.openapi` knows."""
    links: Sequence[Link] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path."""

    id: str
    method: Literal["GET", "POST", "DELETE"]
    path: str
    """As Starlette writes it: `/v1/models/{id:path}`."""
    tag: Tag
    summary: str
    description: str = ""
    parameters: Sequence[Parameter] = ()
    request: Model | None = None
    examples: Mapping[str, Schema] = field(default_factory=dict)
    """Bodies of requests that work, by what they show."""
    answers: Sequence[Answer] = ()
    failures: Sequence[Failing] = ()
    """Beside those that its shape brings, which `mesh.shim.failures` adds."""
    special_failures: Mapping[int, Model] = field(default_factory=dict)
    """Bodies that are more than the error envelope, by status."""
    aliases: Sequence[str] = ()
    is_open: bool = False
    """Whether it needs no API key where keys are required, and sees to strangers by itself."""
    takes_form: bool = False
    """Whether its body is that of a page's form, and not JSON."""
    is_listed: bool = True
    """Whether the document has it; pages for people and their files are not in it."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that leads here, the documented one first."""
        # Some clients add the /v1 by themselves, and some want it in the base URL.
        known = (self.path, *self.aliases)
        return (*known, *(one[3:] for one in known if one.startswith("/v1/")))


class Endpoint(Protocol):
    """What answers requests: an ASGI application that knows its operations."""

    @property
    def operations(self) -> Sequence[Operation]:
        """What it can do, each on a path of its own or with a method of its own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
