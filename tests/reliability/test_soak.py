"""A site at 70 % load for an hour, or for ``ADMISSION_TEST_SOAK`` seconds."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import linear_regression

import psutil
import pytest

from tests.reliability.running import CONFIG, Visits, emptied
from tests.reliability.size import FULL
from tests.support import gunicorn, ini, until

SECONDS = float(os.environ.get("ADMISSION_TEST_SOAK", "3600"))
SAMPLES = 120
#: Seconds that a run takes, at least and at most, and requests per second: 70 % of what two slots can do.
RUN, RATE = (0.05, 0.15), 14.0
#: Bytes by which the processes may grow in an hour.  What allocators do in minutes says nothing about hours: a shorter
#: run is not judged by it.
GROWTH = 2**20
SITE = CONFIG.replace("max_concurrent = 6", "max_concurrent = 2\nretention = 10s\ncleanup_interval = 2s").replace(
    "mode = queue_all", "mode = auto"
)


def memory(processes: list[psutil.Process]) -> int:
    """Return the bytes that are theirs alone."""
    return sum(process.memory_full_info().uss for process in processes)


def descriptors(processes: list[psutil.Process]) -> tuple[int, int]:
    """Return how many descriptors, and of these how many files, they have open once nobody speaks with them."""

    def spoken_with() -> bool:
        return any(one.status == psutil.CONN_ESTABLISHED for each in processes for one in each.net_connections("tcp"))

    until(lambda: not spoken_with(), "the end of the last connection")
    return sum(each.num_fds() for each in processes), sum(len(each.open_files()) for each in processes)


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
    samples: list[tuple[float, int]] = []
    with (
        gunicorn(
            tmp_path,
            config,
            app="tests.reliability.site:app",
            ADMISSION_TEST_HISTORY=str(history),
            # As docs/deploying.rst advises.
            MALLOC_ARENA_MAX="2",
            MALLOC_MMAP_THRESHOLD_="131072",
            MALLOC_TRIM_THRESHOLD_="131072",
        ) as site,
        ThreadPoolExecutor(32) as threads,
    ):
        visits = Visits(site, history)
        master = psutil.Process(site.process.pid)

        def load(seconds: float) -> None:
            """Send visitors, and see each of them leave."""
            begin = due = time.monotonic()
            sent: list[Future[None]] = []
            while due < begin + seconds:
                time.sleep(max(0.0, due - time.monotonic()))  # the rate is what is measured
                sent.append(threads.submit(visit, visits, dice.getrandbits(64)))
                due += dice.expovariate(RATE)
                if not samples or time.monotonic() >= samples[-1][0] + SECONDS / SAMPLES:
                    samples.append((time.monotonic(), memory(processes)))
            for one in sent:
                one.result()

        list(threads.map(lambda number: visit(visits, -number), range(100)))  # every thread has what it needs
        processes = [master, *master.children()]
        load(SECONDS / 6)
        first = descriptors(processes)
        samples.clear()
        load(SECONDS * 5 / 6)
        second = descriptors(processes)
        assert [master, *master.children()] == processes, "a process was replaced"
        emptied(f"sqlite:///{tmp_path}/admission.db")
        bodies = tmp_path / "admission.db.bodies"
        until(lambda: not [file for file in bodies.rglob("*") if file.is_file()], "the end of the last body")
    per_second = linear_regression(*zip(*samples, strict=True)).slope
    told = f"{per_second * 3600 / 2**20:.2f} MiB/h, descriptors and files {first}, {second}, {dict(visits.statuses)}"
    print(told)  # noqa: T201 - the figures
    assert set(visits.statuses) == {200, 202}, told
    assert SECONDS < 3600 or per_second * 3600 <= GROWTH, told
    assert all(after <= before for after, before in zip(second, first, strict=True)), told
