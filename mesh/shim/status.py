"""One table from errors to HTTP: status, OpenAI type and code, headers.

Knows every class of `mesh.errors`, what is refused before any endpoint, and no endpoint. Source of
the envelope: the OpenAI API reference, "Error codes"; of the headers: what openai-python obeys
when it decides on a retry.
"""

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from mesh import codec, errors
from mesh.errors import InvalidInputError, MailboxFullError, MeshError
from mesh.objects import BUCKET

OK: Final = 200
ACCEPTED: Final = 202

BAD_REQUEST: Final = "invalid_request_error"
SERVER: Final = "server_error"
RATE_LIMIT: Final = "rate_limit_error"
AUTHENTICATION: Final = "authentication_error"
PERMISSION: Final = "permission_error"
UNSUPPORTED_PARAMETER: Final = "unsupported_parameter"
"""`reason` of an `InvalidInputError` about a field that is valid, but not served here."""
UNKNOWN_RESPONSE: Final = "previous_response_not_found"
"""`reason` of an `InvalidInputError` about a conversation that is not remembered."""

NO_RETRY: Final = MappingProxyType({"x-should-retry": "false"})
"""Keeps OpenAI's SDKs from repeating a request by themselves."""

_RETRY_SOON_S: Final = 2
_RETRY_LATER_S: Final = 30
"""When a person has to do something first."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one class of error is over HTTP."""

    status: int
    type: str
    code: str
    param: str | None = None
    """The field to blame when the error itself names none."""
    retry_after_s: int | None = None
    """When to try again, as long as no agent has started."""
    ends_calls: bool = False
    """Whether a call can end with it. Else an agent that sends it has tripped over its own."""
    is_unstored: bool = False
    """Whether it says that the request is in no mailbox."""
    asks_for_key: bool = False
    """Whether the client is told how to say who it is."""
    meaning: str = ""
    """For the documentation, where no class of error says it."""


_INTERNAL: Final = Row(
    500,
    SERVER,
    "internal_error",
    meaning="This server failed; its log has the id of the request.",
)
_UNKNOWN: Final = Row(404, BAD_REQUEST, "model_not_found", param="model")
_INVALID: Final = Row(400, BAD_REQUEST, "invalid_value")
_NO_BROKER: Final = Row(
    503, SERVER, "broker_unavailable", retry_after_s=_RETRY_SOON_S, ends_calls=True
)
_NOT_TAKEN: Final = Row(
    503,
    SERVER,
    "broker_unavailable",
    retry_after_s=_RETRY_SOON_S,
    ends_calls=True,
    is_unstored=True,
)
_NOT_LET_IN: Final = Row(
    503,
    SERVER,
    "broker_unavailable",
    ends_calls=True,
    meaning="The broker lets this server in no more.",
)
_AGENT_FAILED: Final = Row(502, SERVER, "agent_error", ends_calls=True)

TABLE: Final[dict[type[MeshError], Row]] = {
    errors.MeshError: _INTERNAL,
    errors.SettingsError: _INTERNAL,
    errors.LoadError: _INTERNAL,
    errors.InvalidInputError: Row(400, BAD_REQUEST, "invalid_value", ends_calls=True),
    errors.InvalidIdError: _INVALID,
    errors.PayloadTooLargeError: Row(413, BAD_REQUEST, "payload_too_large"),
    errors.ProtocolError: Row(502, SERVER, "bad_answer", ends_calls=True),
    errors.TransportError: _NO_BROKER,
    errors.BrokerUnreachableError: _NO_BROKER,
    errors.StreamMissingError: _NOT_TAKEN,
    errors.StreamConfigError: _NO_BROKER,
    errors.PublishRefusedError: _NOT_TAKEN,
    errors.StorageFullError: Row(
        503, SERVER, "storage_full", retry_after_s=_RETRY_LATER_S, ends_calls=True, is_unstored=True
    ),
    # Not to be repeated blindly: it may be stored.
    errors.AckLostError: Row(503, SERVER, "broker_unavailable", ends_calls=True),
    errors.NotPermittedError: _NO_BROKER,
    errors.EmbeddedBrokerError: _INTERNAL,
    errors.ServerBinaryError: _INTERNAL,
    errors.PortInUseError: _INTERNAL,
    errors.DataDirError: _INTERNAL,
    errors.PartFailedError: _INTERNAL,
    errors.DoorBusyError: Row(503, SERVER, "too_many_large_bodies", retry_after_s=_RETRY_SOON_S),
    errors.RegistryError: _INTERNAL,
    errors.AgentNotFoundError: Row(
        404, BAD_REQUEST, "model_not_found", param="model", ends_calls=True
    ),
    errors.NodeNotFoundError: _UNKNOWN,
    errors.AgentNotOnNodeError: _UNKNOWN,
    errors.CardRefusedError: _INTERNAL,
    errors.AccessError: _INTERNAL,
    errors.UnauthenticatedError: Row(401, AUTHENTICATION, "invalid_api_key", asks_for_key=True),
    errors.NotAllowedError: Row(403, PERMISSION, "agent_not_allowed", param="model"),
    errors.PresenceRefusedError: Row(403, PERMISSION, "presence_refused"),
    errors.KeyNotFoundError: _INTERNAL,
    errors.TrustError: _INTERNAL,
    errors.InvalidKeyError: _INTERNAL,
    errors.CredentialsError: _NOT_LET_IN,
    errors.JoinRefusedError: _INTERNAL,
    errors.CallError: Row(
        503,
        SERVER,
        "call_interrupted",
        ends_calls=True,
        meaning="This server is stopping; the call itself goes on, and its answer is stored.",
    ),
    errors.CallNotFoundError: Row(404, BAD_REQUEST, "call_not_found"),
    errors.CallRefusedError: Row(
        403, PERMISSION, "agent_not_allowed", param="model", ends_calls=True
    ),
    errors.KeyReusedError: Row(409, BAD_REQUEST, "idempotency_key_reused"),
    errors.AgentOfflineError: Row(
        503, SERVER, "agent_offline", retry_after_s=_RETRY_SOON_S, ends_calls=True
    ),
    errors.MailboxFullError: Row(
        429, RATE_LIMIT, "agent_busy", retry_after_s=1, ends_calls=True, is_unstored=True
    ),
    errors.AgentBusyError: Row(429, RATE_LIMIT, "agent_busy", retry_after_s=1, ends_calls=True),
    errors.CallTimeoutError: Row(504, SERVER, "agent_timeout", ends_calls=True),
    errors.CallCancelledError: Row(409, BAD_REQUEST, "call_cancelled", ends_calls=True),
    errors.DeadLetterError: Row(502, SERVER, "dead_letter", ends_calls=True),
    errors.DeadLetterNotFoundError: _INTERNAL,
    errors.HopLimitError: Row(502, SERVER, "hop_limit", ends_calls=True),
    errors.StreamRestartedError: Row(502, SERVER, "stream_restarted", ends_calls=True),
    errors.BodyLostError: Row(502, SERVER, "body_lost", ends_calls=True),
    errors.AgentFailedError: _AGENT_FAILED,
}

MALFORMED: Final = Row(
    400,
    BAD_REQUEST,
    "malformed_request",
    meaning="This is no HTTP, or two servers could read it in two ways.",
)
HEADERS_TOO_LARGE: Final = Row(
    431, BAD_REQUEST, "headers_too_large", meaning="Request line and headers are too long."
)
UNKNOWN_ENCODING: Final = Row(
    501,
    BAD_REQUEST,
    "unsupported_transfer_encoding",
    meaning="The body comes in another transfer encoding than chunked.",
)
BODY_TOO_SLOW: Final = Row(
    408, BAD_REQUEST, "request_timeout", meaning="The body did not come in time."
)
WRONG_HOST: Final = Row(
    421, BAD_REQUEST, "misdirected_host", meaning="The Host header does not name this server."
)
WRONG_CONTENT_TYPE: Final = Row(
    415,
    BAD_REQUEST,
    "unsupported_media_type",
    meaning="The body is not declared as JSON, or it is compressed.",
)
FOREIGN_ORIGIN: Final = Row(
    403,
    PERMISSION,
    "origin_not_allowed",
    meaning="A page of another origin may not change anything here.",
)
TOO_MANY_CONNECTIONS: Final = Row(
    503,
    SERVER,
    "too_many_connections",
    retry_after_s=_RETRY_SOON_S,
    meaning="This server has as many connections as it can hold.",
)
UNKNOWN_URL: Final = Row(404, BAD_REQUEST, "unknown_url", meaning="There is no such path.")
WRONG_METHOD: Final = Row(
    405, BAD_REQUEST, "method_not_supported", meaning="The path has other methods."
)
UNSUPPORTED: Final = Row(
    400, BAD_REQUEST, UNSUPPORTED_PARAMETER, meaning="A field is valid, but not served here."
)
UNKNOWN_AGENT: Final = Row(
    404,
    BAD_REQUEST,
    errors.AgentNotFoundError.code,
    param="agent_id",
    meaning="No agent of this id has ever been announced.",
)
UNKNOWN_NODE: Final = Row(
    404,
    BAD_REQUEST,
    errors.NodeNotFoundError.code,
    param="node",
    meaning="No node of this id has ever been announced.",
)
NO_AGENT_ID: Final = Row(
    400,
    BAD_REQUEST,
    errors.InvalidIdError.code,
    param="agent_id",
    meaning="What the path names cannot be an id.",
)
NO_NODE_ID: Final = replace(NO_AGENT_ID, param="node")
NO_MEMORY: Final = Row(
    400,
    BAD_REQUEST,
    UNKNOWN_RESPONSE,
    meaning="What was said before is not remembered: send the whole conversation.",
)

REFUSALS: Final = (
    MALFORMED,
    HEADERS_TOO_LARGE,
    UNKNOWN_ENCODING,
    BODY_TOO_SLOW,
    WRONG_HOST,
    WRONG_CONTENT_TYPE,
    FOREIGN_ORIGIN,
    TOO_MANY_CONNECTIONS,
    UNKNOWN_URL,
    WRONG_METHOD,
    UNSUPPORTED,
    NO_MEMORY,
    UNKNOWN_AGENT,
    UNKNOWN_NODE,
    NO_AGENT_ID,
    NO_NODE_ID,
)
"""What is told beside the table."""

_BY_STATUS: Final = {row.status: row for row in (MALFORMED, HEADERS_TOO_LARGE, UNKNOWN_ENCODING)}


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as an HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def envelope(message: str, kind: str, code: str, param: str | None = None) -> bytes:
    """Encode an error as OpenAI clients expect it."""
    return codec.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def failure(error: MeshError, *, sent_to: str | None = None) -> Failure:
    """Return what a client is told of `error`.

    `sent_to` is the agent that the request went to, when it went: from then on the agent may
    have started, and a client must not repeat the work by itself. An error about another agent
    is this one's failure.
    """
    row = _row(error, sent_to)
    measured_s = error.fields.get("retry_after_s") if isinstance(error, MailboxFullError) else None
    headers = _row_headers(replace(row, retry_after_s=measured_s) if measured_s else row)
    # The object store has no room for an answer, say: the request was stored all the same.
    is_unstored = row.is_unstored and BUCKET not in error.fields
    if sent_to is not None and not is_unstored:
        headers = dict(NO_RETRY)
    elif row.retry_after_s is None:
        # It would fail again, and OpenAI's SDKs repeat a 409 and a 500 by themselves.
        headers |= NO_RETRY
    code, param = row.code, row.param
    if isinstance(error, InvalidInputError) and row.status < 500:
        param = error.fields.get("field")
        if (reason := error.fields.get("reason")) in (UNSUPPORTED_PARAMETER, UNKNOWN_RESPONSE):
            code = str(reason)
    return Failure(row.status, headers, envelope(error.message, row.type, code, param))


def refusal(row: Row, message: str) -> Failure:
    """Return what a client is told that never came as far as an endpoint."""
    return Failure(row.status, _row_headers(row), envelope(message, row.type, row.code, row.param))


def unreadable(status: int) -> Row:
    """Return the row of an HTTP parser's complaint, which has only a number."""
    return _BY_STATUS.get(status, MALFORMED)


def _row_headers(row: Row) -> dict[str, str]:
    headers = {}
    if row.retry_after_s is not None:
        headers["retry-after"] = str(row.retry_after_s)
        headers["retry-after-ms"] = str(row.retry_after_s * 1000)
    if row.asks_for_key:
        headers["www-authenticate"] = "Bearer"
    return headers


def _row(error: MeshError, sent_to: str | None) -> Row:
    row = next(TABLE[one] for one in type(error).__mro__ if one in TABLE)
    if sent_to is None:
        return row
    is_its_own = error.fields.get("agent", sent_to) == sent_to
    return row if row.ends_calls and is_its_own else _AGENT_FAILED
