"""Keys, tokens and credentials: what is accepted, what is refused, and what nobody may see."""

import os
import stat
import time
from pathlib import Path

import pytest

from mesh.errors import (
    CredentialsError,
    InvalidIdError,
    InvalidInputError,
    InvalidKeyError,
    KeyNotFoundError,
)
from mesh.trust import jwts
from mesh.trust.credentials import Credentials
from mesh.trust.grants import Grant
from mesh.trust.keyring import MAX_AGENTS, Keyring
from mesh.trust.nkeys import KeyPair, Kind, require_public, verify
from mesh.trust.server_tokens import ServerTokens
from mesh.trust.users import CONTROL
from schemas.registry import UserRole

SEED = "SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU"
PUBLIC = "UCK5N7N66OBOINFXAYC2ACJQYFSOD4VYNU6APEJTAVFZB2SVHLKGEW7L"
SIGNATURE = bytes.fromhex(
    "752685a6a8ee910d5b2b5d225419f9ca5aab92bf95e2b19b1282452feddf119c"
    "7bb0ae90c59a97b8238d7f9d31f63999aa0caa8b23a16f9a0335cc6aea949d00"
)
"""What nkeys.py 0.2.1 makes of it, and of the text `nonce`."""


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    """A keyring that tests only add to."""
    return Keyring.create(tmp_path_factory.mktemp("keys") / "keys")


def test_a_key_is_as_others_write_it() -> None:
    """The seed, the public key and the signature of the NATS libraries."""
    key = KeyPair.from_seed(SEED)
    assert (key.kind, key.public, key.seed()) == (Kind.USER, PUBLIC, SEED)
    assert key.sign(b"nonce") == SIGNATURE
    assert verify(PUBLIC, b"nonce", SIGNATURE)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_of_key_survives_its_text(kind: Kind) -> None:
    """The first letter tells the kind."""
    key = KeyPair.new(kind)
    again = KeyPair.from_seed(key.seed())
    assert (again.kind, again.public) == (kind, key.public)
    assert key.public[0] == kind.name[0]
    assert require_public(key.public, kind) == key.public


@pytest.mark.parametrize(
    "text",
    [
        "",
        "S",
        PUBLIC,
        SEED[:-1],
        SEED + "A",
        SEED.lower(),
        "A" * 58,
        f"{SEED[:20]}B{SEED[21:]}",
        "ü",
    ],
)
def test_what_is_no_seed(text: str) -> None:
    """Cut off, mistyped, another thing: told without repeating it."""
    with pytest.raises(InvalidKeyError) as caught:
        KeyPair.from_seed(text)
    assert len(text) < 3 or text not in caught.value.message


@pytest.mark.parametrize("public", ["", "U", SEED, PUBLIC[:-1], f"A{PUBLIC[1:]}", "x" * 56])
def test_nobody_has_signed_with_what_is_no_key(public: str) -> None:
    """No exception: who asks wants a yes or a no."""
    assert not verify(public, b"nonce", SIGNATURE)


@pytest.mark.parametrize("signature", [b"", b"x", SIGNATURE[:-1], bytes(64), SIGNATURE[::-1]])
def test_a_signature_that_is_none(signature: bytes) -> None:
    """Too short, or of something else."""
    assert not verify(PUBLIC, b"nonce", signature)
    assert not verify(PUBLIC, b"another nonce", SIGNATURE)


def test_secrets_do_not_show(keyring: Keyring) -> None:
    """Whatever is printed of these, a log shows no key and no token."""
    path = keyring.credentials_path(CONTROL)
    found = Credentials.read(path)
    shown = f"{found!r}{found.key!r}{keyring!r}{found}"
    assert found.key.seed() not in shown
    assert found.token not in shown


def test_only_the_owner_reads_what_is_written(keyring: Keyring) -> None:
    """Files are 0600 and folders 0700, whatever the umask says."""
    old = os.umask(0)
    try:
        keyring.issue("umask", UserRole.PERSON, Grant(callers=("umask",)))
    finally:
        os.umask(old)
    for path in [keyring.folder, *keyring.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_what_others_can_read_is_refused(keyring: Keyring, tmp_path: Path) -> None:
    """A copy with the usual mode: told what to do."""
    path = tmp_path / "copy.creds"
    path.write_text(keyring.credentials_path(CONTROL).read_text())
    path.chmod(0o640)
    with pytest.raises(CredentialsError, match=f"chmod 600 {path}"):
        Credentials.read(path)
    path.chmod(0o600)
    assert Credentials.read(path).is_core


@pytest.mark.parametrize("text", ["", "hello", SEED, "-----BEGIN NATS USER JWT-----\nx\n"])
def test_what_is_no_file_of_credentials(text: str, tmp_path: Path) -> None:
    """The message names the file, and repeats nothing of it."""
    path = tmp_path / "some.creds"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InvalidKeyError, match=r"some\.creds") as caught:
        Credentials.read(path)
    assert SEED not in caught.value.message


def test_a_token_and_a_key_must_fit(keyring: Keyring) -> None:
    """The token of one with the seed of another."""
    found = Credentials.read(keyring.credentials_path(CONTROL))
    with pytest.raises(InvalidKeyError, match="do not fit"):
        Credentials.of(found.token, KeyPair.new(Kind.USER))


def test_a_changed_token_is_none(keyring: Keyring) -> None:
    """Nobody gives himself more rights."""
    token = Credentials.read(keyring.credentials_path(CONTROL)).token
    head, claims, signature = token.split(".")
    other = jwts.unlimited_token(KeyPair.new(Kind.ACCOUNT), "mallory", PUBLIC)
    for changed in (
        f"{head}.{other.split('.')[1]}.{signature}",
        f"{head}.{claims[:-2]}.{signature}",
        f"{head}.{claims}",
        "",
    ):
        with pytest.raises(InvalidKeyError):
            jwts.read_token(changed)


def test_a_grant_survives_its_token(keyring: Keyring) -> None:
    """What a token says is what was granted."""
    grant = Grant("node1", ("a", "b"), ("b@on=a=done",), ("node1-door",))
    keyring.issue("whole", UserRole.AGENT, grant)
    found = Credentials.read(keyring.credentials_path("whole"))
    assert (found.name, found.grant, found.is_core) == ("whole", grant, False)
    assert found.grant.speakers == {"a", "b", "node1-door"}


def test_keys_are_made_once(keyring: Keyring) -> None:
    """A second `init` would make all that was issued useless."""
    with pytest.raises(CredentialsError, match="already"):
        Keyring.create(keyring.folder)


def test_a_name_that_is_taken(keyring: Keyring) -> None:
    """Two who may hear the same answers are one too many; one agent on two nodes is none."""
    keyring.issue("eve", UserRole.PERSON, Grant(callers=("eve",)))
    keyring.issue("one", UserRole.AGENT, Grant("node1", ("twin",)))
    keyring.issue("two", UserRole.AGENT, Grant("node2", ("twin",)))
    for name, grant in (
        ("other", Grant(callers=("eve",))),
        ("other", Grant("node1", ("eve",))),
        ("other", Grant(callers=("twin",))),
        ("control", Grant(callers=("x",))),
        ("other", Grant(callers=("cli",))),
        ("other", Grant("node1", ("http",))),
    ):
        with pytest.raises(InvalidInputError):
            keyring.issue(name, UserRole.PERSON, grant)
    with pytest.raises(InvalidInputError, match=f"{MAX_AGENTS} at most"):
        keyring.issue("big", UserRole.AGENT, Grant("n", tuple(f"a{n}" for n in range(201))))
    for bad in ("A", "a.b", "*", ">", "", "a b", "../a"):
        with pytest.raises(InvalidIdError):
            keyring.issue(bad, UserRole.PERSON, Grant(callers=("fine",)))
        with pytest.raises(InvalidIdError):
            keyring.issue("fine", UserRole.PERSON, Grant(callers=(bad,)))


def test_a_revoked_user(keyring: Keyring) -> None:
    """His key is in the account, his file is gone, and nobody is told that he counts."""
    public = keyring.issue("gone", UserRole.PERSON, Grant(callers=("gone",))).public
    assert public in {one.key for one in keyring.roster.identities()}
    before = int(time.time())
    assert keyring.revoke("gone").is_revoked
    assert public not in {one.key for one in keyring.roster.identities()}
    assert not keyring.credentials_path("gone").exists()
    claims = [jwts.read_token(one)["nats"] for one in ServerTokens.of(keyring).accounts.values()]
    revoked = {key: at for one in claims for key, at in one.get("revocations", {}).items()}
    assert revoked[public] >= before
    with pytest.raises(KeyNotFoundError):
        keyring.rotate("gone")
    # The name is free again; the old key stays out.
    again = keyring.issue("gone", UserRole.PERSON, Grant(callers=("gone",)))
    assert not again.is_revoked
    assert public in again.revoked


def test_new_keys_for_somebody(keyring: Keyring) -> None:
    """Also for the hub's own processes, which cannot be revoked."""
    keyring.issue("worn", UserRole.AGENT, Grant("node1", ("worn-agent",)))
    for name in ("worn", CONTROL):
        old = Credentials.read(keyring.credentials_path(name))
        new = keyring.rotate(name)
        found = Credentials.read(keyring.credentials_path(name))
        assert (found.key.public, found.grant) == (new.public, old.grant)
        assert old.key.public in new.revoked
        assert found.is_core is (name == CONTROL)
    with pytest.raises(CredentialsError, match="rotate control"):
        keyring.revoke(CONTROL)


def test_credentials_for_agents_are_found(keyring: Keyring) -> None:
    """Those that cover all of them, on that node; else the command that makes them is told."""
    keyring.issue("pair", UserRole.AGENT, Grant("node7", ("x", "y")))
    path = keyring.credentials_path("pair")
    assert keyring.credentials_for("node7", ["y", "x"]) == path
    with pytest.raises(CredentialsError, match="mesh keys agent x z --node node7"):
        keyring.credentials_for("node7", ["x", "z"])
    with pytest.raises(CredentialsError, match="--node node8"):
        keyring.credentials_for("node8", ["x"])


def test_a_keyring_that_is_damaged(tmp_path: Path) -> None:
    """Told, with the file."""
    keyring = Keyring.create(tmp_path / "keys")
    (keyring.folder / "users" / "http.json").write_text("{")
    with pytest.raises(CredentialsError, match=r"http.json is damaged"):
        keyring.roster.users()
    with pytest.raises(CredentialsError, match="mesh keys init"):
        Keyring.open(tmp_path)
