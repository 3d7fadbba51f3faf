"""How a browser shows its API key: in a cookie, which a page's own address cannot carry.

Scripts cannot read it, and a page from elsewhere cannot send it with a change: `mesh.shim.guard`
takes it from pages of this server only. It is set and forgotten by `mesh.shim.site.login`.
"""

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Final

LIFETIME_S: Final = 30 * 86_400
"""Of a log-in. The key in it ends sooner if it is revoked or expires."""
_PREFIX: Final = "mesh_key"

Headers = Mapping[bytes, bytes]
"""By lower-case name."""


def read_cookie(headers: Headers) -> str:
    """Return the token that a browser has kept for this server, or nothing."""
    raw = headers.get(b"cookie")
    if raw is None:
        return ""
    name = _name(headers)
    try:
        found = SimpleCookie(raw.decode("latin-1")).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def make_cookie(headers: Headers, token: str) -> str:
    """Return the `Set-Cookie` header that makes a browser keep a token; no token: forget it.

    Without a path it counts from where the log-in page was found, also below a proxy's path.
    """
    # The scheme that the browser sees: a proxy may have ended TLS before us.
    is_secure = headers.get(b"origin", b"").startswith(b"https:")
    secure = "; Secure" if is_secure else ""
    age_s = LIFETIME_S if token else 0
    return f"{_name(headers)}={token}; Max-Age={age_s}; HttpOnly; SameSite=Lax{secure}"


def _name(headers: Headers) -> str:
    """Name the cookie by our port: browsers keep one jar for all servers of a machine."""
    _, _, port = headers.get(b"host", b"").rpartition(b":")
    return f"{_PREFIX}_{port.decode()}" if port.isdigit() else _PREFIX
