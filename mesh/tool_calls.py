"""Tool calls of an answer as OpenAI clients read them: whole ones, and those that come in pieces.

Agents and backends leave out what clients insist on: an index that counts from 0, an id and a type
on the first piece of a call and on no other, arguments that are text. What they add is kept. Knows
no tool and runs none. Source of the shapes: the OpenAI API reference, "The chat completion object"
and "chunk object".
"""

import os
from collections.abc import Mapping
from typing import Any, Final

import orjson

FUNCTION: Final = "function"
_OURS: Final = frozenset({"index", "id", "type", FUNCTION})


def whole_call(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool call with everything that clients look for.

    Raises:
        TypeError: its function is no object, or its arguments are neither text nor JSON.
    """
    call = {**_begun(given), **_others(given)}
    if call["type"] == FUNCTION and not call[FUNCTION]["arguments"]:
        # Clients parse it without looking.
        call[FUNCTION]["arguments"] = "{}"
    return call


class ToolCallParts:
    """The tool calls of one streamed answer, as far as they have come."""

    def __init__(self) -> None:
        self._calls: list[dict[str, Any]] = []
        self._places: dict[Any, int] = {}
        """By the index that the agent gives, which may begin anywhere."""

    def add(self, piece: Mapping[str, Any]) -> dict[str, Any]:
        """Take in a piece, and return it as clients read it.

        The first of an index names the call, later ones add to its arguments. Without an index, a
        piece with another id or a name begins a call, and any other goes on with the last one.

        Raises:
            TypeError: its function is no object, or its arguments are neither text nor JSON.
        """
        place = self._place(piece)
        if place < len(self._calls):
            return {"index": place, **_grown(self._calls[place], piece), **_others(piece)}
        self._calls.append({**_begun(piece), **_others(piece)})
        return {"index": place, **_begun(self._calls[place]), **_others(piece)}

    def whole(self) -> list[dict[str, Any]]:
        """Return the calls, put together."""
        return [whole_call(one) for one in self._calls]

    def _place(self, piece: Mapping[str, Any]) -> int:
        index = piece.get("index")
        if index is not None:
            return self._places.setdefault(index, len(self._calls))
        last = self._calls[-1] if self._calls else {}
        name = piece.get("id")
        begins = name != last.get("id") if name else bool(_function(piece).get("name"))
        return len(self._calls) - 1 if last and not begins else len(self._calls)


def _begun(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first piece of a call, or a whole one: who it is, and how it begins."""
    kind = given.get("type") or FUNCTION
    call: dict[str, Any] = {"id": given.get("id") or f"call_{os.urandom(12).hex()}", "type": kind}
    if kind == FUNCTION:
        function = _function(given)
        ours = {
            "name": function.get("name") or "",
            "arguments": _text(function.get("arguments")),
        }
        call[FUNCTION] = {**ours, **function, **ours}
    return call


def _grown(call: dict[str, Any], piece: Mapping[str, Any]) -> dict[str, Any]:
    """Add a later piece to its call, and return what of it is new."""
    given, own = _function(piece), call.setdefault(FUNCTION, {"name": "", "arguments": ""})
    news = {"arguments": _text(given.get("arguments"))}
    own["arguments"] += news["arguments"]
    if not own["name"] and given.get("name"):
        own["name"] = news["name"] = given["name"]
    return {FUNCTION: news}


def _function(piece: Mapping[str, Any]) -> Mapping[str, Any]:
    function = piece.get(FUNCTION) or {}
    if not isinstance(function, Mapping):
        raise TypeError(f"the function of a tool call must be an object, not {function!r:.80}")
    return function


def _others(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are nobody's business here, such as a vendor's signature."""
    return {name: value for name, value in given.items() if name not in _OURS}


def _text(arguments: Any) -> str:
    """Return arguments as text: JSON where an agent gives the value itself."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
