"""This host: its boot, its clock, and which of its processes live."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

# Elsewhere than on Linux a host that slept counts less time than has passed.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
# Where the start time stands in /proc/PID/stat, counted from the state, which follows the name.
_STARTED = 19


def clock() -> float:
    """Return seconds since the boot, the same for all processes; setting the time of day does not touch it."""
    return time.clock_gettime(_CLOCK)


def told(path: str) -> str:
    """Return the text of one of the kernel's files; empty where there is none, or it is kept from this process.

    :raises OSError: when it cannot be read just now: no more files can be opened, say.
    """
    try:
        return Path(path).read_text("utf-8", "surrogateescape")
    except (FileNotFoundError, PermissionError):
        return ""


def boot_id() -> str:
    """Return what differs after each boot, or an empty string where the system does not tell.

    :raises OSError: as `told` does.
    """
    return told("/proc/sys/kernel/random/boot_id").strip()


def name() -> str:
    """Return what names this machine, its boot, and the name space in which its process ids count.

    Two containers of one machine have different processes under the same ids.

    :raises OSError: when it cannot be found out just now.
    """
    try:
        space = str(Path("/proc/self/ns/pid").stat().st_ino)
    except (FileNotFoundError, PermissionError):
        space = ""
    return ":".join((socket.gethostname(), boot_id(), space))


def born(pid: int) -> float | None:
    """Return when a process of this host began, in seconds since the boot; None if it is dead.

    It is what psutil's ``create_time`` is made of, before the time of the boot is added to it: that moves whenever
    somebody sets the time of day.  None for every process where there is no ``/proc``.

    :raises OSError: when it cannot be found out just now.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", "surrogateescape")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = status.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:
        return None  # it has ended, and waits for its parent to take note
    return int(fields[_STARTED]) / os.sysconf("SC_CLK_TCK")
