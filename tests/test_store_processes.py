"""Several processes on one SQLite file."""

from __future__ import annotations

import multiprocessing
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path
from typing import Any

import pytest

from tests.store_model import ROUTES, read, recording, ticket
from wsgi_admission.stores.checkpoints import WAL_LIMIT
from wsgi_admission.stores.records import INLINE_BODY, Tally
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State

# What waits for the file for longer than a store's patience has failed.
pytestmark = pytest.mark.alone

PROCESSES = 4


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Processes that share nothing with this one."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as started:
        yield started
        started.close()
        started.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "line.db"


def everywhere(pool: Pool, step: Callable[..., Any], path: Path) -> list[Any]:
    """Run a step in every process at once, with the path and its number; return the results."""
    runs: list[AsyncResult[Any]] = [pool.apply_async(step, (path, number)) for number in range(PROCESSES)]
    return [run.get(timeout=60) for run in runs]


def claim_all(path: Path, number: int) -> list[str]:
    """Claim until nothing is left."""
    claimed = []
    with closing(SQLiteStore(path, durability="normal")) as store:
        while (run := store.claim(f"worker {number}", now=0, lease=1e9, routes=ROUTES)) is not None:
            claimed.append(run.id)
    return claimed


def test_processes_never_claim_the_same_ticket(pool: Pool, path: Path) -> None:
    """Catches: a claim whose reading and writing are two steps, or BEGIN without IMMEDIATE."""
    with closing(SQLiteStore(path, durability="normal")) as store:
        tickets = [store.put(ticket(f"client {number}"), recording(), now=0).id for number in range(500)]
        claimed = [ticket_id for ids in everywhere(pool, claim_all, path) for ticket_id in ids]
        assert len(claimed) == 500
        assert sorted(claimed) == sorted(tickets)
        assert store.counts()["donor", "image"] == Tally(processing=500, accepted=500, started=500)


def put_and_run(path: Path, number: int) -> int:
    """Put 50 tickets and run whatever comes; every tenth body is a large one.  Return how many were run."""
    ran = 0
    with closing(SQLiteStore(path, durability="normal")) as store:
        for turn in range(50):
            body = b"x" * (INLINE_BODY + 1 if turn % 10 == 0 else 100)
            store.put(ticket(f"client {number}"), recording(body), now=0)
            run = store.claim(f"worker {number}", now=0, lease=1e9, routes=ROUTES)
            assert run is not None
            request = read(store.request(run.id))
            assert request is not None
            store.finish(run.id, run.attempt, State.COMPLETED, recording(request[1]), now=1)
            store.maintain(now=turn)
            ran += 1
    return ran


def test_processes_put_and_run_side_by_side(pool: Pool, path: Path) -> None:
    """Catches: steps that fail, or are counted wrongly, when others write."""
    assert everywhere(pool, put_and_run, path) == [50] * PROCESSES
    with closing(SQLiteStore(path)) as store:
        total = 50 * PROCESSES
        assert store.counts()["donor", "image"] == Tally(
            accepted=total, started=total, completed=total, ran=total, run_seconds=total
        )
        assert len(list(path.with_name("line.db.bodies").iterdir())) == 5 * PROCESSES
    assert_sound(path)


def assert_sound(path: Path) -> None:
    """Check the database from end to end."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def open_and_put(path: Path, number: int) -> str:
    """Open the store, perhaps as the first one, and put a ticket."""
    with closing(SQLiteStore(path, name=f"line {number % 2}")) as store:
        return store.put(ticket(), recording(), now=0).id


def test_processes_may_all_be_the_first(pool: Pool, path: Path) -> None:
    """Catches: a schema that two make at once."""
    for attempt in range(5):
        database = path.with_name(f"{attempt}") / "line.db"
        ids = everywhere(pool, open_and_put, database)
        for number, ticket_id in enumerate(ids):
            with closing(SQLiteStore(database, name=f"line {number % 2}")) as store:
                assert store.get(ticket_id).number


def test_what_another_process_did_is_seen_at_once(pool: Pool, path: Path) -> None:
    """Catches: counts that are cached for a time."""
    with closing(SQLiteStore(path)) as store:
        for number in range(1, 6):
            token, counts = store.changed(), store.counts()
            assert (store.changed(), store.counts()) == (token, counts)
            pool.apply(put_one, (path, 0))
            assert store.changed() != token
            assert store.counts()["donor", "image"].queued == number


def put_one(path: Path, _number: int) -> None:
    """Put a ticket."""
    with closing(SQLiteStore(path)) as store:
        store.put(ticket(), recording(), now=0)


@contextmanager
def program(text: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program that has the path as its argument, and kill it at the end."""
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", text, str(path)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


WRITER = """
import sys
from tests.store_model import ROUTES, recording, ticket
from wsgi_admission.stores.records import INLINE_BODY
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State

store = SQLiteStore(sys.argv[1], durability="normal")
for number in range(10**6):
    new = store.put(ticket(), recording(b"x" * (INLINE_BODY + 1 if number % 3 == 0 else 3000)), now=0)
    print("put", new.id, flush=True)
    store.maintain(now=number)
    if number % 2:
        run = store.claim("worker", now=0, lease=10, routes=ROUTES)
        store.finish(run.id, run.attempt, State.COMPLETED, recording(b"done"), now=1)
        print("finished", run.id, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 20, 61, 150])
def test_a_writer_that_is_killed_loses_nothing_it_was_told_is_kept(path: Path, lines: int) -> None:
    """Catches: a put that returns before its commit, and a file that a kill leaves broken or locked."""
    with program(WRITER, path) as writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline().split() for _ in range(lines)]
        writer.send_signal(signal.SIGKILL)
        told += [line.split() for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        writer.wait(timeout=30)
    assert len(told) >= lines
    with closing(SQLiteStore(path, boot="the next one")) as store:
        finished = {ticket_id for word, ticket_id in told if word == "finished"}
        for _, ticket_id in told:
            kept = store.get(ticket_id)
            assert kept.state is State.COMPLETED or ticket_id not in finished
            if kept.state is State.COMPLETED:
                assert read(store.response(ticket_id)) == ('{"method": "POST"}', b"done", 4)
            else:
                assert read(store.request(ticket_id)) is not None
        in_flight = store.counts()["donor", "image"].processing
        assert store.requeue_expired(now=1e6) == in_flight <= 1
        store.put(ticket(), recording(), now=0)
    assert_sound(path)


LOCKER = """
import sys, time
from wsgi_admission.stores.checkpoints import host_lock
from wsgi_admission.stores.sqlite import SQLiteStore

store = SQLiteStore(sys.argv[1])
with store._connections.writing(), host_lock(sys.argv[1] + "-lock") as held:
    print(held, flush=True)
    time.sleep(600)
"""


def test_the_locks_of_a_killed_process_are_free(path: Path) -> None:
    """Catches: locks that outlive their holder, and a log that two processes carry over."""
    with closing(SQLiteStore(path, durability="normal", patience=30)) as store:
        for _ in range(WAL_LIMIT // INLINE_BODY + 1):
            store.put(ticket(), recording(b"x" * INLINE_BODY), now=0)
        size = path.with_name("line.db-wal").stat().st_size
        with program(LOCKER, path) as locker:
            assert locker.stdout is not None
            assert locker.stdout.readline() == "True\n"
            store.maintain(now=0)
            locker.send_signal(signal.SIGKILL)
            locker.wait(timeout=30)
        kept = store.put(replace(ticket(), owner="ann"), recording(), now=1)
        assert store.get(kept.id).owner == "ann"
        assert path.with_name("line.db-wal").stat().st_size > size, "it was not carried over"
        store.maintain(now=1)
        size = path.with_name("line.db-wal").stat().st_size
        store.put(ticket(), recording(), now=2)
        assert path.with_name("line.db-wal").stat().st_size == size, "it is now"
