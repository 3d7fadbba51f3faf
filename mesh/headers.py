"""The headers of the mesh: names, and the typed view of a request's.

FastStream's names where it has one (`reply_to`, `correlation_id`, `content-type`), so that a
plain FastStream application can call and be called. Headers are always built from what is here:
nothing a client sends under `Nats-` passes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from schemas.base import is_id

REPLY_TO: Final = "reply_to"
CORRELATION_ID: Final = "correlation_id"
CONTENT_TYPE: Final = "content-type"
TRACEPARENT: Final = "traceparent"

MSG_ID: Final = "Nats-Msg-Id"
TTL: Final = "Nats-TTL"
SEQUENCE: Final = "Nats-Sequence"
STREAM: Final = "Nats-Stream"
STORED_SUBJECT: Final = "Nats-Subject"
STORED_AT: Final = "Nats-Time-Stamp"

SOURCE_AGENT: Final = "mesh-source-agent"
SOURCE_NODE: Final = "mesh-source-node"
TARGET_NODE: Final = "mesh-target-node"
TIMEOUT_MS: Final = "mesh-timeout-ms"
HOPS: Final = "mesh-hops"
RETRY: Final = "mesh-retry"
IDEMPOTENCY: Final = "mesh-idempotency"
KEEP_S: Final = "mesh-keep-s"
PING: Final = "mesh-ping"
REPLAY_OF: Final = "mesh-replay-of"
CUT_FROM: Final = "mesh-cut-from"
BODY: Final = "mesh-body"
"""A claim (`mesh.claims`): the body lies in the object store, and the message has none."""
FILE: Final = "mesh-file"
"""A claim on the file that comes with a question or an answer."""
SIGNER: Final = "mesh-signer"
SIGNATURE: Final = "mesh-signature"

KIND: Final = "mesh-kind"
SEQ: Final = "mesh-seq"
ATTEMPT: Final = "mesh-attempt"
INSTANCE: Final = "mesh-instance"
NODE: Final = "mesh-node"
CODE: Final = "mesh-code"
REASON: Final = "mesh-reason"
SUBJECT: Final = "mesh-subject"
REQUEST: Final = "mesh-request"
"""On frames, which message they answer: its place among the mailboxes, `/`, when it was stored in
nanoseconds of the broker's clock."""
RAN_MS: Final = "mesh-ran-ms"
"""On frames, how long this attempt had been worked on by then."""
TRACE: Final = "mesh-trace"
"""On frames, the `traceparent` of their request. Not under that name: nats-server takes apart what
has one, in case it is to tell of its way, and that was 2 of 50 us a call."""
PARENT: Final = "mesh-parent"
"""The span of the call in which this one was made; on its request, and on its frames."""

JSON: Final = "application/json"
TEXT: Final = "text/plain"

MAX_HOPS: Final = 8
MAX_TIMEOUT_S: Final = 24 * 3600.0
"""A mailbox keeps nothing longer than a day, so no deadline can be later."""


_TRACEPARENT: Final = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})(-[!-~]{0,200})?"
)
_PLAIN_TRACEPARENT: Final = re.compile(
    r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
"""As it mostly is."""
_SPAN_ID: Final = re.compile(r"[0-9a-f]{16}")
_REQUEST: Final = re.compile(r"([0-9]{1,18})/([0-9]{1,19})")
_CALL_ID: Final = re.compile(r"[!-~]{1,128}")
"""It is repeated on every frame, twice on the last: unbounded, it would break the size limit."""
_NUMBER_DIGITS: Final = 15


def number(text: str | None) -> int | None:
    """Read a whole number. A longer one would overflow a float, or `int` itself."""
    if text and len(text) <= _NUMBER_DIGITS and text.isascii() and text.isdecimal():
        return int(text)
    return None


def ttl(seconds: float) -> str:
    """Return a `Nats-TTL` value: the broker takes whole seconds, at least one."""
    return str(max(1, math.ceil(seconds)))


def size_at_most(headers: Mapping[str, str]) -> int:
    """Return a bound of `encoded_size`, quickly: a character has at most four bytes."""
    names, values = sum(map(len, headers)), sum(map(len, headers.values()))
    return 16 + names + 4 * values + 4 * len(headers)


def encoded_size(headers: Mapping[str, str]) -> int:
    """Return the bytes of `headers` on the wire, the `NATS/1.0` and the blank line included."""
    pairs = sum(len(name) + len(value.encode()) + 4 for name, value in headers.items())
    return len("NATS/1.0\r\n") + pairs + len("\r\n")


@dataclass(slots=True)
class RequestHeaders:
    """What a request says in its headers. All of it may be missing, and none is trusted."""

    reply_to: str = ""
    call_id: str = ""
    content_type: str = ""
    source_agent: str = ""
    source_node: str = ""
    timeout_ms: int | None = None
    hops: tuple[str, ...] = ()
    is_repeatable: bool = False
    """Whether this may be a repeat of a call that has been answered."""
    keep_s: int = 0
    """How long the frames are worth keeping after the deadline."""
    is_ping: bool = False
    traceparent: str = ""
    """As W3C Trace Context has it, or empty."""
    parent: str = ""

    @classmethod
    def read(cls, raw: Mapping[str, str] | None) -> "RequestHeaders":
        """Read the headers of a message; what is malformed counts as missing."""
        if not raw:
            return cls()
        hops = raw.get(HOPS, "")
        content_type = raw.get(CONTENT_TYPE, "")
        if content_type != JSON:
            content_type = content_type.partition(";")[0].strip().lower()
        return cls(
            reply_to=raw.get(REPLY_TO, ""),
            call_id=_matching(_CALL_ID, raw.get(CORRELATION_ID, "")),
            content_type=content_type,
            source_agent=_id_or_empty(raw.get(SOURCE_AGENT, "")),
            source_node=_id_or_empty(raw.get(SOURCE_NODE, "")),
            timeout_ms=number(raw.get(TIMEOUT_MS)),
            hops=tuple(hops.split(",")) if hops else (),
            is_repeatable=RETRY in raw or IDEMPOTENCY in raw,
            keep_s=number(raw.get(KEEP_S)) or 0,
            is_ping=PING in raw,
            traceparent=valid_traceparent(raw.get(TRACEPARENT, "")),
            parent=_matching(_SPAN_ID, raw[PARENT]) if PARENT in raw else "",
        )


def valid_traceparent(text: str) -> str:
    """Return a W3C `traceparent` as version 00 has it, else nothing. A later one may say more."""
    if _PLAIN_TRACEPARENT.fullmatch(text):
        return text
    parts = _TRACEPARENT.fullmatch(text)
    if parts is None or parts[1] == "ff" or (parts[1] == "00" and parts[3]):
        return ""
    found = f"00-{parts[2]}"
    # The ids that are none.
    return "" if "0" * 32 in found or f"-{'0' * 16}-" in found else found


def trace_of(headers: Mapping[str, str]) -> str:
    """Return the `traceparent` of a request, or of the request that a frame answers; or nothing."""
    return valid_traceparent(headers.get(TRACE) or headers.get(TRACEPARENT, ""))


def span_of(traceparent: str) -> tuple[str, str]:
    """Return the trace and the span that a valid `traceparent` names; of an empty one, nothing."""
    _, trace_id, span_id, _ = traceparent.split("-") if traceparent else ("", "", "", "")
    return trace_id, span_id


def request_of(headers: Mapping[str, str]) -> tuple[int, int] | None:
    """Return which message a frame answers: its place, and when it was stored in nanoseconds."""
    found = _REQUEST.fullmatch(headers.get(REQUEST, ""))
    return (int(found[1]), int(found[2])) if found else None


def _matching(pattern: re.Pattern[str], text: str) -> str:
    return text if pattern.fullmatch(text) else ""


def _id_or_empty(text: str) -> str:
    return text if is_id(text) else ""
