"""What a signature is good for: one request, from one, to one."""

import pytest

from mesh import headers as h
from mesh.signatures import SIGNED, is_signed, sign
from mesh.trust import jwts
from mesh.trust.credentials import Credentials
from mesh.trust.nkeys import KeyPair, Kind

SUBJECT = "agent.solarius.inbox"
BODY = b'{"messages":[]}'
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
    assert is_signed(SUBJECT, signed, BODY)
    assert is_signed(SUBJECT, {**signed, h.RETRY: "1", h.TTL: "60"}, BODY)


@pytest.mark.parametrize("name", SIGNED)
def test_what_is_signed_cannot_be_changed(signed: dict[str, str], name: str) -> None:
    """Neither replaced nor left out."""
    assert not is_signed(SUBJECT, {**signed, name: "other"}, BODY)
    assert not is_signed(SUBJECT, {key: signed[key] for key in signed if key != name}, BODY)


def test_it_is_for_one_agent_and_one_body(signed: dict[str, str]) -> None:
    """Whoever gets a request cannot pass it on as if it were for another."""
    assert not is_signed("agent.echo.inbox", signed, BODY)
    assert not is_signed(f"{SUBJECT}.node1", signed, BODY)
    assert not is_signed(SUBJECT, signed, BODY + b" ")


def test_values_cannot_be_moved_about(signed: dict[str, str]) -> None:
    """What two headers say together is not the same said by one of them."""
    moved = {**signed, h.SOURCE_AGENT: "daarwizz\nnode1", h.SOURCE_NODE: ""}
    assert not is_signed(SUBJECT, moved, BODY)


@pytest.mark.parametrize("signature", ["", "x", "A" * 86, "ü" * 86, "A" * 100_000, "=" * 86])
def test_what_is_no_signature(signed: dict[str, str], signature: str) -> None:
    """Whatever stands there."""
    assert not is_signed(SUBJECT, {**signed, h.SIGNATURE: signature}, BODY)


def test_the_key_of_another(signed: dict[str, str]) -> None:
    """A signature with a key that has not made it."""
    assert not is_signed(SUBJECT, {**signed, h.SIGNER: credentials().key.public}, BODY)
    assert not is_signed(SUBJECT, {**signed, h.SIGNER: ""}, BODY)
