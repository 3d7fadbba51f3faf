"""All forms a request may have in a mailbox."""

import json
from typing import cast

import pytest
from nats.aio.client import Client

from mesh import headers as h
from mesh.delivery import Delivery
from mesh.errors import InvalidInputError
from mesh.requests import read_address, read_question


def delivery(body: bytes) -> Delivery:
    """A request as it comes from a mailbox; nothing here talks to the client."""
    return Delivery(cast("Client", None), "agent.a.inbox", body, None, "$JS.ACK.x", 7, 1, 0)


def headers(**values: str) -> h.RequestHeaders:
    """Headers by field name."""
    return h.RequestHeaders(**values)  # type: ignore[arg-type]


OPENAI = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()


@pytest.mark.parametrize(
    ("body", "content_type", "text", "wants_json"),
    [
        (b"plain words", "", "plain words", False),
        (b"plain words", "text/plain", "plain words", False),
        (OPENAI, "", "x", True),
        (OPENAI, "application/json", "x", True),
        (b'{"message": "legacy"}', "", "legacy", False),
        (b'{"message": "legacy"}', "application/json", "legacy", False),
        (b'"a string"', "application/json", "a string", False),
        (b'{"note": "json, but not for us"}', "", '{"note": "json, but not for us"}', False),
        (b"{not json", "", "{not json", False),
        ("привіт".encode(), "", "привіт", False),
    ],
)
def test_a_body_becomes_a_question(
    body: bytes, content_type: str, text: str, wants_json: bool
) -> None:
    """Text, OpenAI and legacy bodies, typed and untyped."""
    question = read_question(delivery(body), headers(content_type=content_type))
    assert (question.chat.last_text, question.wants_json) == (text, wants_json)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", ""),
        (b" \n", ""),
        (b"\xff\xfe", ""),
        (b"{not json", "application/json"),
        (b"[]", "application/json"),
        (b"{}", "application/json"),
        (b'{"messages": []}', "application/json"),
        (b'{"messages": [{"content": "no role"}]}', "application/json"),
        (b'{"messages": [{"role": "user", "content": 7}]}', ""),
        (b'{"messages": [{"role": "user"}], "n": 0}', "application/json"),
        (b'{"messages": NaN}', "application/json"),
    ],
    ids=repr,
)
def test_a_body_that_is_none_is_refused(body: bytes, content_type: str) -> None:
    """With the name of the field that is wrong."""
    with pytest.raises(InvalidInputError) as refused:
        read_question(delivery(body), headers(content_type=content_type))
    assert refused.value.fields["field"]


def test_parts_of_a_message_are_joined() -> None:
    """Content may be a list of parts; text is joined, the rest passes through."""
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
    body = json.dumps({"messages": [{"role": "user", "content": parts}], "tools": [1]}).encode()
    question = read_question(delivery(body), headers(content_type="application/json"))
    assert question.chat.last_text == "ab"
    assert question.chat.model_extra == {"tools": [1]}


@pytest.mark.parametrize(
    ("reply_to", "subjects", "is_bare", "is_core"),
    [
        ("", ("agent.a.reply",), True, False),
        ("agent.b.reply.i.c", ("agent.b.reply.i.c",), False, False),
        ("agent.b.reply", ("agent.b.reply",), False, False),
        ("_INBOX.x.y", ("_INBOX.x.y",), False, True),
    ],
)
def test_an_address_is_read(
    reply_to: str, subjects: tuple[str, ...], is_bare: bool, is_core: bool
) -> None:
    """Where the answer goes, and how."""
    address = read_address(
        delivery(b"x"), headers(reply_to=reply_to), agent="a", place=("n", "i"), left_s=5
    )
    assert address is not None
    assert (address.subjects, address.is_bare, address.is_core) == (subjects, is_bare, is_core)
    assert address.call_id == "seq-7"


def test_a_foreign_reply_subject_has_no_address() -> None:
    """An agent publishes nowhere else."""
    for foreign in ("$JS.API.STREAM.DELETE.INBOX", "agent.a.inbox", "x", "_INBOX.>"):
        found = read_address(
            delivery(b"x"), headers(reply_to=foreign), agent="a", place=("n", "i"), left_s=5
        )
        assert found is None, foreign
