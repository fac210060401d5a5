"""Options that are numbers: whole ones, durations, sizes and percentages."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TypeGuard, TypeVar

from wsgi_admission.options import Kind

D = TypeVar("D", Decimal, int)

#: Seconds; ``threading`` cannot wait for more than 292 years.
LONGEST = 36500 * 86400.0
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


#: The largest count that anybody can mean: of threads, processes, slots or retries.
MOST = 10_000


def whole(minimum: int) -> Kind[int]:
    """Return the kind of a whole number from ``minimum`` on."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise ValueError("must be a whole number")
        return int(text)

    def check(value: object) -> None:
        if type(value) is not int:  # True is none
            raise ValueError("must be a whole number")
        if value < minimum:
            raise ValueError(f"must be {minimum} or more")
        if value > MOST:
            raise ValueError(f"must be {MOST} or less")

    return Kind(expected=f"a whole number, {minimum} or more", read=read, check=check)


def duration() -> Kind[float]:
    """Return the kind of a time above 0, in seconds: ``30``, ``30s``, ``500ms``, ``5m``, ``24h``, ``7d``."""

    def read(text: str) -> float:
        number, unit = _quantity(text, "a duration")
        return float(number * _factor(unit or "s", _SECONDS, "ms, s, m, h, d"))

    def check(value: object) -> None:
        if not _is_number(value):
            raise ValueError("must be a number of seconds")
        if value <= 0:
            raise ValueError("must be above 0")
        if value > LONGEST:
            raise ValueError("must be 36500d (a hundred years) or less")

    def show(value: float) -> str:
        for unit in ("d", "h", "m"):
            factor = float(_SECONDS[unit])
            # One of a unit reads better in the next: 24h, 60s.
            if value % factor == 0 and value > factor:
                return f"{value / factor:.0f}{unit}"
        return f"{value:.12g}s"

    return Kind(
        expected="a duration above 0, such as 500ms, 30s, 5m, 24h or 7d; seconds without a unit",
        read=read,
        check=check,
        show=show,
    )


def size() -> Kind[int]:
    """Return the kind of a number of bytes: ``16MiB``, ``16MB``, ``512KiB``, ``1GiB``, ``4096``."""

    def read(text: str) -> int:
        number, unit = _quantity(text, "a size")
        found = number * _factor(unit or "B", _BYTES, "B, KB, MB, GB, KiB, MiB, GiB")
        if found != found.to_integral_value():
            raise ValueError("must be a whole number of bytes")
        return int(found)

    def check(value: object) -> None:
        if type(value) is not int:
            raise ValueError("must be a whole number of bytes")
        if value < 0:
            raise ValueError("must be 0 or more")

    def show(value: int) -> str:
        for unit in ("GiB", "MiB", "KiB"):
            if value and value % _BYTES[unit.lower()] == 0:
                return f"{value // _BYTES[unit.lower()]}{unit}"
        return str(value)

    return Kind(
        expected="a size, 0 or more, such as 512KiB, 16MiB, 16MB or 1GiB; bytes without a unit",
        read=read,
        check=check,
        show=show,
    )


def fraction() -> Kind[float]:
    """Return the kind of a part of a whole, 0 to 1: ``80%``, ``80`` and ``0.8`` are the same."""

    def read(text: str) -> float:
        number, unit = _quantity(text, "a percentage")
        if unit not in {"", "%"}:
            raise ValueError(f"unknown unit {unit!r}; expected '%' or none")
        return float(number / 100 if unit or number > 1 else number)

    def check(value: object) -> None:
        if not _is_number(value) or not 0 <= value <= 1:
            raise ValueError("must be between 0% and 100%")

    return Kind(
        expected="a percentage, such as 80% or 0.8; a number above 1 is percent",
        read=read,
        check=check,
        show=lambda value: f"{value * 100:.10g}%",
    )


def _quantity(text: str, what: str) -> tuple[Decimal, str]:
    """Return number and unit; as a Decimal, because 1.1MB is a whole number of bytes and 33.3% is 0.333."""
    found = re.fullmatch(r"([+-]?[0-9]+(?:\.[0-9]+)?)\s*([^\W\d_]*|%)", text)
    if not found:
        raise ValueError(f"must be {what}")
    return Decimal(found[1]), found[2]


def _factor(unit: str, factors: Mapping[str, D], names: str) -> D:
    if unit.lower() not in factors:
        raise ValueError(f"unknown unit {unit!r}; expected one of {names}")
    return factors[unit.lower()]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
