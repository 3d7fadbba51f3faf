"""How an operation can fail, by rule: what its method, its body and its parameters bring with them.

The statuses and codes stand in `mesh.shim.status`, and what they mean in the docstrings of
`mesh.errors`: nothing is listed here that these do not know.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mesh import errors
from mesh.shim import status
from mesh.shim.components import first_paragraph
from mesh.shim.operations import Failing, Operation
from mesh.shim.status import TABLE, Row

ENDING: Final[tuple[Failing, ...]] = tuple(one for one, row in TABLE.items() if row.ends_calls)
"""What a call can end with."""
ASKING: Final[tuple[Failing, ...]] = (
    *ENDING,
    errors.NotAllowedError,
    errors.NodeNotFoundError,
    errors.AgentNotOnNodeError,
    errors.KeyReusedError,
    status.UNSUPPORTED,
)
"""Of operations that ask an agent."""
OF_A_CALL: Final[tuple[Failing, ...]] = (
    errors.InvalidInputError,
    errors.CallNotFoundError,
    errors.NotAllowedError,
    errors.TransportError,
)
"""Of operations on a call that there was."""
OF_AN_AGENT: Final[tuple[Failing, ...]] = (
    errors.AgentNotFoundError,
    errors.NodeNotFoundError,
    errors.AgentNotOnNodeError,
    errors.NotAllowedError,
)
"""Of operations that look an agent up."""

_EVERY: Final[tuple[Failing, ...]] = (
    status.MALFORMED,
    status.WRONG_HOST,
    status.HEADERS_TOO_LARGE,
    status.UNKNOWN_ENCODING,
    status.TOO_MANY_CONNECTIONS,
    errors.MeshError,
)
_KEYED: Final[tuple[Failing, ...]] = (errors.UnauthenticatedError, errors.TransportError)
_CHANGING: Final[tuple[Failing, ...]] = (status.FOREIGN_ORIGIN,)
_POSTED: Final[tuple[Failing, ...]] = (status.WRONG_CONTENT_TYPE, status.BODY_TOO_SLOW)
_WITH_BODY: Final[tuple[Failing, ...]] = (
    errors.InvalidInputError,
    errors.PayloadTooLargeError,
    errors.DoorBusyError,
)


@dataclass(frozen=True, slots=True)
class Told:
    """One way to fail, as a client is told of it."""

    row: Row
    meaning: str


def failures_of(operation: Operation) -> dict[int, list[Told]]:
    """Return every way in which an operation can fail, by status, each code once."""
    found: dict[int, dict[str, list[Failing]]] = {}
    for one in dict.fromkeys(_all(operation)):
        row = _row(one)
        found.setdefault(row.status, {}).setdefault(row.code, []).append(one)
    return {number: [_told(ways) for ways in found[number].values()] for number in sorted(found)}


def _all(operation: Operation) -> Iterator[Failing]:
    """Yield what can go wrong, the special before the general."""
    places = {one.place for one in operation.parameters}
    yield from operation.failures
    if operation.request is not None:
        yield from _WITH_BODY
    if places & {"query", "header"}:
        yield errors.InvalidInputError
    if "path" in places:
        # An id with a slash in it is another path.
        yield status.UNKNOWN_URL
    if not operation.is_open:
        yield from _KEYED
    if operation.method != "GET":
        yield from _CHANGING
    if operation.method == "POST":
        yield from _POSTED
    yield from _EVERY


def _row(one: Failing) -> Row:
    return one if isinstance(one, Row) else TABLE[one]


def _told(ways: list[Failing]) -> Told:
    """Put together what has one status and code: a class says it for those that derive from it."""
    classes = [one for one in ways if not isinstance(one, Row)]
    heads = [one for one in classes if not any(base in classes for base in one.__mro__[1:])]
    row = _row(ways[0])
    meanings = [row.meaning] if row.meaning else [first_paragraph(one) for one in heads]
    return Told(row, " ".join(dict.fromkeys(meanings)))
