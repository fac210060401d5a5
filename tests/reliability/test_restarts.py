"""A server that is restarted again and again while it is visited."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from tests.reliability.history import Tail, check
from tests.reliability.running import CONFIG, at_the_end, emptied, go_on, visited
from tests.reliability.size import sized
from tests.support import PATIENCE, Server, gunicorn, ini, until

RESTARTS = sized(3, 100)
#: Seconds of a run that a worker which leaves does not wait for.
SLOW = 3.0


def workers(site: Server) -> set[int]:
    """Return the ids of the server's processes but its master."""
    return {process.pid for process in psutil.Process(site.process.pid).children()}


def test_nothing_is_lost_while_the_server_restarts(tmp_path: Path) -> None:
    """Catches: a claim that is left behind, a return that counts as a crash or changes a place, a second answer."""
    history = tmp_path / "history"
    history.touch()
    url = f"sqlite:///{tmp_path}/admission.db"
    config = ini(tmp_path, f"{CONFIG}\n[tiers]\nresolver = tests.reliability.site:who\n")
    with gunicorn(
        tmp_path,
        config,
        settings="graceful_timeout = 4",  # two of them for what runs
        app="tests.reliability.site:app",
        ADMISSION_TEST_HISTORY=str(history),
    ) as site:
        with visited(site, history, slow=SLOW) as visits:
            tail = Tail(history)
            for restart in range(RESTARTS):
                old = until(lambda: len(pids := workers(site)) == 3 and pids, "three processes")
                until(lambda: any(e.get("seconds") == SLOW for e in tail.news()), "a slow run")
                os.kill(site.process.pid, signal.SIGHUP)
                until(lambda: not old & workers(site), f"restart {restart}")  # noqa: B023 - called at once
                go_on(visits, 10)
        totals = emptied(url)
    events = at_the_end(url, history)
    found = check(events)
    assert found.faults == [], found.faults[:10]
    assert found.accepted >= 10 * RESTARTS
    assert any(event["what"] == "releasing" for event in events), "no restart came while something ran for long"
    assert totals["crashed"] == 0, "a worker that left took a run with it"
    assert found.starts - totals["started"] <= RESTARTS, "a quick run was cut off"
    assert visits.longest < PATIENCE
