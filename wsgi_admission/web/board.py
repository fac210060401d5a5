"""What the dashboard shows, as plain data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wsgi_admission.config import Config
from wsgi_admission.load import Load
from wsgi_admission.stores import Store
from wsgi_admission.stores.records import RATE_MINUTES, Minute
from wsgi_admission.ticket import State
from wsgi_admission.web.overview import overview

#: Minutes that are shown.
MINUTES = 60
#: Tickets that failed last and are shown, and how old they may be in seconds.
FAILURES, FAILED_WITHIN = 10, 3600.0


def board(store: Store, config: Config, load: Load, slots_in_use: int, *, now: float) -> dict[str, Any]:
    """Return what is so now, and what the last hour was like.  Raises `StoreUnavailable`.

    :param load: the load of this host; the line is that of all hosts.
    :param now: seconds since the epoch.
    """
    data = overview(store, config, now=now, load=round(load.value, 4))
    statistics = store.statistics(now=now)
    outstanding = {key: tally.queued + tally.processing for key, tally in store.counts().items()}
    return {
        **data,
        "tiers": [{"name": tier.name, "priority": tier.priority} for tier in config.tiers.order],
        "mode": config.admission.mode.value,
        "sensors": sensors(config, load),
        "slots": {"in_use": slots_in_use, "limit": config.admission.max_concurrent},
        "throughput": round(statistics.completions / RATE_MINUTES, 2),
        "history": history(store.minutes(since=now - MINUTES * 60.0), outstanding, now=now),
        "run_times": [
            {"route": route, "p50": _quantile(seconds, 0.5), "p90": _quantile(seconds, 0.9)}
            for route, seconds in sorted(statistics.run_times.items())
            if seconds
        ],
        "failures": [
            {
                "request_id": ticket.id,
                "route": ticket.route,
                "age": round(max(0.0, now - (ticket.completed_at or now))),
                "error": ticket.error,
            }
            for ticket in store.listing(State.FAILED, limit=FAILURES)
            if now - (ticket.completed_at or 0.0) < FAILED_WITHIN
        ],
    }


def sensors(config: Config, load: Load) -> list[dict[str, Any]]:
    """Return each sensor with its reading (0 to 1; None when it gives none) and its threshold."""
    options = config.load
    thresholds = {"cpu": options.cpu_threshold, "memory": options.memory_threshold}
    return [
        {
            "name": name,
            "reading": None if name not in load.readings else round(load.readings[name], 4),
            "threshold": options.threshold if (own := thresholds.get(name)) is None else own,
            "failing": name in load.failed,
        }
        for name in dict.fromkeys([*load.readings, *load.failed])
    ]


def history(minutes: Iterable[Minute], outstanding: Mapping[tuple[str, str], int], *, now: float) -> dict[str, Any]:
    """Return the last `MINUTES` minutes: what came and went in each, and what was in the line at its end.

    What is in the line now is known, and what came and went since; so what was there before follows.  It counts
    what waits and what runs.

    :param outstanding: (tier, route) -> tickets that wait or run now.
    """
    last = int(now // 60)
    first = last - MINUTES + 1
    flows: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * MINUTES)
    sums = {name: [0] * MINUTES for name in ("arrivals", "completions", "failures", "cancellations")}
    for one in minutes:
        if not first <= one.minute <= last:
            continue
        flows[one.tier, one.route][one.minute - first] += one.arrivals - one.completions - one.cancellations
        for name, counted in sums.items():
            counted[one.minute - first] += getattr(one, name)
    line = []
    for tier, route in sorted({*flows, *(key for key, number in outstanding.items() if number)}):
        at_end = [0] * MINUTES
        number = outstanding.get((tier, route), 0)
        for minute in reversed(range(MINUTES)):
            at_end[minute] = max(0, number)
            number -= flows[tier, route][minute]
        line.append({"tier": tier, "route": route, "numbers": at_end})
    return {"first_minute": first, "line": line, **sums}


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[math.ceil(share * len(ordered)) - 1], 2)
