"""Many processes on one file, whose log is carried over again and again."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from tests.reliability.size import sized
from tests.store_model import ROUTES, recording, ticket
from wsgi_admission.stores import checkpoints
from wsgi_admission.stores.records import INLINE_BODY
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State

PROCESSES = 8
SECONDS = sized(5.0, 600.0)


def keep_busy(path: str, number: int) -> tuple[int, int]:
    """Put, run, prune and carry over for a while; return how many tickets were put and run."""
    checkpoints.WAL_LIMIT = 1 << 16  # nearly every time that it is asked for
    put = run = 0
    with closing(SQLiteStore(path, durability="normal", patience=30)) as store:
        until = time.monotonic() + SECONDS  # from now on: eight processes that start take long
        while time.monotonic() < until:
            body = b"x" * (INLINE_BODY + 1 if put % 50 == 0 else 3000)
            store.put(ticket(f"client {number}"), recording(body), now=put)
            put += 1
            claimed = store.claim(f"worker {number}", now=put, lease=1e9, routes=ROUTES)
            if claimed is not None:
                store.finish(claimed.id, claimed.attempt, State.COMPLETED, recording(body), now=put)
                run += 1
            if put % 5 == 0:
                store.maintain(now=60 * put)
            if put % 100 == 0:
                store.prune(before=put - 50, now=put)
    return put, run


def test_a_file_that_many_write_and_carry_over_stays_sound(tmp_path: Path) -> None:
    """Catches: checkpoints that two processes make at once, locks that are dropped, commits that are lost in them."""
    path = tmp_path / "line.db"
    SQLiteStore(path).close()
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        runs = [pool.apply_async(keep_busy, (str(path), number)) for number in range(PROCESSES)]
        done = [run.get(timeout=SECONDS + 120) for run in runs]
        pool.close()
        pool.join()
    put, run = (sum(numbers) for numbers in zip(*done, strict=True))
    assert run > 10 * PROCESSES
    with closing(SQLiteStore(path)) as store:
        tally = store.counts()["donor", "image"]
        assert (tally.accepted, tally.completed, tally.queued, tally.processing) == (put, run, put - run, 0)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT COUNT(*) FROM tickets WHERE state = 'queued'").fetchone() == (put - run,)
