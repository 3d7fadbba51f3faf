"""Open pages, kept up to date: what has changed since the last look, for everybody who looks.

Readers of the same page share one feed, which looks as long as there are any. A reader that comes,
or comes again, is given everything; no history is kept.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Hashable, Mapping
from contextlib import suppress
from typing import Any, Final

from mesh import codec
from mesh.shim.site.painting import Part, View
from mesh.shim.site.sources import Sources
from mesh.shim.sse import event
from mesh.traffic_log import WINDOW_S

LOOK_S: Final = 0.2
"""How soon a change of the registry is seen. A look compares two tuples."""
TRAFFIC_S: Final = 1.0
"""How often the traffic is drawn again while there is some."""
FADE_S: Final = 5.0
"""How often numbers of the last minutes are worked out again when nothing happens any more."""


class Feed:
    """One page, and the changes of its parts."""

    def __init__(self, view: View, sources: Sources) -> None:
        self._view = view
        self._sources = sources
        self._parts: dict[str, Part] = {}
        self._changed: dict[str, int] = {}
        """When an element, or a row of a list, became what it is; by id."""
        self._order: dict[str, int] = {}
        """When a list got the rows that it has."""
        self._number = 0
        self._news = asyncio.Event()
        self._readers = 0
        self._looking: asyncio.Task[None] | None = None
        self._seen: Hashable = None

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield everything, and then what changes, each as an event, until closed."""
        self._readers += 1
        if self._looking is None:
            self._look()
            self._looking = asyncio.create_task(self._look_forever())
        seen = 0
        try:
            while True:
                number = self._number
                yield event(codec.dumps(self._since(seen)))
                seen = number
                while self._number == seen:
                    await self._news.wait()
        finally:
            self._readers -= 1
            if not self._readers and self._looking is not None:
                looking, self._looking = self._looking, None
                looking.cancel()
                with suppress(asyncio.CancelledError):
                    await looking

    @property
    def is_read(self) -> bool:
        """Whether anybody reads it."""
        return self._readers > 0

    async def _look_forever(self) -> None:
        drawn_at, traffic_seen = time.monotonic(), self._sources.log.version
        while True:
            await asyncio.sleep(LOOK_S)
            now, traffic = time.monotonic(), self._sources.log.version
            has_traffic = traffic != traffic_seen and now - drawn_at >= TRAFFIC_S
            is_fading = now - drawn_at >= FADE_S and self._is_warm()
            if self._sources.version != self._seen or has_traffic or is_fading:
                drawn_at, traffic_seen = now, traffic
                self._look()

    def _is_warm(self) -> bool:
        return time.time() - self._sources.log.last_at < WINDOW_S + FADE_S

    def _look(self) -> None:
        self._seen = self._sources.version
        parts = dict(self._view.parts())
        number = self._number + 1
        has_changed = False
        for name, part in parts.items():
            before = self._parts.get(name)
            if part == before:
                continue
            has_changed = True
            if isinstance(part, str):
                self._changed[name] = number
                continue
            known = before if isinstance(before, dict) else {}
            if list(part) != list(known):
                self._order[name] = number
            for row, html in part.items():
                if known.get(row) != html:
                    self._changed[row] = number
        if has_changed or not self._number:
            self._parts = parts
            rows = (part for part in parts.values() if isinstance(part, dict))
            there = set(parts).union(*rows)
            self._changed = {one: at for one, at in self._changed.items() if one in there}
            self._number = number
            news, self._news = self._news, asyncio.Event()
            news.set()

    def _since(self, seen: int) -> Mapping[str, Any]:
        elements: dict[str, str] = {}
        lists: dict[str, Any] = {}
        for name, part in self._parts.items():
            if isinstance(part, str):
                if self._changed.get(name, 0) > seen:
                    elements[name] = part
                continue
            rows = {row: html for row, html in part.items() if self._changed.get(row, 0) > seen}
            is_ordered_anew = self._order.get(name, 0) > seen
            if rows or is_ordered_anew:
                lists[name] = {"rows": rows, "order": list(part) if is_ordered_anew else None}
        return {"elements": elements, "lists": lists}
