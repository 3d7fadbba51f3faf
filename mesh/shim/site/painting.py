"""What pages are made of: pieces of HTML by the id of their element, of which some are lists.

A page is its template with these parts in it, and what changes on an open page is the parts that
are others than before. Whatever an agent says about itself is text, and escaped by the templates.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from markupsafe import Markup

from mesh.shim.site.rows import AgentRow, Allows, NodeRow, agent_rows, node_rows
from mesh.shim.site.snippets import Address
from mesh.shim.site.sources import Sources
from mesh.traffic_log import Numbers
from schemas.registry import State

Part = str | dict[str, str]
"""HTML of one element, or of the elements of a list by their ids, in their order."""
Parts = Mapping[str, Part]

ROWS_SHOWN: Final = 30
"""On one page: a browser lays a table of 500 rows out for a fifth of a second before it paints."""
PIECES_KEPT: Final = 2_000
"""Of one page. Calls come and go, and each is a row."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads a page, as far as the page depends on it."""

    root: str
    """The way from the page to the root of this server: `./` or `../`."""
    address: Address
    key: str = ""
    """Whose API key it is; empty where none is needed."""
    query: tuple[tuple[str, str], ...] = ()


class View(Protocol):
    """A page."""

    template: str
    title: str

    def context(self) -> Mapping[str, Any]:
        """Return what its template shows beside the parts, and never changes."""

    def parts(self) -> Parts:
        """Return what it shows now."""


class Painter:
    """Makes HTML of rows by the macros of `parts.html`; the same row costs nothing again.

    Rows that are gone are forgotten with all others, now and then.
    """

    def __init__(self, macros: Any, root: str) -> None:
        self._macros = macros
        self._root = root
        self._made: dict[str, tuple[Any, str]] = {}

    def one(self, macro: str, part: str, *data: Any) -> str:
        """Return the HTML of one element."""
        known = self._made.get(part)
        if known is None or known[0] != data:
            if len(self._made) >= PIECES_KEPT:
                self._made.clear()
            html: Markup = getattr(self._macros, macro)(self._root, part, *data)
            known = self._made[part] = (data, str(html).strip())
        return known[1]

    def many(self, macro: str, prefix: str, rows: Sequence[Any], *data: Any) -> dict[str, str]:
        """Return the HTML of a list of rows that have ids."""
        return {
            f"{prefix}-{row.id}": self.one(macro, f"{prefix}-{row.id}", row, *data) for row in rows
        }


@dataclass(frozen=True, slots=True)
class Strip:
    """The numbers on top of every page."""

    nodes_up: int
    nodes: int
    agents_up: int
    agents: int
    is_connected: bool
    is_watched: bool
    has_traffic: bool
    numbers: Numbers


class PageView:
    """What all pages have: the numbers on top."""

    def __init__(self, sources: Sources, painter: Painter, reader: Reader, allows: Allows) -> None:
        self._sources = sources
        self._paint = painter
        self._reader = reader
        self._allows = allows

    def _rows(self) -> list[AgentRow]:
        return agent_rows(self._sources.directory, self._sources.log, self._allows)

    def _nodes(self, rows: Sequence[AgentRow]) -> list[NodeRow]:
        return node_rows(self._sources.directory, rows)

    def _numbers(self, rows: Sequence[AgentRow], nodes: Sequence[NodeRow]) -> str:
        sources = self._sources
        shown = Strip(
            nodes_up=sum(one.state == State.ONLINE for one in nodes),
            nodes=len(nodes),
            agents_up=sum(one.is_up for one in rows),
            agents=len(rows),
            is_connected=sources.is_connected,
            is_watched=sources.directory.is_authoritative,
            has_traffic=self._sees_traffic,
            numbers=sources.log.numbers(time.time()),
        )
        return self._paint.one("strip", "strip", shown)

    @property
    def _sees_traffic(self) -> bool:
        return self._sources.hears_traffic and not self._reader.key
