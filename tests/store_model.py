"""A store as anybody would write it who had no hurry: lists that are searched and sorted at every question."""

from __future__ import annotations

import io
import math
import random
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import pytest

from wsgi_admission.errors import FinalTicket, GoneTicket, KeyReused, LeaseLost, NotRetryable, UnknownTicket
from wsgi_admission.replay import Recording
from wsgi_admission.stores import Store
from wsgi_admission.stores.records import MINUTES_KEPT, RATE_MINUTES, RUN_TIMES, WORKER_ALIVE, Passed, Tally, Worker
from wsgi_admission.ticket import State, Ticket

RANKS = {"donor": 0, "registered": 1, "anonymous": 2}
ROUTES = ("image", "video", "text")
FINAL = (State.COMPLETED, State.FAILED, State.CANCELLED)


def ticket(
    client: str = "ann",
    *,
    route: str = "image",
    tier: str = "donor",
    cost: float = 10.0,
    owner: str = "",
    crash_retries: int = 1,
    created_at: float = 0.0,
) -> Ticket:
    """Return a ticket that has not been put yet; its id is random and sorts like nothing."""
    return Ticket(str(uuid.uuid4()), route, tier, RANKS[tier], client, owner, cost, crash_retries, created_at)


def recording(body: bytes = b"body", head: str = '{"method": "POST"}') -> Recording:
    """Return a recording with this body."""
    return Recording(head, io.BytesIO(body), len(body))


def read(found: Recording | None) -> tuple[str, bytes, int] | None:
    """Return head, body and length of a recording, and close it."""
    if found is None:
        return None
    with found.body as body:
        return found.head, body.read(), found.length


class Clock:
    """The clock by which the leases of a store are measured; only the test moves it."""

    def __init__(self) -> None:
        self.seconds = 5000.0

    def __call__(self) -> float:
        return self.seconds

    def go_on(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.seconds += seconds


@dataclass
class Kept:
    """A ticket in the model."""

    ticket: Ticket
    request: bytes | None
    response: bytes | None = None
    lease_until: float = 0.0
    worker: str = ""
    key: str = ""
    digest: str = ""


@dataclass
class Model:
    """What a store should answer after the same steps."""

    tickets: list[Kept] = field(default_factory=list)
    put_so_far: int = 0
    gone: dict[str, str] = field(default_factory=dict)
    virtual: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    claimed: dict[tuple[str, str], float] = field(default_factory=dict)
    sums: dict[tuple[str, str], dict[str, float]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(float))
    )
    arrivals: list[tuple[int, str, str]] = field(default_factory=list)
    ended: dict[State, list[tuple[int, str, str]]] = field(default_factory=lambda: defaultdict(list))
    run_times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    workers: dict[str, tuple[Worker, float]] = field(default_factory=dict)
    paused: bool = False

    def find(self, ticket_id: str) -> Kept:
        """Return the ticket with this id."""
        return next(kept for kept in self.tickets if kept.ticket.id == ticket_id)

    def line(self) -> list[Kept]:
        """Return the queued tickets in the order in which they are to be claimed."""
        waiting = [kept for kept in self.tickets if kept.ticket.state is State.QUEUED]
        return sorted(waiting, key=lambda kept: (kept.ticket.tier_rank, kept.ticket.start, kept.ticket.number))

    def processing(self) -> list[Kept]:
        """Return the tickets that run."""
        return [kept for kept in self.tickets if kept.ticket.state is State.PROCESSING]

    def add(self, key: Ticket, **changes: float) -> None:
        """Count something for the tier and route of a ticket."""
        for name, change in changes.items():
            self.sums[key.tier, key.route][name] += change

    def put(self, new: Ticket, request: bytes, now: float) -> None:
        """Rank it by the formula, and append it."""
        self.put_so_far += 1
        client = (new.tier, new.client)
        waiting = [kept.ticket for kept in self.line() if (kept.ticket.tier, kept.ticket.client) == client]
        finishes = [mine.start + mine.cost for mine in waiting]
        start = max(self.virtual[new.tier], self.claimed.get(client, 0.0), *finishes)
        self.tickets.append(Kept(replace(new, start=start, number=self.put_so_far), request))
        self.add(new, accepted=1)
        self.arrivals.append((int(now // 60), new.tier, new.route))

    def recall(self, route: str, client: str, key: str) -> Kept | None:
        """Look through all tickets for a key."""
        wanted = (route, client, key)
        return next((k for k in self.tickets if key and (k.ticket.route, k.ticket.client, k.key) == wanted), None)

    def claim(self, worker: str, routes: Collection[str], now: float, until: float) -> Ticket | None:
        """Go through the line until a route fits."""
        for kept in self.line():
            if kept.ticket.route in routes and not self.paused:
                if kept.ticket.attempt == 0:
                    self.add(kept.ticket, started=1, wait_seconds=now - kept.ticket.created_at)
                kept.ticket = replace(
                    kept.ticket, state=State.PROCESSING, attempt=kept.ticket.attempt + 1, started_at=now
                )
                kept.lease_until, kept.worker = until, worker
                self.charge(kept.ticket)
                return kept.ticket
        return None

    def charge(self, run: Ticket) -> None:
        """Move the virtual time, and remember the finish for good."""
        self.virtual[run.tier] = max(self.virtual[run.tier], run.start)
        client = (run.tier, run.client)
        self.claimed[client] = max(self.claimed.get(client, 0.0), run.start + run.cost)

    def finish(
        self, kept: Kept, state: State, response: bytes | None, now: float, error: str, *, keep_request: bool
    ) -> None:
        """End a run."""
        if kept.ticket.cancelling:
            self.end(kept, State.CANCELLED, now, kept.ticket.error)
            return
        self.end(kept, state, now, error, keep_request=keep_request)
        kept.response = response
        seconds = now - (kept.ticket.started_at or 0.0)
        self.add(kept.ticket, ran=1, run_seconds=seconds)
        if state is State.COMPLETED:
            self.run_times[kept.ticket.route].append(seconds)

    def give_back(self, kept: Kept, now: float) -> None:
        """Put a ticket that ran back into the line."""
        if kept.ticket.cancelling:
            self.end(kept, State.CANCELLED, now, kept.ticket.error)
        else:
            kept.ticket = replace(kept.ticket, state=State.QUEUED, started_at=None, progress=None, note="")

    def crash(self, kept: Kept, now: float, sentence: str) -> None:
        """Let the worker of a ticket die."""
        self.add(kept.ticket, crashed=1)
        kept.ticket = replace(kept.ticket, crashes=kept.ticket.crashes + 1)
        if kept.ticket.crashes > kept.ticket.crash_retries and not kept.ticket.cancelling:
            self.end(kept, State.FAILED, now, sentence, keep_request=True)
        else:
            self.give_back(kept, now)

    def retry(self, kept: Kept, new: Ticket, now: float) -> None:
        """Put it with the request of another."""
        assert kept.request is not None
        self.put(new, kept.request, now)
        kept.ticket, kept.request = replace(kept.ticket, retryable=False), None

    def cancel(self, kept: Kept, now: float, reason: str) -> None:
        """Cancel what waits, and mark what runs."""
        if kept.ticket.state is State.QUEUED:
            self.end(kept, State.CANCELLED, now, reason)
        else:
            kept.ticket = replace(kept.ticket, cancelling=True, error=kept.ticket.error or reason)

    def end(self, kept: Kept, state: State, now: float, error: str, *, keep_request: bool = False) -> None:
        """Make a ticket final."""
        kept.ticket = replace(kept.ticket, state=state, completed_at=now, error=error, retryable=keep_request)
        kept.request = kept.request if keep_request else None
        self.ended[state].append((int(now // 60), kept.ticket.tier, kept.ticket.route))

    def prune(self, before: float) -> int:
        """Forget what was final before then."""
        old = [kept for kept in self.tickets if (kept.ticket.completed_at or before) < before]
        for kept in old:
            self.tickets.remove(kept)
            self.gone[kept.ticket.id] = kept.ticket.owner
            self.add(kept.ticket, **{f"pruned_{kept.ticket.state.value}": 1})
        busy = {kept.ticket.tier for kept in self.tickets if not kept.ticket.state.final}
        for tier, client in [key for key in self.claimed if key[0] not in busy]:
            del self.claimed[tier, client]
        return len(old)

    def ahead(self, kept: Kept) -> dict[str, int]:
        """Count what stands before a ticket by walking along the line."""
        found: dict[str, int] = {}
        if kept.ticket.state is State.QUEUED:
            for other in self.line():
                if other is kept:
                    break
                found[other.ticket.route] = found.get(other.ticket.route, 0) + 1
        return found

    def listing(self, state: State, client: str) -> list[Ticket]:
        """Sort what is there, the last key first."""
        found = [kept.ticket for kept in self.tickets if kept.ticket.state is state]
        if state is State.QUEUED:
            found = [kept.ticket for kept in self.line()]
        elif state is State.PROCESSING:
            found.sort(key=lambda ticket: (ticket.started_at, ticket.number))
        else:
            found.sort(key=lambda ticket: (ticket.completed_at, ticket.number), reverse=True)
        return [ticket for ticket in found if client in {"", ticket.client}]

    def tallies(self) -> dict[tuple[str, str], Tally]:
        """Count the tickets that are there, and add what is not."""
        found = {}
        for key, sums in self.sums.items():
            states = [kept.ticket.state for kept in self.tickets if (kept.ticket.tier, kept.ticket.route) == key]
            ended = {
                state: states.count(State(state)) + int(sums[f"pruned_{state}"])
                for state in ("completed", "failed", "cancelled")
            }
            others = ("accepted", "started", "crashed", "ran", "passed", "shadowed", "late")
            found[key] = Tally(
                queued=states.count(State.QUEUED),
                processing=states.count(State.PROCESSING),
                wait_seconds=sums["wait_seconds"],
                run_seconds=sums["run_seconds"],
                **ended,
                **{name: int(sums[name]) for name in others},
            )
        return found

    def minutes(self, since: int, now: int) -> list[tuple[int, str, str, int, int, int, int]]:
        """Count what came and went."""
        completed, failed, cancelled = (self.ended[state] for state in FINAL)
        keys = sorted({*self.arrivals, *completed, *failed, *cancelled})
        oldest = max(since, now - MINUTES_KEPT)
        return [
            (*key, self.arrivals.count(key), (completed + failed).count(key), failed.count(key), cancelled.count(key))
            for key in keys
            if key[0] >= oldest
        ]

    def completed_lately(self, now: float) -> int:
        """Count the completions of the last minutes."""
        completions = self.ended[State.COMPLETED] + self.ended[State.FAILED]
        return sum(key[0] > int(now // 60) - RATE_MINUTES for key in completions)

    def last_run_times(self) -> dict[str, tuple[float, ...]]:
        """Return the end of each route's list."""
        return {route: tuple(times[-RUN_TIMES:]) for route, times in self.run_times.items()}

    def alive(self, now: float) -> list[Worker]:
        """Return the workers heard of lately, by id."""
        return [worker for _, (worker, seen) in sorted(self.workers.items()) if now - seen <= WORKER_ALIVE]


#: What a worker may still try whose attempt is over.
LATE: dict[str, Callable[[Store, Ticket], object]] = {
    "finish": lambda store, late: store.finish(late.id, late.attempt, State.COMPLETED, recording(), now=9),
    "progress": lambda store, late: store.progress(late.id, late.attempt, 0.5, ""),
    "release": lambda store, late: store.release(late.id, late.attempt, now=9),
}


class Walk:
    """Random steps, taken by a store and by the model alike."""

    def __init__(self, store: Store, clock: Clock, seed: int) -> None:
        self.clock = clock
        self.store, self.model, self.chance, self.now = store, Model(), random.Random(seed), 1000.0  # noqa: S311

    def run(self, steps: int) -> None:
        """Take so many steps, comparing everything now and then."""
        likely = [self.put] * 6 + [self.claim] * 5 + [self.finish] * 3
        likely += [self.late, self.cancel, self.release, self.retry] * 2
        rare = [self.renew, self.progress, self.requeue, self.bury, self.prune, self.observe, self.report, self.pause]
        rare += [self.expire]
        for step in range(steps):
            passed = self.chance.choice((0.0, 0.25, 3.0, 20.0))
            self.now += passed
            self.clock.go_on(passed)
            self.chance.choice(likely + rare)()
            if step % 10 == 9:
                self.compare()
        self.compare()

    def some_run(self) -> Kept | None:
        """Return one that runs, if any does."""
        running = self.model.processing()
        return self.chance.choice(running) if running else None

    def new(self) -> Ticket:
        """Return some ticket that has not been put yet."""
        return ticket(
            self.chance.choice("abcde"),
            route=self.chance.choice(ROUTES),
            tier=self.chance.choice(("donor", "registered", "anonymous")),
            cost=self.chance.choice((1.0, 7.5, 60.0)),
            owner=self.chance.choice(("", "ann")),
            crash_retries=self.chance.choice((0, 1, 2)),
            created_at=self.now,
        )

    def put(self) -> None:
        """Put a ticket."""
        body = self.chance.randbytes(self.chance.choice((0, 10, 2000)))
        new = self.new()
        key, digest = self.chance.choice(("", "", "k", "l")), self.chance.choice(("d", "d", "e"))
        known = self.model.recall(new.route, new.client, key)
        if known is not None and known.digest != digest:
            with pytest.raises(KeyReused, match="was sent with another request"):
                self.store.put(new, recording(body), now=self.now, key=key, digest=digest)
            return
        if known is None:
            self.model.put(new, body, self.now)
            known = self.model.find(new.id)
            known.key, known.digest = key, digest
        assert self.store.put(new, recording(body), now=self.now, key=key, digest=digest) == known.ticket

    def claim(self) -> None:
        """Claim for some of the routes."""
        routes = self.chance.sample(ROUTES, self.chance.randint(1, 3))
        lease = self.chance.choice((5.0, 60.0))
        worker = self.chance.choice("xyz")
        expected = self.model.claim(worker, routes, self.now, self.clock() + lease)
        assert self.store.claim(worker, now=self.now, lease=lease, routes=routes) == expected

    def finish(self) -> None:
        """End a run."""
        kept = self.some_run()
        if kept is None:
            return
        state = self.chance.choice((State.COMPLETED, State.COMPLETED, State.FAILED))
        body = None if state is State.FAILED and self.chance.random() < 0.5 else self.chance.randbytes(20)
        error = "It failed." if state is State.FAILED else ""
        response = None if body is None else recording(body)
        run = kept.ticket
        keep = state is State.FAILED and body is None and self.chance.random() < 0.5
        self.model.finish(kept, state, body, self.now, error, keep_request=keep)
        ended = self.store.finish(run.id, run.attempt, state, response, now=self.now, error=error, keep_request=keep)
        assert ended == kept.ticket

    def late(self) -> None:
        """Write under an attempt that is not the current one."""
        if not self.model.tickets:
            return
        chosen = self.chance.choice(self.model.tickets).ticket
        wrong = chosen.attempt + self.chance.choice((-1, 1)) if chosen.state is State.PROCESSING else chosen.attempt
        step = self.chance.choice(list(LATE))
        with pytest.raises(LeaseLost):
            LATE[step](self.store, replace(chosen, attempt=wrong))
        self.model.add(chosen, late=step == "finish")

    def cancel(self) -> None:
        """Cancel anything."""
        if not self.model.tickets:
            return
        kept = self.chance.choice(self.model.tickets)
        if kept.ticket.state.final:
            with pytest.raises(FinalTicket):
                self.store.cancel(kept.ticket.id, now=self.now)
            return
        self.model.cancel(kept, self.now, "Because.")
        assert self.store.cancel(kept.ticket.id, now=self.now, reason="Because.") == kept.ticket

    def retry(self) -> None:
        """Retry anything."""
        if not self.model.tickets:
            return
        failed = [kept for kept in self.model.tickets if kept.ticket.retryable]
        kept, new = self.chance.choice(failed or self.model.tickets), self.new()
        if not kept.ticket.retryable:
            with pytest.raises(NotRetryable):
                self.store.retry(kept.ticket.id, new, now=self.now)
            return
        self.model.retry(kept, new, self.now)
        assert self.store.retry(kept.ticket.id, new, now=self.now) == self.model.find(new.id).ticket

    def release(self) -> None:
        """Give a run back."""
        kept = self.some_run()
        if kept is not None:
            self.store.release(kept.ticket.id, kept.ticket.attempt, now=self.now)
            self.model.give_back(kept, self.now)

    def renew(self) -> None:
        """Renew what runs, and something that does not."""
        running = self.model.processing()
        claims = {(kept.ticket.id, kept.ticket.attempt) for kept in running}
        assert self.store.renew([*claims, ("nobody", 1)], lease=30) == claims
        for kept in running:
            kept.lease_until = self.clock() + 30

    def progress(self) -> None:
        """Report progress."""
        kept = self.some_run()
        if kept is not None:
            fraction = self.chance.random()
            self.store.progress(kept.ticket.id, kept.ticket.attempt, fraction, "on the way")
            kept.ticket = replace(kept.ticket, progress=fraction, note="on the way")

    def requeue(self) -> None:
        """Take back what ran out."""
        expired = [kept for kept in self.model.processing() if kept.lease_until <= self.clock()]
        assert self.store.requeue_expired(now=self.now) == len(expired)
        self.crash(expired)

    def bury(self) -> None:
        """Bury a worker, whether it runs something or not."""
        worker = self.chance.choice("xyz")
        its = [kept for kept in self.model.processing() if kept.worker == worker]
        assert self.store.bury(worker, now=self.now) == len(its)
        self.model.workers.pop(worker, None)
        self.crash(its)

    def crash(self, crashed: list[Kept]) -> None:
        """Let the model know, and take over the store's sentence."""
        for kept in crashed:
            self.model.crash(kept, self.now, "ignored")
            if kept.ticket.state is State.FAILED:
                kept.ticket = replace(kept.ticket, error=self.store.get(kept.ticket.id).error)

    def prune(self) -> None:
        """Prune with a short retention."""
        before = self.now - 200
        assert self.store.prune(before=before, now=self.now) == self.model.prune(before)

    def observe(self) -> None:
        """Let some requests run at once."""
        passed = [
            Passed(
                self.chance.choice(("donor", "anonymous")), self.chance.choice(ROUTES), self.chance.random(), shadowed
            )
            for shadowed in (False, True, False)[: self.chance.randint(0, 3)]
        ]
        self.store.observe(passed, now=self.now)
        for one in passed:
            sums = self.model.sums[one.tier, one.route]
            sums["passed"] += 1
            sums["shadowed"] += one.shadowed
            self.model.run_times[one.route].append(one.seconds)

    def report(self) -> None:
        """Let a worker report or leave."""
        worker = Worker(self.chance.choice("xyz"), "host", 1, self.chance.choice((0, 1, 2)), 5, born=0.25)
        self.store.report(worker, now=self.now)
        if worker.threads:
            self.model.workers[worker.id] = (worker, self.now)
        else:
            self.model.workers.pop(worker.id, None)

    def expire(self) -> None:
        """Cancel what has waited for long."""
        route, before = self.chance.choice(ROUTES), self.now - self.chance.choice((0.0, 20.0, 200.0))
        line = [kept for kept in self.model.line() if kept.ticket.route == route]
        overdue = [kept for kept in line if kept.ticket.created_at < before and not kept.ticket.attempt]
        assert self.store.expire(route, before=before, now=self.now, reason="Too late.") == len(overdue)
        for kept in overdue:
            self.model.cancel(kept, self.now, "Too late.")

    def pause(self) -> None:
        """Pause the line, or let it go on, which is likelier."""
        self.model.paused = self.chance.random() < 0.3
        self.store.pause(self.model.paused)

    def compare(self) -> None:
        """Ask both everything."""
        for kept in self.model.tickets:
            ticket_id = kept.ticket.id
            assert self.store.get(ticket_id) == kept.ticket
            assert self.store.ahead(ticket_id) == self.model.ahead(kept)
            response = read(self.store.response(ticket_id))
            assert (response and response[1]) == kept.response
            if kept.request is not None:
                assert read(self.store.request(ticket_id)) == ('{"method": "POST"}', kept.request, len(kept.request))
            else:
                with pytest.raises(UnknownTicket):
                    self.store.request(ticket_id)
        for ticket_id, owner in self.model.gone.items():
            with pytest.raises(GoneTicket) as gone:
                self.store.get(ticket_id)
            assert gone.value.owner == owner
        assert self.store.paused() is self.model.paused
        self.compare_listings()
        self.compare_order()
        self.compare_counts()

    def compare_listings(self) -> None:
        """Ask both for all tickets, and for some."""
        client, limit = self.chance.choice(("", *"abcde")), self.chance.choice((0, 1, 5, 1000))
        for state in State:
            expected = self.model.listing(state, client)
            assert self.store.listing(state, client=client) == expected
            assert self.store.listing(state, client=client, limit=limit) == expected[:limit]

    def compare_order(self) -> None:
        """See that the tickets of each client stand in the order in which they came."""
        numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
        for kept in self.model.line():
            numbers[kept.ticket.tier, kept.ticket.client].append(kept.ticket.number)
        assert all(own == sorted(own) for own in numbers.values())

    def compare_counts(self) -> None:
        """Ask both for what is counted."""
        counts, expected = self.store.counts(), self.model.tallies()
        assert counts.keys() == expected.keys()
        for key, tally in expected.items():
            found = vars(counts[key])
            for name, value in vars(tally).items():
                assert math.isclose(found[name], value, abs_tol=1e-6), (key, name, found[name], value)
        statistics = self.store.statistics(now=self.now)
        running = [(kept.ticket.started_at, kept.ticket.number, kept.ticket.route) for kept in self.model.processing()]
        assert statistics.running == tuple((route, started_at) for started_at, _, route in sorted(running))
        assert statistics.run_times == self.model.last_run_times()
        assert list(statistics.workers) == self.model.alive(self.now)
        assert statistics.completions == self.model.completed_lately(self.now)
        minutes = [tuple(vars(minute).values()) for minute in self.store.minutes(since=0)]
        assert minutes == self.model.minutes(0, int(self.now // 60))
