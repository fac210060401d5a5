"""When overdue tickets are looked for, with the clock given."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.store_model import recording, ticket
from wsgi_admission.deadlines import FRESH, Deadlines
from wsgi_admission.errors import StoreUnavailable
from wsgi_admission.stores.memory import MemoryStore
from wsgi_admission.ticket import State


class Scene:
    """A store, deadlines for its images, and the looks that were taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        self.store = MemoryStore()
        self.looks: list[float] = []
        self.deadlines = Deadlines(
            self.store, {"image": 600.0}, reason=str, clock=lambda: self.seconds, monotonic=lambda: self.seconds
        )
        self.expire = self.store.expire
        monkeypatch.setattr(self.store, "expire", self._look)

    def _look(self, route: str, **when: Any) -> int:
        self.looks.append(self.seconds)
        return self.expire(route, **when)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    """At second 1000."""
    return Scene(monkeypatch)


def test_whoever_claims_looks_only_where_nobody_has_looked_lately(scene: Scene) -> None:
    """Catches: a look into the store at each claim; none any more after the first; one beside the housekeeper's."""
    for at in (1000.0, 1001.0, 1000.0 + FRESH, 1001.0 + FRESH):
        scene.seconds = at
        scene.deadlines.before_claim()
    assert scene.looks == [1000.0, 1000.0 + FRESH]
    scene.seconds = 1000.0 + 2 * FRESH
    scene.deadlines.expire()
    scene.deadlines.before_claim()
    assert scene.looks == [1000.0, 1000.0 + FRESH, 1000.0 + 2 * FRESH]


def test_all_that_is_overdue_is_cancelled_before_a_claim(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a crowd of overdue tickets of which those run that one step of the store has left."""
    for module in ("deadlines", "stores.memory"):
        monkeypatch.setattr(f"wsgi_admission.{module}.AT_ONCE", 1)
    late = [scene.store.put(ticket(created_at=399.0), recording(), now=399) for _ in range(3)]
    in_time = scene.store.put(ticket(created_at=401.0), recording(), now=401)
    scene.deadlines.before_claim()
    assert {(scene.store.get(one.id).state, scene.store.get(one.id).error) for one in late} == {
        (State.CANCELLED, "600.0")
    }
    assert scene.store.get(in_time.id).state is State.QUEUED


def test_a_look_that_failed_is_none(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: overdue tickets that are started because the store was busy when they were looked for."""

    def busy(*_args: Any, **_keys: Any) -> int:
        raise StoreUnavailable("busy")

    with monkeypatch.context() as patch:
        patch.setattr(scene.store, "expire", busy)
        with pytest.raises(StoreUnavailable):
            scene.deadlines.before_claim()
    scene.deadlines.before_claim()
    assert scene.looks == [1000.0]


def test_who_claims_while_another_looks_waits_for_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: the second thread of a process that starts, which runs what the first is about to cancel."""
    looking, go_on, order = threading.Event(), threading.Event(), []

    def slow(*_args: Any, **_keys: Any) -> int:
        looking.set()
        assert go_on.wait(30)
        order.append("looked")
        return 0

    def second() -> None:
        scene.deadlines.before_claim()
        order.append("second")

    monkeypatch.setattr(scene.store, "expire", slow)
    threads = [threading.Thread(target=scene.deadlines.before_claim), threading.Thread(target=second)]
    threads[0].start()
    assert looking.wait(30)
    threads[1].start()
    threads[1].join(0.1)  # one that does not wait ends here
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert order == ["looked", "second"]


def test_nothing_is_looked_for_where_no_route_has_a_limit() -> None:
    """Catches: a step of the store for each claim of a site that has no deadlines."""
    deadlines = Deadlines(MemoryStore(), {}, reason=str, monotonic=lambda: pytest.fail("looked at the clock"))
    deadlines.before_claim()
