"""Durations as people write them: 30s, 5m, 12h, 30d."""

import re

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(text: str, option: str = "--expires") -> float:
    """Read a duration.

    Raises:
        InvalidInputError: it is none.
    """
    from mesh.errors import InvalidInputError

    if parts := re.fullmatch(r"([0-9]{1,6})([smhd])", text):
        return float(parts[1]) * _UNITS_S[parts[2]]
    raise InvalidInputError(
        f"{option}: {text[:40]!r} is no duration: give a number with s, m, h or d, such as 30d",
        field=option.lstrip("-"),
    )
