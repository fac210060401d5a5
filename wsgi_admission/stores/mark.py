"""A mark that differs after every commit, in a file of eight bytes beside the database; see watch.py.

It is read through a mapping, because every matching request reads it, and written by a call: on a full disk a mapped
page kills the process that writes to it.  What is read is never beyond the end of the file, which would kill the
reader: it is mapped only once it is long enough, and nobody makes it shorter.  (Nobody may: what truncates a
database's ``-shm`` kills the readers of that too.)
"""

from __future__ import annotations

import contextlib
import mmap
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
        self._map: mmap.mmap | bytes | None = None
        # On a full disk, say, or a file system that maps nothing, it is read by calls.
        with contextlib.suppress(OSError, ValueError):
            if os.fstat(self._descriptor).st_size < _SIZE:
                os.pwrite(self._descriptor, os.urandom(_SIZE), 0)
            self._map = mmap.mmap(self._descriptor, _SIZE, prot=mmap.PROT_READ)

    def read(self) -> bytes:
        """Return the mark; empty before the first one, and once this is closed."""
        mapped = self._map
        return os.pread(self._descriptor, _SIZE, 0) if mapped is None else mapped[:_SIZE]

    def renew(self) -> None:
        """Leave a new one."""
        try:
            os.pwrite(self._descriptor, os.urandom(_SIZE), 0)
        except OSError:
            pass  # the disk is full, say: others notice the commit when they next ask SQLite

    def close(self) -> None:
        """Let go of the file, if that has not been done."""
        # Another thread may be reading: what it reads is unmapped when it has done so.
        self._map = b""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
