"""What is left on the disk of a request that has ended."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.store_model import recording, ticket
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State

COOKIE = b"f3b1c2a7-a-cookie"


@pytest.mark.parametrize("length", [100, 40_000], ids=["in one page", "in many pages"])
def test_a_request_that_has_ended_is_overwritten_in_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Catches: cookies of long ago in the free pages of a file that somebody copies."""
    connect = sqlite3.connect

    def as_built_by_most(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.execute("PRAGMA secure_delete = OFF")
        return connection

    monkeypatch.setattr(sqlite3, "connect", as_built_by_most)
    path = tmp_path / "line.db"
    store = SQLiteStore(path, durability="normal")
    for _ in range(20):  # the rows beside it stay
        store.put(ticket(), recording(), now=0)
    head = f'{{"cookie": "{COOKIE.decode()}"}}'
    sent = store.put(ticket(route="video"), recording(b"x" * length + COOKIE, head), now=0)
    claimed = store.claim("w", now=1, lease=30, routes=[sent.route])
    assert claimed is not None
    store._upkeep.carry_over("TRUNCATE")
    store.finish(sent.id, claimed.attempt, State.COMPLETED, recording(), now=2)
    store.close()
    assert [file.name for file in tmp_path.iterdir() if file.is_file() and COOKIE in file.read_bytes()] == []
