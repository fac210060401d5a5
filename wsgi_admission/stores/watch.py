"""Noticing that anybody changed the file, in microseconds.

``PRAGMA data_version`` differs when *another* connection has committed.  The one connection that never writes
therefore sees the commits of all processes and of all other connections of its own.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from wsgi_admission.stores import forks
from wsgi_admission.stores.connections import Connections, connect, patiently, unavailable

T = TypeVar("T")


class Watch(forks.Forkable):
    """The connection of a process that never writes, and what was read over it last.

    Every method raises `StoreUnavailable` when the file cannot be read.
    """

    def __init__(self, connections: Connections) -> None:
        self._path, self._patience = connections.path, connections.patience
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._openings = 0
        self._cache: dict[str, tuple[Hashable, Any]] = {}
        super().__init__()

    def token(self) -> int:
        """Return a number that is another one after every commit of anybody."""
        try:
            with self._lock:
                return self._token()
        except sqlite3.Error as error:
            raise unavailable(self._path, error) from error

    def cached(self, key: str, load: Callable[[sqlite3.Connection], T], of: Hashable = None) -> T:
        """Return what ``load`` reads; from memory if nobody has committed since and ``of`` is the same."""
        try:
            with self._lock:
                token = (self._token(), of)
                known = self._cache.get(key)
                if known is None or known[0] != token:
                    connection = self._open()
                    known = self._cache[key] = (token, patiently(lambda: load(connection), self._patience))
                value: T = known[1]
                return value
        except sqlite3.Error as error:
            raise unavailable(self._path, error) from error

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
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

    def _token(self) -> int:
        self.refuse_inherited()
        connection = self._connection or self._open()
        try:
            version: int = connection.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.OperationalError:
            version = patiently(lambda: connection.execute("PRAGMA data_version").fetchone(), self._patience)[0]
        # The version counts from the opening; the number of the opening keeps it from coming round again.
        return self._openings << 32 | version

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect(self._path, patience=self._patience)
            self._openings += 1
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
