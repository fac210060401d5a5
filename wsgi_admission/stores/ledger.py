"""What a store in memory counts: tallies, minutes, run times and workers."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from wsgi_admission.stores import moves
from wsgi_admission.stores.records import (
    MINUTES_KEPT,
    RATE_MINUTES,
    RUN_TIMES,
    WORKER_ALIVE,
    Counts,
    Minute,
    Passed,
    Statistics,
    Tally,
    Worker,
)
from wsgi_admission.ticket import Ticket


class Ledger:
    """The sums of one line.  It has no lock of its own."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._counts: Counts | None = None
        self._minutes: dict[tuple[int, str, str], Counter[str]] = defaultdict(Counter)
        self._run_times: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RUN_TIMES))
        self._workers: dict[str, tuple[Worker, float]] = {}

    def count(self, before: Ticket | None, after: Ticket, *, now: float) -> None:
        """Count a move of a ticket, and remember its run time if it has completed."""
        change = moves.delta(before, after)
        self._tallies[after.tier, after.route].update(change)
        self._counts = None
        moved = {
            "arrivals": "accepted" in change,
            "completions": "completed" in change or "failed" in change,
            "failures": "failed" in change,
            "cancellations": "cancelled" in change,
        }
        if any(moved.values()):
            self._minutes[int(now // 60), after.tier, after.route].update(moved)
        if "completed" in change:
            self._run_times[after.route].append(moves.run_seconds(after))

    def count_late(self, ticket: Ticket) -> None:
        """Count a finish that was refused."""
        self._tallies[ticket.tier, ticket.route]["late"] += 1
        self._counts = None

    def observe(self, passed: Collection[Passed]) -> None:
        """Count requests that ran at once."""
        for one in passed:
            self._tallies[one.tier, one.route].update(passed=1, shadowed=int(one.shadowed))
            self._run_times[one.route].append(one.seconds)
        self._counts = None

    def report(self, worker: Worker, *, now: float) -> None:
        """Remember a worker, or forget one that has no threads."""
        if worker.threads:
            self._workers[worker.id] = (replace(worker, reported=now), now)
        else:
            self.forget(worker.id)

    def forget(self, worker: str) -> None:
        """Forget a worker, if it is known."""
        self._workers.pop(worker, None)

    def changed(self) -> None:
        """Have `counts` return another object."""
        self._counts = None

    def counts(self) -> Counts:
        """Return the same mapping until something is counted."""
        if self._counts is None:
            tallies = {key: Tally(**counter) for key, counter in self._tallies.items()}
            self._counts = MappingProxyType(tallies)
        return self._counts

    def statistics(self, running: Iterable[Ticket], *, now: float) -> Statistics:
        """Put together what estimates are made of."""
        started = sorted((ticket.started_at or 0.0, ticket.number, ticket.route) for ticket in running)
        first = int(now // 60) - RATE_MINUTES + 1
        return Statistics(
            tuple((route, started_at) for started_at, _, route in started),
            {route: tuple(seconds) for route, seconds in self._run_times.items()},
            tuple(worker for _, (worker, seen) in sorted(self._workers.items()) if seen >= now - WORKER_ALIVE),
            sum(counter["completions"] for key, counter in self._minutes.items() if key[0] >= first),
        )

    def minutes(self, *, since: float) -> list[Minute]:
        """Return the minutes from that of ``since`` on, oldest first."""
        return [
            Minute(*key, counter["arrivals"], counter["completions"], counter["failures"], counter["cancellations"])
            for key, counter in sorted(self._minutes.items())
            if key[0] >= int(since // 60)
        ]

    def prune(self, *, now: float) -> None:
        """Drop old minutes and dead workers."""
        drop(self._minutes, (key for key in self._minutes if key[0] < int(now // 60) - MINUTES_KEPT))
        drop(self._workers, (key for key, (_, seen) in self._workers.items() if seen < now - WORKER_ALIVE))


def drop(mapping: dict[Any, Any], keys: Iterable[Any]) -> None:
    """Remove keys that were found by looking through the mapping."""
    for key in list(keys):
        del mapping[key]
