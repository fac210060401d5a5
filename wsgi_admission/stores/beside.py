"""Files that SQLite may have open in this process too, opened beside it."""

from __future__ import annotations

import os
from pathlib import Path

# What was opened beside SQLite.  It stays open, for the next time: closing any descriptor of a file drops the locks
# that SQLite holds on it.
_descriptors: dict[Path, int] = {}


def descriptor(file: Path) -> int:
    """Open a file that SQLite may have open too, or return what was opened of it before."""
    found = _descriptors.get(file)
    if found is not None and not os.path.samestat(os.fstat(found), file.lstat()):
        os.close(_descriptors.pop(file))  # of a file that was replaced: its locks keep nobody from anything
        found = None
    if found is None:
        found = _descriptors[file] = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    return found


def content(file: Path) -> bytes:
    """Return all that is in it."""
    found = descriptor(file)
    return os.pread(found, os.fstat(found).st_size, 0)


def is_emptied(path: Path) -> bool:
    """Whether there is a file of no length."""
    try:
        return os.stat(path).st_size == 0  # noqa: PTH116 - every second: no Path is built for it
    except OSError:
        return False
