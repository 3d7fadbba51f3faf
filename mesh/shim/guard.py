"""What every request must pass before an endpoint sees it: host, origin, content type, API key.

Plain ASGI on the path of each request, so what is usual is decided by a look into a set or a
dictionary. Tells endpoints whose key it was; they ask `require_agent`. The rules stand in
`mesh.shim.rules`, keys in `mesh.access`, the limits of a connection in `mesh.shim.protocol`.
"""

from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from mesh.access import Access
from mesh.errors import MeshError, NotAllowedError, UnauthenticatedError
from mesh.shim.cookie import read_cookie
from mesh.shim.http import send_json
from mesh.shim.operations import Operation
from mesh.shim.rules import Rules, is_own_origin
from mesh.shim.status import (
    FOREIGN_ORIGIN,
    MALFORMED,
    WRONG_CONTENT_TYPE,
    WRONG_HOST,
    Failure,
    failure,
    refusal,
)
from schemas.access import ApiKey

_KEY: Final = "mesh.key"
_DOUBT: Final = "mesh.key_doubt"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_JSON: Final = b"application/json"
_HOSTS_KEPT: Final = 256

Headers = Mapping[bytes, bytes]
"""By lower-case name; of repeated ones the last."""


def key_of(scope: Scope) -> ApiKey | None:
    """Return the API key of a request: None where none is required, and where none was shown."""
    found: ApiKey | None = scope.get(_KEY)
    return found


def owner_of(scope: Scope) -> str:
    """Return who a request is from, as far as keys tell: the id of its key, or nothing."""
    key = key_of(scope)
    return key.id if key is not None else ""


def is_stranger(scope: Scope) -> bool:
    """Tell whether keys are required and this request, on an open path, has shown none."""
    return _KEY in scope and scope[_KEY] is None


def is_logged_in(scope: Scope) -> bool:
    """Tell whether a request's key is one that a browser keeps."""
    return key_of(scope) is not None and not shown_token(dict(scope["headers"]))


def may_call(scope: Scope, agent: str) -> bool:
    """Tell whether a request's key is good for `agent`."""
    key = key_of(scope)
    return key is None or key.allows(agent)


def sees_everybody(scope: Scope) -> bool:
    """Tell whether a request's key is good for all agents, so that no list needs a look at it."""
    key = key_of(scope)
    return key is None or not key.agents


def require_certainty(scope: Scope) -> None:
    """Check that whoever is a stranger here is one, and not somebody whose key cannot be read now.

    Raises:
        MeshError: what came in between.
    """
    doubt: MeshError | None = scope.get(_DOUBT)
    if doubt is not None:
        raise doubt


def require_agent(scope: Scope, agent: str) -> None:
    """Check that a request's key is good for `agent`, before anything is said about it.

    Raises:
        NotAllowedError: it is for other agents.
    """
    if not may_call(scope, agent):
        raise NotAllowedError(
            f"this API key is not for agent {agent[:80]!r}: ask for one that is", agent=agent
        )


class Guard:
    """Lets through what may pass, and answers the rest."""

    def __init__(
        self, app: ASGIApp, rules: Rules, access: Access, operations: Collection[Operation]
    ) -> None:
        self._app = app
        self._rules = rules
        self._access = access
        is_open = [path for one in operations if one.is_open for path in one.paths]
        self._open_paths = frozenset(one for one in is_open if "{" not in one)
        """What needs no key: load balancers have none, nor have those who read the documentation.
        Who shows no key there is shown no details."""
        self._open_prefixes = tuple(one.partition("{")[0] for one in is_open if "{" in one)
        self._form_paths = frozenset(one.path for one in operations if one.takes_form)
        self._good_hosts: set[bytes] = set()
        """`Host` headers that have passed: clients send the same few."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if scope["path"][:1] != "/":
            _take_absolute_target(scope, headers)
        told = self._complaint(scope, headers)
        if told is None and self._rules.requires_keys:
            told = await self._authenticate(scope, headers)
        if told is None:
            await self._app(scope, receive, send)
        else:
            await send_json(send, told.status, told.body, told.headers)

    def _complaint(self, scope: Scope, headers: Headers) -> Failure | None:
        """Say what is wrong with a request, whoever sent it."""
        host = headers.get(b"host")
        # Without one it is HTTP/1.0, and no browser.
        if host is not None and host not in self._good_hosts and not self._admits(host):
            return refusal(
                WRONG_HOST,
                f"this server is not {_shown(host)}: use its IP address or localhost, or name "
                "the host in MESH_HTTP_ALLOWED_HOSTS",
            )
        if b"transfer-encoding" in headers and (
            b"content-length" in headers or scope["http_version"] == "1.0"
        ):
            # RFC 9112, 6.3: a proxy may have read another length. The connection must not go on.
            message = "Transfer-Encoding beside Content-Length or in HTTP/1.0: send one length"
            return _closing(refusal(MALFORMED, message))
        if scope["method"] in _SAFE_METHODS:
            return None
        return self._complaint_about_change(scope, headers)

    def _complaint_about_change(self, scope: Scope, headers: Headers) -> Failure | None:
        origin, host = headers.get(b"origin"), headers.get(b"host", b"")
        is_form = scope["path"] in self._form_paths
        trusts = is_own_origin if is_form else self._rules.trusts_origin
        if origin is not None and not trusts(origin, host):
            return refusal(
                FOREIGN_ORIGIN,
                f"pages of {_shown(origin)} may not call this server: name that origin in "
                "MESH_HTTP_CORS_ORIGINS",
            )
        if is_form or scope["method"] == "DELETE" or not _has_body(headers):
            return None
        content_type = headers.get(b"content-type", b"")
        if content_type != _JSON and not _is_json(content_type):
            # A form of a foreign page can send any other type without asking first.
            message = f"the body is {_shown(content_type) if content_type else 'of no type'}"
            return refusal(
                WRONG_CONTENT_TYPE,
                f"{message}: send JSON, with the header 'content-type: application/json'",
            )
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            message = "the body is compressed: send it as it is, without content-encoding"
            return refusal(WRONG_CONTENT_TYPE, message)
        return None

    async def _authenticate(self, scope: Scope, headers: Headers) -> Failure | None:
        path = scope["path"]
        is_open = path in self._open_paths or path.startswith(self._open_prefixes)
        scope[_KEY] = None
        token, seal = shown_token(headers), ""
        if not token:
            seal = kept_seal(scope["method"], headers)
        if is_open and not (token or seal):
            return None
        try:
            scope[_KEY] = await self._verified(token, seal)
        except UnauthenticatedError as error:
            return None if is_open else failure(error)
        except MeshError as error:
            if not is_open:
                return failure(error)
            scope[_DOUBT] = error
        return None

    async def _verified(self, token: str, seal: str) -> ApiKey:
        if seal:
            return await self._access.verify_seal(seal)
        if not token:
            raise UnauthenticatedError(
                "an API key is required: send 'Authorization: Bearer mesh_…'; "
                "`mesh keys create NAME` makes one"
            )
        return await self._access.verify(token)

    def _admits(self, host: bytes) -> bool:
        if not self._rules.admits_host(host):
            return False
        if len(self._good_hosts) < _HOSTS_KEPT:
            self._good_hosts.add(host)
        return True


def _take_absolute_target(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Read `GET http://host/path`, as RFC 9112, 3.2.2 demands: the target's host counts."""
    scheme, has_scheme, rest = scope["raw_path"].partition(b"://")
    if not has_scheme or scheme.lower() not in (b"http", b"https"):
        return
    authority, slash, path = rest.partition(b"/")
    headers[b"host"] = authority
    # Endpoints write addresses of ours with it: what is checked is what they read.
    scope["headers"] = [*headers.items()]
    scope["raw_path"] = b"/" + path
    trimmed = path.rstrip(b"/") if slash else b""
    scope["path"] = "/" + unquote(trimmed.decode("ascii"))


def shown_token(headers: Headers) -> str:
    """Return what a client shows as its key, in one of the two headers that clients use."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        token = headers.get(b"x-api-key", b"")
    return token.strip().decode("latin-1")


def kept_seal(method: str, headers: Headers) -> str:
    """Return what a browser has kept of its log-in: a change counts from our own pages only."""
    if method not in _SAFE_METHODS:
        origin = headers.get(b"origin", b"")
        if not is_own_origin(origin, headers.get(b"host", b"")):
            return ""
    return read_cookie(headers)


def _has_body(headers: Headers) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def _is_json(content_type: bytes) -> bool:
    kind, _, parameters = content_type.decode("latin-1").lower().partition(";")
    main, _, sub = kind.strip().partition("/")
    if main != "application" or not (sub == "json" or sub.endswith("+json")):
        return False
    charsets = [one.strip() for one in parameters.split(";") if "charset" in one]
    return all(one.replace('"', "") in ("charset=utf-8", "charset=utf8") for one in charsets)


def _closing(told: Failure) -> Failure:
    return Failure(told.status, {**told.headers, "connection": "close"}, told.body)


def _shown(value: bytes | None) -> str:
    return repr((value or b"")[:80].decode("latin-1"))
