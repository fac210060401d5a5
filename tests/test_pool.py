"""How the threads of a pool hear of work and leave it, without a look at the line now and then to help them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import until
from tests.test_workers import Floor
from wsgi_admission.ticket import State, Ticket

#: Shorter than the interval of the looks here, so that only news can be in time.
SOON = 10.0


@pytest.fixture(autouse=True)
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let idle threads wait for news alone."""
    monkeypatch.setattr("wsgi_admission.workers.LOOK_INTERVAL", 3600.0)


@pytest.fixture
def made() -> Iterator[list[Floor]]:
    """Floors to drain at the end."""
    floors: list[Floor] = []
    yield floors
    for floor in floors:
        floor.go.set()
        floor.pool.drain(30)


def all_idle(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the pool, and wait until each of its threads has looked at the empty line."""
    looked: set[int] = set()
    counts = floor.store.counts

    def look() -> Any:
        found = counts()
        looked.add(threading.get_ident())
        return found

    with monkeypatch.context() as patch:
        patch.setattr(floor.store, "counts", look)
        floor.pool.start()
        until(lambda: len(looked) == floor.pool.worker.threads, "the first look of each thread")


def test_one_piece_of_news_is_enough_for_a_burst(made: list[Floor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: threads that stay idle beside a line, because many tickets came and only one thread was told."""
    floor = Floor(threads=4)
    made.append(floor)
    all_idle(floor, monkeypatch)
    for number in range(4):
        floor.put(str(number))
    floor.pool.wake()
    until(lambda: floor.together == 4, "the use of all threads", SOON)


def test_one_look_is_enough_for_what_another_process_has_put(
    made: list[Floor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: threads of a process that only replays, and so hears no news, idle beside a line until they look."""
    own, rest = threading.Event(), threading.Event()
    running: list[str] = []

    def app(env: dict[str, Any], start_response: Any) -> list[bytes]:
        running.append(env["QUERY_STRING"])
        assert (own if env["QUERY_STRING"] == "own" else rest).wait(30)
        start_response("200 OK", [])
        return [b""]

    floor = Floor(threads=2, app=app)
    made.append(floor)
    all_idle(floor, monkeypatch)
    floor.put("own")
    floor.pool.wake()
    until(lambda: running == ["own"], "the first run")
    counts, looked = floor.store.counts, threading.Event()

    def look() -> Any:
        found = counts()
        looked.set()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(floor.store, "counts", look)
        floor.pool.wake()
        assert looked.wait(30)  # the second thread has found nothing
    for query in ("foreign 1", "foreign 2"):
        floor.put(query)
    own.set()  # the first thread goes on to the next ticket, and nobody else has told of them
    try:
        until(lambda: len(running) == 3, "the use of both threads", SOON)
    finally:
        rest.set()


def test_threads_claim_one_after_the_other(made: list[Floor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: two tickets leased for the one slot of their route, so that one goes back with an attempt less."""
    floor = Floor(threads=2, limits={"image": 1})
    made.append(floor)
    all_idle(floor, monkeypatch)
    claim, claiming, both, go_on = floor.store.claim, threading.Event(), threading.Event(), threading.Event()

    def slow(*args: Any, **keys: Any) -> Ticket | None:
        if claiming.is_set():
            both.set()
        claiming.set()
        assert go_on.wait(30)
        return claim(*args, **keys)

    monkeypatch.setattr(floor.store, "claim", slow)
    tickets = [floor.put() for _ in range(2)]
    floor.pool.wake()
    assert claiming.wait(30)
    floor.pool.wake()
    both.wait(0.2)  # a second claim at the same time would be here
    go_on.set()
    until(lambda: floor.together == 1, "the first run")
    assert [floor.store.get(ticket.id).attempt for ticket in tickets] == [1, 0]


def test_news_that_come_while_a_thread_looks_are_not_lost(made: list[Floor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a ticket put between a thread's look at the line and its wait, that nobody looks for again."""
    floor = Floor(threads=1)
    made.append(floor)
    counts, looked, go_on = floor.store.counts, threading.Event(), threading.Event()

    def slow() -> Any:
        found = counts()
        looked.set()
        assert go_on.wait(30)
        return found

    monkeypatch.setattr(floor.store, "counts", slow)
    floor.pool.start()
    assert looked.wait(30)
    ticket = floor.put()
    floor.pool.wake()
    floor.go.set()
    go_on.set()
    until(lambda: floor.state(ticket) is State.COMPLETED, "the run", SOON)


def test_a_run_holds_no_slot_of_another_route(made: list[Floor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a video that waits for its own free slot because an image runs."""
    floor = Floor(threads=2, limits={"image": 1, "video": 1})
    made.append(floor)
    all_idle(floor, monkeypatch)
    # Both wait when the image is claimed.
    for route in ("image", "video"):
        floor.put(route, route)
    floor.pool.wake()
    until(lambda: floor.together == 2, "the run of both", SOON)
    assert floor.slots.full("image")
    assert floor.slots.full("video")
    assert floor.slots.in_use() == 2


def test_a_thread_that_looks_while_another_claims_is_not_left_idle(
    made: list[Floor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a video that nobody starts, because its slot looked taken while another thread claimed an image."""
    floor = Floor(threads=2, limits={"image": 1, "video": 1})
    made.append(floor)
    all_idle(floor, monkeypatch)
    claim, counts = floor.store.claim, floor.store.counts
    claiming, go_on = threading.Event(), threading.Event()
    looked: set[int] = set()

    def slow(*args: Any, **keys: Any) -> Ticket | None:
        claiming.set()
        assert go_on.wait(30)
        return claim(*args, **keys)

    def look() -> Any:
        looked.add(threading.get_ident())
        return counts()

    monkeypatch.setattr(floor.store, "claim", slow)
    monkeypatch.setattr(floor.store, "counts", look)
    for route in ("image", "video"):
        floor.put(route, route)
    floor.pool.wake()
    assert claiming.wait(30)
    floor.pool.wake()
    until(lambda: len(looked) == 2, "the look of the other thread")
    go_on.set()
    until(lambda: floor.together == 2, "the run of both", SOON)


def test_leaving_waits_for_a_claim_that_is_under_way_although_something_else_runs(
    made: list[Floor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a ticket leased after the process has left, in processing until its lease runs out."""
    floor = Floor(threads=2)
    made.append(floor)
    claim, late = floor.store.claim, threading.Event()
    go_on, order = threading.Event(), []

    def second_is_slow(*args: Any, **keys: Any) -> Ticket | None:
        if floor.started:
            late.set()
            assert go_on.wait(30)
            order.append("claimed")
        return claim(*args, **keys)

    def drain() -> None:
        floor.pool.drain(0)
        order.append("drained")

    monkeypatch.setattr("wsgi_admission.workers.CLAIM_TIMEOUT", 3600.0)
    monkeypatch.setattr(floor.store, "claim", second_is_slow)
    first = floor.put("first")
    floor.pool.start()
    until(lambda: floor.started == ["first"], "the first run")
    second = floor.put("second")
    floor.pool.wake()
    assert late.wait(30)
    leaving = threading.Thread(target=drain)
    leaving.start()
    until(lambda: not floor.pool.claims, "the stop")
    leaving.join(0.2)  # one that does not wait for the claim ends here
    go_on.set()
    leaving.join(30)
    assert order == ["claimed", "drained"]
    assert [floor.state(ticket) for ticket in (first, second)] == [State.QUEUED, State.QUEUED]
    assert floor.started == ["first"]


def test_a_run_that_was_taken_away_does_not_keep_the_others_from_being_handed_back(
    made: list[Floor], caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a process that leaves with an error, and tickets behind it, because one of its runs was lost."""
    floor = Floor(threads=3)
    made.append(floor)
    tickets = [floor.put(str(number)) for number in range(3)]
    floor.pool.start()
    until(lambda: floor.together == 3, "all runs")
    floor.store.release(tickets[0].id, 1, now=0.0)  # as the housekeeper of another process does with a lost lease
    again = floor.store.claim("another", now=0.0, lease=30.0, routes={"image"})
    assert again is not None
    with caplog.at_level(logging.ERROR):
        assert floor.pool.drain(0) == 3
    assert [floor.state(ticket) for ticket in tickets] == [State.PROCESSING, State.QUEUED, State.QUEUED]
    assert caplog.records == []
