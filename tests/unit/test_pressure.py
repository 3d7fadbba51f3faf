"""When a full mailbox has room again."""

import pytest

from mesh.pressure import AT_LEAST_S, AT_MOST_S, Look, room_in_s


@pytest.mark.parametrize(
    ("done", "waiting", "wanted"),
    [
        (100, 1_000, 50),  # 10 a second, and 500 to go
        (1_000, 1_000, 5),
        (100_000, 1_000, AT_LEAST_S),
        (1, 1_000, AT_MOST_S),
        (0, 1_000, AT_MOST_S),
        (105, 1_000, 48),  # 47.6, and a little too late is better than too early
    ],
)
def test_half_of_it_at_the_pace_of_the_last_seconds(done: int, waiting: int, wanted: int) -> None:
    """Bounded on both sides; nothing done is the longest wait."""
    assert room_in_s(Look(5.0, 7, waiting), Look(15.0, 7 + done, waiting)) == wanted
