"""A database whose content is damaged: a copy is put aside, and the line begins anew in its place.

Renaming it would be wrong.  Processes that still have it open would go on writing to the renamed file, and the last of
them to close it would delete the new one's write-ahead log, which it knows by its name.  So the damaged content is
replaced by an empty schema through SQLite itself, as one transaction that every open connection of every process
notices (https://www.sqlite.org/howtocorrupt.html, 2.5, and https://www.sqlite.org/backup.html).

A file whose header is broken, or that was emptied, is none that SQLite would open, and an empty one would cost the
others the log that they have open.  So it first gets a new header, in its place
(https://www.sqlite.org/fileformat.html, 1.3): if nothing else is wrong that is all it needs.

What was in the line is lost with it; the copy is for whoever wants to save what can be read.
"""

from __future__ import annotations

import glob
import logging
import os
import shutil
import sqlite3
import struct
import time
from contextlib import closing, suppress
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
#: What the copies' names have behind that of the database.
ASIDE = ".damaged-"


def aside(path: Path) -> list[str]:
    """Return the names of the copies of damaged databases that stand beside this one, oldest first."""
    return sorted(copy.name for copy in path.parent.glob(f"{glob.escape(path.name)}{ASIDE}*[0-9]"))


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


def mend(path: Path, *, patience: float) -> bool:
    """Look whether the database is damaged; if it is, put a copy aside and empty it.

    :param patience: seconds to wait while others keep the file locked.
    :return: whether it is sound now; False when another process of the host is at it.
    :raises OSError: when the copy cannot be made: then nothing is emptied.
    :raises sqlite3.Error: when the database cannot be emptied.
    :raises StoreMismatch: when it is another version's, which alone can tell whether it is damaged.
    """
    with host_lock(f"{path}-lock") as held:
        if not held:
            return False
        os.utime(f"{path}-lock")
        copy = _copy_headless(path, patience)
        with closing(_open(path, patience)) as connection:
            if _is_sound(connection, path):
                if copy is not None:
                    log.error("the header of the database %s was damaged and is mended; a copy of it is %s", path, copy)
                return True
            copy = copy or _copy(path, connection)
            # Where only an index is wrong nothing is lost: it is made anew from its table.
            with suppress(sqlite3.DatabaseError):
                connection.execute("REINDEX")
                if _is_sound(connection, path):
                    log.error("an index of the database %s was damaged and is mended; a copy of it is %s", path, copy)
                    return True
            with closing(empty()) as nothing:
                nothing.backup(connection)
        bodies = path.with_name(f"{path.name}.bodies")
        if bodies.is_dir():
            bodies.rename(copy.with_name(f"{copy.name}.bodies"))
    log.error("the database %s was damaged; the line begins anew, and a copy of it is %s", path, copy)
    return True


def _open(path: Path, patience: float) -> sqlite3.Connection:
    """Open a connection without asking anything of the content."""
    forks.refuse_inherited()
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=patience, isolation_level=None)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


def _copy_headless(path: Path, patience: float) -> Path | None:
    """Copy a file that SQLite does not take for a database, and give it a header; return the copy, if there is one."""
    if not is_emptied(path):
        with closing(_open(path, patience)) as connection:
            try:
                connection.execute("PRAGMA schema_version").fetchone()
            except sqlite3.DatabaseError as error:
                if "not a database" not in str(error) and "unsupported file" not in str(error):
                    raise
            else:
                return None
    copy = _copy(path, None)
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)  # left open, as in _copy_file
    whole = os.fstat(descriptor).st_size >= _PAGE
    os.pwrite(descriptor, _header() if whole else (_header() + _EMPTY).ljust(_PAGE, b"\0"), 0)
    os.fsync(descriptor)
    return copy


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


def _copy(path: Path, connection: sqlite3.Connection | None) -> Path:
    """Copy the database and its log while nobody writes; return the copy's path."""
    copy = path.with_name(f"{path.name}{ASIDE}{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
    if connection is not None:
        with suppress(sqlite3.DatabaseError):  # a damaged one may refuse
            connection.execute("BEGIN IMMEDIATE")
    try:
        for end in ("", "-wal"):
            with suppress(FileNotFoundError):
                _copy_file(Path(f"{path}{end}"), Path(f"{copy}{end}"))
    finally:
        if connection is not None and connection.in_transaction:
            connection.execute("ROLLBACK")
    return copy


def _copy_file(source: Path, target: Path) -> None:
    # Left open on purpose: closing any descriptor of the file drops the locks that SQLite holds on it.
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with (
            os.fdopen(descriptor, "rb", closefd=False) as content,
            os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as kept,
        ):
            shutil.copyfileobj(content, kept, 1 << 20)
            kept.flush()
            os.fsync(kept.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        raise
