"""Carrying SQLite's write-ahead log over into the database: one process of a host at a time.

Up to 3.51.2 two connections that checkpoint close together can lose commits.  So no connection does it by
itself, and whoever does it holds a lock of the whole host, which the kernel takes back when its holder dies.  It
is a record lock on a file of its own: closing any descriptor of the database file would drop the locks that
SQLite holds on that.

The log is begun anew and not cut: writing over a file is cheaper than making it longer, by a third of the time
of a commit that waits for the disk.  So its size does not tell how much is in it.  What tells is that it grew.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from wsgi_admission.stores.connections import Connections, unavailable

#: The log is carried over when it has grown, and is larger than this, in bytes ...
WAL_LIMIT = 4 << 20
#: ... and, whatever its size, after so many seconds.
INTERVAL = 60.0
#: A log larger than this, in bytes, is cut.
WAL_CUT = 4 * WAL_LIMIT
#: Seconds for which writers may be held off: what takes longer is done beside them.
SHORT = 0.01
#: How often each of the two is tried.
ATTEMPTS = 5

# Record locks do not keep the threads of one process apart.
_holders: dict[tuple[int, str], object] = {}

#: Versions that have the fix, for each branch that got it.
_FIXED = ((3, 44, 6), (3, 50, 7))
_FIXED_FROM = (3, 51, 3)


def wal_race(version: tuple[int, int, int]) -> str:
    """Whether this version of SQLite has the race: ``possible`` or ``fixed``."""
    backported = any(version[:2] == fixed[:2] and version >= fixed for fixed in _FIXED)
    return "fixed" if version >= _FIXED_FROM or backported else "possible"


@contextmanager
def host_lock(path: str) -> Iterator[bool]:
    """Hold the lock of the whole host on ``path``, without waiting; yields whether it was free."""
    key, mine = (os.getpid(), path), object()
    if _holders.setdefault(key, mine) is not mine:
        yield False
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            yield _locked(descriptor)
        finally:
            os.close(descriptor)
    finally:
        del _holders[key]


def _locked(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return False
    return True


class Checkpointer:
    """Decides when it is time, and does it."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._wal = f"{connections.path}-wal"
        self._lock = f"{connections.path}-lock"
        self._last: float | None = None
        self._known_size = WAL_LIMIT

    def maintain(self, *, now: float) -> None:
        """Carry the log over if it has grown or is old, and nobody else is at it."""
        if self._last is None:
            self._last = now
        try:
            size = self._size()
            due = size > self._known_size or (size and now - self._last >= INTERVAL)
            if due and self.carry_over("TRUNCATE" if size > WAL_CUT else "RESTART"):
                self._last, self._known_size = now, max(WAL_LIMIT, self._size())
        except FileNotFoundError:
            pass  # the log is made by the first writer
        except OSError as error:
            raise unavailable(self._connections.path, error) from error

    def carry_over(self, mode: str = "RESTART") -> bool:
        """Carry the log over unless somebody else is at it; return whether that was done."""
        with host_lock(self._lock) as held:
            if held:
                self._carry_over(mode)
            return held

    def _size(self) -> int:
        return os.stat(self._wal).st_size  # noqa: PTH116 - every second: no Path is built for it

    def _carry_over(self, mode: str) -> None:
        """Copy the bulk beside the writers, then hold them off for the rest."""
        for _ in range(ATTEMPTS):
            began = time.monotonic()
            self._connections.query("PRAGMA wal_checkpoint(PASSIVE)")
            # What was written meanwhile is about as much as can be copied in a like time.
            if time.monotonic() - began < SHORT:
                break
        for _ in range(ATTEMPTS):
            busy = self._connections.query(f"PRAGMA wal_checkpoint({mode})")[0][0]
            if not busy:
                break
