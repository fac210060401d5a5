"""Bytes of one file that the processes of a host hold by POSIX record locks: the ground under the slots.

To hold a byte is to hold a record lock on it.  The kernel drops these locks when their process ends, however it
ends, and a forked child inherits none.  That is what is wanted: what a killed worker held is free at once, and
nothing has to be swept.  The other means lack it: a semaphore or a counter stays taken for ever by a process that
was killed, and a ``flock`` belongs to the open file, so that it lives on in any child that was forked meanwhile.

Record locks belong to the process, not to the descriptor.  Two things follow, and this module is built on them:

* Inside one process they never conflict.  So what this process holds is kept in a `Ledger`, one for each file
  however many paths and objects name it.
* Closing ANY descriptor of the file drops ALL locks that the process has on it.  So each process opens the file
  once and never closes it.  Nobody else may open it, and it must not be replaced while in use.

Offsets fall into regions of ``2**20`` bytes, each of them counted by itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import stat
import struct
import threading
from collections import defaultdict
from pathlib import Path

from wsgi_admission.errors import StoreError, StoreUnavailable

_REGION_BITS = 20
#: Bytes in a region: the largest limit.
REGION = 1 << _REGION_BITS
#: Errors of the system that trying again does not mend.
PERMANENT = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
)
# struct flock of 64-bit Linux: type, whence, start, length, pid, padding to the alignment of off_t.
_FLOCK = struct.Struct("@hhqqi0q")


class Ledger:
    """What this process holds, by region; by itself it is for one process alone.

    The lock is re-entrant because a slot may be given back by the garbage collector, which can run, in the same
    thread, while the lock is held.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        #: Whether this came from the parent by a fork that Python was told of.
        self.inherited = False
        self.lock = threading.RLock()
        #: For whoever uses the ledger: one thread of this process at a time.
        self.turn = threading.Lock()
        # Each process begins elsewhere, so that many processes seldom try each other's bytes.
        self._turn = self.pid * 2_654_435_761 % (1 << 32)
        self._held: defaultdict[int, set[int]] = defaultdict(set)

    def take(self, region: int, limit: int) -> int | None:
        """Take a free byte of the region's first ``limit`` and return its offset; the caller has the lock."""
        held = self._held[region]
        if len(held) < limit:
            first = region << _REGION_BITS
            for index in range(self._turn, self._turn + limit):
                offset = first + index % limit
                if offset not in held and self._acquire(offset):
                    held.add(offset)
                    return offset
        return None

    def give(self, offset: int) -> None:
        """Give a byte back; the caller has the lock."""
        self._release(offset)
        self._held[offset >> _REGION_BITS].discard(offset)

    def count(self, region: int) -> int:
        """Return how many bytes of the region are held, by anybody."""
        return len(self._held[region]) + self._count_others(region)

    def _acquire(self, offset: int) -> bool:  # noqa: ARG002 - of no use here, needed by _FileLedger
        return True

    def _release(self, offset: int) -> None:
        pass

    def _count_others(self, region: int) -> int:  # noqa: ARG002 - of no use here, needed by _FileLedger
        return 0


class _FileLedger(Ledger):
    """A ledger that shares its bytes with other processes through record locks on an open file."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def _acquire(self, offset: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError):  # POSIX allows EAGAIN and EACCES
            return False
        except OSError as error:
            raise StoreUnavailable(f"The file of slots cannot be locked: {error.strerror}.") from error
        return True

    def _release(self, offset: int) -> None:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, offset)
        except OSError:
            pass  # the kernel unlocks it when this process ends, or takes the byte again

    def _count_others(self, region: int) -> int:
        count = 0
        spans = [(region << _REGION_BITS, (region + 1) << _REGION_BITS)]
        while spans:
            start, end = spans.pop()
            query, unlocked = _query(start, end)
            try:
                answer = fcntl.fcntl(self._descriptor, fcntl.F_GETLK, query)
            except OSError as error:
                raise StoreUnavailable(f"The file of slots cannot be looked at: {error.strerror}.") from error
            if answer != unlocked:
                _, _, first, length, _ = _FLOCK.unpack(answer)
                # Linux names some lock inside the span, the first by owner and not by offset: look on both sides.
                # Adjacent locks of one process come as one; length 0 is a lock to the end of all files.
                first, after = max(first, start), min(first + length, end) if length else end
                count += after - first
                spans += [span for span in ((start, first), (after, end)) if span[0] < span[1]]
        return count


@functools.lru_cache(maxsize=256)
def _query(start: int, end: int) -> tuple[bytes, bytes]:
    """Return what asks for locks between these offsets, and the answer that there is none: only the type differs."""
    span = (os.SEEK_SET, start, end - start, 0)
    return _FLOCK.pack(fcntl.F_WRLCK, *span), _FLOCK.pack(fcntl.F_UNLCK, *span)


# The open files by (process, device, inode).  Entries are never removed: that would close the descriptor.
_files: dict[tuple[int, int, int], _FileLedger] = {}


def _disown() -> None:
    for ledger in _files.values():
        ledger.inherited = True


os.register_at_fork(after_in_child=_disown)


def open_ledger(path: Path) -> Ledger:
    """Return this process's ledger of the file, opening it only if it is not open yet.

    The file is created with mode 0600 if it is missing, its directory with 0700.

    :raises StoreError: when it cannot be opened, is not a regular file, or is somebody else's.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            known = _files.get(_identity(path, path.lstat()))
            if known is not None:
                return known
        descriptor = os.open(path, flags, 0o600)
        identity = _identity(path, os.fstat(descriptor))
    except OSError as error:
        raise _failed(f"The file of slots {path} cannot be opened", error) from error
    # Of two threads the second leaves its descriptor open: to close it would drop the locks of the first.
    return _files.setdefault(identity, _FileLedger(descriptor))


def _identity(path: Path, status: os.stat_result) -> tuple[int, int, int]:
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"The file of slots {path} is not a regular file (symbolic links are not followed).")
    if status.st_uid != os.geteuid():
        raise StoreError(
            f"The file of slots {path} belongs to user {status.st_uid}, but this process runs as user {os.geteuid()}."
        )
    return os.getpid(), status.st_dev, status.st_ino


def _failed(what: str, error: OSError) -> StoreError:
    kind = StoreError if error.errno in PERMANENT else StoreUnavailable
    return kind(f"{what}: {error.strerror}.")


def make_private(folder: Path) -> None:
    """Make a folder with mode 0700 if it is missing.

    :raises StoreError: when it cannot be made, or is a link, somebody else's, or open to others.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise _failed(f"The folder {folder} cannot be made", error) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise StoreError(f"The folder {folder} must be this user's own, with mode 0700, and no link.")
