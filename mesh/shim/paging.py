"""A part of a list: its filters and its page, as a query string asks for them.

Knows nothing of what is listed.
"""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode

from starlette.types import Scope

from mesh import subjects
from mesh.errors import InvalidIdError, InvalidInputError
from mesh.shim.operations import Parameter
from schemas.registry import State

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1_000
MAX_OFFSET: Final = 1_000_000_000
MAX_TEXT_CHARS: Final = 200
PAGE: Final = ("limit", "offset")
PAGE_PARAMETERS: Final = (
    Parameter(
        "limit",
        "query",
        f"How many to list at most: {DEFAULT_LIMIT} when nothing is said.",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
    ),
    Parameter(
        "offset",
        "query",
        "How many to leave out before.",
        {"type": "integer", "minimum": 0, "maximum": MAX_OFFSET},
    ),
)
STATE_PARAMETER: Final = Parameter(
    "state", "query", "Only those in this state.", {"type": "string", "enum": [*State]}
)

Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Query:
    """The parameters of a request, each given once."""

    values: dict[str, str]

    @classmethod
    def read(cls, scope: Scope, filters: Collection[str]) -> "Query":
        """Read the query string of a request for a list with these filters.

        A parameter that is none is refused: a misspelt filter would show everything.

        Raises:
            InvalidInputError: a parameter is unknown, or given twice; `field` names it.
        """
        values: dict[str, str] = {}
        text = scope["query_string"].decode("latin-1")
        for name, value in parse_qsl(text, keep_blank_values=True, errors="replace"):
            if name not in filters and name not in PAGE:
                raise _unknown(name, (*filters, *PAGE))
            if name in values:
                raise InvalidInputError(f"{name}: give it once", field=name)
            values[name] = value
        return cls(values)

    def id(self, name: str) -> str | None:
        """Return a filter that is an id, or None if it is not given.

        Raises:
            InvalidIdError: it is none.
        """
        if not (text := self.values.get(name, "")):
            return None
        try:
            return subjects.require_id(text, name)
        except InvalidIdError as error:
            raise InvalidIdError(error.message, value=error.value, field=name) from None

    def choice(self, name: str, choices: type[Choice]) -> Choice | None:
        """Return a filter that is one of a few words, or None if it is not given.

        Raises:
            InvalidInputError: it is another word.
        """
        if not (text := self.values.get(name, "")):
            return None
        try:
            return choices(text)
        except ValueError:
            known = ", ".join(choices)
            raise InvalidInputError(
                f"{name}: {text[:40]!r} is none of {known}", field=name
            ) from None

    def text(self, name: str) -> str:
        """Return a filter that is free text, in small letters.

        Raises:
            InvalidInputError: it is longer than 200 characters.
        """
        text = self.values.get(name, "").strip().casefold()
        if len(text) > MAX_TEXT_CHARS:
            raise InvalidInputError(f"{name}: give {MAX_TEXT_CHARS} characters at most", field=name)
        return text

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """Return a parameter that is a whole number.

        Raises:
            InvalidInputError: it is none, or out of its range.
        """
        text = self.values.get(name, "")
        if not text:
            return default
        if text.isascii() and text.isdecimal() and len(text) < 16 and least <= int(text) <= most:
            return int(text)
        raise InvalidInputError(
            f"{name}: {text[:40]!r} is no whole number from {least} to {most}", field=name
        )


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, and the way to the next."""

    limit: int
    offset: int
    query: Query

    @classmethod
    def read(cls, query: Query) -> "Page":
        """Read which page a query asks for.

        Raises:
            InvalidInputError: `limit` or `offset` cannot be.
        """
        return cls(
            limit=query.number("limit", DEFAULT_LIMIT, 1, MAX_LIMIT),
            offset=query.number("offset", 0, 0, MAX_OFFSET),
            query=query,
        )

    def of(self, found: Sequence[Any]) -> Sequence[Any]:
        """Return what of a list stands on this page."""
        return found[self.offset : self.offset + self.limit]

    def facts(self, total: int, address: str) -> dict[str, Any]:
        """Return what an answer says of its page; `address` is that of the list."""
        end = self.offset + self.limit
        following = None
        if end < total:
            values = {**self.query.values, "limit": str(self.limit), "offset": str(end)}
            following = f"{address}?{urlencode(values)}"
        return {"total": total, "limit": self.limit, "offset": self.offset, "next": following}


def _unknown(name: str, known: Collection[str]) -> InvalidInputError:
    shown = name[:40]
    near = difflib.get_close_matches(shown, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return InvalidInputError(f"there is no parameter {shown!r}; {hint}", field=shown)
