"""A database whose content is damaged: a copy is put aside, and the line begins anew in its place.

Renaming it would be wrong.  Processes that still have it open would go on writing to the renamed file, and the last of
them to close it would delete the new one's write-ahead log, which it knows by its name.  So the damaged content is
replaced by an empty schema through SQLite itself, as one transaction that every open connection of every process
notices (https://www.sqlite.org/howtocorrupt.html, 2.5, and https://www.sqlite.org/backup.html).

A file whose header is broken, or that was emptied, is none that SQLite would open, and an empty one would cost the
others the log that they have open.  So it first gets a new header, in its place
(https://www.sqlite.org/fileformat.html, 1.3): if nothing else is wrong that is all it needs.  While the log is in use
its newest first page is the one that counts, and gets a header likewise.

What was in the line is lost with it; the copy is for whoever wants to save what can be read.  Until the mending has
succeeded there is one copy, which the next attempt uses again or replaces.
"""

from __future__ import annotations

import errno
import glob
import itertools
import logging
import os
import shutil
import sqlite3
import struct
import time
from array import array
from contextlib import closing, suppress
from enum import Enum
from pathlib import Path

from wsgi_admission.stores import forks
from wsgi_admission.stores.checkpoints import host_lock
from wsgi_admission.stores.connections import is_damage
from wsgi_admission.stores.opening import APPLICATION_ID, SCHEMA_VERSION, empty, refuse_version

log = logging.getLogger("wsgi_admission.stores")

_SCHEMA = "SELECT CAST(name AS BLOB), CAST(type AS BLOB), CAST(sql AS BLOB) FROM sqlite_master"
#: Seconds between two looks through a database that shows no damage ...
LOOK_EVERY = 24 * 3600.0
#: ... and the largest that is looked through so, in bytes: about as many as take a second.
LOOKED_THROUGH = 256 << 20
# The size of the pages of every database that we make, and what follows the header in one that has no tables.
_PAGE = 4096
_EMPTY = struct.pack(">BHHHB", 13, 0, 0, _PAGE, 0)
# Of the header: what is the same in all of ours, and where what follows the size, the free pages and the cookie is so.
_CONSTANT, _CONSTANT_TOO = slice(0, 24), slice(56, 72)
# Sizes in the log and its index, https://www.sqlite.org/walformat.html.
_LOG_HEADER, _FRAME_HEADER, _INDEX_HEADER, _INDEX_BLOCK = 32, 24, 136, 32 << 10
#: What the copies' names have behind that of the database ...
ASIDE = ".damaged-"
#: ... and behind that, instead of the time, while the database could not be mended yet.
UNFINISHED = "unfinished"
#: How many copies are kept: a disk that goes on damaging the database would fill itself with them.
KEPT = 8

# What was opened beside SQLite.  It stays open, for the next time: closing any descriptor of a file drops the locks
# that SQLite holds on it.
_descriptors: dict[Path, int] = {}


class Look(Enum):
    """What came of looking for damage."""

    SOUND = "sound"
    MENDED = "mended"
    #: Another process of the host is at it.
    ELSEWHERE = "elsewhere"


def aside(path: Path) -> list[str]:
    """Return the names of the copies of damaged databases that stand beside this one, oldest first."""
    name = f"{glob.escape(path.name)}{ASIDE}"
    return sorted(copy.name for end in ("*[0-9]", UNFINISHED) for copy in path.parent.glob(f"{name}{end}"))


def due(path: Path, opened: float, *, now: float) -> bool:
    """Whether it is time to look through the whole database although nothing tells of damage.

    That is once after each start of the server, and once a day; not for one that is so large that it would take long.

    :param opened: when this process opened it; ``now`` likewise in seconds since the epoch.
    """
    try:
        looked = os.stat(f"{path}-lock").st_mtime  # noqa: PTH116 - every second: no Path is built for it
    except FileNotFoundError:
        looked = 0.0
    if looked >= max(opened, now - LOOK_EVERY):
        return False
    with suppress(FileNotFoundError):
        return os.stat(path).st_size <= LOOKED_THROUGH  # noqa: PTH116 - as above
    return False


def is_emptied(path: Path) -> bool:
    """Whether there is a file of no length."""
    try:
        return os.stat(path).st_size == 0  # noqa: PTH116 - every second: no Path is built for it
    except OSError:
        return False


def mend(path: Path, *, patience: float) -> Look:
    """Look whether the database is damaged; if it is, put a copy aside and empty it.

    :param patience: seconds to wait while others keep the file locked.
    :raises OSError: when the copy cannot be made: then nothing is emptied.
    :raises sqlite3.Error: when the database cannot be emptied.
    :raises StoreMismatch: when it is another version's, which alone can tell whether it is damaged.
    """
    with host_lock(f"{path}-lock") as held:
        if not held:
            return Look.ELSEWHERE
        os.utime(f"{path}-lock")
        what = _mend(path, patience)
        copy = _finished(path)
        if copy is None:
            return Look.SOUND
        bodies = path.with_name(f"{path.name}.bodies")
        if what is None and bodies.is_dir():
            bodies.rename(copy.with_name(f"{copy.name}.bodies"))
    if what is None:
        log.error("the database %s was damaged; the line begins anew, and a copy of it is %s", path, copy)
    else:
        log.error("%s of the database %s was damaged and is mended; a copy of it is %s", what, path, copy)
    return Look.MENDED


def _mend(path: Path, patience: float) -> str | None:
    """Mend what is damaged, once there is a copy; return what that was, None if the line had to begin anew."""
    what: str | None = "something"
    connection = _open(path, patience)
    if connection is None:
        what = "the header"
        _copy(path)
        _give_header(path)
        connection = _open(path, patience)
        if connection is None:
            raise sqlite3.DatabaseError("the database has no header again")
    with closing(connection):
        if not _is_sound(connection, path):
            what = "an index" if _is_mended_by_index(connection, path) else None
            if what is None:
                _empty(connection, path)
        if _unfinished(path).exists():
            # What follows a damaged frame is not read again once the processes that have the log open are gone.
            with suppress(sqlite3.OperationalError):  # then the checkpointer does it
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return what


def _is_mended_by_index(connection: sqlite3.Connection, path: Path) -> bool:
    """Copy the database while nobody writes, and make its indexes anew; return whether that was all it needed."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.DatabaseError as error:
        if not is_damage(error):  # a damaged one may refuse
            raise
    try:
        _copy(path)
        with suppress(sqlite3.DatabaseError):
            connection.execute("REINDEX")
            if not _missing(connection) and _is_whole(connection):
                connection.execute("COMMIT")
                return True
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return False


def _empty(connection: sqlite3.Connection, path: Path) -> None:
    """Put an empty line in the place of all that is there."""
    # SQLite refuses to write to a file that is shorter than its header says, unless somebody knows what he does.
    connection.execute("PRAGMA writable_schema = ON")
    with closing(empty()) as nothing:
        try:
            nothing.backup(connection)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            _give_header(path, anew=True)
            nothing.backup(connection)


def _open(path: Path, patience: float) -> sqlite3.Connection | None:
    """Open a connection, whatever the content is; return None if SQLite does not take the file for a database."""
    forks.refuse_inherited()
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=patience, isolation_level=None)
    try:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        # Not before: as in `connections.connect`, SQLite reads the file with the next statement.
        if not is_emptied(path):
            connection.execute("PRAGMA schema_version").fetchone()
            return connection
    except sqlite3.DatabaseError as error:
        if "not a database" not in str(error) and "unsupported file" not in str(error):
            if is_damage(error):
                return connection
            connection.close()
            raise
    connection.close()
    return None


def _give_header(path: Path, *, anew: bool = False) -> None:
    """Put the header of a database of ours where there is none.

    :param anew: whether the page that it stands on is to be that of an empty database.
    """
    ours = _header()
    for file, place in [(path, 0), *_first_page_in_log(path)]:
        descriptor = _descriptor(file)
        found = os.pread(descriptor, _PAGE, place)
        if anew or len(found) < _PAGE:
            os.pwrite(descriptor, (ours + _EMPTY).ljust(_PAGE, b"\0"), place)
        elif found[_CONSTANT] != ours[_CONSTANT]:
            hardly = found[_CONSTANT_TOO] == ours[_CONSTANT_TOO]
            os.pwrite(descriptor, ours[_CONSTANT] if hardly else ours, place)
        os.fsync(descriptor)
    _stamp(path)


def _first_page_in_log(path: Path) -> list[tuple[Path, int]]:
    """Return the log, and where in it the newest first page stands, if it has one for those who have it open."""
    try:
        index = _content(Path(f"{path}-shm"))
    except FileNotFoundError:
        return []
    if len(index) < _INDEX_BLOCK:
        return []
    (frames,) = struct.unpack_from("=I", index, 16)
    pages = array("I", index[_INDEX_HEADER : _INDEX_BLOCK // 2])
    for block in range(_INDEX_BLOCK, len(index), _INDEX_BLOCK):
        pages.frombytes(index[block : block + _INDEX_BLOCK // 2])
    newest = [frame for frame, page in enumerate(pages[:frames]) if page == 1][-1:]
    return [(Path(f"{path}-wal"), _LOG_HEADER + frame * (_FRAME_HEADER + _PAGE) + _FRAME_HEADER) for frame in newest]


def _header() -> bytes:
    """Return the first 100 bytes of a database of ours that has no free pages."""
    with closing(empty()) as ours:
        ((largest_root,),) = ours.execute("SELECT MAX(rootpage) FROM sqlite_master").fetchall()
        ((cookie,),) = ours.execute("PRAGMA schema_version").fetchall()
    # The version that the size is valid for (the last but one) is not the current one: the size is that of the file.
    return struct.pack(
        ">16sHBBBBBB12I20xII",
        *(b"SQLite format 3\0", _PAGE, 2, 2, 0, 64, 32, 32),
        *(1, 0, 0, 0, cookie, 4, 0, largest_root, 1, SCHEMA_VERSION, 1, APPLICATION_ID),
        *(0, 0),
    )


def _is_sound(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether all of ours is there, and whole.  What others have added (an index, ANALYZE) is none of our business.

    :raises StoreMismatch: when the schema is that of another version of this package.
    """
    try:
        if not _has_schema(connection) and not _is_mended(connection, path):
            return False
        return _is_whole(connection)
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return False
        raise


def _has_schema(connection: sqlite3.Connection) -> bool:
    return not _missing(connection)


def _missing(connection: sqlite3.Connection) -> list[tuple[bytes, bytes, bytes]]:
    """Return (name, type, statement) of everything of ours that is not there as it should be."""
    with closing(empty()) as ours:
        return list(set(ours.execute(_SCHEMA)) - set(connection.execute(_SCHEMA)))


def _is_whole(connection: sqlite3.Connection) -> bool:
    return connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]


def _is_mended(connection: sqlite3.Connection, path: Path) -> bool:
    """Put right a schema that was changed in a database whose content is whole; return whether that could be done.

    A wrong byte in the text of a statement, or a column that somebody added, costs no ticket: the content is as our
    statements say.  https://www.sqlite.org/pragma.html#pragma_writable_schema
    """
    refuse_version(connection, path)
    if not _is_whole(connection):
        return False
    connection.execute("BEGIN IMMEDIATE")
    try:
        ((cookie,),) = connection.execute("PRAGMA schema_version").fetchall()
        connection.execute("PRAGMA writable_schema = ON")
        for name, kind, statement in _missing(connection):
            connection.execute(
                "UPDATE sqlite_master SET sql = CAST(? AS TEXT) "
                "WHERE CAST(name AS BLOB) = ? AND CAST(type AS BLOB) = ?",
                (statement, name, kind),
            )
        connection.execute(f"PRAGMA schema_version = {cookie + 1}")
        connection.execute("PRAGMA writable_schema = RESET")
        for _, kind, statement in _missing(connection):
            if kind == b"index":  # somebody has removed it
                connection.execute(statement.decode())
        mended = _has_schema(connection) and _is_whole(connection)
        connection.execute("COMMIT" if mended else "ROLLBACK")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.execute("PRAGMA writable_schema = OFF")
    if mended:
        log.error("the schema of the database %s was changed, and is again as it should be", path)
    return mended


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}{ASIDE}{UNFINISHED}")


def _copied(path: Path) -> list[tuple[Path, Path]]:
    """Return the files of the database that are there, each with its place in the copy."""
    copy, log = _unfinished(path), Path(f"{path}-wal")
    # SQLite makes an empty log as soon as the database is opened.
    pairs = [(log, Path(f"{copy}-wal"))] if log.exists() and not is_emptied(log) else []
    return [*pairs, (path, copy)]


def _copy(path: Path) -> None:
    """Copy the database and its log, unless that was done and nothing has changed."""
    if _is_copied(path):
        return
    _remove(_unfinished(path))
    pairs = _copied(path)
    if shutil.disk_usage(path.parent).free < sum(source.stat().st_size for source, _ in pairs):
        raise OSError(errno.ENOSPC, "No space left for a copy of the damaged database")
    try:
        for source, target in pairs:
            _copy_file(source, target)
    except BaseException:
        _remove(_unfinished(path))
        raise


def _copy_file(source: Path, target: Path) -> None:
    with (
        os.fdopen(_descriptor(source), "rb", closefd=False) as content,
        os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as kept,
    ):
        status = os.fstat(content.fileno())
        content.seek(0)
        shutil.copyfileobj(content, kept, 1 << 20)
        kept.flush()
        os.fsync(kept.fileno())
        os.utime(kept.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


def _stamp(path: Path) -> None:
    """Say in the times of the copy that it is one of the database as it is now."""
    for source, target in _copied(path):
        with suppress(FileNotFoundError):
            status = source.stat()
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _is_copied(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return all(source.stat().st_mtime_ns == target.stat().st_mtime_ns for source, target in _copied(path))
    return False


def _finished(path: Path) -> Path | None:
    """Give the copy its name for good; return it, None if there was nothing to copy."""
    unfinished = _unfinished(path)
    if not unfinished.exists():
        return None
    finished = [copy for copy in aside(path) if copy != unfinished.name]
    for old in finished[KEPT - 1 :]:  # the first ones have what was there when the trouble began
        _remove(path.with_name(old))
    name = f"{path.name}{ASIDE}{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    copy = path.with_name(next(name for name in names if name not in finished))
    for end in ("-wal", ""):
        with suppress(FileNotFoundError):
            Path(f"{unfinished}{end}").rename(f"{copy}{end}")
    return copy


def _remove(copy: Path) -> None:
    for end in ("", "-wal"):
        Path(f"{copy}{end}").unlink(missing_ok=True)
    shutil.rmtree(f"{copy}.bodies", ignore_errors=True)


def _descriptor(file: Path) -> int:
    """Open a file that SQLite may have open too, or return what was opened of it before."""
    descriptor = _descriptors.get(file)
    if descriptor is None or not os.path.samestat(os.fstat(descriptor), file.lstat()):
        descriptor = _descriptors[file] = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    return descriptor


def _content(file: Path) -> bytes:
    descriptor = _descriptor(file)
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
