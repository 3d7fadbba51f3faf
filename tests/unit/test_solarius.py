"""The demo's answers are right: checked against published almanac times."""

import datetime

import pytest

from handlers.solarius import PLACES, answer, find_day, find_place, solar_day
from schemas.chat import ChatRequest

ALMANAC = [
    # place, day, sunrise and sunset in UTC, as national almanacs print them
    ("kyiv", datetime.date(2026, 6, 21), "01:46", "18:13"),
    ("london", datetime.date(2026, 12, 21), "08:03", "15:53"),
    ("lisbon", datetime.date(2026, 6, 21), "05:11", "20:04"),
    ("sydney", datetime.date(2026, 12, 21), "18:40", "09:05"),
]


def minutes(clock: str) -> int:
    """Minutes of the day."""
    return int(clock[:2]) * 60 + int(clock[3:])


@pytest.mark.parametrize(("place", "day", "rise", "set_"), ALMANAC)
def test_sunrise_and_sunset_are_right_to_two_minutes(
    place: str, day: datetime.date, rise: str, set_: str
) -> None:
    """As the almanac says."""
    sun = solar_day(*PLACES[place], day)
    assert sun.rise_min is not None
    assert sun.set_min is not None
    assert abs(sun.rise_min % 1440 - minutes(rise)) <= 2
    assert abs(sun.set_min % 1440 - minutes(set_)) <= 2


def test_polar_days_and_nights() -> None:
    """Where the sun does not set or rise, that is said."""
    assert solar_day(78.2, 15.6, datetime.date(2026, 6, 21)).length_min == 1440
    assert solar_day(78.2, 15.6, datetime.date(2026, 12, 21)).length_min == 0


def test_questions_are_understood() -> None:
    """A city or a position, and a day; nonsense falls back."""
    assert find_place("sunset in New York?") == ("New York", PLACES["new york"])
    assert find_place("at 50.45, 30.52") == ("50.45, 30.52", (50.45, 30.52))
    assert find_place("hello") is None
    assert find_day("on 2026-06-21") == datetime.date(2026, 6, 21)
    assert find_day("on 2026-13-45") == datetime.datetime.now(datetime.UTC).date()


async def test_an_unknown_place_is_answered_with_what_is_known() -> None:
    """The agent says what it can be asked."""
    parts = [part async for part in answer(ChatRequest.from_text("hello"))]
    assert "".join(parts).startswith("Where? I know Kyiv")
