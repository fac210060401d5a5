"""Where a ticket stands, and how long it will wait: the store's facts put into `policy.estimates`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from wsgi_admission.config import Config
from wsgi_admission.policy.estimates import RunTimes, Wait, estimate
from wsgi_admission.stores import Store
from wsgi_admission.stores.records import Statistics
from wsgi_admission.ticket import State, Ticket


class Outlook(NamedTuple):
    """A ticket's place in the line (1 is first) and its wait; both None when it does not wait.

    While the line is paused nobody knows the wait.
    """

    position: int | None
    wait: Wait | None
    paused: bool = False


class Forecast:
    """Tells the outlook of tickets of one store.

    :param slots_in_use: returns how many slots of this host are taken, also by requests that run at once.
    """

    def __init__(self, store: Store, config: Config, slots_in_use: Callable[[], int]) -> None:
        self._store = store
        self._slots_in_use = slots_in_use
        self._expected = {route.name: route.expected_time for route in config.routes}
        admission = config.admission
        threads = admission.worker_threads * max(1, admission.replay_processes)
        self._slots = (admission.max_concurrent, min(admission.max_concurrent, threads))
        self._limits = {route.name: route.max_concurrent for route in config.routes if route.max_concurrent is not None}
        # Run times change only when a run ends; the numbers made of them are kept as long as they are the same.
        self._learnt: dict[str, tuple[tuple[float, ...], RunTimes]] = {}

    def outlook(self, ticket: Ticket, *, now: float) -> Outlook:
        """Return where the ticket stands.  Raises as `Store.ahead` does."""
        if ticket.state is not State.QUEUED:
            return Outlook(None, None)
        ahead = self._store.ahead(ticket.id)
        position = 1 + sum(ahead.values())
        if self._store.paused():
            return Outlook(position, None, paused=True)
        return Outlook(position, self.wait(ticket.route, ahead, now=now))

    def wait(self, route: str, ahead: Mapping[str, int], *, now: float) -> Wait:
        """Return the wait of a ticket of this route behind so many tickets of each route."""
        statistics = self._store.statistics(now=now)
        routes = self._run_times(statistics)
        running = [(name, max(0.0, now - started_at)) for name, started_at in statistics.running]
        limit, slots = self.slots(statistics)
        # Requests that run at once hold slots too.  Nobody knows which they are; those that stand in the way of a
        # replay count as one that has just begun.
        left = limit - max(0, self._slots_in_use() - len(running))
        if left < 1:
            running.append((route, 0.0))
        slots = max(1, min(slots, left))
        ahead = dict(ahead)
        own = Wait(0.0, 0.0)
        for name, most in self._limits.items():
            mine = [one for one in running if one[0] == name]
            if ahead.get(name, 0) + len(mine) < most:
                continue
            if name == route:
                own = estimate(ahead={name: ahead.get(name, 0)}, running=mine, slots=min(most, slots), routes=routes)
            else:
                # What waits for a full route has slots of its own, and takes none of the others.
                ahead.pop(name, None)
                running = [one for one in running if one[0] != name]
                slots = max(1, slots - len(mine))
        general = estimate(ahead=ahead, running=running, slots=slots, routes=routes)
        return max(own, general)

    def expected(self, route: str, *, now: float) -> float:
        """Return the expected run time of a route in seconds."""
        return self._run_times(self._store.statistics(now=now))[route].mean

    def slots(self, statistics: Statistics) -> tuple[int, int]:
        """Return the slots of all hosts that are alive, and how many of them replays can use at once.

        Before the first worker has reported, what the configuration says of this host.
        """
        threads: dict[str, int] = defaultdict(int)
        limits: dict[str, int] = {}
        for worker in statistics.workers:
            threads[worker.host] += worker.threads
            limits[worker.host] = worker.slots
        if not limits:
            return self._slots
        return sum(limits.values()), sum(min(limits[host], count) for host, count in threads.items())

    def _run_times(self, statistics: Statistics) -> dict[str, RunTimes]:
        for route, expected in self._expected.items():
            seconds = statistics.run_times.get(route, ())
            known = self._learnt.get(route)
            if known is None or known[0] != seconds:
                self._learnt[route] = (seconds, RunTimes.from_history(expected, seconds))
        return {route: run_times for route, (_, run_times) in self._learnt.items()}
