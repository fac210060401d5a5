"""A site at 70 % load for an hour, or for ``ADMISSION_TEST_SOAK`` seconds."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import linear_regression
from typing import NamedTuple

import psutil
import pytest

from tests.reliability.running import CONFIG, Visits, emptied
from tests.reliability.size import FULL
from tests.support import gunicorn, ini, until

SECONDS = float(os.environ.get("ADMISSION_TEST_SOAK", "3600"))
SAMPLES = 120
#: Seconds that a run takes, at least and at most, and requests per second: 70 % of what two slots can do.
RUN, RATE = (0.05, 0.15), 14.0
#: Bytes by which the processes may grow in an hour.  What allocators do in minutes says nothing about hours, so that a
#: shorter run may grow by as much in its own time.
GROWTH = 2**20
SITE = CONFIG.replace("max_concurrent = 6", "max_concurrent = 2\nretention = 10s\ncleanup_interval = 2s").replace(
    "mode = queue_all", "mode = auto"
)


class Sample(NamedTuple):
    """What the processes of the server had together."""

    at: float
    memory: int
    descriptors: int
    files: int


def sample(processes: list[psutil.Process]) -> Sample:
    """Look at the processes; memory is what is theirs alone."""
    return Sample(
        time.monotonic(),
        sum(process.memory_full_info().uss for process in processes),
        sum(process.num_fds() for process in processes),
        sum(len(process.open_files()) for process in processes),
    )


def visit(visits: Visits, number: int) -> None:
    """Send one request and look after it later."""
    dice = random.Random(f"soak {number}")  # noqa: S311 - repeatable
    visitor = visits.visitor(dice, seconds=RUN, routes=["/twice"])
    who = visitor.somebody()
    ticket = visitor.submit(who)
    if ticket is not None:
        time.sleep(0.5)  # does not ask all the time
        visitor.look_after([ticket], who)


@pytest.mark.skipif(not FULL, reason="takes an hour: make reliability")
def test_an_hour_at_70_percent_leaves_nothing_behind(tmp_path: Path) -> None:
    """Catches: memory, descriptors or files that grow with every request."""
    history, dice = tmp_path / "history", random.Random("soak")  # noqa: S311 - repeatable
    config = ini(tmp_path, f"{SITE}\n[tiers]\nresolver = tests.reliability.site:who\n")
    samples: list[Sample] = []
    with (
        gunicorn(
            tmp_path,
            config,
            app="tests.reliability.site:app",
            ADMISSION_TEST_HISTORY=str(history),
            MALLOC_ARENA_MAX="2",  # as docs/deploying.rst advises
        ) as site,
        ThreadPoolExecutor(32) as threads,
    ):
        visits = Visits(site, history)
        list(threads.map(lambda number: visit(visits, -number), range(100)))  # every thread has what it needs
        master = psutil.Process(site.process.pid)
        processes = [master, *master.children()]
        begin = due = time.monotonic()
        sent: list[Future[None]] = []
        while due < begin + SECONDS:
            time.sleep(max(0.0, due - time.monotonic()))  # the rate is what is measured
            sent.append(threads.submit(visit, visits, len(sent)))
            due += dice.expovariate(RATE)
            if time.monotonic() >= begin + len(samples) * SECONDS / SAMPLES:
                samples.append(sample(processes))
        for one in sent:
            one.result()
        assert [master, *master.children()] == processes, "a process was replaced"
        emptied(f"sqlite:///{tmp_path}/admission.db")
        bodies = tmp_path / "admission.db.bodies"
        until(lambda: not [file for file in bodies.rglob("*") if file.is_file()], "the end of the last body")
    assert set(visits.statuses) == {200, 202}, visits.statuses
    flat(samples[SAMPLES // 6 :])


def flat(samples: list[Sample]) -> None:
    """See that nothing grows."""
    per_second = linear_regression([one.at for one in samples], [one.memory for one in samples]).slope
    half = len(samples) // 2
    least = [[min(one[field] for one in part) for part in (samples[:half], samples[half:])] for field in (2, 3)]
    print(f"{per_second * 3600 / 2**20:.2f} MiB/h, least descriptors and files by halves: {least}")  # noqa: T201 - the figures
    assert per_second * min(SECONDS, 3600.0) <= GROWTH, f"{per_second * 3600 / 2**20:.2f} MiB/h"
    # What requests hold for a moment comes and goes; what leaks is never given back.
    for first, second in least:
        assert second <= first, least
