"""What the stores count, are told and tell, and how long they remember."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    :param late: finishes that were refused because their attempt was over.
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
    late: int = 0


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
    :param failures: those of ``completions`` that failed.
    :param cancellations: tickets that ended cancelled.
    """

    minute: int
    tier: str
    route: str
    arrivals: int
    completions: int
    failures: int = 0
    cancellations: int = 0


@dataclass(frozen=True)
class Worker:
    """A process that replays, as it last reported.

    :param id: unique for each start of a process.
    :param host: names the machine and its boot.
    :param pid: process id on that machine.
    :param threads: replay threads it runs.
    :param slots: ``max_concurrent`` of its host.
    :param born: when the process began, in seconds since the boot of its host, so that another one that got the
        same pid is not taken for it; 0 if not known.
    :param reported: when it reported last, in seconds since the epoch; set by the store.
    """

    id: str
    host: str
    pid: int
    threads: int
    slots: int
    born: float = 0.0
    reported: float = field(default=0.0, compare=False)


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
#: Tickets after which pruning, or cancelling what has waited for too long, may pause.
AT_ONCE = 2000
#: Seconds for which the id of a removed ticket is remembered, to tell 410 from 404.
REMEMBER_GONE = 30 * 24 * 3600.0
#: Ids of removed tickets that a store in memory remembers at most, the latest; about 240 bytes each in Redis.
GONE_KEPT = 100_000
