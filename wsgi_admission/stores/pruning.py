"""Removing from an SQLite file what is past its time."""

from __future__ import annotations

from collections.abc import Callable

from wsgi_admission.stores import rows
from wsgi_admission.stores.bodies import Bodies
from wsgi_admission.stores.connections import Connections
from wsgi_admission.stores.records import AT_ONCE, MINUTES_KEPT, REMEMBER_GONE, WORKER_ALIVE
from wsgi_admission.stores.room import is_short
from wsgi_admission.stores.rows import SQL

#: Tickets that are removed in one transaction: nobody waits longer for the file than that takes.
BATCH = 200
#: The same where the disk is nearly full: what they hold is overwritten, which takes as much of the log.
SMALL_BATCH = 8
#: Pages that are given back to the system at a time, when more than half of the file is free.
VACUUM_PAGES = 512


def prune(
    connections: Connections,
    bodies: Bodies,
    line: str,
    *,
    before: float,
    now: float,
    carry_over: Callable[[], object],
) -> int:
    """Do what `Store.prune` says; return the number of tickets removed.

    :param carry_over: empties the log.
    """
    removed = 0
    while removed < AT_ONCE:
        batch = BATCH
        if is_short(connections.path):
            carry_over()  # so that there is room in the log
            batch = SMALL_BATCH
        found = _tickets(connections, bodies, line, before=before, now=now, batch=batch)
        removed += found
        if found < batch:
            break
    _the_rest(connections, line, now=now)
    # The files of all lines stand in one directory.
    bodies.sweep(lambda: [name for (name,) in connections.query(SQL["files"])], now=now)
    return removed


def _tickets(connections: Connections, bodies: Bodies, line: str, *, before: float, now: float, batch: int) -> int:
    files: list[str] = []
    with connections.writing(durable=False) as connection:
        parameters = {"line": line, "before": before, "batch": batch}
        found = connection.execute(SQL["past_retention"], parameters).fetchall()
        for number, ticket_id, owner in found:
            for kind in ("request", "response"):
                files += rows.erase(connection, kind, number)
            connection.execute(SQL["remove"], (number,))
            connection.execute(SQL["remember_gone"], (line, ticket_id, owner, now))
    bodies.remove(files)
    return len(found)


def _the_rest(connections: Connections, line: str, *, now: float) -> None:
    parameters = {
        "line": line,
        "gone_before": now - REMEMBER_GONE,
        "minute": int(now // 60) - MINUTES_KEPT,
        "seen_before": now - WORKER_ALIVE,
        "total": rows.TOTAL,
    }
    with connections.writing(durable=False) as connection:
        for name in ("prune_gone", "prune_minutes", "prune_workers", "prune_finishes"):
            connection.execute(SQL[name], parameters)
        ((free,),) = connection.execute("PRAGMA freelist_count").fetchall()
        ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
        if free > pages / 2:
            for _ in range(VACUUM_PAGES):
                connection.execute("PRAGMA incremental_vacuum(1)")  # executed once it gives back one page, if any
