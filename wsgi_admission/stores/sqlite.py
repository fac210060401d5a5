"""One line in one SQLite file, for all processes of a host.

How the file is shared by threads, processes and forks is told in connections.py, watch.py, checkpoints.py and
forks.py; what keeps it usable, in upkeep.py; where large bodies are, in bodies.py.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from wsgi_admission import host
from wsgi_admission.errors import DamagedRecording, LeaseLost, UnknownTicket
from wsgi_admission.replay import Recording
from wsgi_admission.stores import Store, copies, moves, pruning, rows, upkeep
from wsgi_admission.stores.bodies import Bodies, Stored, WrongBody
from wsgi_admission.stores.checkpoints import wal_race
from wsgi_admission.stores.connections import Connections, unavailable
from wsgi_admission.stores.records import AT_ONCE, WORKER_ALIVE, Counts, Minute, Passed, Statistics, Worker
from wsgi_admission.stores.room import is_full, refuse_full
from wsgi_admission.stores.rows import SQL
from wsgi_admission.stores.upkeep import Upkeep
from wsgi_admission.stores.watch import Watch
from wsgi_admission.ticket import State, Ticket


class SQLiteStore(Store):
    """A line in an SQLite file; what the methods do is said by `Store`.

    :param path: the database file; ``PATH.bodies/``, ``PATH-lock`` and ``PATH-mark`` stand beside it.
    :param name: the name of the line.
    :param durability: ``full`` or ``normal``, as for `open_store`.
    :param patience: seconds to wait for the file while others keep it locked.
    :param clock: returns the seconds by which leases are measured, the same for all processes of the host.
    :param boot: differs after each start of that clock; a lease of another boot has run out.
    :raises StoreError: when the file cannot or must not be used.
    :raises ValueError: for another durability.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "main",
        durability: str = "full",
        patience: float = 2.0,
        clock: Callable[[], float] = host.clock,
        boot: str | None = None,
    ) -> None:
        if durability not in {"full", "normal"}:
            raise ValueError(f"durability {durability!r}: expected full or normal")
        self._path = Path(path).absolute()  # the working directory may change later
        self._line = name
        self._durability = durability
        self._clock = clock
        try:
            self._boot = host.boot_id() if boot is None else boot
        except OSError as error:
            raise unavailable(self._path, error) from error
        opened = time.time()
        upkeep.prepare(self._path, patience=patience)
        full = durability == "full"
        self._bodies = Bodies(self._path.with_name(f"{self._path.name}.bodies"), durable=full)
        self._connections = Connections(self._path, full=full, patience=patience)
        self._watch = Watch(self._connections)
        self._upkeep = Upkeep(self._connections, self._watch, opened=opened)

    def put(self, ticket: Ticket, request: Recording, *, now: float, key: str = "", digest: str = "") -> Ticket:
        """Rank the ticket and insert it with its request, unless its key is known."""
        asked = {"line": self._line, "route": ticket.route, "client": ticket.client, "key": key, "digest": digest}
        with self._bodies.stored(request) as stored, self._connections.writing() as connection:
            known = rows.recalled(connection.execute(SQL["recall"], asked).fetchall(), digest) if key else None
            if known is None:
                refuse_full(self._path, lambda sql: connection.execute(sql).fetchall())
                known = rows.add(connection, self._line, ticket, now=now)
                self._keep(connection, "put_request", known.number, stored)
                if key:
                    connection.execute(SQL["keep_key"], {**asked, "number": known.number})
                return known
        self._bodies.remove([stored.file] if stored.file is not None else [])
        return known

    def claim(self, worker: str, *, now: float, lease: float, routes: Collection[str]) -> Ticket | None:
        """Look up the first ticket of each route, and take the best of them."""
        wanted = {"line": self._line, "routes": json.dumps(list(routes))}
        with self._connections.writing(durable=False) as connection:
            before = rows.first(connection, wanted)
            if before is None or before.crash_retries:
                return self._lease(connection, before, worker, now=now, lease=lease)
        # What must not run twice has to be on the disk, and which ticket it is was known too late for that.
        with self._connections.writing() as connection:
            return self._lease(connection, rows.first(connection, wanted), worker, now=now, lease=lease)

    def _lease(
        self, connection: sqlite3.Connection, before: Ticket | None, worker: str, *, now: float, lease: float
    ) -> Ticket | None:
        if before is None:
            return None
        after = moves.claimed(before, now=now)
        until = {"worker": worker, "until": self._clock() + lease, "boot": self._boot}
        rows.move(connection, self._line, before, after, now=now, lease=until)
        rows.charge(connection, self._line, after)
        return after

    def pause(self, paused: bool) -> None:  # noqa: FBT001 - as in Store
        """Write or delete the line's row."""
        with self._connections.writing() as connection:
            connection.execute(SQL["pause" if paused else "resume"], {"line": self._line})

    def paused(self) -> bool:
        """Return what was read last, if nobody has committed since."""
        line = {"line": self._line}
        return self._watch.cached("paused", lambda c: bool(c.execute(SQL["paused"], line).fetchall()))

    def renew(self, claims: Collection[tuple[str, int]], *, lease: float) -> set[tuple[str, int]]:
        """Set the end of each lease that is still held."""
        with self._connections.writing(durable=False) as connection:
            where = {"line": self._line, "until": self._clock() + lease, "boot": self._boot}
            return {
                (ticket_id, attempt)
                for ticket_id, attempt in claims
                if connection.execute(SQL["renew"], {**where, "id": ticket_id, "attempt": attempt}).rowcount
            }

    def progress(self, ticket_id: str, attempt: int, fraction: float, note: str) -> None:
        """Write it into the ticket's row."""
        values = {"line": self._line, "id": ticket_id, "attempt": attempt, "fraction": fraction, "note": note}
        with self._connections.writing(durable=False) as connection:
            if not connection.execute(SQL["progress"], values).rowcount:
                raise LeaseLost(ticket_id, attempt)

    def finish(
        self,
        ticket_id: str,
        attempt: int,
        state: State,
        response: Recording | None,
        *,
        now: float,
        error: str = "",
        keep_request: bool = False,
    ) -> Ticket:
        """Write the response first, then end the run in one transaction."""
        moves.check_end(state, response, keep_request=keep_request)
        try:
            return self._finish(ticket_id, attempt, state, response, now=now, error=error, keep_request=keep_request)
        except LeaseLost:
            with self._connections.writing(durable=False) as connection:
                rows.count_late(connection, self._line, ticket_id, now=now)
            raise

    def _finish(
        self, ticket_id: str, attempt: int, state: State, response: Recording | None, *, now: float, **how: Any
    ) -> Ticket:
        keeping = nullcontext() if response is None else self._bodies.stored(response)
        with keeping as stored, self._connections.writing() as connection:
            before = rows.held(connection, self._line, ticket_id, attempt)
            after = moves.finished(before, state, now=now, **how)
            erased = rows.move(connection, self._line, before, after, now=now)
            if stored is not None and after.state is state:
                self._keep(connection, "put_response", after.number, stored)
            elif stored is not None and stored.file is not None:
                erased.append(stored.file)
            if after.state is State.COMPLETED:
                rows.add_run_times(connection, self._line, after.route, [moves.run_seconds(after)])
        self._bodies.remove(erased)
        return after

    def release(self, ticket_id: str, attempt: int, *, now: float) -> None:
        """Put the ticket back into the line."""
        with self._connections.writing() as connection:
            before = rows.held(connection, self._line, ticket_id, attempt)
            erased = rows.move(connection, self._line, before, moves.released(before, now=now), now=now)
        self._bodies.remove(erased)

    def requeue_expired(self, *, now: float) -> int:
        """Move every ticket whose lease ran out, in one transaction."""
        with self._connections.writing() as connection:
            where = {"line": self._line, "clock": self._clock(), "boot": self._boot}
            crashed, erased = rows.crash(connection, "expired", where, now=now)
        self._bodies.remove(erased)
        return crashed

    def bury(self, worker: str, *, now: float) -> int:
        """Move every ticket that is the worker's, and delete its row."""
        with self._connections.writing() as connection:
            where = {"line": self._line, "id": worker}
            connection.execute(SQL["forget_worker"], where)
            crashed, erased = rows.crash(connection, "leased", where, now=now)
        self._bodies.remove(erased)
        return crashed

    def cancel(self, ticket_id: str, *, now: float, reason: str = "") -> Ticket:
        """Move the ticket, or mark it."""
        with self._connections.writing() as connection:
            before = rows.existing(connection, self._line, ticket_id)
            after = moves.cancelled(before, now=now, reason=reason)
            erased = rows.move(connection, self._line, before, after, now=now)
        self._bodies.remove(erased)
        return after

    def expire(self, route: str, *, before: float, now: float, reason: str) -> int:
        """Cancel in batches, each a transaction of its own, so that nobody has to wait long."""
        where = {"line": self._line, "route": route, "before": before, "batch": pruning.BATCH}
        expired = 0
        # Asked before the file is locked: mostly there is nothing to do.
        while expired < AT_ONCE and self._connections.query(SQL["is_overdue"], where):
            erased: list[str] = []
            with self._connections.writing() as connection:
                overdue = [rows.ticket_of(row) for row in connection.execute(SQL["overdue"], where).fetchall()]
                for ticket in overdue:
                    after = moves.cancelled(ticket, now=now, reason=reason)
                    erased += rows.move(connection, self._line, ticket, after, now=now)
            self._bodies.remove(erased)
            expired += len(overdue)
        return expired

    def retry(self, ticket_id: str, ticket: Ticket, *, now: float) -> Ticket:
        """Insert the new ticket, and give it the old one's request."""
        with self._connections.writing() as connection:
            old = moves.retried(rows.existing(connection, self._line, ticket_id))
            refuse_full(self._path, lambda sql: connection.execute(sql).fetchall())
            new = rows.add(connection, self._line, ticket, now=now)
            connection.execute(SQL["move_request"], {"from": old.number, "to": new.number})
            rows.save(connection, old)
        return new

    def get(self, ticket_id: str) -> Ticket:
        """Read the ticket's row."""
        for row in self._connections.query(SQL["get"], self._named(ticket_id)):
            return rows.ticket_of(row)
        raise rows.missing(ticket_id, self._connections.query(SQL["gone_owner"], self._named(ticket_id)))

    def listing(self, state: State, *, client: str = "", limit: int = 1000) -> list[Ticket]:
        """Read the rows of this state."""
        where = {"line": self._line, "state": state.value, "client": client, "limit": limit}
        statement = "list_final" if state.final else f"list_{state.value}"
        return [rows.ticket_of(row) for row in self._connections.query(SQL[statement], where)]

    def request(self, ticket_id: str) -> Recording:
        """Read the request's row, and open its file if it has one."""
        request = self._recording("request", ticket_id)
        if request is None:
            raise UnknownTicket(ticket_id)
        return request

    def response(self, ticket_id: str) -> Recording | None:
        """Read the response's row, and open its file if it has one."""
        response = self._recording("response", ticket_id)
        if response is None:
            self.get(ticket_id)
        return response

    def ahead(self, ticket_id: str) -> Mapping[str, int]:
        """Add the sums of the better tiers and the count in the own."""
        found: Counter[str] = Counter()
        for route, number in self._connections.query(SQL["ahead"], {**self._named(ticket_id), "total": rows.TOTAL}):
            found[route] += number
        if not found:
            self.get(ticket_id)
        return +found

    def counts(self) -> Counts:
        """Return what was read last, if nobody has committed since."""
        return self._watch.cached("counts", lambda connection: rows.tallies(connection, self._line))

    def statistics(self, *, now: float) -> Statistics:
        """Return what was read last, if nobody has committed since and the minute is the same."""
        minute = int(now // 60)
        facts = self._watch.cached("facts", lambda connection: rows.facts(connection, self._line, minute), minute)
        alive = tuple(worker for worker, seen in facts.workers if seen >= now - WORKER_ALIVE)
        return Statistics(facts.running, facts.run_times, alive, facts.completions)

    def minutes(self, *, since: float) -> list[Minute]:
        """Read the tallies of the minutes from that of ``since`` on."""
        parameters = {"line": self._line, "minute": int(since // 60), "total": rows.TOTAL}
        return [Minute(*row) for row in self._connections.query(SQL["minutes"], parameters)]

    def observe(self, passed: Collection[Passed], *, now: float) -> None:
        """Count them, without a rank."""
        if passed:
            with self._connections.writing(durable=False) as connection:
                rows.count_passed(connection, self._line, passed, now=now)

    def report(self, worker: Worker, *, now: float) -> None:
        """Write or delete the worker's row."""
        values = {**vars(worker), "line": self._line, "seen": now}
        with self._connections.writing(durable=False) as connection:
            connection.execute(SQL["report" if worker.threads else "forget_worker"], values)

    def prune(self, *, before: float, now: float) -> int:
        """Remove in batches, each a transaction of its own, so that nobody has to wait long."""
        upkeep = self._upkeep
        return pruning.prune(
            self._connections, self._bodies, self._line, before=before, now=now, carry_over=upkeep.carry_over
        )

    def maintain(self, *, now: float) -> None:
        """Mend what is damaged, take up a file that was put in its place, and carry the write-ahead log over."""
        self._upkeep.maintain(now=now)

    def changed(self) -> int:
        """Return SQLite's own mark of change."""
        return self._watch.token()

    def health(self) -> dict[str, str]:
        """Read one row, and say which SQLite this is and how large its files are."""
        self._connections.check()
        ((journal_mode,),) = self._connections.query("PRAGMA journal_mode")
        self._connections.query(SQL["workers"], {"line": self._line})
        wal = Path(f"{self._path}-wal")
        return {
            "kind": "sqlite",
            "version": sqlite3.sqlite_version,
            "path": str(self._path),
            "journal_mode": journal_mode,
            "durability": self._durability,
            "size": str(_size(self._path)),
            "wal_size": str(_size(wal)),
            "wal_race": wal_race(sqlite3.sqlite_version_info),
            **({"full": "nothing new is kept"} if is_full(self._path, self._connections.query) else {}),
            **({"damaged": ", ".join(kept)} if (kept := copies.aside(self._path)) else {}),
        }

    def close(self) -> None:
        """Close every connection."""
        self._watch.close()
        self._connections.close()

    def _keep(self, connection: sqlite3.Connection, statement: str, number: int, stored: Stored) -> None:
        self._bodies.refuse_lost(stored)
        rows.keep(connection, statement, number, stored)

    def _named(self, ticket_id: str) -> dict[str, str]:
        return {"line": self._line, "id": ticket_id}

    def _recording(self, kind: str, ticket_id: str) -> Recording | None:
        try:
            return self._bodies.recording(lambda: self._stored(kind, ticket_id))
        except WrongBody as error:
            raise DamagedRecording(ticket_id, kind) from error

    def _stored(self, kind: str, ticket_id: str) -> Stored | None:
        for *row, crc in self._connections.query(SQL[kind], self._named(ticket_id)):
            stored = Stored(*row)
            if stored.crc != crc:
                self._connections.damaged = True  # where one byte is wrong there may be more
                raise DamagedRecording(ticket_id, kind)
            return stored
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
