"""A database whose content is damaged: a copy is put aside, and the line begins anew in its place.

Renaming it would be wrong.  Processes that still have it open would go on writing to the renamed file, and the last of
them to close it would delete the new one's write-ahead log, which it knows by its name.  So the damaged content is
replaced by an empty schema through SQLite itself, as one transaction that every open connection of every process
notices (https://www.sqlite.org/howtocorrupt.html, 2.5, and https://www.sqlite.org/backup.html).

A file whose header is broken, or that was emptied, is none that SQLite would open, and an empty one would cost the
others the log that they have open.  So it first gets a new header, in its place: if nothing else is wrong that is all
it needs.  So does one by which SQLite only reads.

What can be told from the rest is put right: our numbers in the header, the schema, the indexes, and by VACUUM the
lists of pages.  If that is not enough, what was in the line is lost; the copy is for whoever wants to save what can be
read.  Until the mending has succeeded there is one copy, which the next attempt uses again or replaces.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from contextlib import closing, suppress
from enum import Enum
from pathlib import Path

from wsgi_admission.stores import copies, headers
from wsgi_admission.stores.beside import is_emptied
from wsgi_admission.stores.checkpoints import host_lock
from wsgi_admission.stores.connections import is_broken, is_damage, is_read_only, opened
from wsgi_admission.stores.opening import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    empty,
    has_wrong_number,
    refuse_other_version,
    refuse_version,
)
from wsgi_admission.stores.room import is_short

log = logging.getLogger("wsgi_admission.stores")

_SCHEMA = "SELECT CAST(name AS BLOB), CAST(type AS BLOB), CAST(sql AS BLOB) FROM sqlite_master"
#: Seconds between two looks through a database that shows no damage ...
LOOK_EVERY = 24 * 3600.0
#: ... and the largest that is looked through so, in bytes: about as many as take a second.
LOOKED_THROUGH = 256 << 20

# What SQLite says of pages that are accounted for wrongly, while all that is on them can be read; and as good as all.
_ACCOUNTS = re.compile(
    r"\*\*\* in database|Main freelist: |Page \d+ is never used|max rootpage|Bad ptr map entry|Failed to read ptrmap"
)
_ALL_FAULTS = 1_000_000


class Look(Enum):
    """What came of looking for damage."""

    SOUND = "sound"
    MENDED = "mended"
    #: Another process of the host is at it.
    ELSEWHERE = "elsewhere"


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


def mend(path: Path, *, patience: float) -> Look:
    """Look whether the database is damaged; if it is, put a copy aside, and mend it or begin the line anew.

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
        copy = copies.finish(path)
        if copy is None:
            return Look.SOUND
    if what is None:
        log.error("the database %s was damaged; the line begins anew, and a copy of it is %s", path, copy)
    else:
        log.error("%s of the database %s was damaged and is mended; a copy of it is %s", what, path, copy)
    return Look.MENDED


def _mend(path: Path, patience: float) -> str | None:
    """Mend what is damaged, once there is a copy; return what that was, None if the line had to begin anew."""
    what = "something"
    connection = _open(path, patience)
    if connection is None:
        what = "the header"
        headers.refuse_other_version(path)
        copies.begin(path)
        headers.give(path)
        copies.stamp(path)
        connection = _open(path, patience)
        if connection is None:
            raise sqlite3.DatabaseError("the database has no header again")
    with closing(connection):
        if not _is_sound(connection, path):
            what = "an index, the header or the list of pages"
            if not _is_mended_in_place(connection, path):
                _begin_anew(connection, path)
        if copies.is_begun(path):
            # What follows a damaged frame is not read again once the processes that have the log open are gone.
            with suppress(sqlite3.OperationalError):  # then the checkpointer does it
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return None if copies.has_bodies(path) else what


def _is_mended_in_place(connection: sqlite3.Connection, path: Path) -> bool:
    """Copy the database while nobody writes, and put right what can be told from the rest; return whether that was all.

    :raises sqlite3.Error: when it cannot be done just now.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.DatabaseError as error:
        if not is_damage(error):  # a damaged one may refuse
            raise
    try:
        copies.begin(path)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    for step in (_set_numbers, _reindex, _vacuum):
        try:
            if step(connection) and _is_sound(connection, path):
                return True
        except sqlite3.DatabaseError as error:
            if not (is_broken(error) or isinstance(error, sqlite3.IntegrityError) or _is_beyond_the_end(error, path)):
                raise
    return False


def _set_numbers(connection: sqlite3.Connection) -> bool:
    """Say again whose the database is; return whether anything was done."""
    if not has_wrong_number(connection):
        return False
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return True


def _reindex(connection: sqlite3.Connection) -> bool:
    """Make the indexes anew."""
    connection.execute("REINDEX")
    return True


def _vacuum(connection: sqlite3.Connection) -> bool:
    """Write everything anew if nothing is wrong but how the pages are accounted for; return whether it was done."""
    found = connection.execute(f"PRAGMA integrity_check({_ALL_FAULTS})").fetchall()
    if not all(_ACCOUNTS.match(line) for (text,) in found for line in text.splitlines()):
        return False
    connection.execute("VACUUM")
    return True


def _is_beyond_the_end(error: sqlite3.Error, path: Path) -> bool:
    """Whether SQLite calls a disk full that is not: the list of free pages leads beyond the end of the file."""
    return is_damage(error) and not is_short(path)


def _begin_anew(connection: sqlite3.Connection, path: Path) -> None:
    """Put the large bodies aside, and then an empty line in the place of all that is there.

    Not the other way round: who has written a body, and waits for the emptying to be over, looks whether it is there.
    """
    copies.put_bodies_aside(path)
    try:
        _empty(connection, path)
    except BaseException:
        copies.take_bodies_back(path)
        raise


def _empty(connection: sqlite3.Connection, path: Path) -> None:
    """Put an empty line in the place of all that is there."""
    # SQLite refuses to write to a file that is shorter than its header says, unless somebody knows what he does.
    connection.execute("PRAGMA writable_schema = ON")
    with closing(empty()) as nothing:
        try:
            nothing.backup(connection)
        except sqlite3.DatabaseError as error:
            if not (is_broken(error) or _is_beyond_the_end(error, path)):
                raise
            headers.give(path, anew=True)
            copies.stamp(path)
            nothing.backup(connection)


def _open(path: Path, patience: float) -> sqlite3.Connection | None:
    """Open a connection, whatever the content is; return None if SQLite takes the file for none to write to."""
    connection = opened(path, timeout=patience)
    try:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        # Not before: as in `connections.connect`, SQLite reads the file with the next statement.
        if not is_emptied(path):
            connection.execute("PRAGMA schema_version").fetchone()
            # Asked first: what is opened beside SQLite stays open.
            if not (_only_reads(connection) and headers.forbids_writing(path)):
                return connection
    except sqlite3.DatabaseError as error:
        if "not a database" not in str(error) and "unsupported file" not in str(error):
            if is_damage(error):
                return connection
            connection.close()
            raise
    except OSError:
        connection.close()
        raise
    connection.close()
    return None


def _only_reads(connection: sqlite3.Connection) -> bool:
    """Whether SQLite refuses to write, and not because somebody else does."""
    try:
        connection.execute("BEGIN IMMEDIATE")  # it begins where nothing can be written, too
        connection.execute("PRAGMA user_version = 0")
    except sqlite3.OperationalError as error:
        return is_read_only(error)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return False


def _is_sound(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether all of ours is there, and whole.  What others have added (an index, ANALYZE) is none of our business.

    :raises StoreMismatch: when the schema is that of another version of this package.
    """
    try:
        refuse_other_version(connection, path)
        if has_wrong_number(connection):
            return False
        if not _has_schema(connection) and not _is_mended(connection, path):
            return False
        return _is_whole(connection)
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return False
        raise


def _has_schema(connection: sqlite3.Connection) -> bool:
    try:
        return not _missing(connection)
    except sqlite3.DatabaseError as error:
        if "malformed database schema" in str(error):  # the text of a statement
            return False
        raise


def _missing(connection: sqlite3.Connection) -> list[tuple[bytes, bytes, bytes | None]]:
    """Return (name, type, statement) of everything of ours that is not there as it should be.

    An index that comes with its table has no statement.
    """
    with closing(empty()) as ours:
        return list(set(ours.execute(_SCHEMA)) - set(connection.execute(_SCHEMA)))


def _is_whole(connection: sqlite3.Connection) -> bool:
    return connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]


def _is_mended(connection: sqlite3.Connection, path: Path) -> bool:
    """Put right a schema that was changed, if the content is whole then; return whether that could be done.

    A wrong byte in the text of a statement, or a column that somebody added, costs no ticket: the content is as our
    statements say.  https://www.sqlite.org/pragma.html#pragma_writable_schema
    """
    refuse_version(connection, path)
    connection.execute("PRAGMA writable_schema = ON")  # by which SQLite also reads one that it does not understand
    try:
        connection.execute("BEGIN IMMEDIATE")
        ((cookie,),) = connection.execute("PRAGMA schema_version").fetchall()
        for name, kind, statement in _missing(connection):
            connection.execute(
                "UPDATE sqlite_master SET sql = CAST(? AS TEXT) "
                "WHERE CAST(name AS BLOB) = ? AND CAST(type AS BLOB) = ?",
                (statement, name, kind),
            )
        connection.execute(f"PRAGMA schema_version = {cookie + 1}")
        connection.execute("PRAGMA writable_schema = RESET")
        for _, kind, statement in _missing(connection):
            if kind == b"index" and statement is not None:  # somebody has removed it
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
