"""Lengths of time in the words of a language."""

from __future__ import annotations

import math

from wsgi_admission.languages import Language
from wsgi_admission.policy.estimates import lengths

#: unit, its seconds, and the length in seconds up to which a wait is told in it.
_UNITS = (("second", 1, 55.0), ("minute", 60, 90 * 60.0), ("hour", 3600, 48 * 3600.0), ("day", 86_400, math.inf))
#: Below a minute a wait is told in steps of so many seconds.
_STEP = 5


def duration(seconds: float, t: Language) -> str:
    """Return a length of time, for instance "1 hour 5 minutes"."""
    parts = lengths(seconds)
    return " ".join(count(number, unit, t) for number, unit in parts) if parts else t("a moment")


def count(number: int, unit: str, t: Language) -> str:
    """Return a number of units: second, minute, hour or day."""
    return t(f"1 {unit}") if number == 1 else t(f"{{number}} {unit}s", number=number)


def wait_range(p50: float, p90: float, t: Language) -> str:
    """Return between what a wait will be, for instance "about 2 to 4 minutes".

    :param p50: seconds that half of such tickets wait at most; ``p90`` those that nine in ten do.
    """
    if p90 < 2 * _STEP:
        return t("a few seconds")
    unit, size = next((unit, size) for unit, size, end in _UNITS if p90 < end)
    step = _STEP if size == 1 else 1
    low, high = math.floor(p50 / size / step + 0.5) * step, math.ceil(p90 / size / step) * step
    if low < 1:
        return t("up to {duration}", duration=count(high, unit, t))
    if low >= high:
        return t("about {duration}", duration=count(high, unit, t))
    return t("about {low} to {high}", low=low, high=count(high, unit, t))
