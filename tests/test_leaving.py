"""How a gunicorn worker leaves, and takes over, without gunicorn."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import until
from tests.wsgi import call
from wsgi_admission import AdmissionMiddleware, Config
from wsgi_admission.config import Admission, Route, StoreOptions
from wsgi_admission.integrations import leaving as module
from wsgi_admission.integrations.leaving import STANDBY_AFTER, Leaving
from wsgi_admission.policy.decision import Mode
from wsgi_admission.stores.records import Worker


def app(_environ: Any, start_response: Any) -> list[bytes]:
    """Answer at once."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]


@pytest.fixture
def middleware() -> Any:
    """A site whose process does not replay, as gunicorn's web workers do not."""
    config = Config(
        admission=Admission(mode=Mode.QUEUE_ALL),
        store=StoreOptions(url="memory://"),
        routes=(Route(name="x", path=("/x",)),),
    )
    made = AdmissionMiddleware(app, config, replays=False)
    yield made
    made.close()


def watcher(middleware: AdmissionMiddleware, **limits: float) -> Leaving:
    """Return a watcher whose own thread has ended, so that the test does its steps."""
    cfg = SimpleNamespace(**{"graceful_timeout": 30, "timeout": 30, **limits})
    made = Leaving(SimpleNamespace(alive=False, ppid=os.getppid(), cfg=cfg), middleware)
    made._thread.join(10)
    return made


def test_a_worker_without_a_thread_to_watch_leaves_in_order_all_the_same(
    middleware: AdmissionMiddleware, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: gunicorn that ends the whole site when a worker finds no thread left; what runs there, cut off."""

    def none_left(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    drained: list[float] = []
    monkeypatch.setattr(middleware, "drain", drained.append)
    cfg = SimpleNamespace(graceful_timeout=30, timeout=30)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        made = [Leaving(SimpleNamespace(alive=False, ppid=os.getppid(), pid=7, cfg=cfg), middleware) for _ in range(2)]
        made[0].watch()
        assert drained == []
        made[0].finish()
    assert drained == [28.0]
    assert "process 7 will notice late that it is to leave" in caplog.text
    made[1].watch()
    made[1]._thread.join(10)
    assert drained == [28.0, 28.0]
    made[1].watch()
    made[1].finish()
    assert drained == [28.0, 28.0]


def started(middleware: AdmissionMiddleware) -> bool:
    """Whether this process replays."""
    return middleware.process().pool.started


def test_a_web_worker_takes_over_when_nobody_replays_for_long(
    middleware: AdmissionMiddleware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a line that stands still after TTOU has ended the process that replays; a take-over without need."""
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0]))
    leaving = watcher(middleware)
    process = middleware.process()
    accepted = call(middleware, "/x", "POST").json()

    process.store.report(Worker("other", "host", 1, 1, 1), now=now[0])
    for _ in range(3):
        leaving._stand_by()
        now[0] += 5.0
    assert not started(middleware), "another process has just reported"
    now[0] += 5.0  # its report is old now
    leaving._stand_by()
    now[0] += STANDBY_AFTER - 0.1
    leaving._stand_by()
    assert not started(middleware), "not for long yet"
    now[0] += 0.2
    leaving._stand_by()
    assert started(middleware)
    until(lambda: call(middleware, accepted["result_url"]).body == b"done")


def test_a_web_worker_does_not_take_over_an_empty_line(
    middleware: AdmissionMiddleware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: replays in every web worker of an idle server."""
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0]))
    leaving = watcher(middleware)
    for _ in range(3):
        leaving._stand_by()
        now[0] += STANDBY_AFTER + 1
    assert not started(middleware)


def test_a_web_worker_that_leaves_replays_to_others_never_takes_over(
    middleware: AdmissionMiddleware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: GPU work begun on a machine without a GPU, because the one with it was away for half a minute."""
    looked: list[bool] = []
    monkeypatch.setattr(module, "WATCH_INTERVAL", 0.001)
    for stands_by in (True, False):
        monkeypatch.setattr(Leaving, "_stand_by", lambda _self, this=stands_by: looked.append(this))
        worker = SimpleNamespace(
            alive=True, ppid=os.getppid(), cfg=SimpleNamespace(graceful_timeout=30, timeout=30)
        )  # fmt: skip
        leaving = Leaving(worker, middleware, stands_by=stands_by)
        if stands_by:
            until(lambda: looked, "a look")
        else:
            leaving._thread.join(0.2)  # a look would be here
        worker.alive = False
        leaving._thread.join(10)
    assert set(looked) == {True}


@pytest.mark.parametrize(
    ("limits", "patience"),
    [
        ({"graceful_timeout": 30, "timeout": 10}, 8.0),
        ({"graceful_timeout": 5, "timeout": 60}, 3.0),
        ({"graceful_timeout": 30, "timeout": 0}, 28.0),
        ({"graceful_timeout": 1, "timeout": 60}, 0.0),
    ],
)
def test_what_runs_has_as_long_as_gunicorn_waits_less_a_margin(
    middleware: AdmissionMiddleware, limits: dict[str, float], patience: float
) -> None:
    """Catches: a drain that gunicorn kills in its middle; a timeout of 0, which means none, taken for no time."""
    leaving = watcher(middleware, **limits)
    assert leaving._patience == patience
    leaving.make_haste()
    assert leaving._patience == 0.0
