"""The connections of one process to one SQLite file.

Every writing transaction begins as BEGIN IMMEDIATE; one that reads first and writes later fails as soon as
somebody else wrote in between.  Whoever finds the file locked tries again after 0.2 to 0.8 ms, chosen at random:
the pauses of SQLite's own waiting grow, which starves some of the writers.

Only one thread of a process at a time tries so.  The one that has the file locked takes Python's interpreter lock
again after every statement; a dozen threads that try would keep it from that, and everybody else from the file.

Whoever has waited in vain spares the others the waiting (breaker.py), so a file that stays locked holds no request for
longer than one wait.  That somebody writes does not keep anybody from reading, so there is a breaker for each: what
can be read is told while nothing can be written.
"""

from __future__ import annotations

import functools
import os
import random
import re
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from wsgi_admission.errors import StoreError, StoreUnavailable
from wsgi_admission.stores import forks
from wsgi_admission.stores.breaker import Breaker, Tripped
from wsgi_admission.stores.mark import Mark

# SQLITE_CORRUPT, SQLITE_NOTADB and their like ...
_BROKEN = re.compile(r"malformed|not a database|unsupported file")
# ... what our statements meet when the text of the schema is hit; and what SQLite says when the list of free pages
# leads beyond the end of the file.
_PERHAPS = re.compile(r"no such (?:table|column|index)|has no column|database or disk is full")
# One damaged text must not make the line unreadable.
_TEXT = functools.partial(str, encoding="utf-8", errors="replace")
#: Seconds that a fork waits for transactions that are under way.
FORK_PATIENCE = 2.0

#: Connections that wait for the next step.  Each keeps its statements, which take 300 KB once it has made all of them.
KEPT = 3

T = TypeVar("T")


class Locked(sqlite3.OperationalError):
    """Others kept the file locked for as long as this was willing to wait."""


def patiently(step: Callable[[], T], patience: float) -> T:
    """Return ``step()``, tried again for ``patience`` seconds while the file is locked by somebody else.

    :raises Locked: when it still is then.
    """
    deadline = None
    while True:
        try:
            return step()
        except sqlite3.OperationalError as error:
            if str(error) not in {"database is locked", "locking protocol"}:
                raise
            if deadline is None:
                deadline = time.monotonic() + patience
            if time.monotonic() >= deadline:
                raise Locked(str(error)) from error
        time.sleep(random.uniform(0.0002, 0.0008))  # noqa: S311 - apart from others, not secret


class Connection(sqlite3.Connection):
    """A connection that knows whether it waits for the disk at each commit."""

    full = True  # as SQLite has it
    #: Once the others have a later one it is closed: another file has the path, or this one would only be read.
    generation = 0

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Execute a statement; what SQLite quotes of a damaged schema may be no text, which Python takes amiss."""
        try:
            return super().execute(sql, parameters)
        except UnicodeDecodeError as error:
            raise sqlite3.DatabaseError(f"database disk image is malformed: {error.object!r}") from error

    def wait_for_disk(self, *, full: bool) -> None:
        """Have commits on the disk when they return, or survive only the death of processes."""
        if full is not self.full:
            self.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self.full = full


def connect(path: Path, *, patience: float, made: bool = True) -> Connection:
    """Open a connection to a file that is there.

    :param made: whether the file has been made, and is not new and empty.  SQLite takes an empty one for new, and
        deletes a log that others may have open.
    """
    connection = opened(path)
    try:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        # What is erased is overwritten, as some builds of SQLite do without being told.
        connection.execute("PRAGMA secure_delete = ON")
        if made:
            # Only now: SQLite reads the file with the next statement, and whoever empties it may do so at any time.
            _refuse_empty(path)
        patiently(lambda: connection.wait_for_disk(full=False), patience)
    except BaseException:
        connection.close()
        raise
    return connection


def opened(path: Path, *, timeout: float = 0) -> Connection:
    """Open a connection without a look at what is in the file.

    :param timeout: seconds that SQLite waits by itself while others keep it locked.
    """
    forks.refuse_inherited()
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
        factory=Connection,
    )
    connection.text_factory = _TEXT
    return connection


def _refuse_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise sqlite3.DatabaseError("file is not a database, but empty")


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells the file at a path from others that were there; None if there is none.

    :raises OSError: when that cannot be told.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - for every step: no Path is built for it
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def unavailable(path: Path, error: Exception | str) -> StoreUnavailable:
    """Return what to raise for an error of SQLite or of the system, or for another reason."""
    return StoreUnavailable(f"The store {path} cannot be used just now: {error}.")


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the content of the file is broken, or something that could come of it."""
    return is_broken(error) or (isinstance(error, sqlite3.DatabaseError) and bool(_PERHAPS.search(str(error))))


def is_read_only(error: BaseException) -> bool:
    """Whether SQLite says that it may not write: the system does not let it, or so it reads in the header."""
    return isinstance(error, sqlite3.OperationalError) and "readonly database" in str(error)


def is_broken(error: BaseException) -> bool:
    """Whether SQLite says that the content of the file is broken, and nothing else can be the reason."""
    return isinstance(error, sqlite3.DatabaseError) and bool(_BROKEN.search(str(error)))


class Connections(forks.Forkable):
    """Connections that are taken out for one step each, and opened as more are needed.

    Every method raises `StoreUnavailable` when the file cannot be read or written, and then has had no effect.

    :param full: what is durable is on the disk when `writing` returns; else it survives the death of processes.
    :param patience: seconds after which a file that others keep locked counts as unavailable.
    """

    #: Whether an error told of damage, perhaps; whoever has looked, and mended it, sets this back.
    damaged = False
    #: Whether an error told of nothing but damage; set back likewise.
    broken = False
    #: Whether SQLite would not write, which may come of damage; set back likewise.
    read_only = False

    def __init__(self, path: Path, *, full: bool, patience: float) -> None:
        self.path = path
        self.patience = patience
        try:
            self._file = identity(path)
            self.mark = Mark(path.with_name(f"{path.name}-mark"))
        except OSError as error:
            raise unavailable(path, error) from error
        self._full = full
        #: What tells the shared memory of the log that is open here from others.
        self.shared: tuple[int, int] | None = None
        self._generation = 0
        self._closed = False
        # Held only while a connection is taken out, and across a fork.
        self._lock = threading.Lock()
        self._begin_anew()
        self._idle: deque[Connection] = deque()
        self._opened = 0
        super().__init__()

    def _begin_anew(self) -> None:
        """Make what must not come along into a fork: whose turn it was, and what was tried."""
        self._turn = threading.Lock()
        #: Around everything that reads.
        self.reading = Breaker((Locked,))
        self._writing = Breaker((Locked,))

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Connection]:
        """One transaction, rolled back when the block raises.

        :param durable: whether somebody outside will build on it.  What concerns only the processes of this host
            need not survive a power loss: they do not either.
        """
        deadline = time.monotonic() + self.patience
        turn = self._turn
        self.check()  # before the waiting: who has the turn may be trying in vain
        if not turn.acquire(timeout=self.patience):
            raise unavailable(self.path, "other threads of this process keep it busy")
        try:
            with self._transaction(durable=durable, patience=deadline - time.monotonic()) as connection:
                yield connection
        finally:
            turn.release()

    def check(self) -> None:
        """Raise `StoreUnavailable` while nothing is written because the file was locked for too long a moment ago."""
        try:
            self.reading.check()
            self._writing.check()
        except Tripped as error:
            raise self.failed(error) from error

    @contextmanager
    def _transaction(self, *, durable: bool, patience: float) -> Iterator[Connection]:
        connection = self._take()
        try:
            with self._writing:
                connection.wait_for_disk(full=durable and self._full)
                patiently(lambda: connection.execute("BEGIN IMMEDIATE"), patience)
                yield connection
                connection.execute("COMMIT")
            self.refuse_moved()
        except BaseException as error:
            _roll_back(connection)
            self._drop_read_only(error)
            if isinstance(error, (sqlite3.Error, OSError, Tripped)):
                raise self.failed(error) from error
            raise
        finally:
            self.mark.renew()
            self._give(connection)

    def query(self, sql: str, parameters: Mapping[str, Any] | Sequence[Any] = ()) -> list[Any]:
        """Return the rows of one statement that runs on its own."""
        connection = self._take()
        try:
            with self.reading:
                return patiently(lambda: connection.execute(sql, parameters).fetchall(), self.patience)
        except (sqlite3.Error, Tripped) as error:
            self._drop_read_only(error)
            raise self.failed(error) from error
        finally:
            self._give(connection)

    def _drop_read_only(self, error: BaseException) -> None:
        """Close what is open if SQLite only reads: that stays so on each connection, also when the reason is gone."""
        if is_read_only(error):
            with self._lock:
                self._generation += 1
                self._close_idle()

    def failed(self, error: Exception) -> StoreUnavailable:
        """Return what to raise for an error, and remember if it tells of damage."""
        self.damaged = self.damaged or is_damage(error)
        self.read_only = self.read_only or is_read_only(error)
        self.broken = self.broken or is_broken(error)
        return unavailable(self.path, error)

    @property
    def moved(self) -> bool:
        """Whether another file, or none, is at the path now.

        What is written then is lost: nobody will find it.  And the log of the one file is no log of the other.
        """
        try:
            return identity(self.path) != self._file
        except OSError:
            return False  # nothing is known against what was written

    def shared_memory(self) -> tuple[int, int] | None:
        """Return what tells the shared memory of the log that is beside the path now from others."""
        try:
            return identity(Path(f"{self.path}-shm"))
        except OSError:
            return None

    def refuse_moved(self) -> None:
        """Raise `StoreUnavailable` if another file, or none, is at the path now."""
        if self.moved:
            raise unavailable(self.path, "it was removed, or another file put in its place")

    def begin_anew(self) -> None:
        """Take up the file that is at the path now; what is open on another one is closed once it is not in use."""
        with self._lock:
            self._generation += 1
            self._file = identity(self.path)
            self._close_idle()
            old, self.mark = self.mark, Mark(self.path.with_name(f"{self.path.name}-mark"))
            old.close()

    def close(self) -> None:
        """Close what is not in use; the others are closed when they come back."""
        with self._lock:
            self._closed = True
            if self._close_idle() == 0:
                self._forget()

    def _forget(self) -> None:
        self.mark.close()
        self.forgotten()

    def before_fork(self) -> None:
        """Close everything, once what is in use has come back."""
        self._lock.acquire()
        deadline = time.monotonic() + FORK_PATIENCE
        while self._close_idle() and time.monotonic() < deadline:
            time.sleep(0.0005)

    def after_fork(self) -> bool:
        """Let connections be taken out again."""
        if self.pid != os.getpid():
            self._begin_anew()
        self._lock.release()
        return self._opened == 0

    def _take(self) -> Connection:
        self.refuse_inherited()
        self.refuse_moved()
        with self._lock:
            if self._closed:
                raise StoreError(f"The store {self.path} was closed.")
            try:
                connection = self._idle.pop()
            except IndexError:
                try:
                    with self.reading:
                        connection = connect(self.path, patience=self.patience)
                except (sqlite3.Error, OSError, Tripped) as error:
                    raise self.failed(error) from error
                connection.generation, self.shared = self._generation, self.shared_memory()
                self._opened += 1
            return connection

    def _give(self, connection: Connection) -> None:
        spent = connection.in_transaction or connection.generation != self._generation
        if self._closed or spent or len(self._idle) >= KEPT:
            with self._lock:
                connection.close()
                self._opened -= 1
                if self._closed and self._close_idle() == 0:
                    self._forget()
        else:
            self._idle.append(connection)

    def _close_idle(self) -> int:
        """Close the connections that are not in use; return how many are."""
        while self._idle:
            self._idle.pop().close()
            self._opened -= 1
        return self._opened


def _roll_back(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except sqlite3.Error:
        pass  # the error that led here says more, and a connection that is still in a transaction is not kept
