"""Logging in: pages are for whoever has an API key, where the door requires one.

Who opens a page without a key is asked for it in its place, and comes back to it. The browser keeps
what stands for the key (`mesh.shim.cookie`); nothing about it is remembered here, so a log-in
counts at every door that is reached by the same name, and ends when the key does.
"""

from typing import Final
from urllib.parse import parse_qsl, quote

from starlette.types import Receive, Scope, Send

from mesh.access import Access
from mesh.errors import InvalidInputError, UnauthenticatedError
from mesh.shim.cookie import LIFETIME_S, make_cookie, read_cookie
from mesh.shim.http import read_body, send_body
from mesh.shim.operations import Operation, Tag
from mesh.shim.pages import Pages, root_of

LIMIT_BYTES: Final = 8 * 1024
_SEE_OTHER: Final = 303
_SAFE: Final = "/?&=-._~%+:,@"
"""What stays as it is in the address of a page of ours."""


class Login:
    """`/login`: shows the form, and takes it."""

    operations = (
        Operation(
            "getLogin",
            "GET",
            "/login",
            Tag.DOCUMENTATION,
            "See the log-in",
            is_open=True,
            is_listed=False,
        ),
        Operation(
            "logIn",
            "POST",
            "/login",
            Tag.DOCUMENTATION,
            "Log in",
            is_open=True,
            takes_form=True,
            is_listed=False,
        ),
    )

    def __init__(self, pages: Pages, access: Access, *, requires_keys: bool) -> None:
        self._pages = pages
        self._access = access
        self._requires_keys = requires_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if not self._requires_keys:
            await _go(send, "./")
        elif scope["method"] == "POST":
            await self._take(scope, receive, send)
        else:
            await ask_for_key(self._pages, scope, send, status=200)

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        form = _read_form(await read_body(scope, receive, LIMIT_BYTES))
        token, page = form.get("key", "").strip(), form.get("page", "")
        try:
            key = await self._access.verify(token)
        except UnauthenticatedError as error:
            await ask_for_key(self._pages, scope, send, message=error.message, page=page)
            return
        seal = await self._access.seal(key, LIFETIME_S)
        kept = make_cookie(dict(scope["headers"]), seal)
        await _go(send, _own_address(page), kept)


class Logout:
    """`POST /logout`: lets the browser forget the key."""

    operations = (
        Operation(
            "logOut",
            "POST",
            "/logout",
            Tag.DOCUMENTATION,
            "Log out",
            is_open=True,
            takes_form=True,
            is_listed=False,
        ),
    )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await _go(send, "./", make_cookie(dict(scope["headers"]), ""))


async def ask_for_key(
    pages: Pages,
    scope: Scope,
    send: Send,
    *,
    message: str = "",
    page: str = "",
    status: int = 401,
) -> None:
    """Send the form, in the place of whatever was asked for; `page` is where to go from it."""
    if not message and read_cookie(dict(scope["headers"])):
        message = "The key that you have logged in with is no longer valid."
    context = {
        "root": root_of(scope),
        "here": "",
        "title": "Log in",
        "message": message,
        "page": page or _address(scope),
        "is_logged_in": False,
    }
    await pages.send(scope, send, pages.render("login.html", context), status)


def _address(scope: Scope) -> str:
    """Return the address of the page that was asked for, from the root."""
    path = scope["path"].lstrip("/")
    query = scope["query_string"].decode("latin-1")
    return "" if path == "login" else quote(path) + (f"?{query}" if query else "")


def _own_address(page: str) -> str:
    """Return a relative address that leads to this server, whatever somebody wrote in the form."""
    return "./" + quote(page.lstrip("/\\"), safe=_SAFE)


def _read_form(body: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(body.decode(), errors="strict"))
    except UnicodeDecodeError:
        raise InvalidInputError("the form is not UTF-8", field="body") from None


async def _go(send: Send, address: str, cookie: str = "") -> None:
    headers = {"location": address, "cache-control": "no-store"}
    if cookie:
        headers["set-cookie"] = cookie
    await send_body(send, _SEE_OTHER, b"", "text/plain; charset=utf-8", headers)
