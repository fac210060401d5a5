"""What an operator sees of a line: the facts of its store as plain data, and that as tables."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from wsgi_admission.config import Config
from wsgi_admission.policy.estimates import human
from wsgi_admission.stores import Store
from wsgi_admission.stores.records import Counts, Worker
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.web.answers import iso
from wsgi_admission.web.outlook import Forecast

#: Running tickets that are shown at most.
RUNNING_SHOWN = 1000


class Table(NamedTuple):
    """A table of texts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def overview(store: Store, config: Config, *, now: float, load: float | None = None) -> dict[str, Any]:
    """Return how the line stands, ready for JSON.  Raises `StoreUnavailable`.

    :param now: seconds since the epoch.
    :param load: the load of a host (0 to 1), which no store knows, or None.
    """
    counts = store.counts()
    tallies = counts.values()
    running = store.listing(State.PROCESSING, limit=RUNNING_SHOWN)
    return {
        "name": config.admission.name,
        "timestamp": iso(now),
        "paused": store.paused(),
        **{state.value: sum(getattr(tally, state.value) for tally in tallies) for state in State},
        "server_load": load,
        "line": list(_line(store, config, counts, len(running), now)),
        "running": [_running(ticket, now) for ticket in running],
        "workers": [_worker(worker, now) for worker in store.statistics(now=now).workers],
    }


def _line(store: Store, config: Config, counts: Counts, slots_in_use: int, now: float) -> Iterable[dict[str, Any]]:
    """Yield a row for each tier and route that has tickets, in the order in which tiers are served.

    The wait is that of a newcomer, behind all of its own and of better tiers.
    """
    forecast = Forecast(store, config, lambda: slots_in_use)
    ranks = {tier.name: rank for rank, tier in enumerate(config.tiers.order)}
    paused = store.paused()
    # A tier that the configuration no longer names keeps an old rank: it is shown first.
    ordered = sorted(counts.items(), key=lambda item: (ranks.get(item[0][0], -1), item[0]))
    for (tier, route), tally in ordered:
        if not tally.queued and not tally.processing:
            continue
        ahead: dict[str, int] = defaultdict(int)
        for (other, name), waiting in counts.items():
            if ranks.get(other, -1) <= ranks.get(tier, -1):
                ahead[name] += waiting.queued
        wait = None if paused else forecast.wait(route, ahead, now=now)
        yield {
            "tier": tier,
            "route": route,
            "queued": tally.queued,
            "processing": tally.processing,
            "estimated_wait_time": None if wait is None else round(wait.p50),
            "estimated_wait_p90": None if wait is None else round(wait.p90),
        }


def _running(ticket: Ticket, now: float) -> dict[str, Any]:
    return {
        "request_id": ticket.id,
        "tier": ticket.tier,
        "route": ticket.route,
        "client": ticket.client,
        "attempt": ticket.attempt,
        "age": round(max(0.0, now - (ticket.started_at or now)), 1),
        "progress": ticket.progress,
        "progress_note": ticket.note,
        "cancelling": ticket.cancelling,
    }


def _worker(worker: Worker, now: float) -> dict[str, Any]:
    return {
        "host": worker.host.partition(":")[0],
        "pid": worker.pid,
        "threads": worker.threads,
        "report_age": round(max(0.0, now - worker.reported), 1) if worker.reported else None,
    }


def headline(data: Mapping[str, Any]) -> str:
    """Return what matters most of an overview, in one line."""
    load = "" if data["server_load"] is None else f"; load {data['server_load']:.0%}"
    counts = ", ".join(f"{data[state.value]} {state.value}" for state in State)
    return f"line {data['name']}{' (PAUSED)' if data['paused'] else ''}: {counts}{load}"


def tables(data: Mapping[str, Any]) -> list[Table]:
    """Return the tables of an overview: the line, what runs, the workers."""
    return [
        Table(
            ("tier", "route", "queued", "processing", "wait", "wait, 9 of 10"),
            [
                (
                    *_texts(row, "tier", "route", "queued", "processing"),
                    _seconds(row["estimated_wait_time"]),
                    _seconds(row["estimated_wait_p90"]),
                )
                for row in data["line"]
            ],
        ),
        Table(
            ("ticket", "tier", "route", "client", "attempt", "age", "progress"),
            [
                (
                    row["request_id"][:8],
                    *_texts(row, "tier", "route", "client", "attempt"),
                    _seconds(row["age"]),
                    _progress(row),
                )
                for row in data["running"]
            ],
        ),
        Table(
            ("worker", "pid", "threads", "reported"),
            [(*_texts(row, "host", "pid", "threads"), f"{_seconds(row['report_age'])} ago") for row in data["workers"]],
        ),
    ]


def plain(data: Mapping[str, Any]) -> str:
    """Return an overview as text."""
    return "\n\n".join([headline(data), *("\n".join(_aligned(table)) for table in tables(data))])


def _aligned(table: Table) -> Iterable[str]:
    lines = [table.columns, *(table.rows or [["none"]])]
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(table.columns))]
    for line in lines:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=False)).rstrip()


def _texts(row: Mapping[str, Any], *names: str) -> list[str]:
    """Return the values as text that cannot steer a terminal."""
    return ["".join(c if c.isprintable() else "?" for c in str(row[name])) for name in names]


def _seconds(seconds: float | None) -> str:
    return "?" if seconds is None else human(seconds)


def _progress(row: Mapping[str, Any]) -> str:
    if row["cancelling"]:
        return "to be cancelled"
    return "" if row["progress"] is None else f"{math.floor(row['progress'] * 100)} %"
