"""Bytes become models, or an error that names the place."""

import pytest

from mesh import codec
from mesh.errors import InvalidInputError, ProtocolError
from schemas.chat import ChatRequest
from schemas.registry import Receipt


def test_a_model_survives_the_wire() -> None:
    """What is encoded is decoded to the same."""
    receipt = Receipt(ok=False, code="x", message="why")
    assert codec.decode(Receipt, codec.encode(receipt)) == receipt


def test_unknown_fields_are_ignored() -> None:
    """A newer peer may say more."""
    assert codec.decode(Receipt, b'{"ok": true, "brand_new": 1}') == Receipt()


@pytest.mark.parametrize("bad", [b"", b"{", b"[]", b'{"ok": "maybe"}', b"\xff", b'{"ok": NaN}'])
def test_what_a_peer_sends_wrong_is_a_protocol_error(bad: bytes) -> None:
    """With the subject it came on."""
    with pytest.raises(ProtocolError) as refused:
        codec.decode(Receipt, bad, subject="registry.x")
    assert refused.value.subject == "registry.x"


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}], "stream": "perhaps"}, "stream"),
        ([], "body"),
    ],
)
def test_what_a_user_sends_wrong_names_the_field(value: object, field: str) -> None:
    """As the user wrote it, without the names of our types."""
    with pytest.raises(InvalidInputError) as refused:
        codec.validate(ChatRequest, value)
    assert refused.value.fields["field"] == field


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_deep_json_is_refused_not_followed(depth: int) -> None:
    """A body of brackets costs neither the stack nor the process."""
    with pytest.raises(InvalidInputError):
        codec.validate(ChatRequest, codec.loads(b"[" * depth + b"]" * depth))


@pytest.mark.parametrize("value", [[], "text", 7, None])
def test_what_is_no_object_is_told_in_json_words(value: object) -> None:
    """Not in those of the classes that read it."""
    with pytest.raises(InvalidInputError, match=r"^body: must be a JSON object$"):
        codec.validate(ChatRequest, value)
