"""What counts as a frame of a call, and what is in it."""

import pytest

from mesh import headers as h
from mesh.errors import AgentFailedError, MailboxFullError
from mesh.frames import Frame, error_body
from schemas.frame import FrameKind

CALL = "c" * 32


def test_a_frame_is_read_from_its_headers() -> None:
    """Kind, place, attempt and order come from headers, the body stays as it is."""
    raw = {
        h.KIND: "chunk",
        h.SEQ: "3",
        h.ATTEMPT: "2",
        h.NODE: "node2",
        h.INSTANCE: "i",
        h.CONTENT_TYPE: "application/json",
        h.SEQUENCE: "77",
    }
    frame = Frame.read(CALL, raw, b"{}")
    assert frame is not None
    assert (frame.kind, frame.seq, frame.attempt) == (FrameKind.CHUNK, 3, 2)
    assert (frame.node, frame.stream_sequence, frame.is_text) == ("node2", 77, False)


def test_a_faststream_return_value_is_final() -> None:
    """Without a kind, a message is the final frame if its correlation id is the call."""
    frame = Frame.read(CALL, {h.CORRELATION_ID: CALL, h.CONTENT_TYPE: "text/plain"}, b"hi")
    assert frame is not None
    assert (frame.kind, frame.is_text) == (FrameKind.FINAL, True)
    assert Frame.read(CALL, {h.CORRELATION_ID: "other"}, b"hi") is None
    assert Frame.read(CALL, None, b"hi") is None


@pytest.mark.parametrize(
    "body",
    [b'{"stream":"INBOX","seq":7}', b'{"stream":"INBOX","domain":"d","seq":7,"duplicate":true}'],
)
def test_a_pub_ack_is_no_answer(body: bytes) -> None:
    """A caller that set a NATS reply subject gets its PubAck stored; nobody must believe it."""
    assert Frame.read(CALL, None, body) is None
    assert Frame.read(CALL, {h.CORRELATION_ID: CALL}, body) is None


def test_an_answer_that_looks_like_a_pub_ack_is_an_answer() -> None:
    """A typed answer is believed, whatever its fields are called."""
    raw = {h.CORRELATION_ID: CALL, h.CONTENT_TYPE: "application/json"}
    assert Frame.read(CALL, raw, b'{"stream":"INBOX","seq":7}') is not None


def test_garbage_in_headers_counts_as_missing() -> None:
    """Numbers that are none become the default; an unknown kind is no frame."""
    frame = Frame.read(CALL, {h.KIND: "final", h.SEQ: "x", h.ATTEMPT: "-1"}, b"")
    assert frame is not None
    assert (frame.seq, frame.attempt) == (0, 1)
    assert Frame.read(CALL, {h.KIND: "party"}, b"") is None


def test_an_error_frame_is_raised_as_its_class() -> None:
    """Class, message and the fields that JSON can hold survive."""
    error = MailboxFullError("full", agent="a", odd=object())
    raw = {h.KIND: "error", h.CODE: error.code, h.CONTENT_TYPE: h.JSON}
    frame = Frame.read(CALL, raw, error_body(error))
    assert frame is not None
    back = frame.error
    assert (type(back), back.message, back.fields) == (MailboxFullError, "full", {"agent": "a"})


def test_an_error_in_words_is_still_an_error() -> None:
    """A foreign agent's error text becomes a failed agent with that text."""
    raw = {h.KIND: "error", h.CODE: "odd", h.CONTENT_TYPE: h.TEXT}
    frame = Frame.read(CALL, raw, b"out of coffee")
    assert frame is not None
    assert isinstance(frame.error, AgentFailedError)
    assert str(frame.error) == "out of coffee"
