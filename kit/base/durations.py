"""Durations as people type and read them."""

import re

from kit.base.errors import KitError

_UNITS = {"h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as 2h, 90m, 1h30m, 45s; a plain number is of seconds.

    Raises
    ------
    KitError
        If it is none, or not above 0.
    """
    found = _DURATION.fullmatch(text.strip())
    parts = zip(found.groups(), _UNITS.values(), strict=True) if found else []
    seconds = sum(float(number) * unit for number, unit in parts if number)
    if not seconds:
        raise KitError(f"{text[:40]!r} is no duration above 0: write 2h, 90m, 1h30m or 45s")
    return seconds


def format_duration(seconds: float) -> str:
    """Return a duration as minutes and seconds, 4:05, or with hours, 1:04:05."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
