"""Runs that take longer than their route's ``max_runtime``, with the clock given."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import until
from tests.test_workers import Floor
from wsgi_admission.errors import StoreUnavailable
from wsgi_admission.ticket import State, Ticket


@pytest.fixture
def floor() -> Iterator[Floor]:
    """Four threads, one slot; images may run for 10 s."""
    made = Floor(threads=4, slots=1, max_runtime={"image": 10.0})
    yield made
    made.go.set()
    made.pool.drain(30)


def test_a_run_that_takes_too_long_is_reported_once_and_the_line_moves_on(
    floor: Floor, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a hung request that holds its slot for ever; a run cut off too early; an answer thrown away."""
    first, second = floor.put("first"), floor.put("second")
    floor.pool.start()
    until(lambda: floor.started == ["first"], "the first start")
    floor.seconds += 9.9
    floor.pool.look_for_stuck()
    assert (floor.pool.runs.stuck, caplog.text) == (0, "")
    floor.seconds += 0.1
    with caplog.at_level(logging.WARNING):
        floor.pool.look_for_stuck()
        until(lambda: floor.started == ["first", "second"], "the second start", 10)
        floor.pool.look_for_stuck()
    (record,) = caplog.records
    assert record.getMessage() == (f"ticket.stuck ticket={first.id[:8]} route=image attempt=1 seconds=10")
    assert (floor.pool.runs.stuck, floor.pool.runs.busy, floor.pool.runs.mostly_stuck) == (1, 1, False)
    floor.go.set()
    until(lambda: floor.state(first) is floor.state(second) is State.COMPLETED, "both ends")
    until(lambda: not floor.pool.runs.held() and floor.slots.in_use() == 0, "rest")
    assert floor.pool.runs.stuck == 0


def test_the_slot_of_the_route_is_free_too() -> None:
    """Catches: a route with a limit of its own that stands still behind one hung run."""
    floor = Floor(threads=2, slots=5, limits={"image": 1}, max_runtime={"image": 10.0})
    floor.put("first")
    floor.put("second")
    floor.pool.start()
    until(lambda: floor.started, "the first start")
    floor.seconds += 10
    floor.pool.look_for_stuck()
    until(lambda: len(floor.started) == 2, "the second start", 10)
    floor.go.set()
    floor.pool.drain(30)


def test_a_route_without_a_limit_runs_as_long_as_it_takes(floor: Floor) -> None:
    """Catches: the limit of another route, or one that nobody set."""
    floor.put("film", route="video")
    floor.pool.start()
    until(lambda: floor.started, "the start")
    floor.seconds += 1e6
    floor.pool.look_for_stuck()
    assert floor.pool.runs.stuck == 0
    assert floor.slots.in_use() == 1


def test_a_pool_of_which_more_than_half_is_stuck_says_so_once(floor: Floor, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a process that is recycled at half, or never; an error every second."""
    for number in range(4):
        floor.put(str(number))
    floor.pool.start()
    for stuck, mostly in ((1, False), (2, False), (3, True), (4, True)):
        until(lambda: len(floor.started) == stuck, "the next start")  # noqa: B023 - called at once
        floor.seconds += 10
        floor.pool.look_for_stuck()
        assert (floor.pool.runs.stuck, floor.pool.runs.mostly_stuck) == (stuck, mostly)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["process.stuck stuck=3 threads=4"]


def test_what_is_stuck_counts_as_a_crash_when_the_process_leaves_and_is_not_waited_for() -> None:
    """Catches: a hung request run again after every deploy for ever; a deploy that waits for it; others counted too."""
    floor = Floor(threads=3, slots=3, max_runtime={"image": 10.0, "video": 1000.0})
    once, again, other = floor.put("once", crash_retries=0), floor.put("again"), floor.put("film", route="video")
    floor.pool.start()
    until(lambda: len(floor.started) == 3, "all starts")
    floor.seconds += 10
    floor.pool.look_for_stuck()
    leaving = threading.Thread(target=lambda: floor.pool.drain(3600))
    leaving.start()
    leaving.join(0.2)
    assert leaving.is_alive(), "the film has its time"
    floor.seconds += 1000
    floor.pool.look_for_stuck()
    leaving.join(30)
    assert not leaving.is_alive()
    ends = [floor.store.get(ticket.id) for ticket in (once, again, other)]
    assert [(end.state, end.crashes) for end in ends] == [(State.FAILED, 1), (State.QUEUED, 1), (State.QUEUED, 1)]
    floor.go.set()


def test_what_is_not_stuck_is_handed_back_beside_what_is() -> None:
    """Catches: a run that did nothing wrong, counted as a crash because of its neighbour."""
    floor = Floor(threads=2, slots=2, max_runtime={"image": 10.0})
    hung, film = floor.put("hung"), floor.put("film", route="video", crash_retries=0)
    floor.pool.start()
    until(lambda: len(floor.started) == 2, "both starts")
    floor.seconds += 10
    floor.pool.look_for_stuck()
    assert floor.pool.drain(0) == 2
    ends = [floor.store.get(ticket.id) for ticket in (hung, film)]
    assert [(end.state, end.crashes) for end in ends] == [(State.QUEUED, 1), (State.FAILED, 0)]
    floor.go.set()


def test_an_answer_that_the_store_does_not_take_yet_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: processes recycled, and answers thrown away, because the store was away for some minutes."""
    floor = Floor(threads=1, max_runtime={"image": 10.0})
    finish, asked, back = floor.store.finish, threading.Event(), threading.Event()

    def failing(*args: Any, **keys: Any) -> Ticket:
        asked.set()
        if not back.is_set():
            raise StoreUnavailable("The disk is full.")
        return finish(*args, **keys)

    monkeypatch.setattr(floor.store, "finish", failing)
    floor.go.set()
    ticket = floor.put()
    floor.pool.start()
    assert asked.wait(30)
    floor.seconds += 100
    floor.pool.look_for_stuck()
    assert floor.pool.runs.stuck == 0
    back.set()
    until(lambda: floor.state(ticket) is State.COMPLETED, "the end")
    floor.pool.drain(30)
