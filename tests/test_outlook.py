"""What a ticket is told of its wait, from the facts of a memory store."""

from __future__ import annotations

import io
import uuid

import pytest

from wsgi_admission.config import Admission, Config, Route
from wsgi_admission.replay import Recording
from wsgi_admission.stores import Store, open_store
from wsgi_admission.ticket import Ticket
from wsgi_admission.web.outlook import Forecast

CONFIG = Config(
    admission=Admission(max_concurrent=5, worker_threads=3),
    routes=(
        Route(name="image", path=("/image",), expected_time=2.0),
        Route(name="video", path=("/video",), expected_time=180.0, max_concurrent=2),
    ),
)


def put(store: Store, route: str) -> Ticket:
    """Queue one request."""
    ticket = Ticket(
        id=str(uuid.uuid4()), route=route, tier="t", tier_rank=0, client="c", owner="", cost=1.0, crash_retries=0,
        created_at=0.0,
    )  # fmt: skip
    return store.put(ticket, Recording("{}", io.BytesIO(), 0), now=0.0)


def start(store: Store, route: str, count: int) -> None:
    """Have ``count`` requests of a route in processing."""
    for _ in range(count):
        put(store, route)
        assert store.claim("w", now=0.0, lease=1e9, routes={route})


def wait(store: Store, ticket: Ticket, in_use: int) -> float:
    """Return the p50 that the ticket is told while so many slots of the host are taken."""
    found = Forecast(store, CONFIG, lambda: in_use).outlook(ticket, now=0.0).wait
    assert found is not None
    return found.p50


def test_a_ticket_of_a_full_route_is_not_told_that_it_starts_at_once() -> None:
    """Catches: 0 seconds for a video although both video slots are busy for minutes."""
    store = open_store("memory://")
    start(store, "video", 2)
    assert wait(store, put(store, "video"), in_use=2) > 40


def test_what_waits_for_a_full_route_is_not_in_the_way_of_others() -> None:
    """Catches: minutes for an image that starts at once, because videos wait before it for video slots."""
    store = open_store("memory://")
    start(store, "video", 2)
    for _ in range(3):
        put(store, "video")
    assert wait(store, put(store, "image"), in_use=2) == 0.0


@pytest.mark.parametrize(("in_use", "at_once"), [(0, True), (4, True), (5, False)])
def test_requests_that_run_at_once_are_in_the_way_when_they_hold_the_last_slot(in_use: int, *, at_once: bool) -> None:
    """Catches: a minute for a ticket with a free slot and a free thread; 0 seconds with none."""
    store = open_store("memory://")
    told = wait(store, put(store, "image"), in_use=in_use)
    assert (told == 0.0) is at_once
    assert told < 10


def test_ten_before_on_a_route_of_two_take_five_turns() -> None:
    """Catches: the host's slots counted for a route that has fewer."""
    store = open_store("memory://")
    start(store, "video", 2)
    for _ in range(10):
        put(store, "video")
    assert 700 < wait(store, put(store, "video"), in_use=2) < 1200


def test_while_the_line_is_paused_only_the_place_is_told() -> None:
    """Catches: seconds until a start that nobody knows."""
    store = open_store("memory://")
    put(store, "image")
    ticket = put(store, "image")
    store.pause(paused=True)
    assert Forecast(store, CONFIG, lambda: 0).outlook(ticket, now=0.0) == (2, None, True)
    store.pause(paused=False)
    assert wait(store, ticket, in_use=0) >= 0
