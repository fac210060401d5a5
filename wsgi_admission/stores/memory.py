"""One line in the memory of one process: for tests, for trying out, and for servers of a single process."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice

from sortedcontainers import SortedList

from wsgi_admission.errors import GoneTicket, KeyReused, LeaseLost, StoreError, UnknownTicket
from wsgi_admission.replay import Recording
from wsgi_admission.stores import Store, moves
from wsgi_admission.stores.ledger import Ledger, drop
from wsgi_admission.stores.order import Order
from wsgi_admission.stores.records import AT_ONCE, GONE_KEPT, REMEMBER_GONE, Counts, Minute, Passed, Statistics, Worker
from wsgi_admission.ticket import State, Ticket


@dataclass
class _Entry:
    """A ticket with its recordings (head and body) and, while it runs, the end of its lease and whose it is."""

    ticket: Ticket
    request: tuple[str, bytes] | None
    response: tuple[str, bytes] | None = None
    lease_until: float = 0.0
    worker: str = ""
    key: tuple[str, str, str] | None = None


class MemoryStore(Store):
    """A line in memory; what the methods do is said by `Store`.  One lock guards everything.

    :param clock: returns the seconds by which leases are measured.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._running: dict[str, _Entry] = {}
        self._order = Order()
        # The final tickets, as (completed_at, id).
        self._finished = SortedList()
        # (route, client, key) -> the id of its ticket and the digest.
        self._keys: dict[tuple[str, str, str], tuple[str, str]] = {}
        self._gone: dict[str, tuple[str, float]] = {}
        self._ledger = Ledger()
        self._paused = False
        self._version = 0

    def put(self, ticket: Ticket, request: Recording, *, now: float, key: str = "", digest: str = "") -> Ticket:
        """Rank the ticket and add it to its route's line, unless its key is known."""
        recorded = (request.head, request.body.read())
        with self._lock:
            whole = (ticket.route, ticket.client, key)
            if whole in self._keys:
                known, its_digest = self._keys[whole]
                if its_digest != digest:
                    raise KeyReused(known)
                return self._entries[known].ticket
            entry = self._add(ticket, recorded, now)
            if key:
                entry.key = whole
                self._keys[whole] = (ticket.id, digest)
            return entry.ticket

    def claim(self, worker: str, *, now: float, lease: float, routes: Collection[str]) -> Ticket | None:
        """Take the best of the first tickets of the routes."""
        with self._lock:
            first = None if self._paused else self._order.first(routes)
            if first is None:
                return None
            entry = self._entries[first]
            before, entry.ticket = entry.ticket, moves.claimed(entry.ticket, now=now)
            entry.lease_until, entry.worker = self._clock() + lease, worker
            self._move(entry, before, now)
            self._order.charge(before)
            return entry.ticket

    def pause(self, paused: bool) -> None:  # noqa: FBT001 - as in Store
        """Remember it."""
        with self._lock:
            self._paused = paused
            self._ledger.changed()
            self._version += 1

    def paused(self) -> bool:
        """Tell it."""
        return self._paused

    def renew(self, claims: Collection[tuple[str, int]], *, lease: float) -> set[tuple[str, int]]:
        """Set the end of each lease that is still held."""
        with self._lock:
            held = set()
            for ticket_id, attempt in claims:
                entry = self._running.get(ticket_id)
                if entry is not None and entry.ticket.attempt == attempt:
                    entry.lease_until = self._clock() + lease
                    held.add((ticket_id, attempt))
            self._version += bool(held)
            return held

    def progress(self, ticket_id: str, attempt: int, fraction: float, note: str) -> None:
        """Write it into the ticket."""
        with self._lock:
            entry = self._held(ticket_id, attempt)
            entry.ticket = replace(entry.ticket, progress=fraction, note=note)
            self._version += 1

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
        """End the run and keep the response."""
        moves.check_end(state, response, keep_request=keep_request)
        recorded = None if response is None else (response.head, response.body.read())
        with self._lock:
            try:
                entry = self._held(ticket_id, attempt)
            except LeaseLost:
                if ticket_id in self._entries:
                    self._ledger.count_late(self._entries[ticket_id].ticket)
                    self._version += 1
                raise
            before = entry.ticket
            entry.ticket = moves.finished(before, state, now=now, error=error, keep_request=keep_request)
            if entry.ticket.state is state:
                entry.response = recorded
            self._move(entry, before, now)
            return entry.ticket

    def release(self, ticket_id: str, attempt: int, *, now: float) -> None:
        """Put the ticket back into the line."""
        with self._lock:
            entry = self._held(ticket_id, attempt)
            before, entry.ticket = entry.ticket, moves.released(entry.ticket, now=now)
            self._move(entry, before, now)

    def requeue_expired(self, *, now: float) -> int:
        """Move every ticket whose lease ran out."""
        with self._lock:
            clock = self._clock()
            return self._crash([entry for entry in self._running.values() if entry.lease_until <= clock], now)

    def bury(self, worker: str, *, now: float) -> int:
        """Move every ticket that is the worker's."""
        with self._lock:
            self._ledger.forget(worker)
            self._version += 1
            return self._crash([entry for entry in self._running.values() if entry.worker == worker], now)

    def cancel(self, ticket_id: str, *, now: float, reason: str = "") -> Ticket:
        """Move the ticket, or mark it."""
        with self._lock:
            entry = self._entry(ticket_id)
            before, entry.ticket = entry.ticket, moves.cancelled(entry.ticket, now=now, reason=reason)
            self._move(entry, before, now)
            return entry.ticket

    def expire(self, route: str, *, before: float, now: float, reason: str) -> int:
        """Go through the route's line."""
        with self._lock:
            queued = (self._entries[ticket_id] for ticket_id in self._order.of(route))
            late = (entry for entry in queued if entry.ticket.created_at < before and not entry.ticket.attempt)
            overdue = list(islice(late, AT_ONCE))
            for entry in overdue:
                waiting, entry.ticket = entry.ticket, moves.cancelled(entry.ticket, now=now, reason=reason)
                self._move(entry, waiting, now)
            return len(overdue)

    def retry(self, ticket_id: str, ticket: Ticket, *, now: float) -> Ticket:
        """Move the request to a new ticket."""
        with self._lock:
            old = self._entry(ticket_id)
            left = moves.retried(old.ticket)
            new = self._add(ticket, old.request, now)
            old.ticket, old.request = left, None
            return new.ticket

    def get(self, ticket_id: str) -> Ticket:
        """Look the ticket up."""
        with self._lock:
            return self._entry(ticket_id).ticket

    def listing(self, state: State, *, client: str = "", limit: int = 1000) -> list[Ticket]:
        """Look through all tickets."""
        with self._lock:
            tickets = [entry.ticket for entry in self._entries.values()]
        found = (one for one in tickets if one.state is state and client in {"", one.client})
        return sorted(found, key=_listed_by)[:limit]

    def request(self, ticket_id: str) -> Recording:
        """Open the request's body."""
        with self._lock:
            entry = self._entries.get(ticket_id)
            if entry is None or entry.request is None:
                raise UnknownTicket(ticket_id)
            return _recording(*entry.request)

    def response(self, ticket_id: str) -> Recording | None:
        """Open the response's body."""
        with self._lock:
            response = self._entry(ticket_id).response
            return None if response is None else _recording(*response)

    def ahead(self, ticket_id: str) -> Mapping[str, int]:
        """Look up where the ticket stands."""
        with self._lock:
            ticket = self._entry(ticket_id).ticket
            return self._order.ahead(ticket) if ticket.state is State.QUEUED else {}

    def counts(self) -> Counts:
        """Return the same mapping until something is counted."""
        with self._lock:
            return self._ledger.counts()

    def statistics(self, *, now: float) -> Statistics:
        """Put them together."""
        with self._lock:
            return self._ledger.statistics((entry.ticket for entry in self._running.values()), now=now)

    def minutes(self, *, since: float) -> list[Minute]:
        """Return those from the minute of ``since`` on."""
        with self._lock:
            return self._ledger.minutes(since=since)

    def observe(self, passed: Collection[Passed], *, now: float) -> None:  # noqa: ARG002 - they have no minute
        """Count them."""
        with self._lock:
            self._ledger.observe(passed)
            self._version += 1

    def report(self, worker: Worker, *, now: float) -> None:
        """Remember or forget the worker."""
        with self._lock:
            self._ledger.report(worker, now=now)
            self._version += 1

    def prune(self, *, before: float, now: float) -> int:
        """Remove what is past its time."""
        with self._lock:
            removed = list(self._finished.irange(maximum=(before,), inclusive=(True, False)))
            for key in removed:
                entry = self._entries.pop(key[1])
                self._gone[key[1]] = (entry.ticket.owner, now)
                if entry.key is not None:
                    del self._keys[entry.key]
                self._finished.remove(key)
            drop(self._gone, (key for key, (_, at) in self._gone.items() if at < now - REMEMBER_GONE))
            drop(self._gone, islice(self._gone, max(0, len(self._gone) - GONE_KEPT)))
            self._ledger.prune(now=now)
            tallies = self._ledger.counts().items()
            self._order.prune({tier for (tier, _), tally in tallies if tally.queued or tally.processing})
            self._version += bool(removed)
            return len(removed)

    def maintain(self, *, now: float) -> None:
        """Nothing has to be done between the steps."""

    def changed(self) -> int:
        """Return the number of changes so far."""
        return self._version

    def health(self) -> dict[str, str]:
        """Memory can always be read."""
        return {"kind": "memory", "version": platform.python_version()}

    def close(self) -> None:
        """Nothing is open."""

    def _add(self, ticket: Ticket, request: tuple[str, bytes] | None, now: float) -> _Entry:
        if ticket.id in self._entries:
            raise StoreError(f"There is a ticket {ticket.id} already.")
        entry = _Entry(replace(self._order.rank(ticket), state=State.QUEUED), request)
        self._entries[ticket.id] = entry
        self._move(entry, None, now)
        return entry

    def _entry(self, ticket_id: str) -> _Entry:
        entry = self._entries.get(ticket_id)
        if entry is not None:
            return entry
        if ticket_id in self._gone:
            raise GoneTicket(ticket_id, self._gone[ticket_id][0])
        raise UnknownTicket(ticket_id)

    def _held(self, ticket_id: str, attempt: int) -> _Entry:
        entry = self._running.get(ticket_id)
        if entry is None or entry.ticket.attempt != attempt:
            raise LeaseLost(ticket_id, attempt)
        return entry

    def _crash(self, entries: Collection[_Entry], now: float) -> int:
        for entry in entries:
            before, entry.ticket = entry.ticket, moves.crashed(entry.ticket, now=now)
            self._move(entry, before, now)
        return len(entries)

    def _move(self, entry: _Entry, before: Ticket | None, now: float) -> None:
        """Put a ticket that has changed where it belongs now, and count it."""
        after = entry.ticket
        if before is not None and before.state is State.QUEUED:
            self._order.remove(before)
        elif before is not None:
            del self._running[before.id]
        if after.state is State.QUEUED:
            self._order.add(after)
        elif after.state is State.PROCESSING:
            self._running[after.id] = entry
        else:
            if not after.retryable:
                entry.request = None
            self._finished.add((after.completed_at, after.id))
        self._ledger.count(before, after, now=now)
        self._version += 1


def _listed_by(ticket: Ticket) -> tuple[float, ...]:
    if ticket.state is State.QUEUED:
        return (ticket.tier_rank, ticket.start, ticket.number)
    if ticket.state is State.PROCESSING:
        return (ticket.started_at or 0.0, ticket.number)
    return (-(ticket.completed_at or 0.0), -ticket.number)


def _recording(head: str, body: bytes) -> Recording:
    return Recording(head, BytesIO(body), len(body))
