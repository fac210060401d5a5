"""Room on the disk that new tickets leave free.

What was accepted needs room for its answer, and even removing what is past its retention takes some, in SQLite's log,
before any is given back.  A line that filled its disk to the last byte would never get out of that by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsgi_admission.stores.checkpoints import WAL_LIMIT
from wsgi_admission.stores.connections import unavailable

#: Bytes.  The log is carried over when it has grown by half of this, which may take as many in the database.
RESERVE = 2 * WAL_LIMIT


def is_short(path: Path) -> bool:
    """Whether the disk has less than the reserve; False where that cannot be told."""
    return _free(path) < RESERVE


def is_full(path: Path, query: Callable[[str], list[Any]]) -> bool:
    """Whether the disk and the free pages of the database together have less than the reserve.

    :param query: returns the rows of a statement; called only if the disk is short.
    """
    free = _free(path)
    if free >= RESERVE:
        return False
    ((pages,),), ((size,),) = query("PRAGMA freelist_count"), query("PRAGMA page_size")
    return bool(free + pages * size < RESERVE)


def refuse_full(path: Path, query: Callable[[str], list[Any]]) -> None:
    """Raise `StoreUnavailable` if so little is left that nothing new is accepted.  Parameters as for `is_full`."""
    if is_full(path, query):
        raise unavailable(path, f"its disk has less than {RESERVE >> 20} MiB left, which are for what was accepted")


def _free(path: Path) -> float:
    try:
        disk = os.statvfs(path)
    except OSError:
        return float("inf")  # whatever is wrong, writing will tell
    return disk.f_bavail * disk.f_frsize if disk.f_blocks else float("inf")
