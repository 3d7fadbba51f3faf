"""Frames of a reply, as values: read from a message, and the headers to write one.

Does no I/O; `mesh.replies` publishes and `mesh.calls` waits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from mesh import codec, headers
from mesh.errors import AgentFailedError, MeshError, ProtocolError, error_from_wire
from schemas.frame import ErrorBody, ErrorDetail, FrameKind

MESSAGE_AT_MOST: Final = 4_000
_PUB_ACK_FIELDS: Final = {"stream", "seq", "duplicate", "domain"}


@dataclass(slots=True)
class Frame:
    """One message of an answer."""

    kind: FrameKind
    call_id: str
    body: bytes
    content_type: str = headers.JSON
    seq: int = 0
    """Place among the chunks of this attempt, from 0; on a final frame, their number."""
    attempt: int = 1
    node: str = ""
    instance: str = ""
    code: str = ""
    stream_sequence: int = 0
    """Place in the reply stream, when the broker said it."""
    body_claim: str = ""
    """Where the body lies, as a `mesh.claims.Claim` is written, if it is not here."""
    file_claim: str = ""
    """Where the file lies that comes with an answer, likewise."""

    @property
    def is_text(self) -> bool:
        """Whether the body is plain text rather than JSON."""
        return self.content_type != headers.JSON

    @property
    def error(self) -> MeshError:
        """The error of an `ERROR` frame, as the class that was raised on the other side."""
        try:
            detail = codec.decode(ErrorBody, self.body).error
        except ProtocolError:
            text = self.body.decode(errors="replace")[:500]
            return AgentFailedError(text or "the agent failed", remote_code=self.code)
        return error_from_wire(detail.code, detail.message, detail.fields)

    @classmethod
    def read(
        cls, call_id: str, raw: Mapping[str, str] | None, body: bytes, sequence: int = 0
    ) -> "Frame | None":
        """Read a message of call `call_id`, or return None when it is no frame of that call.

        A message without `mesh-kind` is the return value of a FastStream handler, and final, if
        its `correlation_id` is the call. A publish acknowledgement that a caller's own NATS
        reply subject brought here has neither.
        """
        found = raw or {}
        named = found.get(headers.KIND)
        kind: FrameKind | None = FrameKind.FINAL
        if named is not None:
            kind = _KINDS.get(named)
        elif found.get(headers.CORRELATION_ID) != call_id or _is_pub_ack(found, body):
            return None
        if kind is None:
            return None
        frame = cls(
            kind=kind,
            call_id=call_id,
            body=body,
            content_type=_content_type(found, body),
            seq=_number(found.get(headers.SEQ), 0),
            attempt=_number(found.get(headers.ATTEMPT), 1),
            node=found.get(headers.NODE, ""),
            instance=found.get(headers.INSTANCE, ""),
            code=found.get(headers.CODE, ""),
            stream_sequence=sequence or _number(found.get(headers.SEQUENCE), 0),
        )
        if headers.BODY in found:
            frame.body_claim = found[headers.BODY]
        if headers.FILE in found:
            frame.file_claim = found[headers.FILE]
        return frame


_KINDS: Final = {kind.value: kind for kind in FrameKind}


def error_body(error: MeshError) -> bytes:
    """Encode `error` as the body of an error frame."""
    fields = {name: value for name, value in error.fields.items() if _is_plain(value)}
    # A message of any length, and of text that no JSON can hold, comes from a handler's exception.
    message = error.message[:MESSAGE_AT_MOST].encode(errors="replace").decode()
    detail = ErrorDetail(code=error.code, message=message, fields=fields)
    return codec.encode(ErrorBody(error=detail))


def _is_plain(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


def _is_pub_ack(found: Mapping[str, str], body: bytes) -> bool:
    if headers.CONTENT_TYPE in found or not body.startswith(b"{"):
        return False
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return bool({"stream", "seq"} <= value.keys() <= _PUB_ACK_FIELDS)


def _content_type(found: Mapping[str, str], body: bytes) -> str:
    named = found.get(headers.CONTENT_TYPE, "")
    if named == headers.JSON:
        return named
    named = named.partition(";")[0].strip().lower()
    if named:
        return headers.JSON if named == headers.JSON else headers.TEXT
    return headers.JSON if body.startswith(b"{") else headers.TEXT


def _number(text: str | None, default: int) -> int:
    found = headers.number(text)
    return default if found is None else found
