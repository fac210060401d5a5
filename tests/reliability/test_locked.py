"""A database that another process keeps locked for long."""

from __future__ import annotations

import random
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from tests.reliability.history import check
from tests.reliability.running import ANSWERED, BACK, CONFIG, Visits, at_the_end, emptied, go_on, visited
from tests.reliability.size import sized
from tests.support import gunicorn, ini

ROUNDS = sized(1, 10)
#: Seconds for which the file stays locked.
LOCKED = sized(5.0, 10.0)
#: Visitors who come again and again meanwhile, and how many of them are answered per second, at least: if all waited
#: for the file there were four.
CROWD, ANSWERS = 8, 20


def crowd(visits: Visits, seconds: float) -> None:
    """Send requests for so long, and see that none is queued and that hardly any waits."""
    end = time.monotonic() + seconds

    def submit(number: int) -> int:
        visitor, sent = visits.visitor(random.Random(number)), 0  # noqa: S311 - repeatable
        while time.monotonic() < end:
            assert visitor.submit("donor:crowd") is None, "a 202 without a store"
            sent += 1
        return sent

    with ThreadPoolExecutor(CROWD) as threads:
        assert sum(threads.map(submit, range(CROWD))) >= ANSWERS * seconds


def test_a_file_that_stays_locked_holds_nobody_for_long(tmp_path: Path) -> None:
    """Catches: requests that wait one after the other, answers that are lost, a store that does not come back."""
    history, url = tmp_path / "history", f"sqlite:///{tmp_path}/admission.db"
    history.touch()
    config = ini(tmp_path, f"{CONFIG}\n[tiers]\nresolver = tests.reliability.site:who\n")
    with gunicorn(tmp_path, config, app="tests.reliability.site:app", ADMISSION_TEST_HISTORY=str(history)) as site:
        with visited(site, history) as visits:
            for _ in range(ROUNDS):
                go_on(visits, 10)
                with closing(sqlite3.connect(tmp_path / "admission.db", isolation_level=None, timeout=30)) as other:
                    other.execute("BEGIN IMMEDIATE")
                    crowd(visits, LOCKED)
                    assert site.ask("/api/queue/health").status == 200
                go_on(visits, 1, BACK)
        totals = emptied(url)
        found = check(at_the_end(url, history))
    assert set(visits.statuses) <= {200, 202, 503}, visits.statuses
    assert visits.statuses[200] > 0, "none ran at once"
    assert found.faults == [], found.faults[:10]
    assert totals["crashed"] == 0
    assert visits.longest < ANSWERED
