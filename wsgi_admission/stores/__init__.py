"""The store contract: where the line, the tickets and the recordings live.

Every method is one atomic step, complete or without effect; none reads, decides and writes back in the
caller.  A store holds one line: two stores opened on the same place under different names share nothing
that a client or a worker can see.  Nothing here assumes one process or one machine.

Every method may raise `StoreUnavailable`; then it has had no effect.  The other errors are named where they
are raised.  ``now`` is always seconds since the epoch, and only what people see: leases are measured by a clock of the
store's own, which does not jump when somebody sets the time of day.  Stores are safe to use from several threads; a
store must be opened in the process that uses it, never before a fork.
"""

from __future__ import annotations

import abc
import importlib.util
from collections.abc import Collection, Hashable, Mapping

from wsgi_admission.errors import ConfigError
from wsgi_admission.options.texts import store_url
from wsgi_admission.replay import Recording
from wsgi_admission.stores.records import Counts, Minute, Passed, Statistics, Worker
from wsgi_admission.ticket import State, Ticket

_REDIS = ("redis", "valkey")


class Store(abc.ABC):
    """One line and its tickets."""

    @abc.abstractmethod
    def put(self, ticket: Ticket, request: Recording, *, now: float, key: str = "", digest: str = "") -> Ticket:
        """Add a queued ticket with its request to the line; durable when this returns.

        The rank is computed inside the step, by `policy.ordering.place`, from the tier's virtual time and
        the client's last finish.  Returns the ticket with ``start`` and ``number`` set.  ``request.body`` is
        read from its current position to its end and left open.  An id that exists already raises StoreError.

        With a ``key`` (an Idempotency-Key) there is one ticket for each (route, client, key), also when several
        are put at once.  If there is one already it is returned as it is now, under its own id, and nothing of the
        new one is kept.  If that one was put with another ``digest``, which stands for what was requested, `KeyReused`
        is raised.  A key lives as long as its ticket: until that is pruned.
        """

    @abc.abstractmethod
    def claim(self, worker: str, *, now: float, lease: float, routes: Collection[str]) -> Ticket | None:
        """Lease the first ticket of the line whose route is in ``routes`` to ``worker``, or return None.

        None also while the line is paused.

        The ticket is the worker's for ``lease`` seconds of the store's own clock.  The worker must call `finish` or
        `release` before they have passed, or `renew` to keep it; after that `requeue_expired` may give the ticket to
        somebody else, and the late `finish` raises `LeaseLost`.  The attempt is counted up, ``started_at`` becomes
        ``now``, the tier's virtual time moves to the ticket's rank if that is later, and the client is charged for it
        whatever becomes of it.  The claim of a ticket without ``crash_retries`` is as durable as a `put` when this
        returns: after a power cut it is not run a second time.
        """

    @abc.abstractmethod
    def pause(self, paused: bool) -> None:  # noqa: FBT001 - it is what the method is called with, and nothing else
        """Have `claim` return None, in every process, until False is said; everything else goes on.

        It is as durable as a `put`, and saying it twice is no error.
        """

    @abc.abstractmethod
    def paused(self) -> bool:
        """Return whether the line is paused.  As cheap as `counts`."""

    @abc.abstractmethod
    def renew(self, claims: Collection[tuple[str, int]], *, lease: float) -> set[tuple[str, int]]:
        """Have the leases of these (id, attempt) pairs end in ``lease`` seconds from now; return those still held."""

    @abc.abstractmethod
    def progress(self, ticket_id: str, attempt: int, fraction: float, note: str) -> None:
        """Note how far the run is (0 to 1) and what it says of itself.  Raises `LeaseLost`."""

    @abc.abstractmethod
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
        """End the run with ``completed`` or ``failed``; keep the response and erase the request.

        Returns the ticket as it is then: ``cancelled``, without the response, if a cancellation was asked
        for meanwhile.  Raises `LeaseLost` when the attempt is not the current one or is over already; that is
        counted as ``late`` if the ticket is still there, and is the only effect.  Raises ValueError for another state.

        A failed run without an answer of the app has no response.  If that was not the app's fault, ``keep_request``
        keeps the request and makes the ticket ``retryable``, unless it becomes ``cancelled``; with a response, or
        ``completed``, it raises ValueError.  The run time of a completed ticket is added
        to its route's run times.
        """

    @abc.abstractmethod
    def release(self, ticket_id: str, attempt: int, *, now: float) -> None:
        """Give the ticket back to its old place: its worker is leaving in order.

        It does not count as a crash.  A ticket for which a cancellation was asked becomes cancelled.
        Raises `LeaseLost`.
        """

    @abc.abstractmethod
    def requeue_expired(self, *, now: float) -> int:
        """Take back every lease that has run out; return how many there were.

        What was leased before the clock of the store began anew (another boot, for a store on one machine) has run
        out too.  ``now`` is the ``completed_at`` of those that fail.

        Each counts as a crash.  The ticket returns to its old place, fails when ``crashes`` would exceed
        ``crash_retries``, or becomes cancelled if that was asked for.  One that fails keeps its request and is
        ``retryable``.
        """

    @abc.abstractmethod
    def bury(self, worker: str, *, now: float) -> int:
        """Take back at once everything that is leased to this worker (its id), which is known to be dead.

        What `requeue_expired` says of each ticket holds here too.  The report of the worker is forgotten.  Returns
        how many tickets there were: 0 for whoever comes second, or for a worker that nobody knows.
        """

    @abc.abstractmethod
    def cancel(self, ticket_id: str, *, now: float, reason: str = "") -> Ticket:
        """Cancel a queued ticket, or ask for the cancellation of one in processing; return it as it is then.

        What was never claimed no longer counts against the client's fair share; the tickets that wait keep their
        ranks.  Raises `FinalTicket` (also for one already cancelled), `UnknownTicket` and `GoneTicket`.  Asking
        twice while it is processing is no error.
        """

    @abc.abstractmethod
    def expire(self, route: str, *, before: float, now: float, reason: str) -> int:
        """Cancel every ticket of the route that was created before ``before`` and never claimed; return how many.

        Each is cancelled as by `cancel`, with the reason as its ``error``; what is in processing, or was and came back
        to the line, is left alone.  As in `prune` not all of them need to go in one step, and it may stop once there
        were `AT_ONCE`.
        """

    @abc.abstractmethod
    def retry(self, ticket_id: str, ticket: Ticket, *, now: float) -> Ticket:
        """Put a new queued ticket with the recorded request of a ``retryable`` one, as `put` does; return the new one.

        The request moves: the old ticket stays failed and is ``retryable`` no longer, so that a second call raises
        `NotRetryable`, as it does for a ticket that did not fail so.  Raises `UnknownTicket` and `GoneTicket` for
        the old ticket, and StoreError when the new one's id exists already.
        """

    @abc.abstractmethod
    def get(self, ticket_id: str) -> Ticket:
        """Return the ticket.  Raises `UnknownTicket` and `GoneTicket`."""

    @abc.abstractmethod
    def listing(self, state: State, *, client: str = "", limit: int = 1000) -> list[Ticket]:
        """Return the first ``limit`` tickets in this state, of one client if it is named.

        Queued ones in the order of the line, those in processing by their start, final ones newest first; the number
        decides between equals.  For operators: it may cost more than other reads.
        """

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
        """Return the tallies by tier and route.  Cheap enough for every matching request.

        It is the same object until something has changed, the pause of the line included.
        """

    @abc.abstractmethod
    def statistics(self, *, now: float) -> Statistics:
        """Return what runs, recent run times, the workers alive and the recent completions."""

    @abc.abstractmethod
    def minutes(self, *, since: float) -> list[Minute]:
        """Return what came and went by minute, tier and route from ``since`` on, oldest first."""

    @abc.abstractmethod
    def observe(self, passed: Collection[Passed], *, now: float) -> None:
        """Count requests that ran at once, and add their run times to those of their routes."""

    @abc.abstractmethod
    def report(self, worker: Worker, *, now: float) -> None:
        """Say that this worker is alive.  A worker with no threads is forgotten."""

    @abc.abstractmethod
    def prune(self, *, before: float, now: float) -> int:
        """Remove tickets that were final before ``before``, with all they left; return how many.

        It may stop once there were `AT_ONCE`, so that its caller can do other things before it goes on.  Each
        ticket goes whole or not at all, but not all in one step: a store may do it in batches, so that nobody has to
        wait long.
        What tells 410 from 404 stays for `REMEMBER_GONE` seconds, in memory that of the last `GONE_KEPT`.  Also drops
        what no longer has any effect: old minutes, dead workers, the finishes of clients that the virtual time has
        passed, orphaned files.
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

    :param url: ``memory://``, ``sqlite:///RELATIVE``, ``sqlite:////ABSOLUTE``, ``redis://HOST:PORT/DB``, ``rediss://``
        (with TLS) or ``redis+unix:///SOCKET?db=0``; ``valkey`` stands for ``redis`` in each of these.
    :param durability: ``full`` (survives power loss) or ``normal`` (survives the crash of any process).  How durable a
        Redis server is, it is told by its own configuration.
    :raises ConfigError: for a URL of no known store.
    :raises StoreError: when the store cannot be opened.
    """
    check_url(url)
    if url == "memory://":
        from wsgi_admission.stores.memory import MemoryStore

        return MemoryStore()
    if url.startswith(_REDIS):
        from wsgi_admission.stores.redis import RedisStore

        return RedisStore(url, name=name)
    from wsgi_admission.stores.sqlite import SQLiteStore

    return SQLiteStore(url.removeprefix("sqlite:///"), name=name, durability=durability)


def check_url(url: str) -> None:
    """Raise `ConfigError` if this version has no store for the URL, or lacks a package that it needs."""
    kind = store_url()
    try:
        kind.check(url)
    except ValueError as error:
        raise ConfigError(f"[store] url = {kind.mask(url)!r}: {error}. Expected: {kind.expected}.") from error
    if url.startswith(_REDIS) and importlib.util.find_spec("redis") is None:
        raise ConfigError(
            f"[store] url = {kind.mask(url)!r}: the package redis is not installed. "
            "Expected: pip install 'wsgi_admission[redis]'."
        )
