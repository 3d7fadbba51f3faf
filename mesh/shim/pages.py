"""Pages for people: templates, the files they need, and the headers that keep them safe.

Everything comes from this server and nothing from elsewhere; a page needs no script. What stands
on a page is up to its endpoint.
"""

import gzip
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.types import Receive, Scope, Send

from mesh.shim.http import read_headers, send_body
from mesh.shim.operations import Operation, Tag

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Nothing but our own files, and requests to ourselves; no script or style in a page itself."""

_HERE: Final = Path(__file__).parent
_HTML: Final = "text/html; charset=utf-8"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOR_GOOD: Final = "public, max-age=31536000, immutable"
_ASK_AGAIN: Final = "no-cache"
_SAFETY: Final = {
    "x-content-type-options": "nosniff",
    # Not `no-referrer`: a form of a page without a referrer says `Origin: null`.
    "referrer-policy": "same-origin",
}


class Pages:
    """The templates in `templates/` and the files in `static/`, read once."""

    def __init__(self) -> None:
        self.files = [StaticFile(path) for path in sorted((_HERE / "static").iterdir())]
        """Endpoints, to be routed beside the pages."""
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.globals["static"] = {one.name: one.url for one in self.files}
        self._environment.filters |= {
            "prose": prose,
            "marked": marked,
            "breakable": breakable,
            "ms": milliseconds,
            "clock": clock,
        }

    def macros(self, template: str) -> Any:
        """Return the macros of a template, as attributes."""
        return self._environment.get_template(template).module

    def render(self, template: str, context: Mapping[str, Any]) -> bytes:
        """Return a page."""
        return self._environment.get_template(template).render(context).encode()

    async def send(self, scope: Scope, send: Send, page: bytes, status: int = 200) -> None:
        """Send a page."""
        headers = {
            "content-security-policy": CONTENT_SECURITY_POLICY,
            "cache-control": "no-store",
            "vary": "accept-encoding, accept",
            **_SAFETY,
        }
        if takes_gzip(scope):
            page = gzip.compress(page, compresslevel=5, mtime=0)
            headers["content-encoding"] = "gzip"
        await send_body(send, status, page, _HTML, headers)


def root_of(scope: Scope) -> str:
    """Return the relative way from a page to the root: a proxy may have put us below a path."""
    path = scope.get("raw_path") or scope["path"].encode()
    return "../" * (path.count(b"/") - 1) or "./"


def takes_gzip(scope: Scope) -> bool:
    """Tell whether a client can take a compressed answer."""
    return "gzip" in read_headers(scope).get("accept-encoding", "")


class StaticFile:
    """`GET /static/…`: one file. Its address has its content's hash, so that browsers keep it."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._body = path.read_bytes()
        self._hash = sha256(self._body).hexdigest()[:16]
        self._type = _TYPES[path.suffix]
        address = f"/static/{path.name}"
        self.url = f"static/{path.name}?v={self._hash}"
        """From the root."""
        self._packed = gzip.compress(self._body, mtime=0)
        self.operations = (
            Operation(
                f"get {path.name}",
                "GET",
                address,
                Tag.DOCUMENTATION,
                "A file that pages need",
                is_open=True,
                is_listed=False,
            ),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        tag = f'"{self._hash}"'
        is_exact = scope["query_string"] == b"v=" + self._hash.encode()
        headers = {
            "etag": tag,
            "cache-control": _FOR_GOOD if is_exact else _ASK_AGAIN,
            **_SAFETY,
        }
        if tag in read_headers(scope).get("if-none-match", ""):
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": 304, "headers": raw})
            await send({"type": "http.response.body"})
            return
        body = self._body
        if takes_gzip(scope):
            body = self._packed
            headers |= {"content-encoding": "gzip", "vary": "accept-encoding"}
        await send_body(send, 200, body, self._type, headers)


def prose(text: str) -> Markup:
    """Write the little Markdown that our descriptions have as HTML.

    Paragraphs, lists of one line each, and what `marked` knows; anything else is shown as it is.
    """
    parts = []
    for block in text.strip().split("\n\n"):
        lines = block.split("\n")
        if all(line.startswith("- ") for line in lines):
            items = Markup("").join(Markup("<li>%s</li>") % marked(line[2:]) for line in lines)
            parts.append(Markup("<ul>%s</ul>") % items)
        elif block:
            parts.append(Markup("<p>%s</p>") % marked(" ".join(lines)))
    return Markup("\n").join(parts)


def marked(text: str) -> Markup:
    """Write `code` and **strong** words in a line as HTML."""
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", coded))


def milliseconds(value: float) -> str:
    """Write a time that something took, with as many digits as are worth reading."""
    if value < 9.95:
        return f"{value:.1f} ms"
    return f"{value:.0f} ms" if value < 9_950 else f"{value / 1_000:.0f} s"


def clock(seconds: float) -> str:
    """Write a time of day of this machine's clock, in UTC; a script shows the reader's own."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S")


def breakable(path: str) -> Markup:
    """Let a path go on in the next line after its slashes."""
    return Markup("/<wbr>").join(path.split("/"))
