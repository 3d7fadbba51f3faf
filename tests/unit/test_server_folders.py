"""What the servers of a secure cluster are given: names and addresses that are told apart."""

from pathlib import Path

import pytest

from mesh.errors import InvalidIdError, InvalidInputError
from mesh.server_folders import Server, write_server_folders
from mesh.trust.certificates import write_server_certificate
from mesh.trust.keyring import Keyring


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("n1=10.0.0.1", "10.0.0.1", 4222),
        ("n1=hub.example.org:14222", "hub.example.org", 14222),
        ("n1=[::1]:14222", "::1", 14222),
    ],
)
def test_a_server(text: str, host: str, port: int) -> None:
    """A name, a host, and perhaps a port."""
    assert Server.parse(text) == Server("n1", host, port)


def test_addresses_of_version_six_are_addresses_in_urls() -> None:
    """They stand in brackets there."""
    server = Server.parse("n1=[::1]")
    assert (server.url, server.route) == ("tls://[::1]:4222", "tls://[::1]:6222")


@pytest.mark.parametrize("text", ["n1", "n1=", "n1=a:0x5", "n1=a:62000", "n1=a:99999", "n1=[::1"])
def test_what_is_no_server(text: str) -> None:
    """Is said to be none."""
    with pytest.raises(InvalidInputError, match="is no server"):
        Server.parse(text)


def test_a_server_without_a_name() -> None:
    """Would have no folder."""
    with pytest.raises(InvalidIdError):
        Server.parse("../n1=10.0.0.1")


@pytest.mark.parametrize("other", ["n1=10.0.0.2", "n2=10.0.0.1"])
def test_two_servers_in_one_place(tmp_path: Path, other: str) -> None:
    """Of the same name, or at the same address, they are a mistake."""
    keyring = Keyring.create(tmp_path / "keys")
    servers = [Server.parse("n1=10.0.0.1"), Server.parse(other)]
    with pytest.raises(InvalidInputError, match="the same"):
        write_server_folders(keyring, tmp_path, servers)


def test_no_key_of_the_mesh_is_given_away(tmp_path: Path) -> None:
    """A server needs none; nor is anything readable for others."""
    keyring = Keyring.create(tmp_path / "keys")
    write_server_certificate(keyring.folder, ["10.0.0.1"])
    (folder,) = write_server_folders(keyring, tmp_path / "out", [Server.parse("n1=10.0.0.1")])
    files = [path for path in folder.rglob("*") if path.is_file()]
    given = "".join(path.read_text() for path in files)
    secret = [path for path in keyring.folder.rglob("*") if path.suffix in (".nk", ".key")]
    assert len(secret) > 6
    assert not [path for path in secret if path.read_text().strip() in given]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
