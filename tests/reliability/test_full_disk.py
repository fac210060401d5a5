"""A disk that is full for a while."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.reliability.history import check
from tests.reliability.running import ANSWERED, BACK, CONFIG, at_the_end, emptied, go_on, visited
from tests.reliability.size import sized
from tests.store_model import ROUTES, recording, ticket
from tests.support import gunicorn, ini, until
from wsgi_admission.errors import StoreUnavailable
from wsgi_admission.stores.checkpoints import INTERVAL
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State

ROUNDS = sized(1, 10)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    lack = pytest.fail if os.environ.get("CI") else pytest.skip
    if os.geteuid() != 0:
        lack("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        lack(f"no file system can be mounted: {mounted.stderr!r}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(file: Path) -> None:
    """Leave no byte on the disk."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for block in (1 << 20, 1 << 12, 1):
            while True:
                try:
                    os.write(descriptor, b"x" * block)
                except OSError:
                    break
    finally:
        os.close(descriptor)


def test_a_full_disk_is_survived(tmp_path: Path, small_disk: Path) -> None:
    """Catches: a 202 without a row, a process that dies or hangs, a store that does not come back by itself."""
    history, filler = tmp_path / "history", small_disk / "filler"
    url = f"sqlite:///{small_disk}/admission.db"
    history.touch()
    text = f"{CONFIG}\n[tiers]\nresolver = tests.reliability.site:who\n[store]\nurl = {url}\n"
    with gunicorn(
        tmp_path, ini(tmp_path, text), app="tests.reliability.site:app", ADMISSION_TEST_HISTORY=str(history)
    ) as site:
        with visited(site, history) as visits:
            for number in range(ROUNDS):
                go_on(visits, 10)
                visitor = visits.visitor(random.Random(f"full {number}"))  # noqa: S311 - repeatable
                who, sent = visitor.somebody(), []
                refused = 0
                while refused < 30:
                    fill(filler)  # what the last ticket left over too
                    sent.append(visitor.submit(who))
                    refused += sent[-1] is None
                asked = time.monotonic()
                health = site.ask("/api/queue/health")
                assert time.monotonic() - asked < ANSWERED
                assert health.json()["status"] in {"warning", "degraded"}, health.json()
                filler.unlink()
                until(lambda: visitor.submit(who), "a ticket again", BACK)  # noqa: B023 - called at once
                visitor.look_after([ticket for ticket in sent if ticket is not None], who)
        totals = emptied(url)
        found = check(at_the_end(url, history))
    assert set(visits.statuses) <= {200, 202, 503}, visits.statuses
    assert found.faults == [], found.faults[:10]
    assert totals["crashed"] == 0
    assert visits.longest < ANSWERED


@pytest.mark.parametrize("size", sized([100_000], [1_000, 100_000]))
def test_a_line_that_fills_its_disk_frees_it_when_retention_ends(small_disk: Path, size: int) -> None:
    """Catches: accepted tickets for whose answers there is no room; a line that is shut until somebody makes room."""
    with closing(SQLiteStore(small_disk / "admission.db", durability="normal")) as store:
        with pytest.raises(StoreUnavailable, match="are for what was accepted"):
            fill_with_answers(store, size)
        assert "full" in store.health()
        while end_first(store, size):  # what was accepted is run
            pass
        store.prune(before=10.0, now=10.0)
        store.put(ticket(), recording(), now=10.0)
        assert "full" not in store.health()


def fill_with_answers(store: SQLiteStore, size: int) -> None:
    """Accept and complete tickets, with 20 in the line, until there is no room."""
    for number in itertools.count():
        store.put(ticket(), recording(b"x" * 100), now=1.0)
        if number > 20:
            end_first(store, size)
        if number % 20 == 0:
            store.maintain(now=number * INTERVAL)


def end_first(store: SQLiteStore, size: int) -> bool:
    """Claim a ticket and complete it with so many bytes; return whether there was one."""
    claimed = store.claim("w", now=1.0, lease=30, routes=ROUTES)
    if claimed is not None:
        store.finish(claimed.id, claimed.attempt, State.COMPLETED, recording(b"y" * size), now=2.0)
    return claimed is not None
