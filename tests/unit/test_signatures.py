"""What a signature is good for: one request, from one, to one."""

from hashlib import sha256

import pytest

from mesh import headers as h
from mesh.signatures import SIGNED, is_signed, sign
from mesh.trust import jwts
from mesh.trust.credentials import Credentials
from mesh.trust.nkeys import KeyPair, Kind

SUBJECT = "agent.solarius.inbox"
BODY = b'{"messages":[]}'
DIGEST = sha256(BODY).hexdigest()
FILE = f"body.solarius.{'0' * 32} 4 {'1' * 64} sky.png"
HEADERS = {
    h.SOURCE_AGENT: "daarwizz",
    h.SOURCE_NODE: "node1",
    h.CORRELATION_ID: "c" * 32,
    h.REPLY_TO: f"agent.daarwizz.reply.i.{'c' * 32}.solarius",
    h.TIMEOUT_MS: "60000",
    h.HOPS: "ann",
    h.CONTENT_TYPE: h.JSON,
}


def credentials() -> Credentials:
    """Somebody with a key."""
    key = KeyPair.new(Kind.USER)
    token = jwts.unlimited_token(KeyPair.new(Kind.ACCOUNT), "somebody", key.public)
    return Credentials.of(token, key)


@pytest.fixture
def signed() -> dict[str, str]:
    """The headers of a request that is signed."""
    headers = dict(HEADERS)
    sign(credentials(), SUBJECT, headers, BODY)
    return headers


def test_a_signed_request(signed: dict[str, str]) -> None:
    """As it was sent, and as it is repeated."""
    assert is_signed(SUBJECT, signed, DIGEST)
    assert is_signed(SUBJECT, {**signed, h.RETRY: "1", h.TTL: "60"}, DIGEST)


@pytest.mark.parametrize("name", SIGNED)
def test_what_is_signed_cannot_be_changed(signed: dict[str, str], name: str) -> None:
    """Neither replaced nor left out."""
    assert not is_signed(SUBJECT, {**signed, name: "other"}, DIGEST)
    assert not is_signed(SUBJECT, {key: signed[key] for key in signed if key != name}, DIGEST)


def test_a_file_is_signed_with_it(signed: dict[str, str]) -> None:
    """Neither replaced, nor left out, nor put beside a request that had none."""
    with_file = {**HEADERS, h.FILE: FILE}
    sign(credentials(), SUBJECT, with_file, BODY)
    assert is_signed(SUBJECT, with_file, DIGEST)
    assert not is_signed(SUBJECT, {**with_file, h.FILE: FILE.replace("1", "2")}, DIGEST)
    assert not is_signed(SUBJECT, {k: v for k, v in with_file.items() if k != h.FILE}, DIGEST)
    assert not is_signed(SUBJECT, {**signed, h.FILE: FILE}, DIGEST)


def test_it_is_for_one_agent_and_one_body(signed: dict[str, str]) -> None:
    """Whoever gets a request cannot pass it on as if it were for another."""
    assert not is_signed("agent.echo.inbox", signed, DIGEST)
    assert not is_signed(f"{SUBJECT}.node1", signed, DIGEST)
    assert not is_signed(SUBJECT, signed, sha256(BODY + b" ").hexdigest())


def test_values_cannot_be_moved_about(signed: dict[str, str]) -> None:
    """What two headers say together is not the same said by one of them."""
    moved = {**signed, h.SOURCE_AGENT: "daarwizz\nnode1", h.SOURCE_NODE: ""}
    assert not is_signed(SUBJECT, moved, DIGEST)


@pytest.mark.parametrize("signature", ["", "x", "A" * 86, "ü" * 86, "A" * 100_000, "=" * 86])
def test_what_is_no_signature(signed: dict[str, str], signature: str) -> None:
    """Whatever stands there."""
    assert not is_signed(SUBJECT, {**signed, h.SIGNATURE: signature}, DIGEST)


def test_the_key_of_another(signed: dict[str, str]) -> None:
    """A signature with a key that has not made it."""
    assert not is_signed(SUBJECT, {**signed, h.SIGNER: credentials().key.public}, DIGEST)
    assert not is_signed(SUBJECT, {**signed, h.SIGNER: ""}, DIGEST)
