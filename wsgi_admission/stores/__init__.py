"""The store contract: where the line, the tickets and the recordings live.

Every method is one atomic step, complete or without effect; none reads, decides and writes back in the
caller.  A store holds one line: two stores opened on the same place under different names share nothing
that a client or a worker can see.  Nothing here assumes one process or one machine.

Every method may raise `StoreUnavailable`; then it has had no effect.  The other errors are named where they
are raised.  ``now`` is always seconds since the epoch.  Stores are safe to use from several threads; a
store must be opened in the process that uses it, never before a fork.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field

from wsgi_admission.errors import ConfigError
from wsgi_admission.options.texts import store_url
from wsgi_admission.replay import Recording
from wsgi_admission.ticket import State, Ticket


@dataclass(frozen=True)
class Tally:
    """What has happened to the tickets of one tier and route.  Seconds are sums.

    ``queued`` and ``processing`` say what is so now; everything else counts upwards since the store began
    and is not lowered by pruning.

    :param accepted: tickets put into the line.
    :param started: tickets that were claimed for the first time.
    :param crashed: attempts that ended with the death of their worker.
    :param ran: attempts that came to their end, as ``completed`` or ``failed``.
    :param wait_seconds: time from submission to the first start, over ``started`` tickets.
    :param run_seconds: time from start to end, over those that ``ran``.
    :param passed: matching requests that ran at once, without a ticket.
    :param shadowed: those of ``passed`` that would have been queued, had the mode not been ``shadow``.
    """

    queued: int = 0
    processing: int = 0
    accepted: int = 0
    started: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    crashed: int = 0
    ran: int = 0
    wait_seconds: float = 0.0
    run_seconds: float = 0.0
    passed: int = 0
    shadowed: int = 0


#: (tier name, route name) -> its tally.
Counts = Mapping[tuple[str, str], Tally]


@dataclass(frozen=True)
class Passed:
    """A matching request that ran at once, as told to `Store.observe`.  ``seconds`` is its run time."""

    tier: str
    route: str
    seconds: float
    shadowed: bool = False


@dataclass(frozen=True)
class Minute:
    """Tickets of one tier and route in the minute that began at ``minute * 60`` seconds since the epoch.

    :param arrivals: tickets put into the line; what ran at once is not among them.
    :param completions: tickets that ended completed or failed.
    """

    minute: int
    tier: str
    route: str
    arrivals: int
    completions: int


@dataclass(frozen=True)
class Worker:
    """A process that replays, as it last reported.

    :param id: unique for each start of a process.
    :param host: names the machine (and its boot).
    :param pid: process id on that machine.
    :param threads: replay threads it runs.
    :param slots: ``max_concurrent`` of its host.
    """

    id: str
    host: str
    pid: int
    threads: int
    slots: int


@dataclass(frozen=True)
class Statistics:
    """What estimates are made of.

    :param running: (route, started_at) of every ticket in processing.
    :param run_times: route -> its last run times in seconds, oldest first, at most `RUN_TIMES`.
    :param workers: the processes whose report is at most `WORKER_ALIVE` seconds old.
    :param completions: tickets that ended in the last `RATE_MINUTES` whole or begun minutes.
    """

    running: tuple[tuple[str, float], ...] = ()
    run_times: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    workers: tuple[Worker, ...] = ()
    completions: int = 0


#: Run times remembered for each route.
RUN_TIMES = 64
#: Seconds after which a worker that does not report counts as dead.
WORKER_ALIVE = 15.0
#: Minutes over which completions are counted for the throughput.
RATE_MINUTES = 5
#: Minutes of arrivals and completions that are kept.
MINUTES_KEPT = 25 * 60
#: Bodies up to this many bytes live in the store itself, larger ones in files beside it.
INLINE_BODY = 256 * 1024
#: Tickets after which pruning may pause.
PRUNED_AT_ONCE = 2000
#: Seconds for which the id of a removed ticket is remembered, to tell 410 from 404.
REMEMBER_GONE = 30 * 24 * 3600.0


class Store(abc.ABC):
    """One line and its tickets."""

    @abc.abstractmethod
    def put(self, ticket: Ticket, request: Recording, *, now: float) -> Ticket:
        """Add a queued ticket with its request to the line; durable when this returns.

        The rank is computed inside the step, by `policy.ordering.place`, from the tier's virtual time and
        the client's last finish.  Returns the ticket with ``start`` and ``number`` set.  ``request.body`` is
        read from its current position to its end and left open.  An id that exists already raises StoreError.
        """

    @abc.abstractmethod
    def claim(self, worker: str, *, now: float, lease: float, routes: Collection[str]) -> Ticket | None:
        """Lease the first ticket of the line whose route is in ``routes`` to ``worker``, or return None.

        The ticket is the worker's until ``now + lease`` seconds.  The worker must call `finish` or `release`
        before then, or `renew` to keep it; after that `requeue_expired` may give the ticket to somebody
        else, and the late `finish` raises `LeaseLost`.  The attempt is counted up, ``started_at`` becomes
        ``now``, the tier's virtual time moves to the ticket's rank if that is later, and the client is charged for it
        whatever becomes of it.
        """

    @abc.abstractmethod
    def renew(self, claims: Collection[tuple[str, int]], *, now: float, lease: float) -> set[tuple[str, int]]:
        """Prolong the leases of these (id, attempt) pairs to ``now + lease``; return those still held."""

    @abc.abstractmethod
    def progress(self, ticket_id: str, attempt: int, fraction: float, note: str) -> None:
        """Note how far the run is (0 to 1) and what it says of itself.  Raises `LeaseLost`."""

    @abc.abstractmethod
    def finish(
        self, ticket_id: str, attempt: int, state: State, response: Recording | None, *, now: float, error: str = ""
    ) -> Ticket:
        """End the run with ``completed`` or ``failed``; keep the response and erase the request.

        Returns the ticket as it is then: ``cancelled``, without the response, if a cancellation was asked
        for meanwhile.  Raises `LeaseLost` when the attempt is not the current one or is over already, and
        ValueError for another state.  A failed run without an answer of the app has no response.  The run
        time of a completed ticket is added to its route's run times.
        """

    @abc.abstractmethod
    def release(self, ticket_id: str, attempt: int, *, now: float) -> None:
        """Give the ticket back to its old place: its worker is leaving in order.

        It does not count as a crash.  A ticket for which a cancellation was asked becomes cancelled.
        Raises `LeaseLost`.
        """

    @abc.abstractmethod
    def requeue_expired(self, *, now: float) -> int:
        """Take back every lease that ran out before ``now``; return how many there were.

        Each counts as a crash.  The ticket returns to its old place, fails when ``crashes`` would exceed
        ``crash_retries``, or becomes cancelled if that was asked for.
        """

    @abc.abstractmethod
    def cancel(self, ticket_id: str, *, now: float, reason: str = "") -> Ticket:
        """Cancel a queued ticket, or ask for the cancellation of one in processing; return it as it is then.

        What was never claimed no longer counts against the client's fair share; the tickets that wait keep their
        ranks.  Raises `FinalTicket` (also for one already cancelled), `UnknownTicket` and `GoneTicket`.  Asking
        twice while it is processing is no error.
        """

    @abc.abstractmethod
    def get(self, ticket_id: str) -> Ticket:
        """Return the ticket.  Raises `UnknownTicket` and `GoneTicket`."""

    @abc.abstractmethod
    def request(self, ticket_id: str) -> Recording:
        """Return the recorded request.  Raises `UnknownTicket` when there is none (any more)."""

    @abc.abstractmethod
    def response(self, ticket_id: str) -> Recording | None:
        """Return the recorded response, or None if the ticket has none.  Raises as `get` does."""

    @abc.abstractmethod
    def ahead(self, ticket_id: str) -> Mapping[str, int]:
        """Return route -> number of queued tickets that would be claimed before this one, over all tiers.

        Empty for a ticket that is not queued.  Raises as `get` does.
        """

    @abc.abstractmethod
    def counts(self) -> Counts:
        """Return the tallies by tier and route.  Cheap enough for every matching request."""

    @abc.abstractmethod
    def statistics(self, *, now: float) -> Statistics:
        """Return what runs, recent run times, the workers alive and the recent completions."""

    @abc.abstractmethod
    def minutes(self, *, since: float) -> list[Minute]:
        """Return arrivals and completions by minute, tier and route from ``since`` on, oldest first."""

    @abc.abstractmethod
    def observe(self, passed: Collection[Passed], *, now: float) -> None:
        """Count requests that ran at once, and add their run times to those of their routes."""

    @abc.abstractmethod
    def report(self, worker: Worker, *, now: float) -> None:
        """Say that this worker is alive.  A worker with no threads is forgotten."""

    @abc.abstractmethod
    def prune(self, *, before: float, now: float) -> int:
        """Remove tickets that were final before ``before``, with all they left; return how many.

        It may stop once there were `PRUNED_AT_ONCE`, so that its caller can do other things before it goes on.  Each
        ticket goes whole or not at all, but not all in one step: a store may do it in batches, so that nobody has to
        wait long.
        What tells 410 from 404 stays for `REMEMBER_GONE` seconds.  Also drops what no longer has any effect:
        old minutes, dead workers, the finishes of clients that the virtual time has passed, orphaned files.
        """

    @abc.abstractmethod
    def maintain(self, *, now: float) -> None:
        """Do the small upkeep that the store needs about once a second; every process calls it."""

    @abc.abstractmethod
    def changed(self) -> Hashable:
        """Return a token that differs from the last one whenever a ticket changed since; costs microseconds."""

    @abc.abstractmethod
    def health(self) -> dict[str, str]:
        """Return what an operator wants to know of this store, and check that it can be read.

        At least ``kind`` and ``version``.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of files and connections.  The store must not be used afterwards."""


def open_store(url: str, *, name: str = "main", durability: str = "full") -> Store:
    """Open the line ``name`` in the store at ``url``, creating what is missing.

    :param url: ``memory://``, ``sqlite:///RELATIVE`` or ``sqlite:////ABSOLUTE``.
    :param durability: ``full`` (survives power loss) or ``normal`` (survives the crash of any process).
    :raises ConfigError: for a URL of no known store.
    :raises StoreError: when the store cannot be opened.
    """
    check_url(url)
    if url == "memory://":
        from wsgi_admission.stores.memory import MemoryStore

        return MemoryStore()
    from wsgi_admission.stores.sqlite import SQLiteStore

    return SQLiteStore(url.removeprefix("sqlite:///"), name=name, durability=durability)


def check_url(url: str) -> None:
    """Raise `ConfigError` if this version has no store for the URL."""
    kind = store_url()
    try:
        kind.check(url)
    except ValueError as error:
        raise ConfigError(f"[store] url = {kind.mask(url)!r}: {error}. Expected: {kind.expected}.") from error
