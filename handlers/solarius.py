"""Solarius, of the demo: says when the sun rises and sets. No model, no key: it works it out.

Source: the NOAA solar calculation (after Meeus, "Astronomical Algorithms"), good to about a
minute between 60° south and 60° north.
"""

import datetime
import math
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mesh import Agent, ChatRequest

agent = Agent("solarius", description="Says when the sun rises and sets, anywhere, on any day.")

PLACES = {
    "kyiv": (50.45, 30.52),
    "lviv": (49.84, 24.03),
    "odesa": (46.48, 30.72),
    "warsaw": (52.23, 21.01),
    "berlin": (52.52, 13.41),
    "paris": (48.86, 2.35),
    "london": (51.51, -0.13),
    "lisbon": (38.72, -9.14),
    "reykjavik": (64.15, -21.94),
    "new york": (40.71, -74.01),
    "singapore": (1.35, 103.82),
    "tokyo": (35.68, 139.69),
    "sydney": (-33.87, 151.21),
}
SUNRISE_ZENITH_DEG = 90.833
"""The sun's upper edge at the horizon, refraction included."""


@dataclass(frozen=True, slots=True)
class SolarDay:
    """Minutes of the UTC day; rise and set are None where the sun does neither."""

    rise_min: float | None
    noon_min: float
    set_min: float | None
    length_min: float


def solar_day(latitude: float, longitude: float, day: datetime.date) -> SolarDay:
    """Work out the sun's day at a place (degrees, north and east positive)."""
    century = (day.toordinal() + 1721424.5 + 0.5 - longitude / 360 - 2451545) / 36525
    mean_long = math.radians((280.46646 + century * (36000.76983 + 0.0003032 * century)) % 360)
    anomaly = math.radians(357.52911 + century * (35999.05029 - 0.0001537 * century))
    eccentricity = 0.016708634 - century * (0.000042037 + 0.0000001267 * century)
    centre = (
        math.sin(anomaly) * (1.914602 - century * (0.004817 + 0.000014 * century))
        + math.sin(2 * anomaly) * (0.019993 - 0.000101 * century)
        + math.sin(3 * anomaly) * 0.000289
    )
    node = math.radians(125.04 - 1934.136 * century)
    apparent = mean_long + math.radians(centre - 0.00569 - 0.00478 * math.sin(node))
    tilt = math.radians(23.439291 - 0.0130042 * century + 0.00256 * math.cos(node))
    declination = math.asin(math.sin(tilt) * math.sin(apparent))
    y = math.tan(tilt / 2) ** 2
    equation_min = 4 * math.degrees(
        y * math.sin(2 * mean_long)
        - 2 * eccentricity * math.sin(anomaly)
        + 4 * eccentricity * y * math.sin(anomaly) * math.cos(2 * mean_long)
        - 0.5 * y * y * math.sin(4 * mean_long)
        - 1.25 * eccentricity * eccentricity * math.sin(2 * anomaly)
    )
    noon_min = 720 - 4 * longitude - equation_min
    phi = math.radians(latitude)
    cosine = (
        math.cos(math.radians(SUNRISE_ZENITH_DEG)) - math.sin(phi) * math.sin(declination)
    ) / (math.cos(phi) * math.cos(declination))
    if not -1 <= cosine <= 1:
        return SolarDay(None, noon_min, None, 1440.0 if cosine < -1 else 0.0)
    half_min = 4 * math.degrees(math.acos(cosine))
    return SolarDay(noon_min - half_min, noon_min, noon_min + half_min, 2 * half_min)


def describe(place: str, position: tuple[float, float], day: datetime.date) -> str:
    """Say it in a sentence."""
    sun = solar_day(*position, day)
    hours, minutes = divmod(round(sun.length_min), 60)
    length = f"the day lasts {hours} h {minutes:02d} min."
    if sun.rise_min is None or sun.set_min is None:
        what = "does not set" if sun.length_min else "does not rise"
        return f"In {place} on {day} the sun {what}; {length}"
    return (
        f"In {place} on {day} the sun rises at {_clock(sun.rise_min)}, culminates at "
        f"{_clock(sun.noon_min)} and sets at {_clock(sun.set_min)} UTC; {length}"
    )


def _clock(minute: float) -> str:
    hours, minutes = divmod(round(minute) % 1440, 60)
    return f"{hours:02d}:{minutes:02d}"


def find_place(text: str) -> tuple[str, tuple[float, float]] | None:
    """Find a known city, or `latitude, longitude`, in a question."""
    for name, position in PLACES.items():
        if re.search(rf"\b{name}\b", text.lower()):
            return name.title(), position
    if found := re.search(r"(-?\d{1,2}\.\d+)\s*,\s*(-?\d{1,3}\.\d+)", text):
        return found[0], (float(found[1]), float(found[2]))
    return None


def find_day(text: str) -> datetime.date:
    """Find a date (YYYY-MM-DD) in a question; today, by UTC, when there is none."""
    found = re.search(r"\b(\d{4})-(\d{2})-(\d{2})\b", text)
    try:
        return datetime.date(*map(int, found.groups())) if found else _today()
    except ValueError:
        return _today()


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


@agent.chat
async def answer(request: ChatRequest) -> AsyncIterator[str]:
    """Answer for the place and the day in the last message, word by word."""
    question = request.last_text
    place = find_place(question)
    if place is None:
        cities = ", ".join(name.title() for name in PLACES)
        yield f"Where? I know {cities}, and any latitude, longitude such as 50.45, 30.52."
        return
    for number, word in enumerate(describe(*place, find_day(question)).split(" ")):
        yield f" {word}" if number else word
