"""How a browser stays logged in: a cookie that stands for an API key, and is none.

Browsers send cookies to every port of a host, so it must be worth nothing elsewhere: see
`mesh.access.Access.seal`. Scripts cannot read it, and a page from elsewhere cannot send it with a
change: `mesh.shim.guard` takes it from pages of this server only. It is set and forgotten by
`mesh.shim.site.login`.
"""

from collections.abc import Mapping
from typing import Final

LIFETIME_S: Final = 30 * 86_400
"""Of a log-in. It ends sooner if its key is revoked or expires."""
_PREFIX: Final = "mesh_login"

Headers = Mapping[bytes, bytes]
"""By lower-case name."""


def read_cookie(headers: Headers) -> str:
    """Return the seal that a browser has kept for this server, or nothing.

    Taken apart by hand: the standard library gives up at other servers' cookies that it dislikes,
    and with them at ours.
    """
    wanted = cookie_name(headers.get(b"host", b"")).encode()
    for part in headers.get(b"cookie", b"").split(b";"):
        name, _, value = part.partition(b"=")
        if name.strip() == wanted:
            return value.strip().decode("latin-1")
    return ""


def make_cookie(headers: Headers, seal: str) -> str:
    """Return the `Set-Cookie` header that makes a browser keep a seal; no seal: forget it.

    Without a path it counts from where the log-in page was found, also below a proxy's path.
    """
    # The scheme that the browser sees: a proxy may have ended TLS before us.
    is_secure = headers.get(b"origin", b"").startswith(b"https:")
    secure = "; Secure" if is_secure else ""
    age_s = LIFETIME_S if seal else 0
    name = cookie_name(headers.get(b"host", b""))
    return f"{name}={seal}; Max-Age={age_s}; HttpOnly; SameSite=Lax{secure}"


def cookie_name(host: bytes) -> str:
    """Name the cookie by our port: browsers keep one jar for all servers of a machine."""
    _, _, port = host.rpartition(b":")
    return f"{_PREFIX}_{port.decode()}" if port.isdigit() else _PREFIX
