"""On what terms a request is asked."""

from typing import Any

import pytest

from mesh.errors import InvalidInputError
from mesh.settings import DEFAULT_HTTP_TIMEOUT_S
from mesh.shim.terms import DEFAULT_BACKGROUND_TIMEOUT_S, OnLeave, read_terms


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", DEFAULT_HTTP_TIMEOUT_S), ("0.25", 0.25), ("30", 30.0), ("86400", 86_400.0)],
)
def test_a_deadline_is_read(text: str, seconds: float) -> None:
    """Seconds, up to a day."""
    assert read_terms({}, {"x-mesh-timeout": text}).timeout_s == seconds


@pytest.mark.parametrize(
    "bad", ["0", "0.0", "-1", "86400.5", "nan", "inf", "1e3", "1_0", "٣", "5s"]
)
def test_a_deadline_that_cannot_be_is_blamed(bad: str) -> None:
    """A deadline is never guessed."""
    with pytest.raises(InvalidInputError) as caught:
        read_terms({}, {"x-mesh-timeout": bad})
    assert caught.value.field == "X-Mesh-Timeout"


def test_a_field_wins_over_its_header() -> None:
    """An SDK that can add fields need not fight a proxy that sets headers."""
    headers = {"x-mesh-timeout": "30", "x-mesh-wait": "false"}
    found = read_terms({"timeout": 2.5, "wait": True}, headers)
    assert (found.timeout_s, found.waits) == (2.5, True)


def test_what_nobody_waits_for_waits_for_its_agent() -> None:
    """A background call has time, unless it says otherwise."""
    found = read_terms({"background": True}, {})
    assert (found.is_background, found.waits) == (True, True)
    assert found.timeout_s == DEFAULT_BACKGROUND_TIMEOUT_S
    assert not read_terms({"background": True, "wait": False}, {}).waits
    assert not read_terms({}, {}).waits


def test_a_client_that_can_come_back_leaves_its_call_alone() -> None:
    """Without a key nobody would see the answer: the call is cancelled."""
    assert read_terms({}, {}).on_leave is OnLeave.CANCEL
    assert read_terms({}, {"idempotency-key": "k1"}).on_leave is OnLeave.DETACH
    asked = {"idempotency-key": "k1", "x-mesh-on-disconnect": "Cancel"}
    assert read_terms({}, asked).on_leave is OnLeave.CANCEL


@pytest.mark.parametrize(
    ("fields", "headers", "place"),
    [
        ({"timeout": "5"}, {}, "timeout"),
        ({"timeout": True}, {}, "timeout"),
        ({"timeout": -1}, {}, "timeout"),
        ({"timeout": 1e300}, {}, "timeout"),
        ({"timeout": [1]}, {}, "timeout"),
        ({"wait": "yes"}, {}, "wait"),
        ({"background": 1}, {}, "background"),
        ({}, {"x-mesh-wait": "perhaps"}, "X-Mesh-Wait"),
        ({}, {"x-mesh-on-disconnect": "cry"}, "X-Mesh-On-Disconnect"),
        ({}, {"idempotency-key": "k" * 256}, "Idempotency-Key"),
        ({}, {"idempotency-key": "ключ"}, "Idempotency-Key"),
        # Stored, it would be a call as any other: the handler would run.
        ({}, {"x-mesh-ping": "1", "idempotency-key": "k1"}, "X-Mesh-Ping"),
        ({"background": True}, {"x-mesh-ping": "1"}, "X-Mesh-Ping"),
    ],
)
def test_terms_that_cannot_be_are_blamed(
    fields: dict[str, Any], headers: dict[str, str], place: str
) -> None:
    """The client is told where."""
    with pytest.raises(InvalidInputError) as caught:
        read_terms(fields, headers)
    assert caught.value.field == place
