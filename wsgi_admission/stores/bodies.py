"""Bodies that are too large for the store itself: files beside it.

A file has its final name before the row that names it is committed, so a row never names a file that is not
there.  A file without a row is what a process leaves behind that died in between; it is swept when it is old.

The name ends in the checksum of the content, so that the row vouches for it too.  It is read through before anything
of it is used: that costs a tenth of a second for 100 MiB, and after the first byte was sent nothing could be told.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from wsgi_admission.errors import StoreError, StoreUnavailable
from wsgi_admission.replay import Recording
from wsgi_admission.stores.records import INLINE_BODY

#: Seconds after which a file that no row names is not one whose row is about to be committed.
ORPHANED = 3600.0

#: Bytes that are read and written at once.
_BLOCK = 1 << 20
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Stored:
    """A recording as its row has it: the body, or the name of the file that holds it."""

    head: str
    body: bytes | None
    file: str | None
    length: int

    @property
    def crc(self) -> int:
        """A checksum of all of it, but for what is in the file."""
        named = f"{self.length} {self.file} {self.head}".encode("utf-8", "surrogatepass")
        return zlib.crc32(self.body or b"", zlib.crc32(named))


class WrongBody(Exception):
    """A file does not hold what was written into it."""


class Bodies:
    """The directory of large bodies of one store.

    :param durable: whether a file must be on the disk, not only in the system's memory, when it is named.
    """

    def __init__(self, directory: Path, *, durable: bool) -> None:
        self._directory = directory
        self._durable = durable

    @contextmanager
    def stored(self, recording: Recording) -> Iterator[Stored]:
        """Read the body to its end, into memory or a file; a file is removed again if the block raises.

        :raises StoreUnavailable: when the file cannot be written.
        """
        start = recording.body.read(INLINE_BODY + 1)
        if len(start) <= INLINE_BODY:
            yield Stored(recording.head, start, None, len(start))
            return
        file, length = self._write(start, recording.body)
        try:
            yield Stored(recording.head, None, file, length)
        except BaseException:
            self.remove([file])
            raise

    def recording(self, look_up: Callable[[], Stored | None]) -> Recording | None:
        """Return what ``look_up`` finds, with the body open at its beginning.

        :raises WrongBody: when it is another one than was kept.
        :raises StoreError: when it cannot be read.
        """
        seen = None
        while (stored := look_up()) is not None:
            if stored.file is None:
                return Recording(stored.head, BytesIO(stored.body or b""), stored.length)
            path = self._directory / stored.file
            try:
                return Recording(stored.head, _opened(path), stored.length)
            except FileNotFoundError as error:
                # Erased after it was looked up: then it is not found a second time.
                if stored == seen:
                    raise StoreError(f"The recorded body {path} is missing.") from error
                seen = stored
            except OSError as error:
                raise StoreUnavailable(f"The recorded body {path} cannot be read just now: {error}.") from error
        return None

    def remove(self, names: Iterable[str]) -> None:
        """Remove these files; one that cannot be removed now is swept later."""
        for name in names:
            try:
                (self._directory / name).unlink(missing_ok=True)
            except OSError:
                pass

    def refuse_lost(self, stored: Stored) -> None:
        """Raise StoreUnavailable if the file is gone: the line was begun anew since it was written (mending.py)."""
        if stored.file is not None and not (self._directory / stored.file).exists():
            raise StoreUnavailable(f"The body {stored.file} was put aside with what was in the line before.")

    def sweep(self, named: Callable[[], Collection[str]], *, now: float) -> None:
        """Remove the files that nobody names and that are too old to be named yet.

        :param named: returns the names in use; asked only when there are old files.
        :raises StoreUnavailable: when the directory cannot be read.
        """
        try:
            with os.scandir(self._directory) as entries:
                old = [entry.name for entry in entries if _is_older(entry, now - ORPHANED)]
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreUnavailable(f"{self._directory} cannot be looked through just now: {error}.") from error
        if old:
            used = frozenset(named())
            self.remove(name for name in old if name not in used)

    def _write(self, start: bytes, rest: BinaryIO) -> tuple[str, int]:
        """Write a file under a temporary name, and give it its own; return that, and its length."""
        unique = uuid.uuid4().hex
        names = [f"{unique}.part"]
        part = self._directory / names[0]
        try:
            if not self._directory.is_dir():
                self._directory.mkdir(mode=0o700, exist_ok=True)
                self._sync(self._directory.parent)
            self._refuse_others()
            with os.fdopen(os.open(part, _CREATE, 0o600), "wb") as file:
                crc, block = 0, start
                while block:
                    crc = zlib.crc32(block, crc)
                    file.write(block)
                    block = rest.read(_BLOCK)
                length = file.tell()
                file.flush()
                if self._durable:
                    os.fsync(file.fileno())
            names.append(f"{unique}-{crc:08x}")
            part.rename(self._directory / names[1])
            self._sync(self._directory)
        except BaseException as error:
            self.remove(names)
            if isinstance(error, OSError):
                raise StoreUnavailable(f"A body cannot be kept in {self._directory} just now: {error}.") from error
            raise
        return names[1], length

    def _refuse_others(self) -> None:
        """Raise OSError for a directory into which somebody else could put bodies that are served as the app's."""
        status = self._directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise OSError(errno.EPERM, "it is a link, or belongs to somebody else")
        if status.st_mode & 0o077:
            self._directory.chmod(0o700)

    def _sync(self, directory: Path) -> None:
        """Put the names in a directory on the disk."""
        if not self._durable:
            return
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _opened(path: Path) -> BinaryIO:
    """Open a body whose content is what its name says."""
    _, _, named = path.name.partition("-")
    file = path.open("rb")
    try:
        right = not named or named == _checksum(file)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    if not right:
        file.close()
        raise WrongBody(path.name)
    return file


def _checksum(file: BinaryIO) -> str:
    crc = 0
    while block := file.read(_BLOCK):
        crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def _is_older(entry: os.DirEntry[str], moment: float) -> bool:
    try:
        return entry.stat().st_mtime < moment
    except FileNotFoundError:
        return False  # erased meanwhile
