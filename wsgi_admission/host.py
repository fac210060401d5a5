"""This host: its boot and its clock."""

from __future__ import annotations

import time
from pathlib import Path

# Elsewhere than on Linux a host that slept counts less time than has passed.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Return seconds since the boot, the same for all processes; setting the time of day does not touch it."""
    return time.clock_gettime(_CLOCK)


def boot_id() -> str:
    """Return what differs after each boot, or an empty string where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
