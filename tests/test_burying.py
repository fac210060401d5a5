"""Workers that were killed on this host: who notices, and what becomes of what they ran."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store_model import ROUTES, recording, ticket
from tests.support import gunicorn, ini, until
from wsgi_admission import AdmissionMiddleware, Config, StoreUnavailable, host
from wsgi_admission.config import Route, StoreOptions
from wsgi_admission.process import Process
from wsgi_admission.stores.records import Worker
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State

pytestmark = pytest.mark.alone

GATED = """
[admission]
mode = queue_all
max_concurrent = 1
worker_threads = 1
[route:gated]
path = /gated
"""


@pytest.fixture
def process() -> Iterator[Process]:
    """A process that answers and does not replay; its housekeeper rests."""
    config = Config(store=StoreOptions(url="memory://"), routes=(Route(name="image", path=("/image",)),))
    middleware = AdmissionMiddleware(lambda _env, _start: [], config, replays=False)
    made = middleware.process()
    made.housekeeper.stop()
    yield made
    middleware.close()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this host."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as started:
        yield started


def other(pid: int, *, born: float | None = None, of: str | None = None) -> Worker:
    """Return the report of a process."""
    known = host.born(pid) or 0.0
    return Worker("other", host.name() if of is None else of, pid, 1, 1, known if born is None else born)


def runs(process: Process, worker: Worker) -> Callable[[], State]:
    """Let a worker report and claim a ticket; return a function that tells the ticket's state."""
    new = process.store.put(ticket(), recording(), now=0)
    process.store.report(worker, now=time.time())
    assert process.store.claim(worker.id, now=0, lease=30, routes=ROUTES)
    return lambda: process.store.get(new.id).state


def test_a_killed_process_is_buried_by_another(
    process: Process, child: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a dead process that nobody looks for, or a living one that is buried."""
    state = runs(process, other(child.pid))
    process.bury()
    assert state() is State.PROCESSING
    child.kill()
    child.wait()
    process.bury()
    assert state() is State.QUEUED
    assert process.store.statistics(now=time.time()).workers == ()
    assert f"worker.died pid={child.pid} tickets=1" in caplog.text


def test_a_pid_that_somebody_else_has_now_does_not_keep_the_dead_alive(process: Process) -> None:
    """Catches: a look at the pid alone: after a restart another process has it soon."""
    state = runs(process, other(os.getpid(), born=(host.born(os.getpid()) or 0.0) - 1.0))
    process.bury()
    assert state() is State.QUEUED


@pytest.mark.parametrize("why", ["another host", "birth unknown", "no /proc"])
def test_nobody_is_buried_of_whom_this_host_cannot_tell(
    process: Process, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Catches: the workers of other machines and containers, whose pids mean nothing here, declared dead."""
    worker = other(child.pid)
    child.kill()
    child.wait()
    if why == "another host":
        worker = replace(worker, host=f"{worker.host}0")
    elif why == "birth unknown":
        worker = replace(worker, born=0.0)
    else:
        monkeypatch.setattr(host, "born", lambda _pid: None)
    state = runs(process, worker)
    process.bury()
    assert state() is State.PROCESSING


def test_a_process_reports_before_it_claims(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a process killed right after its first claim, whose ticket waits for the lease to run out."""
    seen: list[bool] = []
    monkeypatch.setattr(process.pool, "start", lambda: seen.append(process.replayed(time.time())))
    process.replay()
    assert seen == [True]

    def dead(*_args: object, **_keys: object) -> None:
        raise StoreUnavailable("The disk is gone.")

    monkeypatch.setattr(process.store, "report", dead)
    process.replay()
    assert len(seen) == 2, "it replays all the same"
    monkeypatch.undo()


def test_a_process_that_leaves_can_be_buried_as_long_as_it_runs_something(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a process that is killed while it leaves, and was forgotten before."""
    reported: list[int] = []
    monkeypatch.setattr(process.store, "report", lambda worker, **_: reported.append(worker.threads))
    monkeypatch.setattr(process.pool, "started", True)
    process.report()
    monkeypatch.setattr(process.pool.runs, "held", lambda: [("x", 1)])
    monkeypatch.setattr(process.pool, "drain", lambda _timeout: process.report())
    process.drain(10)
    process.report()
    assert reported == [process.pool.worker.threads, 1, 1, 0]


def test_the_ticket_of_a_killed_process_is_back_within_two_seconds(tmp_path: Path) -> None:
    """Catches: a ticket that waits for its lease; a crash for each of the processes that notice."""
    config = ini(tmp_path, GATED)
    with (
        gunicorn(tmp_path, config, settings="workers = 3") as site,
        closing(SQLiteStore(tmp_path / "admission.db")) as store,
    ):
        accepted = [site.ask(f"/gated?{number}", "POST").json() for number in range(12)]  # every process has begun
        first = accepted[0]["request_id"]
        until(lambda: site.starts() == ["start 0"], "the first start")
        (worker,) = store.statistics(now=time.time()).workers
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: store.get(first).crashes == 1, "its return to the line", patience=2.0)
        site.open_gate()
        until(lambda: all(store.get(one["request_id"]).state.final for one in accepted), "the end of all")
        assert store.get(first).attempt == site.starts().count("start 0") == 2
        tally = store.counts()["anonymous", "gated"]
        assert (tally.crashed, tally.completed, tally.failed) == (1, 12, 0)
