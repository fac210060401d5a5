"""What one process needs beside the configuration: its parts, made together at first use and ended together."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from wsgi_admission import host, logs
from wsgi_admission.burying import bury_dead
from wsgi_admission.chores import AGAIN, Chore, Housekeeper
from wsgi_admission.config import Config
from wsgi_admission.deadlines import Deadlines
from wsgi_admission.errors import StoreError, StoreUnavailable
from wsgi_admission.load import Load, LoadMeter
from wsgi_admission.logs import event
from wsgi_admission.passing import Passing, line_reader
from wsgi_admission.policy.decision import Line
from wsgi_admission.progressing import INTERVAL as PROGRESS_INTERVAL
from wsgi_admission.receiving import give_up_slow
from wsgi_admission.running import App
from wsgi_admission.slotfile import open_slots
from wsgi_admission.slots import Slots
from wsgi_admission.stores import Store, open_store
from wsgi_admission.stores.records import AT_ONCE, Worker
from wsgi_admission.tiers import Resolver
from wsgi_admission.web import messages
from wsgi_admission.web.answers import Environ
from wsgi_admission.web.api import Api
from wsgi_admission.web.holding import Server
from wsgi_admission.workers import Pool

log = logging.getLogger("wsgi_admission.process")

#: Seconds between samples of the load.
SAMPLE_INTERVAL = 0.5
#: Seconds between a replaying process's reports that it is alive.
REPORT_INTERVAL = 5.0
#: Seconds between looks for lost leases and things to write down.
TIDY_INTERVAL = 1.0
#: Seconds without a renewal after which leases that ran out say nothing, and for how long they do not.
GAP, GRACE = 5.0, 10.0


def _max_runtime(config: Config) -> dict[str, float]:
    return {route.name: route.max_runtime for route in config.routes if route.max_runtime is not None}


def _max_wait(config: Config) -> dict[str, float]:
    return {route.name: route.max_wait for route in config.routes if route.max_wait is not None}


@dataclass
class Process:
    """The parts of one process.  ``pool`` is not started where other processes replay.

    :param alone: whether the store is this process's own, and nobody has been warned that there are others.
    """

    pid: int
    store: Store
    slots: Slots
    api: Api
    pool: Pool
    passing: Passing
    line: Callable[[int, str], Line]
    load: Callable[[], Load]
    alone: bool = False
    housekeeper: Housekeeper = field(init=False)
    left: bool = field(default=False, init=False)
    renewed: float = field(default=-math.inf, init=False)
    trusts_leases_from: float = field(default=0.0, init=False)

    def replayed(self, now: float) -> bool:
        """Return whether any process has reported lately that it replays.  ``now`` is seconds since the epoch."""
        return bool(self.store.statistics(now=now).workers)

    def look_for_others(self, environ: Environ) -> None:
        """Warn, once, if the server says that other processes answer too."""
        if environ.get("wsgi.multiprocess"):
            self.alone = False
            log.warning(
                "the store is memory:// and the server speaks of several processes: if it really has them, each "
                "has a line of its own, and answers 404 for the tickets of the others. Use sqlite:///var/admission.db."
            )

    def leases(self) -> None:
        """Renew the leases of what runs here, then look for those that anybody lost.

        After the store was away, or all of this host was stopped, nobody could renew: everybody gets the time to do so
        before anything is taken for lost.  A process that has just started cannot know whether it was so.
        """
        self.pool.renew()
        now = host.clock()  # by which leases are measured: it goes on while the host sleeps
        if now - self.renewed > GAP:
            self.trusts_leases_from = now + GRACE
        self.renewed = now
        if now < self.trusts_leases_from:
            return
        if tickets := self.store.requeue_expired(now=time.time()):
            event(log, "leases.expired", level=logging.WARNING, tickets=tickets)

    def bury(self) -> None:
        """Take back what workers of this host ran that were killed."""
        bury_dead(self.store, self.pool.worker, now=time.time())

    def replay(self) -> None:
        """Begin to replay.  The report comes first: whoever finds this process dead then knows what it ran.

        :raises RuntimeError: when the system has no thread left for it; it can be tried again.
        """
        try:
            self.store.report(self.pool.worker, now=time.time())
        except StoreError as error:
            event(log, "store.failing", level=logging.WARNING, step="report", error=error)
        try:
            self.pool.start()
        except RuntimeError:
            with suppress(StoreError):
                self.store.report(replace(self.pool.worker, threads=0), now=time.time())
            raise
        event(log, "process.started", pid=self.pid, threads=self.pool.worker.threads)

    def report(self) -> None:
        """Say with how many threads this process replays; while it leaves, those that still run a ticket."""
        pool = self.pool
        if pool.started and not self.left:
            # One with no threads would be forgotten, and not be found dead then.
            threads = max(1, pool.worker.threads - pool.runs.stuck) if pool.claims else len(pool.runs.held())
            self.store.report(replace(pool.worker, threads=threads), now=time.time())

    def drain(self, timeout: float) -> None:
        """Let nobody wait here, claim nothing more, and hand back what still runs after ``timeout`` seconds."""
        self.api.readers.leave()
        if self.pool.started:
            self.pool.stop()
            event(log, "process.draining", pid=self.pid, running=len(self.pool.runs.held()), timeout=timeout)
            try:
                self.report()
            finally:
                handed_back = self.pool.drain(timeout)
            event(log, "process.drained", pid=self.pid, handed_back=handed_back)
            self.left = True
            self.store.report(replace(self.pool.worker, threads=0), now=time.time())

    def close(self) -> None:
        """End the threads, hand back what runs, and let go of the store."""
        self.api.readers.leave()
        self.housekeeper.stop()
        try:
            self.drain(0.0)
            self.passing.flush(self.store)
        except StoreError as error:
            event(log, "store.failing", level=logging.WARNING, step="close", error=error)
        self.store.close()


def start_process(
    app: App,
    config: Config,
    identify: Resolver,
    *,
    replays: bool,
    server: Server = Server(),  # noqa: B008 - it is immutable
) -> Process:
    """Open the store and the slots of this process, and start its threads.

    :param replays: whether queued requests run in this process too.
    :param server: what the server in front of this process is like.
    :raises StoreError: when the store or the slots cannot be opened, or something else that the system does not give
        just now; nothing stays open or goes on then.
    """
    logs.use(config.log.format)
    try:
        with ExitStack() as undoing:
            store = open_store(config.store.url, name=config.admission.name, durability=config.store.durability)
            undoing.callback(store.close)
            process = _assemble(app, config, identify, store, server)
            undoing.callback(process.housekeeper.stop)
            process.housekeeper.start()  # first: what is claimed must be renewed
            if replays:
                process.replay()
            undoing.pop_all()
    except (OSError, RuntimeError) as error:
        # Files or threads are used up, say.  Another error reaches the server, and gunicorn ends the whole site.
        raise StoreUnavailable(f"This process lacks something that it needs for the line: {error}.") from error
    return process


def _assemble(app: App, config: Config, identify: Resolver, store: Store, server: Server) -> Process:
    """Make the parts of this process; nothing of it runs yet."""
    slots = open_slots(config)
    options, admission = config.load, config.admission
    meter = LoadMeter(
        threshold=options.threshold,
        resume=options.resume,
        cpu_threshold=options.cpu_threshold,
        memory_threshold=options.memory_threshold,
    )

    def load() -> Load:
        try:
            used = slots.in_use()
        except StoreError:
            used = admission.max_concurrent  # where the kernel cannot lock, none can be taken either
        return meter.load(used, admission.max_concurrent)

    pid = os.getpid()
    worker = Worker(
        id=f"{socket.gethostname()}:{pid}:{uuid.uuid4().hex[:8]}",
        host=host.name(),
        pid=pid,
        threads=admission.worker_threads,
        slots=admission.max_concurrent,
        born=_born(pid),
    )
    deadlines = Deadlines(store, _max_wait(config), reason=messages.expired)
    pool = Pool(
        app,
        store,
        slots,
        worker,
        # Memory above its threshold holds replays back, but the line moves: one still runs.
        memory_short=lambda: load().memory_above,
        max_runtime=_max_runtime(config),
        expire=deadlines.before_claim,
    )
    passing = Passing()
    ranks = {tier.name: rank for rank, tier in enumerate(config.tiers.order)}
    process = Process(
        pid=pid,
        store=store,
        slots=slots,
        api=Api(store, config, identify, load, slots_in_use=slots.in_use, server=server),
        pool=pool,
        passing=passing,
        line=line_reader(store, slots, ranks),
        load=load,
        alone=config.store.url == "memory://",
    )
    process.housekeeper = Housekeeper(_quick_chores(process, meter), _long_chores(process, config, deadlines))
    return process


def _born(pid: int) -> float:
    """Return when this process began, as its reports tell it: 0.0 where that is not to be found out."""
    try:
        return host.born(pid) or 0.0
    except PermissionError:
        return 0.0


def _quick_chores(process: Process, meter: LoadMeter) -> list[Chore]:
    return [
        Chore(SAMPLE_INTERVAL, lambda: meter.sample(time.monotonic())),
        Chore(REPORT_INTERVAL, process.report),
        Chore(TIDY_INTERVAL, lambda: give_up_slow(now=time.monotonic())),
        Chore(PROGRESS_INTERVAL, process.pool.write_progress),
        Chore(TIDY_INTERVAL, process.leases),
        Chore(TIDY_INTERVAL, process.bury),
        Chore(TIDY_INTERVAL, process.pool.look_for_stuck),
    ]


def _long_chores(process: Process, config: Config, deadlines: Deadlines) -> list[Chore]:
    """Return what may take long where the store is large, or there is much to do; leases are renewed meanwhile."""
    store, admission = process.store, config.admission

    def prune() -> object:
        now = time.time()
        removed = store.prune(before=now - admission.retention, now=now)
        return AGAIN if removed >= AT_ONCE else None

    return [
        Chore(TIDY_INTERVAL, lambda: AGAIN if deadlines.expire() else None),
        Chore(TIDY_INTERVAL, lambda: process.passing.flush(store)),
        Chore(TIDY_INTERVAL, lambda: store.maintain(now=time.time())),
        Chore(admission.cleanup_interval, prune),
    ]
