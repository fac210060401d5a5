"""Noticing that anybody changed the file, in microseconds.

``PRAGMA data_version`` differs when *another* connection has committed.  The one connection that never writes
therefore sees the commits of all processes and of all other connections of its own.

Even that is too slow for every request.  So each writer leaves a new random mark, after its commit and before it
says that it is done, in a small file that all processes have open.  While the mark is the same nothing has been
promised since, and SQLite is asked only now and then: for a writer that died between its commit and its mark, and
for whoever changes the file with tools of their own.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from wsgi_admission.errors import StoreError
from wsgi_admission.stores import forks
from wsgi_admission.stores.breaker import Tripped
from wsgi_admission.stores.connections import Connections, connect, patiently

T = TypeVar("T")

#: Seconds after which SQLite is asked although the mark is the same.
SURE = 0.05


class Watch(forks.Forkable):
    """The connection of a process that never writes, and what was read over it last.

    Every method raises `StoreUnavailable` when the file cannot be read.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._path, self._patience = connections.path, connections.patience
        self._seen: bytes | None = None
        self._version = 0
        self._sure_until = 0.0
        self._closed = False
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._openings = 0
        self._cache: dict[str, tuple[Hashable, Any]] = {}
        super().__init__()

    def token(self) -> int:
        """Return a number that is another one after every commit of anybody."""
        try:
            if self._is_sure():
                return self._version
            with self._looking():
                return self._token()
        except (sqlite3.Error, OSError, Tripped) as error:
            raise self._connections.failed(error) from error

    def cached(self, key: str, load: Callable[[sqlite3.Connection], T], of: Hashable = None) -> T:
        """Return what ``load`` reads; from memory if nobody has committed since and ``of`` is the same."""
        try:
            # Nearly every request: neither the lock nor SQLite is needed for what was read a moment ago.
            known = self._cache.get(key) if self._is_sure() else None
            if known is None or known[0] != (self._version, of):
                with self._looking():
                    known = self._look_up(key, load, of)
        except (sqlite3.Error, OSError, Tripped) as error:
            raise self._connections.failed(error) from error
        value: T = known[1]
        return value

    def begin_anew(self) -> None:
        """Take up the file that is at the path now."""
        with self._lock:
            self._close()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._closed = True
            self._close()
        self.forgotten()

    def before_fork(self) -> None:
        """Close the connection."""
        self._lock.acquire()
        self._close()

    def after_fork(self) -> bool:
        """Let everybody look again."""
        self._lock.release()
        return True

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """One thread at a time; not behind one that waits for a locked file in vain."""
        reading = self._connections.reading
        reading.check()
        with self._lock, reading:
            yield

    def _is_sure(self) -> bool:
        """Whether the version is still the right one, as far as that can be told without SQLite."""
        return self._connections.mark.read() == self._seen and time.monotonic() < self._sure_until

    def _look_up(self, key: str, load: Callable[[sqlite3.Connection], T], of: Hashable) -> tuple[Hashable, T]:
        token = (self._token(), of)
        known = self._cache.get(key)
        if known is None or known[0] != token:
            connection = self._open()
            known = self._cache[key] = (token, patiently(lambda: load(connection), self._patience))
        return known

    def _token(self) -> int:
        if self._closed:
            raise StoreError(f"The store {self._path} was closed.")
        # Read before SQLite is asked: a commit in between is then noticed next time.
        mark = self._connections.mark.read()
        if mark == self._seen and time.monotonic() < self._sure_until:
            return self._version
        connection = self._open()
        version: int = patiently(lambda: connection.execute("PRAGMA data_version").fetchone(), self._patience)[0]
        # The version counts from the opening; the number of the opening keeps it from coming round again.
        # It is set before what makes it sure: other threads look at them without the lock.
        self._version = self._openings << 32 | version
        self._seen, self._sure_until = mark, time.monotonic() + SURE
        return self._version

    def _open(self) -> sqlite3.Connection:
        self.refuse_inherited()
        self._connections.refuse_moved()
        if self._connection is None:
            self._connection = connect(self._path, patience=self._patience)
            self._openings += 1
        return self._connection

    def _close(self) -> None:
        self._seen = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
