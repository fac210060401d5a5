"""One line in a Redis or Valkey server, for all processes of many machines.

Every step is one Lua script, which the server runs as a whole or not at all; the scripts stand in the folder ``lua``,
and what a line keeps in scripts.py.  How the server is reached, and what happens when it is not, is told in
servers.py; how changes are noticed, in news.py.

Leases are measured by the clock of the server.  What people see (when a ticket was created, started, completed) is
what the caller says.  Deadlines and retention compare these, and a caller whose clock is ahead of the server's is taken
to be no later than the server.
"""

from __future__ import annotations

import heapq
import json
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

from wsgi_admission.errors import (
    GoneTicket,
    LeaseLost,
    StoreError,
    StoreUnavailable,
    UnknownTicket,
)
from wsgi_admission.replay import Recording
from wsgi_admission.stores import Store, moves
from wsgi_admission.stores.chunks import PATIENCE, Chunks
from wsgi_admission.stores.doubts import Doubts, Repeats
from wsgi_admission.stores.fitness import information, refuse_server, refuse_unfit
from wsgi_admission.stores.news import News
from wsgi_admission.stores.records import (
    AT_ONCE,
    GONE_KEPT,
    MINUTES_KEPT,
    RATE_MINUTES,
    REMEMBER_GONE,
    RUN_TIMES,
    WORKER_ALIVE,
    Counts,
    Minute,
    Passed,
    Statistics,
    Worker,
)
from wsgi_admission.stores.replies import facts_of, kept, minutes_of, tallies_of, ticket_of, told
from wsgi_admission.stores.scripts import KEYS, script
from wsgi_admission.stores.scripts import key as key_of
from wsgi_admission.stores.servers import Servers
from wsgi_admission.stores.wire import Argument, decode
from wsgi_admission.ticket import State, Ticket

#: Tickets and other things that are removed in one step.
BATCH = 200
#: Seconds that a server which does not answer has, when the store is closed, to settle what is in doubt.
SETTLING = 2.0


class RedisStore(Store):
    """A line in a Redis or Valkey server; what the methods do is said by `Store`.

    :param url: as for `open_store`.
    :param name: the name of the line.
    :param skew: returns seconds to be added to the time of the server; for tests.
    :raises StoreUnavailable: when the server does not answer.
    :raises StoreError: when it is too old, or may evict what is kept.
    """

    def __init__(self, url: str, *, name: str = "main", skew: Callable[[], float] = lambda: 0.0) -> None:
        self._line = name
        self._skew = skew
        self._servers = Servers(url, fit=refuse_server)
        self._keys = [key_of(name, each) for each in KEYS]
        self._doubts = Doubts()
        self._repeats = Repeats()
        self._chunks = Chunks(self._servers, name)
        self._news = News(self._servers, key_of(name, "meta"))
        try:
            refuse_unfit(self._servers, name)
        except BaseException:
            self._servers.close()
            raise

    def put(self, ticket: Ticket, request: Recording, *, now: float, key: str = "", digest: str = "") -> Ticket:
        """Send a large body first, then rank the ticket and add it, unless its key is known."""
        with self._chunks.sent(request, patience=PATIENCE) as (stored, body):
            # A key promises one run, and finds the ticket again: nobody has run the request meanwhile.
            with nullcontext() if key else self._doubts.about(ticket.id):
                answer = self._step("put", now, stored, body, kept(ticket, key=key, digest=digest), body=body)
            added = self._added(ticket, answer)
            if added is not None:
                return added
            known = ticket_of(told(answer, ticket.id)[0])
        self._chunks.discard(body)
        return known

    def claim(self, worker: str, *, now: float, lease: float, routes: Collection[str]) -> Ticket | None:
        """Look up the first ticket of each route, and take the best of them."""
        mark = uuid.uuid4().hex
        with self._doubts.about(mark):
            found = self._step("claim", now, lease, worker, mark, *routes)
        return None if found is None else ticket_of(found)

    def renew(self, claims: Collection[tuple[str, int]], *, lease: float) -> set[tuple[str, int]]:
        """Set the end of each lease that is still held."""
        asked = list(claims)
        held = self._step("renew", lease, *(value for claim in asked for value in claim))
        return {asked[number - 1] for number in held}

    def progress(self, ticket_id: str, attempt: int, fraction: float, note: str) -> None:
        """Write it into the ticket."""
        if not self._step("progress", ticket_id, attempt, fraction, note):
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
        """Send a large response first, then end the run."""
        moves.check_end(state, response, keep_request=keep_request)
        flags = (int(keep_request), int(response is not None))
        with nullcontext((b"", "")) if response is None else self._chunks.sent(response) as (stored, body):
            step = (ticket_id, attempt, state.value, now, error, RUN_TIMES, *flags, stored, body)
            with self._repeats.of(ticket_id, attempt) as mark:
                found = self._step("finish", *step, mark, body=body)
            if found is None:
                raise LeaseLost(ticket_id, attempt)
        ended = ticket_of(found)
        if ended.state is not state:
            self._chunks.discard(body)  # it was cancelled meanwhile
        return ended

    def release(self, ticket_id: str, attempt: int, *, now: float) -> None:
        """Put the ticket back into the line."""
        if not self._step("release", ticket_id, attempt, now):
            raise LeaseLost(ticket_id, attempt)

    def requeue_expired(self, *, now: float) -> int:
        """Move every ticket whose lease ran out."""
        found: int = self._step("requeue", now, moves.USED_UP)
        return found

    def bury(self, worker: str, *, now: float) -> int:
        """Move every ticket that is the worker's."""
        found: int = self._step("bury", worker, now, moves.USED_UP)
        return found

    def cancel(self, ticket_id: str, *, now: float, reason: str = "") -> Ticket:
        """Move the ticket, or mark it."""
        return ticket_of(told(self._step("cancel", ticket_id, now, reason), ticket_id)[0])

    def expire(self, route: str, *, before: float, now: float, reason: str) -> int:
        """Cancel in batches, each a step of its own."""
        return self._batches("expire", route, before, now, reason)

    def retry(self, ticket_id: str, ticket: Ticket, *, now: float) -> Ticket:
        """Move the request to a new ticket."""
        answer = self._step("retry", ticket_id, kept(ticket), now)
        return self._added(ticket, answer) or ticket_of(told(answer, ticket_id)[0])

    def listing(self, state: State, *, client: str = "", limit: int = 1000) -> list[Ticket]:
        """Read page by page, each a step of its own, so that nobody has to wait long."""
        tickets: Iterable[Ticket]
        if state is State.QUEUED:
            routes = {route for _, route in self.counts()}
            pages = (self._pages("queued", "", route) for route in routes)
            tickets = heapq.merge(*pages, key=lambda one: (one.tier_rank, one.start, one.number))
        elif state is State.PROCESSING:
            _, *running = self._run("listing", "processing", 0, "")
            tickets = sorted(map(ticket_of, running), key=lambda one: (one.started_at or 0.0, one.number))
        else:
            tickets = self._pages("final", "0")
        # A ticket that moves while the pages are read may be on two of them.
        seen: set[str] = set()
        wanted = (one for one in tickets if one.state is state and client in {"", one.client} and one.id not in seen)
        found = []
        for one in islice(wanted, limit):
            seen.add(one.id)
            found.append(one)
        return found

    def get(self, ticket_id: str) -> Ticket:
        """Read the ticket's fields."""
        return ticket_of(told(self._run("get", ticket_id), ticket_id)[0])

    def request(self, ticket_id: str) -> Recording:
        """Read the request, and a large body after it."""
        try:
            request = self._recording("requests", ticket_id)
        except GoneTicket:
            request = None
        if request is None:
            raise UnknownTicket(ticket_id)
        return request

    def response(self, ticket_id: str) -> Recording | None:
        """Read the response, and a large body after it."""
        return self._recording("responses", ticket_id)

    def ahead(self, ticket_id: str) -> Mapping[str, int]:
        """Count what stands before the ticket's place in each route: O(log n) each."""
        found = told(self._run("ahead", ticket_id), ticket_id)
        return {decode(route): number for route, number in zip(found[::2], found[1::2], strict=True)}

    def counts(self) -> Counts:
        """Return what was read last, if nobody has changed the line since.

        What another process or machine did is known when its message has come, usually within a millisecond: a
        newcomer may overtake who was put into the line at another machine in that moment.  When messages do not
        come, the tallies are at most `news.UNSURE` seconds old, and never older than `news.SURE` seconds.
        """
        return self._tallies()[1]

    def pause(self, paused: bool) -> None:  # noqa: FBT001 - as in Store
        """Keep it."""
        self._step("pause", int(paused))

    def paused(self) -> bool:
        """Tell what was read with the counts."""
        return self._tallies()[0]

    def statistics(self, *, now: float) -> Statistics:
        """Return what was read last, if nobody has changed the line since and the minute is the same."""
        first = int(now // 60) - RATE_MINUTES + 1
        found, workers = self._news.cached("statistics", lambda: facts_of(self._run("statistics", first)), first)
        return replace(found, workers=tuple(worker for worker, seen in workers if seen >= now - WORKER_ALIVE))

    def minutes(self, *, since: float) -> list[Minute]:
        """Read the minutes from that of ``since`` on."""
        return minutes_of(self._run("minutes", int(since // 60)))

    def observe(self, passed: Collection[Passed], *, now: float) -> None:  # noqa: ARG002 - they have no minute
        """Count those of each tier and route together, and keep the order of the run times of each route."""
        if not passed:
            return
        sums: dict[tuple[str, str], list[int]] = {}
        times: dict[str, list[float]] = {}
        for one in passed:
            both = sums.setdefault((one.tier, one.route), [0, 0])
            both[0] += 1
            both[1] += one.shadowed
            times.setdefault(one.route, []).append(one.seconds)
        arguments: list[Argument] = [RUN_TIMES, len(sums)]
        for key_, both in sums.items():
            arguments += [*key_, *both]
        for route, seconds in times.items():
            last = seconds[-RUN_TIMES:]
            arguments += [route, len(last), *last]
        self._step("observe", *arguments)

    def report(self, worker: Worker, *, now: float) -> None:
        """Keep or forget the worker's report."""
        self._step("report", worker.id, json.dumps({**vars(worker), "seen": now}) if worker.threads else "")

    def prune(self, *, before: float, now: float) -> int:
        """Remove in batches, each a step of its own, so that nobody has to wait long."""
        removed = self._batches("prune", before, now)
        rest = (now - REMEMBER_GONE, int(now // 60) - MINUTES_KEPT, now - WORKER_ALIVE, BATCH, GONE_KEPT)
        while self._run("prune_rest", *rest):
            pass
        self.maintain(now=now)
        return removed

    def maintain(self, *, now: float) -> None:
        """Settle what is in doubt, and remove the large bodies that no ticket names any more."""
        self._settle(now=now)
        for name in self._servers.call(b"SMEMBERS", key_of(self._line, "trash")):
            self._chunks.remove(decode(name))
            self._servers.call(b"SREM", key_of(self._line, "trash"), name)

    def changed(self) -> int:
        """Return the number of changes so far, as it was read last."""
        return int(self._news.cached("version", lambda: self._run("version")))

    def health(self) -> dict[str, str]:
        """Ask the server what it is."""
        about = information(self._servers, self._line)
        return {
            "kind": "valkey" if "valkey_version" in about else "redis",
            "version": about.get("valkey_version") or about["redis_version"],
            "path": self._servers.shown,
            "role": about.get("role", ""),
            "aof": "on" if about.get("aof_enabled") == "1" else "off",
            "memory": about.get("used_memory", ""),
        }

    def close(self) -> None:
        """Settle what is in doubt while somebody knows it; close the connections, and let the listening thread end."""
        until = time.monotonic() + SETTLING
        while self._doubts.names() and time.monotonic() < until:
            try:
                self._settle(now=time.time())
            except StoreUnavailable:
                pass
            except StoreError:
                break
            time.sleep(0.05)  # what is under way to the server may come a little later
        self._news.close()
        self._servers.close()

    def _settle(self, *, now: float) -> None:
        names = self._doubts.names()
        for begin in range(0, len(names), BATCH):
            some = names[begin : begin + BATCH]
            self._doubts.settled(some, map(decode, self._step("settle", now, UNKNOWN, *some)))

    def _added(self, ticket: Ticket, answer: list[bytes]) -> Ticket | None:
        """Return a ticket that was put, with its rank and number; None if the answer is about another."""
        if answer[0] in _REFUSED:
            raise StoreError(_REFUSED[answer[0]].format(id=ticket.id))
        if answer[0] != b"ok":
            return None
        return replace(ticket, state=State.QUEUED, start=float(answer[1]), number=int(answer[2]))

    def _tallies(self) -> tuple[bool, Counts]:
        return self._news.cached("counts", lambda: tallies_of(self._run("counts")))

    def _pages(self, what: str, begin: str, *route: str) -> Iterator[Ticket]:
        at: Argument = begin
        while True:
            at, *found = self._run("listing", what, BATCH, at, *route)
            yield from map(ticket_of, found)
            if len(found) < BATCH:
                return

    def _batches(self, name: str, *arguments: Argument) -> int:
        """Run a script until it does less than it may at once, or enough; return how much it did."""
        done = 0
        while done < AT_ONCE:
            batch: int = self._step(name, *arguments, BATCH)
            done += batch
            if batch < BATCH:
                break
        return done

    def _run(self, name: str, *arguments: Argument, body: str = "") -> Any:
        keys = [*self._keys, self._chunks.key(body)] if body else self._keys
        return self._servers.run(script(name), keys, (self._skew(), *arguments))

    def _step(self, name: str, *arguments: Argument, body: str = "") -> Any:
        """Run a script that changes the line."""
        try:
            return self._run(name, *arguments, body=body)
        finally:
            self._news.changed()

    def _recording(self, kind: str, ticket_id: str) -> Recording | None:
        seen = None
        while True:
            answer = self._run("recording", kind, ticket_id)
            if answer[0] == b"none":
                return None
            stored, body = told(answer, ticket_id)
            recording = self._chunks.recording(stored, decode(body))
            if recording is not None:
                return recording
            # Erased after it was looked up: then it is not found a second time.
            if body == seen:
                raise StoreError(f"The recorded body {self._chunks.key(decode(body))} is missing.")
            seen = body


#: Why a ticket is cancelled of which nobody was told.
UNKNOWN = "The request was not accepted, as the store did not answer in time."

_REFUSED = {
    b"taken": "There is a ticket {id} already.",
    b"no body": "The body of ticket {id} was not kept.",
}
