"""Headers are read without trust, and counted without doubt."""

import pytest

from mesh import headers as h
from mesh.headers import RequestHeaders, encoded_size, size_at_most


@pytest.mark.parametrize(
    "headers",
    [{}, {"a": "b"}, {"a": "ü" * 100, "b": ""}, {"x" * 50: "y" * 5_000}, {"emoji": "🌻" * 40}],
)
def test_the_quick_bound_is_never_too_small(headers: dict[str, str]) -> None:
    """What the quick look lets through is small enough, byte by byte."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    assert encoded_size(headers) == len(f"NATS/1.0\r\n{lines}\r\n".encode())
    assert size_at_most(headers) >= encoded_size(headers)


@pytest.mark.parametrize("bad", ["9" * 400, "-1", "1.5", "", "ten", "１２"])
def test_a_deadline_that_is_no_number_counts_as_missing(bad: str) -> None:
    """Nothing a client writes there can raise."""
    assert RequestHeaders.read({h.TIMEOUT_MS: bad}).timeout_ms is None


@pytest.mark.parametrize("bad", ["", "x" * 129, "a b", "ü", "a\n"])
def test_a_call_id_that_is_none_counts_as_missing(bad: str) -> None:
    """It stands on every frame, so it is short and plain."""
    assert RequestHeaders.read({h.CORRELATION_ID: bad}).call_id == ""


def test_a_source_that_is_no_id_counts_as_missing() -> None:
    """A handler is told of valid ids only."""
    read = RequestHeaders.read({h.SOURCE_AGENT: "a.b", h.SOURCE_NODE: "node1"})
    assert (read.source_agent, read.source_node) == ("", "node1")


def test_a_ttl_has_whole_seconds() -> None:
    """At least one, rounded up."""
    assert [h.ttl(one) for one in (0.0, 0.2, 1.0, 1.1, 60.0)] == ["1", "1", "1", "2", "60"]
