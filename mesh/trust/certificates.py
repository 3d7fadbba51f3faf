"""Certificates of the mesh's own authority, for a hub that others reach over a network.

Whoever joins is given the authority's certificate with his token, so nobody has to trust a
stranger. Certificates from elsewhere do as well: put them in the same places.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.errors import CredentialsError, InvalidInputError
from mesh.settings import authority, server_certificate
from mesh.trust.secrets import read_secret, write_secret

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_USES: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_AUTHORITY_DAYS: Final = 3650
_SERVER_DAYS: Final = 820
"""What Apple's clients take at most is 825."""
_BACKDATED: Final = datetime.timedelta(hours=1)
"""Clocks of two machines differ."""


def write_server_certificate(keys_dir: Path, hosts: Sequence[str]) -> None:
    """Write a certificate for a hub of these names and addresses, and for loopback.

    The authority that signs it is made at the first time, and kept.

    Raises:
        InvalidInputError: one of `hosts` is neither a name nor an address.
        CredentialsError: the files cannot be read or written.
    """
    write_certificate(keys_dir, server_certificate(keys_dir), hosts)


def write_certificate(keys_dir: Path, path: Path, hosts: Sequence[str]) -> None:
    """Write a certificate to `path`, and its key beside it; otherwise as above."""
    names = [_name(host) for host in dict.fromkeys((*hosts, *LOOPBACK))]
    signer, key = _authority(keys_dir)
    own = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _begin(hosts[0] if hosts else LOOPBACK[0], signer.subject, own, _SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        # The servers of a cluster are each other's clients, too.
        .add_extension(x509.ExtendedKeyUsage(_USES), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_secret(path.with_suffix(".key"), _pem(own))
    write_secret(path, certificate.public_bytes(Encoding.PEM).decode())


def _authority(keys_dir: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    path = authority(keys_dir)
    if path.exists():
        loaded = load_pem_private_key(read_secret(path.with_suffix(".key")).encode(), None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise CredentialsError(
                f"{path} was not made here: sign with its own tools", path=str(path)
            )
        return x509.load_pem_x509_certificate(path.read_bytes()), loaded
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("mesh")
    certificate = (
        _begin("mesh", name, key, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_secret(path.with_suffix(".key"), _pem(key))
    write_secret(path, certificate.public_bytes(Encoding.PEM).decode())
    return certificate, key


def _begin(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise InvalidInputError(
            f"{host[:60]!r} is neither a host name nor an address", field="host"
        ) from None


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
