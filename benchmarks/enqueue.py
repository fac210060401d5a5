"""``enqueue``: what it takes until a request is durably in the line.

One side is the store's ``put`` of a request of 2 KB, with its rank, its client's share and its tallies; the other is
one bare INSERT of the same body in a transaction of its own, at the same durability on the same file system.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from timeit import Timer

from benchmarks.bare import Bare
from benchmarks.harness import Report, interleaved, medians, percentile, times, us, verdict
from benchmarks.site import BODY, request, sqlite_url, ticket
from wsgi_admission.stores import Store, open_store

QUICK = {"turns": 1000}
#: Durability -> how many times a bare insert the put may take.
TARGETS = {"normal": 2.5, "full": 1.5}


def run(*, turns: int = 5000) -> Report:
    """Measure ``turns`` puts and inserts at each durability."""
    rows = []
    for durability, limit in TARGETS.items():
        with TemporaryDirectory() as folder:
            bare = Bare(Path(folder) / "bare.db", durability, claims=False)
            store = open_store(sqlite_url(Path(folder)), durability=durability)
            try:
                found = _measure(bare, store, turns)
            finally:
                store.close()
                bare.close()
        middle = medians(found)
        ratio = middle["put"] / middle["bare"]
        for side, seconds in found.items():
            cells = (us(middle[side]), us(percentile(seconds, 99)), us(max(seconds)))
            judged = (times(ratio), times(limit), verdict(met=ratio <= limit)) if side == "put" else ("", "", "")
            rows.append((f"{durability}: {side}", *cells, *judged))
    return Report(
        "enqueue: one request of 2 KB into the line, against a bare INSERT of the same body",
        f"{turns} single calls of each, in turns; the store carries its log over between them, as its housekeeper"
        " does, and the bare side within an insert now and then, as SQLite does by itself.",
        ("SQLite", "p50", "p99", "max", "ratio of p50", "at most", "target"),
        rows,
    )


def _measure(bare: Bare, store: Store, turns: int) -> dict[str, list[float]]:
    recording, now = request(), time.time()
    tickets = iter([ticket(number, now) for number in range(turns + 1)])
    names = {"put": store.put, "tickets": tickets, "request": recording, "body": recording.body, "now": now}
    sides = {
        "bare": Timer("insert(content)", globals={"insert": bare.insert, "content": BODY}),
        "put": Timer("body.seek(0); put(next(tickets), request, now=now)", globals=names),
    }
    return interleaved(sides, turns=turns, between=lambda: store.maintain(now=time.time()))
