"""How a door is guarded: whether keys are required, which hosts and origins are trusted.

Decides about one header at a time; `mesh.shim.guard` asks, for each request.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from mesh.settings import Settings

_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:@/\s]+))(?::[0-9]{0,5})?")
"""An address in brackets or a name, and perhaps a port."""
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one door. The defaults suit one that listens on loopback."""

    requires_keys: bool = False
    own_host: str = "127.0.0.1"
    """What it was told to listen on."""
    allowed_hosts: frozenset[str] = frozenset()
    """Other names that it is reached by."""
    cors_origins: tuple[str, ...] = ()

    def admits_host(self, host: bytes) -> bool:
        """Tell whether a client may have reached this door by a `Host` header.

        A page from elsewhere can make its own name point here, and is of the same origin then.
        Its browser still says the page's name, and has no API key of ours to send.
        """
        if self.requires_keys and not self.allowed_hosts:
            return True
        name = _host_name(host)
        ours = {"localhost", self.own_host, *self.allowed_hosts}
        return bool(name) and (name in ours or _is_address(name))

    def trusts_origin(self, origin: bytes, host: bytes) -> bool:
        """Tell whether a page of `origin` may change something here: ours, or one that is named.

        The scheme is not compared: behind a proxy that ends TLS it is not ours.
        """
        text = origin.decode("latin-1").lower()
        if text in self.cors_origins or "*" in self.cors_origins:
            return True
        return is_own_origin(origin, host)


LOOPBACK_RULES: Final = Rules()


def is_own_origin(origin: bytes, host: bytes) -> bool:
    """Tell whether a page of `origin` came from the server that it asks as `host`."""
    scheme, _, authority = origin.decode("latin-1").lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    asked = host.decode("latin-1").lower()
    return bool(port and asked) and authority in (asked, asked.removesuffix(port or ""))


def rules_for(settings: Settings, addresses: Iterable[str]) -> Rules:
    """Return the rules of a door that listens on `addresses`."""
    is_local = all(_is_loopback(address) for address in addresses)
    return Rules(
        requires_keys=settings.http_auth == "keys" or not is_local,
        own_host=settings.http_host.lower(),
        allowed_hosts=frozenset(settings.http_allowed_hosts),
        cors_origins=settings.http_cors_origins,
    )


def _host_name(host: bytes) -> str:
    """Return a `Host` header without its port, empty when it is none."""
    parts = _HOST.fullmatch(host.decode("latin-1").lower())
    return (parts[1] or parts[2].removesuffix(".")) if parts else ""


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    return _is_address(address) and ip_address(address).is_loopback
