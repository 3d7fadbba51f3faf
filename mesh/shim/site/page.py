"""What every page does: shown as HTML, and live for whoever accepts `text/event-stream`."""

import asyncio
import logging
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.types import Receive, Scope, Send

from mesh.access import STALE_S, Access
from mesh.errors import (
    AgentNotFoundError,
    InvalidIdError,
    MeshError,
    UnauthenticatedError,
)
from mesh.shim.connection_test import ConnectionTests
from mesh.shim.door import Door
from mesh.shim.guard import (
    is_logged_in,
    is_stranger,
    key_of,
    may_call,
    require_certainty,
)
from mesh.shim.http import base_url, read_headers
from mesh.shim.operations import Operation, Tag
from mesh.shim.pages import Pages, root_of
from mesh.shim.paging import Query
from mesh.shim.rules import Rules
from mesh.shim.site.feed import Feed
from mesh.shim.site.login import ask_for_key
from mesh.shim.site.painting import Painter, Reader, View
from mesh.shim.site.rows import Allows
from mesh.shim.site.snippets import Address
from mesh.shim.site.sources import Sources
from mesh.shim.sse import EventStream
from mesh.shim.status import failure
from mesh.shim.waiting import beside
from schemas.access import ApiKey

logger = logging.getLogger(__name__)

PAINTERS_KEPT: Final = 500
_EVENTS: Final = "text/event-stream"


class Site:
    """What the pages share: where they read, how they are painted, and who has them open."""

    def __init__(self, door: Door, rules: Rules, pages: Pages, tests: ConnectionTests) -> None:
        self.door = door
        self.pages = pages
        self.sources = Sources(door, tests)
        self._needs_key = rules.requires_keys
        self._macros = pages.macros("parts.html")
        self._painters: dict[tuple[str, str], Painter] = {}
        self._feeds: dict[tuple[str, Reader], Feed] = {}

    def reader(self, scope: Scope, parameters: tuple[str, ...]) -> Reader:
        """Return who reads, as far as a page depends on it.

        Raises:
            InvalidInputError: the query has a parameter that the page has not.
        """
        key = key_of(scope)
        query = Query.read(scope, parameters).values
        return Reader(
            root=root_of(scope),
            address=Address(
                self.door.public_url or base_url(scope), self._nats_url(), self._needs_key
            ),
            key=key.id if key is not None and key.agents else "",
            query=tuple(sorted((name, value) for name, value in query.items() if value)),
        )

    def painter(self, page: str, root: str) -> Painter:
        """Return what has painted this page before, if it has."""
        if (page, root) not in self._painters:
            if len(self._painters) >= PAINTERS_KEPT:
                self._painters.clear()
            self._painters[page, root] = Painter(self._macros, root)
        return self._painters[page, root]

    def feed(self, page: str, reader: Reader, view: View) -> Feed:
        """Return the feed of a page, which its readers share."""
        found = self._feeds.get((page, reader))
        if found is None or not found.is_read:
            self._feeds = {key: one for key, one in self._feeds.items() if one.is_read}
            found = self._feeds[page, reader] = Feed(view, self.sources)
        return found

    def _nats_url(self) -> str:
        url = self.door.connection.client.connected_url
        if url is None:
            return "nats://127.0.0.1:4222"
        split = urlsplit(url.geturl())
        return f"{split.scheme}://{split.netloc.rpartition('@')[2]}"


class Page:
    """One page. A subclass says where it is, and what is on it."""

    operations: tuple[Operation, ...]
    parameters: tuple[str, ...] = ()

    def __init__(self, site: Site) -> None:
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        is_live = _EVENTS in read_headers(scope).get("accept", "")
        if is_stranger(scope):
            try:
                require_certainty(scope)
            except MeshError as error:
                if is_live:
                    raise
                await self._refuse(scope, send, error)
                return
            if is_live:
                raise UnauthenticatedError("an API key is required: log in at /login")
            await ask_for_key(self._site.pages, scope, send)
            return
        try:
            reader = self._site.reader(scope, self.parameters)
            view = self._view(scope, reader)
        except MeshError as error:
            await self._refuse(scope, send, error)
            return
        if is_live:
            await self._follow(scope, reader, view, receive, send)
        else:
            await self._show(scope, reader, view, send)

    def _view(self, scope: Scope, reader: Reader) -> View:
        raise NotImplementedError

    def _shown(self, scope: Scope, reader: Reader) -> tuple[Sources, Painter, Reader, Allows]:
        """Return what a view is made of."""
        painter = self._site.painter(scope["path"], reader.root)
        return self._site.sources, painter, reader, lambda agent: may_call(scope, agent)

    async def _show(self, scope: Scope, reader: Reader, view: View, send: Send) -> None:
        # Watched for a moment, so that a page that is looked at again and again knows the traffic.
        async with self._site.sources.traffic.watching():
            context = {
                **view.context(),
                "root": reader.root,
                "here": self.operations[0].path,
                "title": view.title,
                "is_logged_in": is_logged_in(scope),
                "parts": view.parts(),
            }
        page = self._site.pages.render(view.template, context)
        await self._site.pages.send(scope, send, page)

    async def _follow(
        self, scope: Scope, reader: Reader, view: View, receive: Receive, send: Send
    ) -> None:
        door = self._site.door
        stream = EventStream(send, {}, pace=door.pace)
        async with self._site.sources.traffic.watching():
            with door.waiting(receive) as over:
                feed = self._site.feed(scope["path"], reader, view)
                watching = asyncio.create_task(_end_with_key(door.access, key_of(scope), over))
                try:
                    await beside(over, stream.relay(feed.events()))
                except MeshError as error:
                    # This door closes; the browser comes again by itself.
                    if not stream.has_begun:
                        raise
                    await stream.fail(b": %b\n\n" % error.code.encode())
                finally:
                    watching.cancel()

    async def _refuse(self, scope: Scope, send: Send, error: MeshError) -> None:
        status = failure(error).status
        if isinstance(error, AgentNotFoundError | InvalidIdError):
            status = 404
        context: dict[str, Any] = {
            "root": root_of(scope),
            "here": "",
            "title": "Not found" if status == 404 else "Not possible",
            "message": error.message,
            "is_logged_in": is_logged_in(scope),
            "parts": {},
        }
        page = self._site.pages.render("refused.html", context)
        await self._site.pages.send(scope, send, page, status)


def page_operation(name: str, path: str, summary: str) -> tuple[Operation, ...]:
    """Return the operation of a page, which the document of the API does not list."""
    return (
        Operation(name, "GET", path, Tag.DOCUMENTATION, summary, is_open=True, is_listed=False),
    )


async def _end_with_key(access: Access, key: ApiKey | None, over: "asyncio.Future[None]") -> None:
    """End the reading of a page that stays open for days, when its key is no longer good."""
    while key is not None and not over.done():
        await asyncio.sleep(STALE_S)
        try:
            await access.verify_again(key)
        except UnauthenticatedError as error:
            if not over.done():
                over.set_exception(error)
        except MeshError as error:
            # Who cannot be asked has not refused.
            logger.debug("key %s is not verified: %s", key.id, error)
