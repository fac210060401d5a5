"""The figures of the line as JSON: what is so now, what has been since the store began, and whether all is well."""

from __future__ import annotations

import logging
from typing import Any

from wsgi_admission.config import Config
from wsgi_admission.errors import StoreError
from wsgi_admission.load import Load
from wsgi_admission.logs import event
from wsgi_admission.stores import Store
from wsgi_admission.stores.records import RATE_MINUTES, Statistics
from wsgi_admission.web.answers import iso

log = logging.getLogger("wsgi_admission.health")

#: Load and queued tickets above which the health is "warning", and above which it is "degraded".
WARNING = (0.7, 50)
DEGRADED = (0.9, 100)


def summary(store: Store, config: Config, load: Load, *, now: float) -> dict[str, Any]:
    """Return the counts and averages of the whole line.

    Times are in seconds, averaged since the store began over the tickets that were started, and over the runs that
    came to their end.  The throughput is tickets ended per minute over the last `RATE_MINUTES` minutes.
    ``total_requests`` counts every matching request, also those that ran at once.
    """
    counts = store.counts()
    tallies = counts.values()
    started = sum(tally.started for tally in tallies)
    ran = sum(tally.ran for tally in tallies)
    lengths = {"high_priority": 0, "medium_priority": 0, "low_priority": 0}
    priorities = {tier.name: tier.priority for tier in config.tiers.order}
    for (tier, _), tally in counts.items():
        lengths[f"{priorities.get(tier, 'low')}_priority"] += tally.queued
    return {
        "total_requests": sum(tally.accepted + tally.passed for tally in tallies),
        "queued_requests": sum(tally.queued for tally in tallies),
        "processing_requests": sum(tally.processing for tally in tallies),
        "completed_requests": sum(tally.completed for tally in tallies),
        "failed_requests": sum(tally.failed for tally in tallies),
        "cancelled_requests": sum(tally.cancelled for tally in tallies),
        "passed_requests": sum(tally.passed for tally in tallies),
        "shadowed_requests": sum(tally.shadowed for tally in tallies),
        "average_wait_time": round(sum(tally.wait_seconds for tally in tallies) / started, 3) if started else 0.0,
        "average_processing_time": round(sum(tally.run_seconds for tally in tallies) / ran, 3) if ran else 0.0,
        "queue_throughput": round(store.statistics(now=now).completions / RATE_MINUTES, 3),
        "server_load": round(load.value, 4),
        "queue_lengths": lengths,
        "max_concurrent_requests": config.admission.max_concurrent,
    }


def health(store: Store, config: Config, load: Load, slots_in_use: int, *, now: float) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the state of this node.

    It is 503 only when new work can be neither run nor kept: the store does not answer and no slot is free.
    """
    limit = config.admission.max_concurrent
    checks: dict[str, Any] = {
        "load": {"readings": {name: round(value, 4) for name, value in load.readings.items()}, **_failed(load)},
        "slots": {"status": "ok", "in_use": slots_in_use, "limit": limit},
    }
    queued = processing = 0
    paused = False
    try:
        tallies = store.counts().values()
        queued = sum(tally.queued for tally in tallies)
        processing = sum(tally.processing for tally in tallies)
        # Anybody may ask for the health; where the store lies on this machine is nobody's business.
        checks["store"] = {"status": "ok", **{name: fact for name, fact in store.health().items() if name != "path"}}
        if "full" in checks["store"]:
            checks["store"]["status"] = "failing"  # nothing new is kept
        checks["workers"] = _workers(store.statistics(now=now))
        paused = store.paused()
        checks["paused"] = {"status": "paused" if paused else "ok"}
    except StoreError as error:
        event(log, "store.failing", level=logging.WARNING, step="health", error=error)
        checks["store"] = {"status": "failing"}
    failing = checks["store"]["status"] != "ok"
    status = "healthy"
    if load.value > DEGRADED[0] or queued > DEGRADED[1] or failing:
        status = "degraded"
    elif load.value > WARNING[0] or queued > WARNING[1] or paused or "damaged" in checks["store"]:
        status = "warning"
    data = {
        "status": status,
        "server_load": round(load.value, 4),
        "queue_length": queued,
        "processing_requests": processing,
        "timestamp": iso(now),
        "checks": checks,
    }
    return 503 if failing and slots_in_use >= limit else 200, data


def _failed(load: Load) -> dict[str, Any]:
    # Anybody may ask: why they fail is in the log.
    return {"status": "partial", "failed": dict.fromkeys(load.failed, "failing")} if load.failed else {"status": "ok"}


def _workers(statistics: Statistics) -> dict[str, Any]:
    threads = sum(worker.threads for worker in statistics.workers)
    return {"status": "ok" if threads else "none", "processes": len(statistics.workers), "threads": threads}
