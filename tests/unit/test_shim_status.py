"""The table from errors to HTTP."""

from collections.abc import Iterator

import orjson
import pytest

from mesh.errors import (
    AgentFailedError,
    AgentNotFoundError,
    AgentOfflineError,
    BrokerUnreachableError,
    CallTimeoutError,
    InvalidInputError,
    KeyReusedError,
    MailboxFullError,
    MeshError,
    NodeNotFoundError,
    NotAllowedError,
    PayloadTooLargeError,
    ProtocolError,
    StreamRestartedError,
    UnauthenticatedError,
)
from mesh.shim.status import (
    HEADERS_TOO_LARGE,
    MALFORMED,
    TABLE,
    TOO_MANY_CONNECTIONS,
    UNSUPPORTED_PARAMETER,
    Row,
    failure,
    refusal,
    unreadable,
)


def tree(root: type[MeshError]) -> Iterator[type[MeshError]]:
    if root.__module__ == "mesh.errors":
        yield root
        for child in root.__subclasses__():
            yield from tree(child)


def test_every_error_has_a_row() -> None:
    """A class that somebody adds to the tree must get its HTTP status."""
    assert set(TABLE) == set(tree(MeshError))


@pytest.mark.parametrize("error_class", list(TABLE))
def test_every_row_makes_a_whole_envelope(error_class: type[MeshError]) -> None:
    """OpenAI clients read four fields, whatever happened."""
    told = failure(error_class("it broke"))
    error = orjson.loads(told.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] == "it broke"
    assert 400 <= told.status < 600
    assert isinstance(error["code"], str)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "param"),
    [
        (
            InvalidInputError("x", field="messages"),
            400,
            "invalid_request_error",
            "invalid_value",
            "messages",
        ),
        (
            InvalidInputError("x", field="n", reason=UNSUPPORTED_PARAMETER),
            400,
            "invalid_request_error",
            "unsupported_parameter",
            "n",
        ),
        (PayloadTooLargeError("x"), 413, "invalid_request_error", "payload_too_large", None),
        (AgentNotFoundError("x"), 404, "invalid_request_error", "model_not_found", "model"),
        (NodeNotFoundError("x"), 404, "invalid_request_error", "model_not_found", "model"),
        (AgentOfflineError("x"), 503, "server_error", "agent_offline", None),
        (BrokerUnreachableError("x"), 503, "server_error", "broker_unavailable", None),
        (MailboxFullError("x"), 429, "rate_limit_error", "agent_busy", None),
        (CallTimeoutError("x"), 504, "server_error", "agent_timeout", None),
        (UnauthenticatedError("x"), 401, "authentication_error", "invalid_api_key", None),
        (NotAllowedError("x"), 403, "permission_error", "agent_not_allowed", "model"),
        (AgentFailedError("x"), 502, "server_error", "agent_error", None),
    ],
)
def test_the_agreed_rows(
    error: MeshError, status: int, kind: str, code: str, param: str | None
) -> None:
    """What `research/ecosystem-anchors.md` 1.5 promises to clients."""
    told = failure(error)
    shown = orjson.loads(told.body)["error"]
    assert (told.status, shown["type"], shown["code"], shown["param"]) == (
        status,
        kind,
        code,
        param,
    )


@pytest.mark.parametrize(
    "error", [AgentOfflineError("x"), BrokerUnreachableError("x"), MailboxFullError("x")]
)
def test_what_was_not_sent_may_be_retried(error: MeshError) -> None:
    """As long as no agent can have started, the client is told when to come again."""
    told = failure(error)
    assert int(told.headers["retry-after"]) >= 1
    assert int(told.headers["retry-after-ms"]) >= 1000
    assert "x-should-retry" not in told.headers


@pytest.mark.parametrize(
    "error",
    [
        CallTimeoutError("x", agent="solarius"),
        AgentFailedError("x", agent="solarius"),
        StreamRestartedError("x", agent="solarius"),
        BrokerUnreachableError("x", agent="solarius"),
    ],
)
def test_what_was_sent_is_not_to_be_repeated(error: MeshError) -> None:
    """Once an agent may have started, OpenAI clients must not start it again by themselves."""
    told = failure(error, sent_to="solarius")
    assert told.headers == {"x-should-retry": "false"}


@pytest.mark.parametrize("error", [KeyReusedError("x"), MeshError("x"), ProtocolError("x")])
def test_what_would_fail_again_is_not_to_be_repeated(error: MeshError) -> None:
    """OpenAI clients repeat a 409 and a 500 by themselves, unless they are told."""
    assert failure(error).headers == {"x-should-retry": "false"}


def test_a_full_mailbox_may_be_retried_although_it_was_sent() -> None:
    """The broker refused the request, so nobody works on it."""
    told = failure(MailboxFullError("x", agent="solarius"), sent_to="solarius")
    assert told.status == 429
    assert told.headers["retry-after"] == "1"
    assert "x-should-retry" not in told.headers


@pytest.mark.parametrize(
    "error",
    [
        AgentNotFoundError("x", agent="nobody"),
        AgentOfflineError("x", agent="daarwizz"),
        MailboxFullError("x", agent="daarwizz"),
        NodeNotFoundError("x", node="node9", agent="solarius"),
        PayloadTooLargeError("x", agent="solarius"),
        MeshError("x", agent="solarius"),
    ],
)
def test_what_an_agent_stumbled_over_is_its_own_failure(error: MeshError) -> None:
    """A nested call that fails must not tell the client that its own target does not exist."""
    told = failure(error, sent_to="solarius")
    shown = orjson.loads(told.body)["error"]
    assert (told.status, shown["code"], shown["param"]) == (502, "agent_error", None)
    assert told.headers == {"x-should-retry": "false"}


def test_an_agent_may_refuse_the_input() -> None:
    """A handler that raises InvalidInputError blames the request."""
    told = failure(InvalidInputError("x", field="tools", agent="solarius"), sent_to="solarius")
    assert told.status == 400
    assert orjson.loads(told.body)["error"]["param"] == "tools"


def test_a_class_of_somebody_else_has_the_row_of_its_parent() -> None:
    """An agent's author may derive from our errors."""

    class OutOfTeaError(AgentFailedError):
        code = "out_of_tea"

    assert failure(OutOfTeaError("no tea")).status == 502


def test_who_shows_no_key_is_told_how() -> None:
    """The header that HTTP wants beside a 401 (RFC 9110, 11.6.1)."""
    assert failure(UnauthenticatedError("x")).headers["www-authenticate"] == "Bearer"
    assert failure(UnauthenticatedError("x"), sent_to="solarius").status == 502


@pytest.mark.parametrize(("status", "code"), [(400, MALFORMED), (431, HEADERS_TOO_LARGE)])
def test_a_parsers_complaint_has_its_row(status: int, code: Row) -> None:
    """And one that nobody has thought of is a malformed request."""
    assert unreadable(status) is code
    assert unreadable(499) is MALFORMED


def test_a_refusal_may_ask_to_come_again() -> None:
    """Too many connections will be fewer soon."""
    told = refusal(TOO_MANY_CONNECTIONS, "x")
    assert (told.status, told.headers["retry-after"]) == (503, "2")
    assert orjson.loads(told.body)["error"]["code"] == "too_many_connections"
