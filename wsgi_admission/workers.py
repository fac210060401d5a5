"""The pool: the threads of a process that replay tickets.

Each thread takes a slot first and then the first ticket of the line that may use it, so that a ticket is never
leased while there is no room to run it.

Leases and attempts.  A claimed ticket is this process's for `LEASE` seconds; the housekeeper renews the leases
of what runs (see process.py).  If the process dies, the others on its host bury it, or its leases run out, and the
tickets return to their places.  If it was only stopped for long, somebody else may be running the ticket
meanwhile: the attempt tells the store whose answer counts, and `LeaseLost` tells this process that its own does
not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from wsgi_admission.errors import LeaseLost, StoreError, StoreUnavailable, UnknownTicket
from wsgi_admission.policy.backoff import delay
from wsgi_admission.replay import MARK, Outcome, run
from wsgi_admission.slots import Slot, Slots
from wsgi_admission.stores import Store
from wsgi_admission.stores.records import Worker
from wsgi_admission.ticket import State, Ticket

log = logging.getLogger("wsgi_admission.workers")

#: Seconds for which a claimed ticket is a worker's.
LEASE = 30.0
#: What is said of a ticket that must not run twice when its worker had to leave.
INTERRUPTED = "The server had to stop while it ran, and it is not run twice by itself; you can retry it."
#: Seconds after which a store's claim has succeeded or failed, whatever happens.
CLAIM_TIMEOUT = 5.0
#: Seconds between an idle thread's looks at the line.  A look costs microseconds while nothing has changed, and
#: sees what no news could tell, such as a slot that another process gave back.
LOOK_INTERVAL = 0.05


class Pool:
    """The threads of one process that replay tickets.

    :param app: the wrapped application.
    :param worker: how this process reports itself; ``worker.threads`` threads are started.
    :param may_start: asked before each claim; False holds replays back (memory is short).
    :param clock: returns seconds since the epoch.
    """

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        store: Store,
        slots: Slots,
        worker: Worker,
        *,
        may_start: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.worker = worker
        self.started = False
        self._app = app
        self._store = store
        self._slots = slots
        self._may_start = may_start
        self._clock = clock
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        self._news = 0
        self._stopping = threading.Event()
        self._running: dict[str, Ticket] = {}
        self._claiming = 0
        self._store_fails = False
        self._threads = [
            threading.Thread(target=self._work, name=f"wsgi-admission-replay-{i + 1}", daemon=True)
            for i in range(worker.threads)
        ]

    @property
    def claims(self) -> bool:
        """Whether this process takes tickets: started, and not told to stop."""
        return self.started and not self._stopping.is_set()

    def start(self) -> None:
        """Start the threads, once."""
        self.started = True
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Tell one idle thread that the line has changed.  A thread that finds work tells the next one."""
        with self._changed:
            self._news += 1
            self._changed.notify()

    def running(self) -> list[tuple[str, int]]:
        """Return the (id, attempt) of what runs."""
        with self._changed:
            return [(ticket.id, ticket.attempt) for ticket in self._running.values()]

    def renew(self) -> None:
        """Renew the leases of what runs; log those that are lost."""
        held = self.running()
        lost = set(held) - self._store.renew(held, lease=LEASE) if held else set()
        for ticket_id, attempt in lost & set(self.running()):
            log.warning("lost the lease of ticket %s in attempt %d; its answer will not count", ticket_id[:8], attempt)

    def stop(self) -> None:
        """Claim nothing more.  What runs goes on."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def drain(self, timeout: float) -> int:
        """Stop, give what runs ``timeout`` seconds to end, and hand the rest back to its place in the line.

        What must not run twice (no ``crash_retries``) fails instead.  Returns how many there were.
        """
        self.stop()
        with self._changed:
            self._changed.wait_for(lambda: not self._running and not self._claiming, timeout)
            # A claim that was under way when the stop came may still lease a ticket: it must not be left behind.
            self._changed.wait_for(lambda: not self._claiming, CLAIM_TIMEOUT)
            rest = list(self._running.values())
        for ticket in rest:
            try:
                self._hand_back(ticket)
            except LeaseLost:
                pass  # it ended in this very moment
            except StoreError:
                log.exception("could not hand ticket %s back; its lease will run out", ticket.id[:8])
        # Idle threads end at once, and must not touch the store when it is closed.  One that is in the middle of a
        # run cannot be ended; what it still has to say is refused.
        if not rest:
            for thread in self._threads:
                thread.join(CLAIM_TIMEOUT)
        return len(rest)

    def _hand_back(self, ticket: Ticket) -> None:
        now = self._clock()
        if ticket.crash_retries:
            self._store.release(ticket.id, ticket.attempt, now=now)
        else:
            self._store.finish(
                ticket.id, ticket.attempt, State.FAILED, None, now=now, error=INTERRUPTED, keep_request=True
            )

    def _work(self) -> None:
        while not self._stopping.is_set():
            seen, worked = self._news, False
            try:
                worked = self._run_next()
                self._store_fails = False
            except StoreError as error:
                if not self._store_fails:  # once until it works again
                    log.warning("the store does not answer, replays wait: %s", error)
                self._store_fails = True
            except Exception:
                log.exception("a replay thread went on after an error of its own")
            if not worked:
                self._idle(seen)

    def _idle(self, seen: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._news != seen or self._stopping.is_set(), LOOK_INTERVAL)

    def _run_next(self) -> bool:
        """Run the first ticket that there is room for; return whether there was one."""
        waiting = {route for (_, route), tally in self._store.counts().items() if tally.queued}
        if not self._free(waiting) or not self._may_start():
            return False
        slot = self._slots.take(None)
        if slot is None:
            return False
        try:
            ticket = self._claim(slot, waiting)
            if ticket is not None:
                self.wake()
                self._run(ticket)
        finally:
            slot.release()
        return ticket is not None

    def _claim(self, slot: Slot, waiting: Iterable[str]) -> Ticket | None:
        with self._changed:
            if self._stopping.is_set():
                return None
            self._claiming += 1
        try:
            # Two threads that claim at once could both find room on a limited route for the last time.
            with self._turn:
                ticket = self._claim_first(slot, waiting)
            if ticket is not None:
                with self._changed:
                    self._running[ticket.id] = ticket
            return ticket
        finally:
            with self._changed:
                self._claiming -= 1
                self._changed.notify_all()

    def _claim_first(self, slot: Slot, waiting: Iterable[str]) -> Ticket | None:
        # No slot of a route is held while the store chooses: to others its route would look full, and they would
        # overtake what waits for it.
        free = self._free(waiting)
        ticket = self._store.claim(self.worker.id, now=self._clock(), lease=LEASE, routes=free) if free else None
        if ticket is None:
            return None
        allowed = False
        try:
            # Another process may have been quicker to fill the route.
            allowed = not self._stopping.is_set() and self._slots.allow(slot, ticket.route)
        finally:
            if not allowed:
                self._store.release(ticket.id, ticket.attempt, now=self._clock())
        return ticket if allowed else None

    def _free(self, routes: Iterable[str]) -> list[str]:
        return [route for route in routes if not self._slots.full(route)]

    def _run(self, ticket: Ticket) -> None:
        log.info("ticket %s: %s started, attempt %d", ticket.id[:8], ticket.route, ticket.attempt)
        try:
            outcome = self._outcome(ticket)
            try:
                self._finish(ticket, outcome)
            finally:
                if outcome.response is not None:
                    outcome.response.body.close()
        except StoreUnavailable as error:
            # Only reading the request raises this: the app was not called, and the ticket waits on in its place.
            log.warning("ticket %s: its request cannot be read just now: %s", ticket.id[:8], error)
            self._store.release(ticket.id, ticket.attempt, now=self._clock())
        finally:
            with self._changed:
                self._running.pop(ticket.id, None)
                self._changed.notify_all()

    def _outcome(self, ticket: Ticket) -> Outcome:
        try:
            request = self._store.request(ticket.id)
        except StoreUnavailable:
            raise
        except (StoreError, UnknownTicket, OSError):
            log.exception("ticket %s: its recorded request cannot be read", ticket.id[:8])
            return Outcome(0, None, "The recorded request could not be read.")
        return run(self._app, request, extras={MARK: ticket})

    def _finish(self, ticket: Ticket, outcome: Outcome) -> None:
        """Keep the answer; a store that does not answer is asked again for as long as the lease holds."""
        state = State.COMPLETED if 0 < outcome.status < 500 else State.FAILED
        for retry in range(64):
            if outcome.response is not None:
                outcome.response.body.seek(0)
            try:
                ended = self._store.finish(
                    ticket.id, ticket.attempt, state, outcome.response, now=self._clock(), error=outcome.error
                )
            except LeaseLost:
                log.warning("ticket %s: the answer of attempt %d came too late", ticket.id[:8], ticket.attempt)
            except StoreError as error:
                log.warning("ticket %s: its answer cannot be kept yet: %s", ticket.id[:8], error)
                threading.Event().wait(delay(retry, 0.0, 0.5, base=0.1, cap=LEASE / 6))
                continue
            else:
                log.info("ticket %s: %s %s with %d", ticket.id[:8], ticket.route, ended.state.value, outcome.status)
            return
        log.error("ticket %s: its answer could not be kept; its lease will run out", ticket.id[:8])
