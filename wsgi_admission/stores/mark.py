"""A mark that differs after every commit, in a file of eight bytes beside the database; see watch.py.

It is read and written by calls and not mapped: on a full disk a mapped page kills the process that touches it.
"""

from __future__ import annotations

import os
from pathlib import Path

_SIZE = 8


class Mark:
    """The mark, for one process.

    :raises OSError: when the file cannot be made or is a link.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)

    def read(self) -> bytes:
        """Return the mark; empty before the first one."""
        return os.pread(self._descriptor, _SIZE, 0)

    def renew(self) -> None:
        """Leave a new one."""
        try:
            os.pwrite(self._descriptor, os.urandom(_SIZE), 0)
        except OSError:
            pass  # the disk is full, say: others notice the commit when they next ask SQLite

    def close(self) -> None:
        """Let go of the file, if that has not been done; it must not be used afterwards."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
