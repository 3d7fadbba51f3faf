"""Folders for the servers of a secure cluster: each is copied to one machine, and started there.

    server.env     what nats-server takes from the environment; may be edited
    server.conf    includes the files of `nats/`, which lie beside it
    accounts/      whom to let in, at the first start
    tls/           the certificate of this server, and the authority of all

A server needs no key of the mesh, and none is in there. Starts nothing.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mesh.broker_setup import conf_folder, quoted
from mesh.errors import CredentialsError, InvalidInputError
from mesh.settings import authority, server_certificate
from mesh.subjects import require_id
from mesh.trust.certificates import write_certificate
from mesh.trust.keyring import Keyring
from mesh.trust.secrets import make_folder, write_secret
from mesh.trust.server_tokens import ServerTokens

_PORT: Final = 4222
_TO_ROUTES: Final = 2_000
_TO_MONITOR: Final = 4_000
_PARTS: Final = ("hub.conf", "secure/hub.conf", "secure/tls.conf", "secure/cluster.conf")
_USAGE: Final = """\
# How to start this server: cd to this folder, and then
#   . ./server.env && nats-server -c server.conf
"""


@dataclass(frozen=True, slots=True)
class Server:
    """One server of a cluster: its name, and where the others and clients reach it."""

    name: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Server":
        """Read `NAME=HOST`, or `NAME=HOST:PORT`.

        Raises:
            InvalidInputError: it is neither.
        """
        name, _, address = text.partition("=")
        try:
            split = urlsplit(f"//{address}")
            host, port = split.hostname or "", split.port or _PORT
        except ValueError:
            host, port = "", _PORT
        if not host or port > 65_535 - _TO_MONITOR:
            raise InvalidInputError(
                f"{text[:60]!r} is no server: give NAME=HOST, such as n1=10.0.0.1", field="server"
            )
        return cls(require_id(name, "server"), host, port)

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"tls://{self.at(self.port)}"

    @property
    def route(self) -> str:
        """Where the other servers reach it."""
        return f"tls://{self.at(self.port + _TO_ROUTES)}"

    def at(self, port: int) -> str:
        """Write host and port, as they stand in a URL."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


def write_server_folders(keyring: Keyring, folder: Path, servers: Sequence[Server]) -> list[Path]:
    """Write one folder for each server.

    Raises:
        InvalidInputError: two servers have the same name or address, a host is none, or a folder
            is there already.
        CredentialsError: there is no authority that could sign, or nothing can be written.
    """
    for known in ({one.name for one in servers}, {one.url for one in servers}):
        if len(known) < len(servers):
            raise InvalidInputError("two servers are the same", field="server")
    taken = [one.name for one in servers if (folder / one.name).exists()]
    if taken:
        raise InvalidInputError(
            f"{folder / taken[0]} is there already: name another folder, or remove it, for its "
            "server would have another certificate and other neighbours",
            field="folder",
        )
    tokens = ServerTokens.of(keyring)
    return [_write(keyring, tokens, folder / one.name, one, servers) for one in servers]


def _write(
    keyring: Keyring,
    tokens: ServerTokens,
    folder: Path,
    server: Server,
    all_of_them: Sequence[Server],
) -> Path:
    make_folder(folder)
    tokens.write_accounts(folder / "accounts")
    _write_certificate(keyring, folder / "tls" / "server.pem", server)
    for part in _PARTS:
        write_secret(folder / "nats" / part, (conf_folder() / part).read_text())
    includes = [f'include "nats/{part}"\n' for part in _PARTS if part.startswith("secure/")]
    write_secret(folder / "server.conf", "".join(includes))
    variables = _variables(tokens, server, [one for one in all_of_them if one != server])
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    write_secret(folder / "server.env", _USAGE + "".join(lines))
    return folder


def _write_certificate(keyring: Keyring, path: Path, server: Server) -> None:
    signer = authority(keyring.folder)
    if signer.with_suffix(".key").exists() or not signer.exists():
        write_certificate(keyring.folder, path, [server.host])
    else:  # Certificates from elsewhere, which must be good for every server.
        given = server_certificate(keyring.folder)
        for source, target in (
            (given, path),
            (given.with_suffix(".key"), path.with_suffix(".key")),
        ):
            write_secret(target, _read(source))
    write_secret(path.with_name("ca.pem"), _read(signer))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise CredentialsError(
            f"cannot read {path}: {error.strerror or error}", path=str(path)
        ) from None


def _variables(tokens: ServerTokens, server: Server, others: Sequence[Server]) -> Mapping[str, str]:
    return {
        "HUB_NAME": quoted(server.name),
        "HUB_HOST": quoted(server.host),
        "HUB_PORT": str(server.port),
        "HUB_MONITOR": quoted(f"127.0.0.1:{server.port + _TO_MONITOR}"),
        "HUB_DATA_DIR": quoted("data"),
        "HUB_SYNC_INTERVAL": quoted("2m"),
        "HUB_OPERATOR": tokens.operator,
        "HUB_SYSTEM_ACCOUNT": tokens.system_account,
        "HUB_ACCOUNTS_DIR": quoted("accounts"),
        "HUB_TLS_CERT": quoted("tls/server.pem"),
        "HUB_TLS_KEY": quoted("tls/server.key"),
        "HUB_TLS_CA": quoted("tls/ca.pem"),
        "CLUSTER_LISTEN": quoted(server.at(server.port + _TO_ROUTES)),
        "CLUSTER_ROUTES": f"[{', '.join(quoted(one.route) for one in others)}]",
    }
