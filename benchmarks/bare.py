"""The other side of the store's benchmarks: the least that a line in SQLite can do.

One small table, nothing but an id, a state and the body; statements prepared once; SQLite's own defaults apart from
the write-ahead log and what the durability asks for.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

_INSERT = "INSERT INTO jobs (state, body) VALUES ('queued', ?)"
_CLAIM = """
UPDATE jobs SET state = 'running'
WHERE id = (SELECT id FROM jobs WHERE state = 'queued' ORDER BY id LIMIT 1) RETURNING id, body
"""
_COMPLETE = "UPDATE jobs SET state = 'done', body = ? WHERE id = ?"


class Bare:
    """A line of bodies in a file of its own; each step is one transaction.

    :param durability: ``full`` or ``normal``, as for `open_store`.
    :param claims: whether tickets are claimed too, which takes an index.
    """

    def __init__(self, path: Path, durability: str, *, claims: bool) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._execute = self._connection.execute
        self._execute("PRAGMA journal_mode = WAL")
        self._execute(f"PRAGMA synchronous = {durability.upper()}")
        self._execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, state TEXT, body BLOB)")
        if claims:
            self._execute("CREATE INDEX queued ON jobs (id) WHERE state = 'queued'")

    def insert(self, body: bytes) -> None:
        """Add a job."""
        self._execute(_INSERT, (body,))

    def cycle(self, body: bytes) -> None:
        """Add a job, claim the first, and complete it."""
        self._execute(_INSERT, (body,))
        ((job, _),) = self._execute(_CLAIM).fetchall()
        self._execute(_COMPLETE, (b"done", job))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
