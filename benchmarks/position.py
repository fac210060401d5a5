"""``position``: what it takes to say where a ticket stands, in a short line and in long ones.

The ticket asked for is the last of the line: an anonymous one, behind 10 % donors and 30 % registered clients.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from timeit import Timer

from benchmarks.harness import Report, interleaved, medians, times, us, verdict
from benchmarks.site import environ, middleware, request, sqlite_url, start_response, ticket
from wsgi_admission import AdmissionMiddleware

LENGTHS = (100, 10_000, 100_000)
QUICK = {"longest": 1000}
#: How much longer it may take in the longest line than in the shortest: caches hold less of it, but nothing is counted.
TARGET = 2.0


def run(*, longest: int = LENGTHS[-1], turns: int = 101) -> Report:
    """Measure every length of `LENGTHS` up to ``longest``, and that."""
    lengths = [length for length in LENGTHS if length < longest] + [longest]
    rows: list[tuple[str, ...]] = []
    for kind in ("sqlite", "memory"):
        with ExitStack() as stack:
            lines = {}
            for length in lengths:
                folder = stack.enter_context(TemporaryDirectory())
                line = middleware(sqlite_url(Path(folder)) if kind == "sqlite" else "memory://")
                stack.callback(line.close)
                lines[length] = (line, _fill(line, length))
            rows += _measure(kind, lines, turns)
    return Report(
        "position: the place of the last ticket, by the length of the line",
        f"Medians of {turns} calls, in turns over lines of all lengths. Target: at most {times(TARGET)} the shortest"
        " line's.",
        ("", *(f"{length:,} queued" for length in lengths), "longest / shortest", "target"),
        rows,
    )


def _fill(line: AdmissionMiddleware, length: int) -> str:
    """Put tickets into the line; return the id of the one that will be claimed last."""
    store, recording, now = line.process().store, request(), time.time()
    last = ("", (0, 0.0, 0))
    for number in range(length):
        recording.body.seek(0)
        put = store.put(ticket(number, now), recording, now=now)
        last = max(last, (put.id, (put.tier_rank, put.start, put.number)), key=lambda pair: pair[1])
    return last[0]


def _measure(kind: str, lines: dict[int, tuple[AdmissionMiddleware, str]], turns: int) -> Sequence[tuple[str, ...]]:
    rows = []
    for what, statement in (("ahead()", "ahead(last)"), ("status view", "line(environ, start_response)")):
        timers = {}
        for length, (line, last) in lines.items():
            store = line.process().store
            assert sum(store.ahead(last).values()) == length - 1, "the last ticket is not the last"
            names = {
                "ahead": store.ahead,
                "last": last,
                "line": line,
                "environ": environ("GET", f"/api/queue/status/{last}"),
                "start_response": start_response,
            }
            timers[str(length)] = Timer(statement, globals=names)
        found = [*medians(interleaved(timers, turns=turns)).values()]
        ratio = found[-1] / found[0]
        rows.append((f"{kind}: {what}", *map(us, found), times(ratio), verdict(met=ratio <= TARGET)))
    return rows
