"""What runs in one process, and which of it is stuck.

A run that takes longer than its route's ``max_runtime`` is stuck.  A thread cannot be killed, so the run goes on and
its answer still counts; but its slot is given back, so that the line moves on, and nobody waits for its end any more.
"""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from wsgi_admission.logs import event
from wsgi_admission.progressing import Progress
from wsgi_admission.slots import Slot
from wsgi_admission.ticket import Ticket

log = logging.getLogger("wsgi_admission.workers")


class Stage(enum.Enum):
    """How far a run is."""

    CLAIMED = enum.auto()  # the app has not been called
    CALLED = enum.auto()  # the app runs it
    ANSWERED = enum.auto()  # the app has returned, and the store has not taken note yet
    OVER = enum.auto()  # the store knows how it ended, or that it is back in the line


@dataclass(eq=False)
class Run:
    """A ticket that is being run.  Times are in seconds of a clock that does not jump.

    :param slot: what it holds until the app has returned, or it is stuck.
    :param progress: what the app says of it.
    :param begun: when the app was called.
    :param limit: from when on it is stuck.
    """

    ticket: Ticket
    slot: Slot
    progress: Progress
    begun: float = math.inf
    limit: float = math.inf
    stuck: bool = False
    stage: Stage = Stage.CLAIMED


class Runs:
    """The runs of one process, and the claims under way.  Safe to use from several threads.

    :param threads: how many there can be.
    :param max_runtime: route -> seconds, for the routes that have a limit.
    """

    def __init__(
        self, threads: int, max_runtime: Mapping[str, float], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._threads = threads
        self._max_runtime = max_runtime
        self._clock = clock
        self._changed = threading.Condition()
        self._runs: list[Run] = []
        self._claiming = 0
        self._leaving = False
        self._told = False

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Do what may begin a run."""
        with self._changed:
            self._claiming += 1
        try:
            yield
        finally:
            with self._changed:
                self._claiming -= 1
                self._changed.notify_all()

    def begin(self, ticket: Ticket, slot: Slot, progress: Progress) -> Run:
        """Add a run; it must be ended by `end`."""
        run = Run(ticket, slot, progress)
        with self._changed:
            self._runs.append(run)
        return run

    def call(self, run: Run) -> bool:
        """Note that the app is about to be called; return False if it must not be, as this process has left."""
        now = self._clock()
        with self._changed:
            if self._leaving:
                return False
            run.stage = Stage.CALLED
            run.begun, run.limit = now, now + self._max_runtime.get(run.ticket.route, math.inf)
            return True

    def answered(self, run: Run) -> None:
        """Note that the app has returned: its slot is free, and from now on only the store can be slow."""
        with self._changed:
            run.limit, run.stuck = math.inf, False
            if run.stage is not Stage.OVER:
                run.stage = Stage.ANSWERED
        run.slot.release()

    def end(self, run: Run) -> None:
        """Remove a run."""
        with self._changed:
            self._runs.remove(run)
            self._changed.notify_all()

    def held(self) -> list[tuple[str, int]]:
        """Return the (id, attempt) of all runs."""
        return [(run.ticket.id, run.ticket.attempt) for run in self.all()]

    def all(self) -> list[Run]:
        """Return all runs."""
        with self._changed:
            return self._runs[:]

    @property
    def stuck(self) -> int:
        """How many are stuck."""
        return sum(run.stuck for run in self.all())

    @property
    def busy(self) -> int:
        """How many are not stuck."""
        return sum(not run.stuck for run in self.all())

    @property
    def mostly_stuck(self) -> bool:
        """Whether more than half of the threads are stuck: this process should give way to another."""
        return 2 * self.stuck > self._threads

    def report_stuck(self) -> bool:
        """Report the runs that have become stuck, and give their slots back; return whether there were any."""
        now = self._clock()
        with self._changed:
            found = [run for run in self._runs if run.limit <= now and not run.stuck]
            for run in found:
                run.stuck = True
            self._changed.notify_all()
        for run in found:
            run.slot.release()
            # Its slot is free for others from now on.
            event(
                log, "ticket.stuck", level=logging.WARNING, ticket=run.ticket.id, route=run.ticket.route,
                attempt=run.ticket.attempt, seconds=now - run.begun,
            )  # fmt: skip
        if self.mostly_stuck and not self._told:
            # It should be restarted.
            event(log, "process.stuck", level=logging.ERROR, stuck=self.stuck, threads=self._threads)
        self._told = self.mostly_stuck
        return bool(found)

    def leave(self) -> list[Run]:
        """Let the app be called no more; return what is not over."""
        with self._changed:
            self._leaving = True
            return [run for run in self._runs if run.stage is not Stage.OVER]

    def wait_for_store(self, timeout: float) -> None:
        """Wait for the end of what is not the app's to end."""
        with self._changed:
            self._changed.wait_for(lambda: all(run.stage in {Stage.CALLED, Stage.OVER} for run in self._runs), timeout)

    def wait(self, timeout: float, claim_timeout: float) -> None:
        """Wait for the end of what is not stuck, and then at most ``claim_timeout`` for that of the claims."""
        with self._changed:
            self._changed.wait_for(lambda: not self._claiming and all(run.stuck for run in self._runs), timeout)
            self._changed.wait_for(lambda: not self._claiming, claim_timeout)
