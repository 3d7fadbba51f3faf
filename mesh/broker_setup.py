"""What the broker inside is started with: a file of `nats/`, and the variables that it asks for.

In secure mode it is given the accounts, too. Starts nothing; see `mesh.broker`.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import SettingsError
from mesh.settings import Settings, server_certificate
from mesh.trust.keyring import Keyring
from mesh.trust.server_tokens import ServerTokens


@dataclass(frozen=True, slots=True)
class Setup:
    """A configuration, and what it asks the environment for."""

    conf: Path
    variables: Mapping[str, str]


def prepare(settings: Settings) -> Setup:
    """Choose the configuration, and give the server the accounts of a secure mesh.

    Raises:
        SettingsError: it would listen beyond loopback and ask nobody who he is.
        CredentialsError: the keys of a secure mesh cannot be read.
    """
    # The wheel carries the files inside the package, a checkout beside it.
    folders = (Path(__file__).parent / "nats_conf", Path(__file__).parents[1] / "nats")
    folder = next(one for one in folders if one.exists())
    variables = {
        "HUB_NAME": _quoted(settings.node),
        "HUB_HOST": _quoted(settings.nats_host),
        "HUB_PORT": str(settings.nats_port or -1),
        "HUB_MONITOR": _quoted(f"127.0.0.1:{settings.nats_monitor_port or -1}"),
        "HUB_DATA_DIR": _quoted(str(settings.data_dir)),
        "HUB_SYNC_INTERVAL": _quoted(settings.sync_interval),
    }
    _require_protected(settings)
    if not Keyring.exists(settings.keys_dir):
        return Setup(folder / "hub.conf", variables)
    tokens = ServerTokens.of(Keyring.open(settings.keys_dir))
    accounts = settings.data_dir / "accounts"
    tokens.write_accounts(accounts)
    variables |= {
        "HUB_OPERATOR": tokens.operator,
        "HUB_SYSTEM_ACCOUNT": tokens.system_account,
        "HUB_ACCOUNTS_DIR": _quoted(str(accounts)),
    }
    certificate = server_certificate(settings.keys_dir)
    if not certificate.exists():
        return Setup(folder / "secure" / "hub.conf", variables)
    variables |= {
        "HUB_TLS_CERT": _quoted(str(certificate)),
        "HUB_TLS_KEY": _quoted(str(certificate.with_suffix(".key"))),
    }
    if not settings.websocket_port:
        return Setup(folder / "secure" / "tls.conf", variables)
    variables["HUB_WEBSOCKET"] = _quoted(f"{settings.nats_host}:{settings.websocket_port}")
    return Setup(folder / "secure" / "websocket.conf", variables)


def _require_protected(settings: Settings) -> None:
    """Listen beyond loopback only where who comes is asked who he is, and nothing is readable."""
    if settings.is_open_to_network or _is_loopback(settings.nats_host):
        return
    hint = "or say that all this is meant: `mesh up --open-to-network`"
    if not Keyring.exists(settings.keys_dir):
        raise SettingsError(
            f"MESH_NATS_HOST={settings.nats_host} would let everybody on the network do "
            f"everything: make keys first, `mesh keys init --host NAME`; {hint}",
            variable="MESH_NATS_HOST",
        )
    if not server_certificate(settings.keys_dir).exists():
        raise SettingsError(
            f"MESH_NATS_HOST={settings.nats_host} would let everybody on the network read "
            f"everything: make a certificate first, `mesh keys certificate NAME`; {hint}",
            variable="MESH_NATS_HOST",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _quoted(text: str) -> str:
    # nats-server parses the value: without quotes a space would end it, and 2m be a number.
    return '"' + re.sub(r'[\\"\x00-\x1f]', lambda found: f"\\x{ord(found[0]):02x}", text) + '"'
