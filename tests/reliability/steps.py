"""The steps of a store that something may happen to, and what they start from.

Each begins with the same database, under the same ids, so that what is there afterwards can be compared.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.reliability.points import Points
from tests.store_model import ROUTES, Clock, read, recording, ticket
from wsgi_admission.errors import UnknownTicket
from wsgi_admission.replay import Recording
from wsgi_admission.stores.bodies import ORPHANED
from wsgi_admission.stores.checkpoints import WAL_LIMIT
from wsgi_admission.stores.records import INLINE_BODY, Worker
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State, Ticket

LARGE = b"large" * INLINE_BODY
#: The tickets of the template, by what has become of them.
TICKETS = ("waits", "waits large", "runs", "runs large", "runs once", "ended", "ended large", "died")


def small() -> Recording:
    """Return a recording that lies in its row."""
    return recording(b"small")


def large() -> Recording:
    """Return a recording that lies in a file."""
    return recording(LARGE)


def named(name: str, *, crash_retries: int = 1) -> Ticket:
    """Return a new ticket under this id."""
    return replace(ticket(name, crash_retries=crash_retries), id=name)


def opened(path: Path) -> SQLiteStore:
    """Open the store; nothing that it leases runs out by itself."""
    return SQLiteStore(path, clock=Clock(), boot="this one")


def template(path: Path) -> None:
    """Make a database with a ticket in each state, whose workers are ``w`` and ``dead``."""
    with closing(opened(path)) as store:
        for name in ("ended", "ended large", "runs", "runs large"):
            store.put(named(name), large() if "large" in name else small(), now=0)
            _claim(store, "w")
        store.put(named("runs once", crash_retries=0), small(), now=0)
        _claim(store, "dead")
        store.put(named("died", crash_retries=0), large(), now=0)
        _claim(store, "gone")
        store.bury("gone", now=0)
        store.finish("ended", 1, State.COMPLETED, small(), now=1)
        store.finish("ended large", 1, State.FAILED, large(), now=1)
        for name in ("waits", "waits large"):
            store.put(named(name), large() if "large" in name else small(), now=0)
        store.report(Worker("dead", "host", 1, 1, 1), now=10)


def _claim(store: SQLiteStore, worker: str) -> None:
    claimed = store.claim(worker, now=0, lease=30, routes=ROUTES)
    assert claimed is not None


#: What is done to the template, by its name.
STEPS: dict[str, Callable[[SQLiteStore], object]] = {
    "put": lambda store: store.put(named("new"), small(), now=2),
    "put with a key": lambda store: store.put(named("new"), small(), now=2, key="key", digest="digest"),
    "put a large one": lambda store: store.put(named("new"), large(), now=2),
    "claim": lambda store: store.claim("w", now=2, lease=30, routes=ROUTES),
    "renew": lambda store: store.renew([("runs", 1), ("runs large", 1)], lease=30),
    "finish": lambda store: store.finish("runs", 1, State.COMPLETED, small(), now=2),
    "finish a large one": lambda store: store.finish("runs large", 1, State.COMPLETED, large(), now=2),
    "finish without an answer": lambda store: store.finish("runs", 1, State.FAILED, None, now=2, keep_request=True),
    "release": lambda store: store.release("runs large", 1, now=2),
    "cancel": lambda store: store.cancel("waits large", now=2),
    "bury": lambda store: store.bury("dead", now=2),
    "retry": lambda store: store.retry("died", named("new"), now=2),
    "prune": lambda store: store.prune(before=10, now=20),
}


def contents(path: Path) -> dict[str, Any]:
    """Return what can be seen of a store: its tickets with their recordings, and its tallies."""
    with closing(opened(path)) as store:
        found: dict[str, Any] = {"tallies": store.counts(), "workers": store.statistics(now=0).workers}
        for name in (*TICKETS, "new"):
            try:
                kept = store.get(name)
            except Exception as error:  # noqa: BLE001 - what it is belongs to what can be seen
                found[name] = repr(error)
                continue
            request = None
            with suppress(UnknownTicket):
                request = read(store.request(name))
            found[name] = (kept, request, read(store.response(name)))
        return found


def sweep(path: Path) -> set[str]:
    """Sweep what nobody names any more; return the files that are still there although no row names them."""
    with closing(opened(path)) as store:
        directory = path.with_name(f"{path.name}.bodies")
        directory.mkdir(exist_ok=True)
        for file in directory.iterdir():
            os.utime(file, (-2 * ORPHANED, -2 * ORPHANED))
        store.prune(before=-1, now=0)  # at which nothing else is past its time
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT file FROM requests UNION ALL SELECT file FROM responses").fetchall()
    files = {file.name for file in directory.iterdir()}
    named_files = {name for (name,) in rows if name is not None}
    assert named_files <= files, "a row names a file that is not there"
    return files - named_files


def die_at(name: str, path: Path, number: int, told: Path) -> None:
    """Do a step in this process and be killed at one of its points, or write down how many it has."""

    def die(_function: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if name == "open":
        with Points(number, die) as points:
            store = opened(path)
    else:
        store = opened(path)
        if name == "carry over":
            for turn in range(WAL_LIMIT // INLINE_BODY + 1):
                store.put(replace(ticket(), route=f"other {turn}"), recording(b"x" * INLINE_BODY), now=0)
        with Points(number, die) as points:
            if name == "carry over":
                store.maintain(now=1)
            else:
                STEPS[name](store)
    store.close()
    told.write_text(str(points.passed))
