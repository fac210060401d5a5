"""Making the SQLite file, or refusing the one that is there.

A file is refused, and left as it is, if it cannot be kept safe (a link, another's, on a network file system) or
was not made by this version.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
import struct
import time
from importlib import resources
from pathlib import Path

from wsgi_admission import host
from wsgi_admission.errors import StoreError, StoreMismatch
from wsgi_admission.locks import PERMANENT
from wsgi_admission.stores.checkpoints import host_lock
from wsgi_admission.stores.connections import connect, patiently, unavailable

#: PRAGMA application_id and user_version of our files, as set in schema.sql.
APPLICATION_ID = 1463895121
SCHEMA_VERSION = 3

#: File systems whose locks or shared memory do not hold between machines, or not at all.
_NETWORK = re.compile(
    r"nfs\d*|cifs|smb\w*|9p|ceph|afs|coda|ncpfs|lustre|glusterfs|beegfs\w*|gpfs|ocfs2|gfs2|orangefs|pvfs2|"
    r"vboxsf|vmhgfs|prl_fs|"  # between a virtual machine and its host
    r"fuse\.(?:vmhgfs\S*|prl_fs\S*|sshfs|glusterfs|ceph\S*|s3fs|rclone|gcsfuse|davfs\S*|mfs|juicefs\S*|goofys|smb\S*|cvmfs\S*)"
)


def script(name: str) -> str:
    """Return the text of an SQL file of this package."""
    return (resources.files("wsgi_admission.stores") / name).read_text("utf-8")


def prepare(path: Path, *, patience: float) -> None:
    """Make the file, private to its owner, and everything in it that is missing.

    :raises StoreError: when the file must not be used, with what is wrong.
    """
    try:
        make_folder(path)
        deadline = time.monotonic() + patience
        while not (os.path.lexists(path) or _make_new(path, patience)):
            if time.monotonic() >= deadline:
                raise unavailable(path, "somebody else is at making it")
            time.sleep(0.002)
        _make_complete(path, patience)
    except sqlite3.OperationalError as error:
        raise unavailable(path, error) from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} is not a SQLite database that can be read: {error}.") from error
    except OSError as error:
        if error.errno in PERMANENT:
            raise StoreError(f"The store {path} cannot be made or opened: {error.strerror}.") from error
        raise unavailable(path, error) from error


def filesystem_type(path: str, mountinfo: str) -> str:
    """Return the type of the file system that an absolute path without links lies on, or an empty string.

    :param mountinfo: the text of ``/proc/self/mountinfo``.
    """
    deepest, found = -1, ""
    for line in mountinfo.splitlines():
        mount, separator, source = line.partition(" - ")
        fields = mount.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
        # The later of two mounts on one point hides the earlier.
        if len(point) >= deepest and f"{path}/".startswith(f"{point.rstrip('/')}/"):
            deepest, found = len(point), source.split(" ")[0]
    return found


def refuse_network(path: Path, mountinfo: str) -> None:
    """Raise StoreError if the path lies on a network file system."""
    found = filesystem_type(os.path.realpath(path), mountinfo)
    if _NETWORK.fullmatch(found):
        raise StoreError(
            f"{path} lies on {found}, a network file system, on which SQLite loses data; "
            "use a local path, or Redis for several machines."
        )


def make_folder(path: Path) -> None:
    """Make the folder in which a file is to lie, private to its owner; one that is there stays as it is.

    :raises StoreError: when the file must not lie there: on a network file system, or where anybody could replace it.
    :raises OSError: when the folder cannot be made.
    """
    mountinfo = host.told("/proc/self/mountinfo")  # empty in a closed jail: nothing is known against the path then
    refuse_network(path.parent, mountinfo)
    refuse_network(path, mountinfo)  # a single file can be mounted, too
    for folder in reversed([path.parent, *path.parent.parents]):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)  # of several that are missing each is private
    mode = path.parent.stat().st_mode
    if stat.S_ISDIR(mode) and mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise StoreError(f"{path.parent} can be written to by everybody: anybody could replace the store.")


def _make_new(path: Path, patience: float) -> bool:
    """Make a file without the log of one that was there before; return False if somebody else is at it.

    Who finds it empty, and has the lock, may take it for one that was emptied: it is not let go before it is complete.
    """
    with host_lock(f"{path}-lock") as held:
        if held and not os.path.lexists(path):
            remove_log(path)
            os.mknod(path, 0o600 | stat.S_IFREG)  # unlike open() it leaves no descriptor whose closing drops locks
            _make_complete(path, patience)
        return held


def _make_complete(path: Path, patience: float) -> None:
    """Make what is missing in a file of ours."""
    _refuse_others(path)
    beside = [Path(f"{path}{end}") for end in ("-wal", "-shm", "-lock", "-mark")]
    for file in beside:
        with contextlib.suppress(FileNotFoundError):
            _refuse_others(file)
    connection = connect(path, patience=patience, made=False)
    try:
        ours = patiently(lambda: _looks_ours(connection, path), patience)
        for file in [path, *beside]:  # not before: it may be another program's
            _make_private(file)
        connection.wait_for_disk(full=True)
        _make_schema(connection, path, patience, ours=ours)
    finally:
        connection.close()


def _refuse_others(path: Path) -> None:
    """Raise unless it is a plain file of our own."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is not a plain file; links and devices are refused.")
    if status.st_uid != os.geteuid():
        raise StoreError(f"{path} belongs to user {status.st_uid}; this process runs as user {os.geteuid()}.")


def _make_private(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def remove_log(path: Path) -> None:
    """Remove the write-ahead log of a database that is no longer at this path."""
    for end in ("-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)


def _make_schema(connection: sqlite3.Connection, path: Path, patience: float, *, ours: bool) -> None:
    if not ours:
        # Before the first page is written, and so before the journal mode: later it has no effect.
        patiently(lambda: connection.execute("PRAGMA auto_vacuum = INCREMENTAL"), patience)
    (mode,) = patiently(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone(), patience)
    if mode != "wal":
        raise StoreError(f"{path} cannot have a write-ahead log; put it on a file system with shared memory.")
    if ours:
        return
    patiently(lambda: connection.execute("BEGIN IMMEDIATE"), patience)
    try:
        if not _is_ours(connection, path):  # somebody else may have been quicker
            for statement in statements(script("schema.sql")):
                connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def empty() -> sqlite3.Connection:
    """Return a database in memory that has our schema and nothing in it."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    for statement in statements(script("schema.sql")):
        connection.execute(statement)
    return connection


def _looks_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Do what `_is_ours` does in one transaction: another process may be making the schema in this moment."""
    connection.execute("BEGIN")
    try:
        return _is_ours(connection, path)
    finally:
        connection.execute("ROLLBACK")


def _is_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the schema is there; False for a new file."""
    numbers = _numbers(connection)
    refuse_other_version(connection, path)  # before the schema is read, which may be one that this SQLite cannot read
    ((tables,),) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchall()
    if tables == 0 and numbers == (0, 0):
        return False
    refuse_version(connection, path)
    return True


def _numbers(connection: sqlite3.Connection) -> tuple[int, int]:
    ((application,),) = connection.execute("PRAGMA application_id").fetchall()
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    return application, version


def has_wrong_number(connection: sqlite3.Connection) -> bool:
    """Whether one byte of the two numbers is wrong that say whose the database is.

    Not the last of the version: with another one there it is another version's.
    """
    found, ours = (struct.pack(">2i", *pair) for pair in (_numbers(connection), (APPLICATION_ID, SCHEMA_VERSION)))
    return found[-1] == ours[-1] and sum(one != other for one, other in zip(found, ours, strict=True)) == 1


def refuse_version(connection: sqlite3.Connection, path: Path) -> None:
    """Raise StoreError if the database is another program's, or of another version of this one (`StoreMismatch`).

    :raises sqlite3.DatabaseError: when it is ours, and the numbers that say so are damaged.
    """
    if has_wrong_number(connection):
        raise sqlite3.DatabaseError("database disk image is malformed: a byte of its header is wrong")
    application, _ = _numbers(connection)
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is a database of another program.")
    refuse_other_version(connection, path)


def refuse_other_version(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `StoreMismatch` if the database is ours for certain, and of another version."""
    application, version = _numbers(connection)
    if application == APPLICATION_ID and version != SCHEMA_VERSION and not has_wrong_number(connection):
        raise mismatch(path, version)


def mismatch(path: Path, version: int) -> StoreMismatch:
    """Return what to raise for a database of another version."""
    return StoreMismatch(
        f"{path} has schema {version}, written by {'a newer' if version > SCHEMA_VERSION else 'an older'} version "
        f"of this package; this one works with schema {SCHEMA_VERSION}."
    )


def statements(text: str) -> list[str]:
    """Split an SQL script into its statements."""
    found, lines = [], ""
    for line in text.splitlines(keepends=True):
        lines += line
        if sqlite3.complete_statement(lines):
            found.append(lines)
            lines = ""
    return found
