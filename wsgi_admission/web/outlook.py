"""Where a ticket stands, and how long it will wait: the store's facts put into `policy.estimates`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from wsgi_admission.config import Config
from wsgi_admission.policy.estimates import RunTimes, Wait, estimate
from wsgi_admission.stores import Statistics, Store
from wsgi_admission.ticket import State, Ticket


class Outlook(NamedTuple):
    """A ticket's place in the line (1 is first) and its wait; both None when it does not wait."""

    position: int | None
    wait: Wait | None


class Forecast:
    """Tells the outlook of tickets of one store.

    :param slots_in_use: returns how many slots of this host are taken, also by requests that run at once.
    """

    def __init__(self, store: Store, config: Config, slots_in_use: Callable[[], int]) -> None:
        self._store = store
        self._slots_in_use = slots_in_use
        self._expected = {route.name: route.expected_time for route in config.routes}
        admission = config.admission
        self._slots = min(admission.max_concurrent, admission.worker_threads * max(1, admission.replay_processes))
        # Run times change only when a run ends; the numbers made of them are kept as long as they are the same.
        self._learnt: dict[str, tuple[tuple[float, ...], RunTimes]] = {}

    def outlook(self, ticket: Ticket, *, now: float) -> Outlook:
        """Return where the ticket stands.  Raises as `Store.ahead` does."""
        if ticket.state is not State.QUEUED:
            return Outlook(None, None)
        ahead = self._store.ahead(ticket.id)
        statistics = self._store.statistics(now=now)
        running = [(route, max(0.0, now - started_at)) for route, started_at in statistics.running]
        # Requests that run at once hold slots too.  Nobody knows which they are: each counts as an average one.
        running += [("", 0.0)] * (self._slots_in_use() - len(running))
        wait = estimate(
            ahead=ahead,
            running=running,
            slots=self.slots(statistics),
            routes=self._run_times(statistics),
        )
        return Outlook(1 + sum(ahead.values()), wait)

    def expected(self, route: str, *, now: float) -> float:
        """Return the expected run time of a route in seconds."""
        return self._run_times(self._store.statistics(now=now))[route].mean

    def slots(self, statistics: Statistics) -> int:
        """Return how many tickets can run at once on all hosts that are alive.

        Before the first worker has reported, what the configuration says of this host.
        """
        threads: dict[str, int] = defaultdict(int)
        limits: dict[str, int] = {}
        for worker in statistics.workers:
            threads[worker.host] += worker.threads
            limits[worker.host] = worker.slots
        return sum(min(limits[host], count) for host, count in threads.items()) or self._slots

    def _run_times(self, statistics: Statistics) -> dict[str, RunTimes]:
        for route, expected in self._expected.items():
            seconds = statistics.run_times.get(route, ())
            known = self._learnt.get(route)
            if known is None or known[0] != seconds:
                self._learnt[route] = (seconds, RunTimes.from_history(expected, seconds))
        return {route: run_times for route, (_, run_times) in self._learnt.items()}
