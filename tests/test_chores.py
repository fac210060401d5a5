"""The housekeeper, with the clock given."""

from __future__ import annotations

import logging
import threading

import pytest

from wsgi_admission.chores import AGAIN, Chore, Housekeeper, tick


def test_a_chore_is_done_at_its_interval_and_a_failing_one_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Catches: chores at another pace; one error that ends the housekeeper; a log line every second."""
    now, done = [0.0], []

    def broken() -> None:
        done.append("broken")
        raise RuntimeError("no disk")

    chores = [Chore(1.0, broken), Chore(2.5, lambda: done.append("b"))]
    waits = []
    with caplog.at_level(logging.ERROR):
        for moment in (0.0, 0.5, 1.0, 2.0, 2.5, 3.0):
            now[0] = moment
            waits.append(tick(chores, clock=lambda: now[0]))
    assert done == ["broken", "b", "broken", "broken", "b", "broken"]
    assert waits == [1.0, 0.5, 1.0, 0.5, 0.5, 1.0]
    assert len(caplog.records) == 1


def test_the_housekeeper_ends_when_told_to() -> None:
    """Catches: a thread that outlives its process's work."""
    ran, too = threading.Event(), threading.Event()
    keeper = Housekeeper([Chore(60.0, ran.set)], [Chore(60.0, too.set)])
    keeper.start()
    assert ran.wait(30)
    assert too.wait(30)
    keeper.stop()
    assert "wsgi-admission-housekeeper" not in {thread.name for thread in threading.enumerate()}


def test_a_chore_that_stopped_halfway_goes_on_after_the_others() -> None:
    """Catches: chores that wait while millions of old tickets are removed."""
    done: list[str] = []
    halves = ["first", "second", "last"]

    def long() -> object:
        done.append(halves.pop(0))
        return AGAIN if halves else None

    chores = [Chore(60.0, long), Chore(0.0, lambda: done.append("other"))]
    assert [tick(chores, clock=lambda: 0.0) for _ in range(4)] == [0.0] * 4
    assert done == ["first", "other", "second", "other", "last", "other", "other"]
