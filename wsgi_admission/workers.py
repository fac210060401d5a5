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
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from itertools import count

from wsgi_admission.errors import LeaseLost, StoreError, StoreUnavailable, UnknownTicket
from wsgi_admission.logs import event
from wsgi_admission.policy.backoff import delay
from wsgi_admission.progressing import Progress, current
from wsgi_admission.replay import MARK, Outcome
from wsgi_admission.replay import run as replay
from wsgi_admission.runs import Run, Runs, Stage
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
#: Seconds that the store has for what the threads of a process that leaves tell it for the last time.
LAST_WORDS = 1.0
#: Seconds after which an answer that the store does not take, although it leaves the lease, is given up.
GIVE_UP = 3600.0
#: Seconds for which a recorded request may be unreadable, while the store answers, before its ticket fails.
UNREADABLE = 30.0
#: Seconds between an idle thread's looks at the line.  A look costs microseconds while nothing has changed, and
#: sees what no news could tell, such as a slot that another process gave back.
LOOK_INTERVAL = 0.05


class Pool:
    """The threads of one process that replay tickets.

    :param app: the wrapped application.
    :param worker: how this process reports itself; ``worker.threads`` threads are started.
    :param memory_short: asked before each claim; while it is true a replay begins only while no slot is taken.
    :param expire: called before a claim; cancels what must not be started any more.
    :param max_runtime: route -> seconds after which a run of it is stuck, for the routes that have a limit.
    :param clock: returns seconds since the epoch.
    :param monotonic: returns seconds of a clock that does not jump.
    """

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        store: Store,
        slots: Slots,
        worker: Worker,
        *,
        memory_short: Callable[[], bool] = lambda: False,
        expire: Callable[[], None] = lambda: None,
        max_runtime: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker = worker
        self.started = False
        self._app = app
        self._store = store
        self._slots = slots
        self._memory_short = memory_short
        self._expire = expire
        self._clock = clock
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._news = 0
        self._stopping = threading.Event()
        self._left = threading.Event()
        self.runs = Runs(worker.threads, max_runtime or {}, clock=monotonic)
        self._store_fails = False
        self._lost: set[tuple[str, int]] = set()
        self._told: set[tuple[str, int]] = set()
        self._threads: list[threading.Thread] = []

    @property
    def claims(self) -> bool:
        """Whether this process takes tickets: started, and not told to stop."""
        return self.started and not self._stopping.is_set()

    def start(self) -> None:
        """Start the threads, once.

        :raises RuntimeError: when the system has not so many left; then none goes on, and it can be tried again.
        """
        threads = [
            threading.Thread(target=self._begin, name=f"wsgi-admission-replay-{i + 1}", daemon=True)
            for i in range(self.worker.threads)
        ]
        with self._changed:
            for thread in threads:
                thread.start()
            self._threads, self.started = threads, True

    def _begin(self) -> None:
        with self._changed:  # nothing is claimed before all of them are there
            wanted = threading.current_thread() in self._threads
        if wanted:
            self._work()

    def wake(self) -> None:
        """Tell one idle thread that the line has changed.  A thread that finds work tells the next one."""
        with self._changed:
            self._news += 1
            self._changed.notify()

    def look_for_stuck(self) -> None:
        """Report runs that have become stuck, and let the line move on: their slots are free."""
        if self.runs.report_stuck():
            self.wake()

    def write_progress(self) -> None:
        """Write down what the runs say of themselves."""
        for run in self.runs.all():
            run.progress.flush()

    def renew(self) -> None:
        """Renew the leases of what runs; log those that are lost.  The store is written to even when nothing runs."""
        held = self.runs.held()
        lost = (set(held) - self._store.renew(held, lease=LEASE)) & set(self.runs.held())
        surely = lost & self._lost  # at the first time it may have come to its end in this very moment
        for ticket_id, attempt in surely - self._told:
            event(log, "ticket.lost", level=logging.WARNING, ticket=ticket_id, attempt=attempt)
        self._lost, self._told = lost, surely

    def stop(self) -> None:
        """Claim nothing more.  What runs goes on."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def drain(self, timeout: float) -> int:
        """Stop, give what runs ``timeout`` seconds to end, and hand the rest back to its place in the line.

        What must not run twice (no ``crash_retries``) fails instead, if the app was called.  An answer that the store
        has not taken yet is offered once more.  What is stuck is not waited for and counts as a crash: it would be
        stuck again.  Returns how many were handed back or stuck.
        """
        self.stop()
        # A claim that was under way when the stop came may still lease a ticket: it must not be left behind.
        self.runs.wait(timeout, CLAIM_TIMEOUT)
        left = self.runs.leave()
        self._left.set()
        self.runs.wait_for_store(LAST_WORDS)
        rest = [run for run in left if run.stage is not Stage.OVER]
        stuck = [run for run in rest if run.stuck]
        for run in rest:
            if run not in stuck:
                self._hand_back(run)
        if stuck:
            self._give_up()
        # Idle threads end at once, and must not touch the store when it is closed.  One that is in the middle of a
        # run cannot be ended; what it still has to say is refused.
        if not self.runs.all():
            for thread in self._threads:
                thread.join(CLAIM_TIMEOUT)
        return len(rest)

    def _hand_back(self, run: Run) -> None:
        ticket, now = run.ticket, self._clock()
        try:
            if ticket.crash_retries or run.stage is Stage.CLAIMED:
                self._store.release(ticket.id, ticket.attempt, now=now)
                _tell("ticket.requeued", ticket, reason="leaving")
            else:
                self._store.finish(
                    ticket.id, ticket.attempt, State.FAILED, None, now=now, error=INTERRUPTED, keep_request=True
                )
                _tell("ticket.failed", ticket, error=INTERRUPTED)
        except LeaseLost:
            pass  # it ended in this very moment
        except StoreError as error:
            _tell_failing("release", error, ticket)
            return
        run.stage = Stage.OVER

    def _give_up(self) -> None:
        try:
            crashed = self._store.bury(self.worker.id, now=self._clock())
            event(log, "worker.stuck", level=logging.WARNING, worker=self.worker.id, crashed=crashed)
        except StoreError as error:
            _tell_failing("bury", error)

    def _work(self) -> None:
        while not self._stopping.is_set():
            seen, worked = self._news, False
            try:
                worked = self._run_next()
                self._note(None)
            except StoreError as error:
                self._note(error)
            except Exception:
                log.exception("a replay thread went on after an error of its own")
            if not worked:
                self._idle(seen)

    def _note(self, error: StoreError | None) -> None:
        """Tell, once, that the store fails, or that it is back."""
        fails = error is not None
        with self._changed:
            if fails == self._store_fails:
                return
            self._store_fails = fails
        if fails:
            event(log, "store.failing", level=logging.WARNING, step="claim", error=error)
        else:
            event(log, "store.back", step="claim")

    def _idle(self, seen: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._news != seen or self._stopping.is_set(), LOOK_INTERVAL)

    def _run_next(self) -> bool:
        """Run the first ticket that there is room for; return whether there was one."""
        waiting = {route for (_, route), tally in self._store.counts().items() if tally.queued}
        if not self._free(waiting) or self._store.paused():
            return False
        self._expire()
        slot = self._take()
        if slot is None:
            return False
        try:
            run = self._claim(slot, waiting)
            if run is not None:
                self.wake()
                self._run(run)
        finally:
            slot.release()
        return run is not None

    def _take(self) -> Slot | None:
        if not self._memory_short():
            return self._slots.take(None)
        # Two that looked at once would both find that nothing runs.
        with self._slots.turn():
            return None if self._slots.in_use() else self._slots.take(None)

    def _claim(self, slot: Slot, waiting: Iterable[str]) -> Run | None:
        allowed = False
        with self.runs.claiming():
            # Looked at inside: whoever has told us to stop, and sees no claim under way then, relies on it.
            if self._stopping.is_set():
                return None
            with self._slots.turn() if self._slots.limited(waiting) else nullcontext():
                ticket = self._claim_first(waiting)
                if ticket is None:
                    return None
                run = self.runs.begin(ticket, slot, self._progress(ticket))
                with suppress(StoreError):  # a kernel that cannot lock allows nothing
                    # A newcomer of a better tier may have filled the route meanwhile.
                    allowed = not self._stopping.is_set() and self._slots.allow(slot, ticket.route)
        if not allowed:
            self._return(run, "leaving" if self._stopping.is_set() else "full")
        return run if allowed else None

    def _progress(self, ticket: Ticket) -> Progress:
        name, attempt = ticket.id, ticket.attempt
        return Progress(
            lambda fraction, note: self._store.progress(name, attempt, fraction, note),
            lambda: self._store.get(name),
            attempt,
        )

    def _claim_first(self, waiting: Iterable[str]) -> Ticket | None:
        # No slot of a route is held while the store chooses: to others its route would look full, and they would
        # overtake what waits for it.
        free = self._free(waiting)
        return self._store.claim(self.worker.id, now=self._clock(), lease=LEASE, routes=free) if free else None

    def _return(self, run: Run, reason: str) -> None:
        """Give back what was claimed and has not run; the lease is renewed until that is done."""
        ticket = run.ticket
        try:
            if self._insist(
                "release", ticket, lambda: self._store.release(ticket.id, ticket.attempt, now=self._clock())
            ):
                run.stage = Stage.OVER
                _tell("ticket.requeued", ticket, reason=reason)
        except LeaseLost:
            run.stage = Stage.OVER  # it is back already
        finally:
            self.runs.end(run)

    def _free(self, routes: Iterable[str]) -> list[str]:
        return [route for route in routes if not self._slots.full(route)]

    def _run(self, run: Run) -> None:
        ticket = run.ticket
        _tell("ticket.started", ticket)
        try:
            request = self._store.request(ticket.id)
        except StoreUnavailable as error:
            _tell_failing("request", error, ticket)
            run.slot.release()
            self._wait_for_request(run)
            return
        except (StoreError, UnknownTicket, OSError) as error:
            self._end(run, _unreadable(ticket, error))
            return
        if not self.runs.call(run):
            request.body.close()
            self._return(run, "leaving")
            return
        with current(run.progress):
            outcome = replay(self._app, request, extras={MARK: ticket, **run.progress.environ})
        self._end(run, outcome)

    def _wait_for_request(self, run: Run) -> None:
        """Give a ticket back once its request can be read; end it if nothing else fails for `UNREADABLE` seconds.

        Given back at once it would be claimed again at once, for ever.  Meanwhile it is leased and holds no slot, so
        that the line moves on without it.
        """
        ticket = run.ticket
        since: float | None = None
        for retry in count():
            if self._stopping.wait(delay(retry, 0.0, 0.5, base=0.1, cap=LEASE / 6)):
                break
            try:
                if not self._store.renew([(ticket.id, ticket.attempt)], lease=LEASE):
                    break
            except StoreError:
                since = None  # nothing can be said of the request while all of the store is away
                continue
            try:
                self._store.request(ticket.id).body.close()
                break
            except StoreUnavailable as error:
                now = self._monotonic()
                since = now if since is None else since
                if now - since >= UNREADABLE:
                    self._end(run, _unreadable(ticket, error), keep_request=True)
                    return
            except (StoreError, UnknownTicket, OSError):
                break  # whoever claims it next will tell
        self._return(run, "store")

    def _end(self, run: Run, outcome: Outcome, *, keep_request: bool = False) -> None:
        try:
            self.runs.answered(run)
            run.progress.flush()  # how far it came stays to be seen when it failed
            self._finish(run, outcome, keep_request=keep_request)
        finally:
            if outcome.response is not None:
                outcome.response.body.close()
            self.runs.end(run)

    def _finish(self, run: Run, outcome: Outcome, *, keep_request: bool) -> None:
        """Keep the answer, which needs no slot any more."""
        ticket = run.ticket
        state = State.COMPLETED if 0 < outcome.status < 500 else State.FAILED

        def finish() -> None:
            if outcome.response is not None:
                outcome.response.body.seek(0)
            ended = self._store.finish(
                ticket.id, ticket.attempt, state, outcome.response,
                now=self._clock(), error=outcome.error, keep_request=keep_request,
            )  # fmt: skip
            _tell(f"ticket.{ended.state.value}", ticket, status=outcome.status or None, error=ended.error or None)

        try:
            if self._insist("finish", ticket, finish):
                run.stage = Stage.OVER
            else:
                _tell("ticket.unkept", ticket, level=logging.ERROR)
        except LeaseLost:
            run.stage = Stage.OVER
            _tell("ticket.late", ticket, level=logging.WARNING)

    def _insist(self, name: str, ticket: Ticket, step: Callable[[], None]) -> bool:
        """Do a step of the store, again and again while it fails; return whether it was done.

        The housekeeper renews the lease meanwhile.  It is given up after `GIVE_UP` seconds, and tried for the last time
        when this process leaves.

        :raises LeaseLost: when somebody else has the ticket.
        """
        until = self._monotonic() + GIVE_UP
        for retry in count():
            last = self._left.is_set() or self._monotonic() >= until
            try:
                step()
            except LeaseLost:
                raise
            except StoreError as error:
                _tell_failing(name, error, ticket)
            else:
                return True
            if last:
                break
            self._left.wait(delay(retry, 0.0, 0.5, base=0.1, cap=LEASE / 6))
        return False


def _unreadable(ticket: Ticket, error: Exception) -> Outcome:
    _tell("ticket.unreadable", ticket, level=logging.ERROR, error=error)  # a traceback would hold the whole id
    return Outcome(0, None, "The recorded request could not be read.")


def _tell(name: str, ticket: Ticket, *, level: int = logging.INFO, **more: object) -> None:
    event(log, name, level=level, ticket=ticket.id, route=ticket.route, attempt=ticket.attempt, **more)


def _tell_failing(step: str, error: Exception, ticket: Ticket | None = None) -> None:
    about = {} if ticket is None else {"ticket": ticket.id}
    event(log, "store.failing", level=logging.WARNING, step=step, **about, error=error)
