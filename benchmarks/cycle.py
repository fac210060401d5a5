"""``cycle``: how many jobs that do nothing go through the line in a second.

The steps of the store (put, claim, request, finish) stand against three bare transactions (insert, claim, complete).
Then the whole path, in one process: requests are recorded, answered with 202, and replayed against the app by the
process's threads, with slots, leases and logging.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from timeit import Timer

from benchmarks.bare import Bare
from benchmarks.harness import Report, interleaved, quiet, times
from benchmarks.site import BODY, ROUTES, environ, middleware, request, sqlite_url, start_response, ticket
from wsgi_admission import AdmissionMiddleware
from wsgi_admission.policy.decision import Mode
from wsgi_admission.replay import Recording
from wsgi_admission.stores import Store, open_store
from wsgi_admission.ticket import State

QUICK = {"turns": 300, "jobs": 100, "repeats": 3}
#: What is measured of the whole path: how many threads replay, and whether all requests wait before they start.
PATHS = {
    "whole path, 1 thread, all wait first": (1, True),
    "whole path, 1 thread, sent meanwhile": (1, False),
    "whole path, 3 threads, all wait first": (3, True),
    "whole path, 3 threads, sent meanwhile": (3, False),
}


def run(*, turns: int = 2000, jobs: int = 200, repeats: int = 11) -> Report:
    """Measure ``turns`` cycles, and the whole path with ``jobs`` requests, ``repeats`` times."""
    rows: list[tuple[str, ...]] = []
    for durability in ("normal", "full"):
        steps = _steps(durability, turns)
        rows += _rows(durability, steps, {"bare": "three bare transactions", "store": "put, claim, request, finish"})
        # The disk of a shared machine is not the same a second later: here too the bare side takes its turns.
        taken: dict[str, list[float]] = {name: [] for name in ("bare", *PATHS)}
        for _ in range(repeats):
            taken["bare"].append(_bare(durability, jobs) / jobs)
            for name, (threads, waiting) in PATHS.items():
                taken[name].append(_whole(durability, threads, jobs, waiting=waiting) / jobs)
        rows += _rows(
            durability, taken, {"bare": "three bare transactions, together", **{name: name for name in PATHS}}
        )
    return Report(
        "cycle: no-op jobs per second, SQLite, requests of 2 KB",
        f"Steps: medians of {turns} single cycles of each side, in turns. Below them, medians of {repeats} repeats with"
        f" {jobs} jobs together, in turns too: the requests either all wait before the threads start, or one thread"
        " sends them while the others run them. The ratios are medians of the ratios within a turn.",
        ("", "jobs/s", "to bare"),
        rows,
    )


def _rows(durability: str, found: dict[str, list[float]], names: dict[str, str]) -> list[tuple[str, ...]]:
    """Return a row for each side: jobs per second, and what that is to the bare side in the same turn."""
    return [
        (
            f"{durability}: {name}",
            f"{1 / median(found[side]):,.0f}",
            times(median(bare / seconds for bare, seconds in zip(found["bare"], found[side], strict=True))),
        )
        for side, name in names.items()
    ]


def _bare(durability: str, jobs: int) -> float:
    """Return the seconds that so many bare cycles take together."""
    with TemporaryDirectory() as folder:
        bare = Bare(Path(folder) / "bare.db", durability, claims=True)
        try:
            return Timer(lambda: bare.cycle(BODY)).timeit(jobs)
        finally:
            bare.close()


def _steps(durability: str, turns: int) -> dict[str, list[float]]:
    with TemporaryDirectory() as folder:
        bare = Bare(Path(folder) / "bare.db", durability, claims=True)
        store = open_store(sqlite_url(Path(folder)), durability=durability)
        recording = request()
        sides = {
            "bare": Timer(lambda: bare.cycle(BODY)),
            "store": Timer(lambda: _cycle(store, recording)),
        }
        try:
            return interleaved(sides, turns=turns, between=lambda: store.maintain(now=time.time()))
        finally:
            store.close()
            bare.close()


def _cycle(store: Store, recording: Recording) -> None:
    now = time.time()
    recording.body.seek(0)
    store.put(ticket(0, now), recording, now=now)
    claimed = store.claim("worker", now=now, lease=30.0, routes=ROUTES)
    assert claimed is not None, "it was put a moment ago"
    store.request(claimed.id).body.close()
    response = Recording('{"status": "200 OK", "headers": [], "method": "POST"}', io.BytesIO(b"done"), 4)
    store.finish(claimed.id, claimed.attempt, State.COMPLETED, response, now=now)


def _whole(durability: str, threads: int, jobs: int, *, waiting: bool) -> float:
    """Return the seconds until all jobs are completed.

    :param waiting: whether all are in the line before the threads start.
    """
    with TemporaryDirectory() as folder:
        url = sqlite_url(Path(folder))
        line = middleware(url, mode=Mode.QUEUE_ALL, threads=threads, durability=durability)
        try:
            process = line.process()
            if waiting:
                _send(line, jobs)
            with quiet():
                start = time.perf_counter()
                process.pool.start()
                if not waiting:
                    _send(line, jobs)
                _wait_until_completed(process.store, jobs)
                return time.perf_counter() - start
        finally:
            line.close()


def _send(line: AdmissionMiddleware, jobs: int) -> None:
    for number in range(jobs):
        for _ in line(environ("POST", f"/{ROUTES[number % len(ROUTES)]}", BODY), start_response):
            pass


def _wait_until_completed(store: Store, jobs: int) -> None:
    while sum(tally.completed for tally in store.counts().values()) < jobs:
        time.sleep(0.002)  # waits for the replay threads
