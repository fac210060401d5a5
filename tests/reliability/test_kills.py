"""Processes that are killed at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.reliability.history import Tail, check
from tests.reliability.running import CONFIG, at_the_end, emptied, line_of
from tests.reliability.size import sized
from tests.support import PATIENCE, ROOT, ini, until

NODES = 4
TICKETS = sized(150, 5000)
KILLS = sized(8, 200)


class Nodes:
    """Processes on one store, and what they have written so far."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self._config = ini(folder, f"{CONFIG}\n[store]\nurl = {url}\n")
        self._started = 0
        self._history = folder / "history"
        self._history.touch()
        self._tail = Tail(self._history)
        self._known: Counter[str] = Counter()
        self.up: set[int] = set()

    def start(self) -> None:
        """Start one more."""
        self._started += 1
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "ADMISSION_TEST_HISTORY": str(self._history)}
        command = [sys.executable, "-m", "tests.reliability.site", str(self._config), str(self._started), "2"]
        with (self.folder / "output").open("ab") as output:
            process = subprocess.Popen(command, env=environ, stdout=output, stderr=output)
        self.running[process.pid] = process

    def kill(self, pid: int) -> None:
        """Kill one."""
        process = self.running.pop(pid)
        self.up.discard(pid)
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL, self.output()

    def known(self, what: str = "") -> int:
        """Return how many events of this kind there are by now; of all kinds without one, or that tell a position."""
        for event in self._tail.news():
            self._known.update({event["what"]: 1, "": 1, "position": event.get("position") is not None})
            if event["what"] == "up":
                self.up.add(event["pid"])
        return self._known[what]

    def output(self) -> str:
        """Return what the nodes printed."""
        return (self.folder / "output").read_text(errors="replace")[-20000:]


@contextmanager
def nodes(folder: Path, url: str) -> Iterator[Nodes]:
    """Start the nodes; end them, and kill those that do not."""
    started = Nodes(folder, url)
    try:
        for _ in range(NODES):
            started.start()
        yield started
    finally:
        for process in started.running.values():
            process.kill()
            process.wait()


def reached(site: Nodes, goal: int) -> bool:
    """Whether there are so many events, and a node that can be killed."""
    return site.known() >= goal and bool(site.up)


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where the line is."""
    with line_of(request.param, tmp_path) as found:
        yield found


def test_what_was_accepted_is_kept_whoever_is_killed(tmp_path: Path, url: str) -> None:
    """Catches: a 202 before the commit, a claim in two steps, a second run too many, a crash that changes a place."""
    dice = random.Random(f"kills {KILLS}")  # noqa: S311 - repeatable
    with nodes(tmp_path, url) as site:
        for kill in range(KILLS):
            goal = site.known() + dice.randrange(1, 2 * TICKETS // KILLS * 8)
            until(partial(reached, site, goal), f"what comes before kill {kill}")
            site.kill(dice.choice(sorted(site.up)))
            site.start()
        until(lambda: site.known("accepted") >= TICKETS, "the last ticket", 10 * PATIENCE)
        until(lambda: site.known("position") > TICKETS, "the last position", 10 * PATIENCE)
        (tmp_path / "enough").touch()
        totals = emptied(url)
        (tmp_path / "over").touch()
        for process in site.running.values():
            assert process.wait(PATIENCE) == 0, site.output()
        events = at_the_end(url, tmp_path / "history")
    found = check(events)
    assert found.faults == [], found.faults[:10]
    assert found.accepted >= TICKETS
    assert found.orders >= TICKETS
    assert found.positions > TICKETS
    assert totals["crashed"] > 0, "no kill hit a run"
    assert totals["late"] == 0, "nobody was taken for dead who lived"
