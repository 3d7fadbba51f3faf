"""What the broker inside is started with: files of `nats/`, and the variables that they ask for.

In secure mode it is given the accounts, too. Starts nothing; see `mesh.broker`.
"""

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh import broker_data
from mesh.errors import SettingsError
from mesh.settings import Settings, server_certificate
from mesh.trust.keyring import Keyring
from mesh.trust.secrets import write_secret
from mesh.trust.server_tokens import ServerTokens


@dataclass(frozen=True, slots=True)
class Setup:
    """A configuration, and what it asks the environment for."""

    conf: Path
    variables: Mapping[str, str]


def prepare(settings: Settings) -> Setup:
    """Choose the configuration, and give the server the accounts of a secure mesh.

    Raises:
        SettingsError: it would listen beyond loopback and ask nobody who he is, or offer what
            needs a certificate without one.
        CredentialsError: the keys of a secure mesh cannot be read.
        DataDirError: there is the data of another mesh.
    """
    _require_protected(settings)
    variables = {
        "HUB_NAME": quoted(settings.node),
        "HUB_HOST": quoted(settings.nats_host),
        "HUB_PORT": str(settings.nats_port or -1),
        "HUB_MONITOR": quoted(f"127.0.0.1:{settings.nats_monitor_port or -1}"),
        "HUB_DATA_DIR": quoted(str(settings.data_dir)),
        "HUB_SYNC_INTERVAL": quoted(settings.sync_interval),
    }
    _require_encrypted(settings)
    if not Keyring.exists(settings.keys_dir):
        broker_data.settle(settings.data_dir, None)
        return Setup(conf_folder() / "hub.conf", variables)
    keyring = Keyring.open(settings.keys_dir)
    broker_data.settle(settings.data_dir, keyring)
    tokens = ServerTokens.of(keyring)
    accounts = settings.data_dir / "accounts"
    tokens.write_accounts(accounts)
    variables |= {
        "HUB_OPERATOR": tokens.operator,
        "HUB_SYSTEM_ACCOUNT": tokens.system_account,
        "HUB_ACCOUNTS_DIR": quoted(str(accounts)),
    }
    parts = ["hub.conf"]
    certificate = server_certificate(settings.keys_dir)
    if certificate.exists():
        parts.append("tls.conf")
        variables |= {
            "HUB_TLS_CERT": quoted(str(certificate)),
            "HUB_TLS_KEY": quoted(str(certificate.with_suffix(".key"))),
        }
        if settings.websocket_port:
            parts.append("websocket.conf")
            variables["HUB_WEBSOCKET"] = quoted(f"{settings.nats_host}:{settings.websocket_port}")
        if settings.leaf_port:
            parts.append("leaf.conf")
            variables["HUB_LEAF"] = quoted(f"{settings.nats_host}:{settings.leaf_port}")
    return Setup(_combined(settings.data_dir, parts), variables)


def conf_folder() -> Path:
    """Return where the files of `nats/` lie."""
    # The wheel carries the files inside the package, a checkout beside it.
    folders = (Path(__file__).parent / "nats_conf", Path(__file__).parents[1] / "nats")
    return next(one for one in folders if one.exists())


def _combined(data_dir: Path, parts: Sequence[str]) -> Path:
    """Write a configuration that consists of files of `nats/secure`."""
    # nats-server takes every path of an include from the folder of the file that names it.
    folder = os.path.relpath(conf_folder().resolve() / "secure", data_dir.resolve())
    includes = [f"include {quoted(os.path.join(folder, part))}\n" for part in parts]
    path = data_dir.resolve() / "nats-server.conf"
    write_secret(path, "# Written by `mesh up` at every start.\n" + "".join(includes))
    return path


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


def _require_encrypted(settings: Settings) -> None:
    asked = {
        "MESH_NATS_WEBSOCKET_PORT": settings.websocket_port,
        "MESH_NATS_LEAF_PORT": settings.leaf_port,
    }
    is_encrypted = (
        Keyring.exists(settings.keys_dir) and server_certificate(settings.keys_dir).exists()
    )
    for variable, port in asked.items():
        if port and not is_encrypted:
            raise SettingsError(
                f"{variable}={port} is for a secure mesh with a certificate: `mesh keys init "
                "--host NAME` makes both, `mesh keys certificate NAME` the second",
                variable=variable,
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def quoted(text: str) -> str:
    """Write a value as nats-server reads it from a variable."""
    # nats-server parses the value: without quotes a space would end it, and 2m be a number.
    return '"' + re.sub(r'[\\"\x00-\x1f]', lambda found: f"\\x{ord(found[0]):02x}", text) + '"'
