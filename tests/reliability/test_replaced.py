"""A database that somebody overwrites, empties, deletes or replaces while its site is visited."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability.running import ANSWERED, BACK, CONFIG, go_on, visited
from tests.reliability.size import sized
from tests.support import gunicorn, ini, until
from wsgi_admission.stores.sqlite import SQLiteStore


def overwrite(database: Path) -> None:
    """Leave nothing of the header."""
    with database.open("r+b") as file:
        file.write(random.Random(1).randbytes(100))  # noqa: S311 - repeatable


def junk(database: Path) -> None:
    """Leave nothing at all."""
    with database.open("r+b") as file:
        file.write(random.Random(1).randbytes(10_000))  # noqa: S311 - repeatable
        file.truncate()


def empty(database: Path) -> None:
    """Cut it off."""
    with database.open("r+b") as file:
        file.truncate()


def delete(database: Path) -> None:
    """Remove it, and leave its log."""
    database.unlink()


def replace(database: Path) -> None:
    """Put another one in its place."""
    other = database.with_name("other.db")
    SQLiteStore(other).close()
    other.rename(database)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (empty, "was damaged"),
        (delete, "was removed or replaced"),
        *sized([], [(overwrite, ""), (junk, "was damaged"), (replace, "was removed or replaced")]),
    ],
)
def test_a_database_that_is_taken_away_is_made_anew(tmp_path: Path, how: Callable[[Path], None], told: str) -> None:
    """Catches: a site without a line until it is restarted, a ticket accepted for a file that nobody will find."""
    history = tmp_path / "history"
    history.touch()
    config = ini(tmp_path, f"{CONFIG}\n[tiers]\nresolver = tests.reliability.site:who\n")
    with gunicorn(tmp_path, config, app="tests.reliability.site:app", ADMISSION_TEST_HISTORY=str(history)) as site:

        def completed(ticket: str) -> bool:
            return bool(site.ask(f"/api/queue/status/{ticket}", Who="donor:ann").json().get("status") == "completed")

        with visited(site, history) as visits:
            go_on(visits, 10)
            how(tmp_path / "admission.db")
            until(lambda: told in site.text(), told, BACK)
            visitor = visits.visitor(random.Random(2))  # noqa: S311 - repeatable
            for _ in range(10):
                ticket = until(lambda: visitor.submit("donor:ann"), "a ticket", BACK)
                until(lambda: completed(ticket), "its end")  # noqa: B023 - called at once
        assert visits.longest < ANSWERED
        if told == "was damaged":
            assert "admission.db.damaged-" in str(site.ask("/api/queue/health").json())
