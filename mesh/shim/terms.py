"""On what terms a request is asked: until when, waiting or not, and what if the client leaves.

Reads the body's fields, then the headers; an SDK can add fields, and everybody can set headers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from mesh.errors import InvalidInputError
from mesh.headers import MAX_TIMEOUT_S
from mesh.settings import DEFAULT_HTTP_TIMEOUT_S
from mesh.shim.operations import Parameter

TIMEOUT_HEADER: Final = "X-Mesh-Timeout"
WAIT_HEADER: Final = "X-Mesh-Wait"
LEAVE_HEADER: Final = "X-Mesh-On-Disconnect"
PING_HEADER: Final = "X-Mesh-Ping"
KEY_HEADER: Final = "Idempotency-Key"
DEFAULT_BACKGROUND_TIMEOUT_S: Final = 3600.0
"""Nobody waits for it, so the agent may be away for a while."""

_SECONDS: Final = re.compile(r"[0-9]{1,5}(\.[0-9]{1,20})?")
_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")
_FLAGS: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

TERMS_PARAMETERS: Final = (
    Parameter(
        TIMEOUT_HEADER,
        "header",
        "`timeout` as a header.",
        {"type": "number", "minimum": 0.001, "maximum": MAX_TIMEOUT_S},
    ),
    Parameter(WAIT_HEADER, "header", "`wait` as a header.", {"type": "boolean"}),
    Parameter(
        KEY_HEADER,
        "header",
        "Your own name for the call: a request with the same one is the same call, for a day. Its "
        "answer comes once more, and no agent starts again.",
        {"type": "string", "pattern": f"^{_KEY.pattern}$"},
    ),
    Parameter(
        LEAVE_HEADER,
        "header",
        "What becomes of the call when you leave before its answer: it is stopped, or goes on. "
        "Without a word it goes on if there is an `Idempotency-Key`, to come back with.",
        {"type": "string", "enum": ["cancel", "detach"]},
    ),
    Parameter(
        PING_HEADER,
        "header",
        "`1` only tries the way: the request goes where a call goes, and is answered without the "
        "agent's handler.",
        {"type": "string", "enum": ["0", "1"]},
    ),
)

Headers = Mapping[str, str]
"""By lower-case name."""


class OnLeave(StrEnum):
    """What becomes of a call whose client goes away."""

    CANCEL = "cancel"
    DETACH = "detach"


@dataclass(slots=True)
class Terms:
    """How a request is to be treated."""

    timeout_s: float
    waits: bool
    """Whether an agent that is offline gets the call when it is back."""
    is_background: bool
    """Whether the client is answered as soon as the call is stored."""
    key: str
    """The client's own name for the call, the same on a retry; empty without one."""
    on_leave: OnLeave
    is_ping: bool = False
    """Whether it only tries the way, and the agent's handler must not run."""


def read_terms(fields: Mapping[str, Any], headers: Headers) -> Terms:
    """Read the terms of a request; `fields` are those of its body.

    A call with a key goes on when its client leaves, who can come back for it; any other is
    cancelled, as nobody would ever see its answer.

    Raises:
        InvalidInputError: one of them cannot be; `field` is where it stood.
    """
    is_background = _flag(fields.get("background"), "background")
    is_ping = headers.get(PING_HEADER.lower(), "") not in ("", "0")
    default_s = DEFAULT_BACKGROUND_TIMEOUT_S if is_background else DEFAULT_HTTP_TIMEOUT_S
    key = headers.get("idempotency-key", "")
    if key and not _KEY.fullmatch(key):
        raise InvalidInputError(
            f"{KEY_HEADER}: give 1 to 255 printable ASCII characters", field=KEY_HEADER
        )
    if is_ping and (key or is_background):
        # It would be stored as any other call, and the handler would run.
        raise InvalidInputError(
            f"{PING_HEADER}: a ping is not kept: leave out `background` and {KEY_HEADER}",
            field=PING_HEADER,
        )
    return Terms(
        timeout_s=_timeout(fields, headers, default_s),
        waits=_waits(fields, headers, default=is_background),
        is_background=is_background,
        key=key,
        on_leave=_on_leave(headers, OnLeave.DETACH if key else OnLeave.CANCEL),
        is_ping=is_ping,
    )


def _timeout(fields: Mapping[str, Any], headers: Headers, default_s: float) -> float:
    given = fields.get("timeout")
    if given is not None:
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        return _require_deadline(float(given) if is_number else 0.0, given, "timeout")
    text = headers.get(TIMEOUT_HEADER.lower(), "")
    if not text:
        return default_s
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    return _require_deadline(seconds, text, TIMEOUT_HEADER)


def _require_deadline(seconds: float, given: object, place: str) -> float:
    if 0 < seconds <= MAX_TIMEOUT_S:
        return seconds
    raise InvalidInputError(
        f"{place}: {str(given)[:40]!r} cannot be a deadline: give seconds, more than 0 and at "
        f"most {MAX_TIMEOUT_S:g}",
        field=place,
    )


def _waits(fields: Mapping[str, Any], headers: Headers, *, default: bool) -> bool:
    if (given := fields.get("wait")) is not None:
        return _flag(given, "wait")
    text = headers.get(WAIT_HEADER.lower(), "")
    if not text:
        return default
    if text.lower() not in _FLAGS:
        raise InvalidInputError(f"{WAIT_HEADER}: say true or false", field=WAIT_HEADER)
    return _FLAGS[text.lower()]


def _flag(given: object, place: str) -> bool:
    if given is None or isinstance(given, bool):
        return bool(given)
    raise InvalidInputError(f"{place}: must be true or false", field=place)


def _on_leave(headers: Headers, default: OnLeave) -> OnLeave:
    text = headers.get(LEAVE_HEADER.lower(), "")
    if not text:
        return default
    try:
        return OnLeave(text.lower())
    except ValueError:
        raise InvalidInputError(
            f"{LEAVE_HEADER}: say cancel or detach", field=LEAVE_HEADER
        ) from None
