"""How large the runs are: a short form for every day, and the full one for ``make reliability``."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

FULL = os.environ.get("ADMISSION_TEST_SIZE") == "full"


def sized(short: T, full: T) -> T:
    """Return the one of the two figures that this run has."""
    return full if FULL else short
