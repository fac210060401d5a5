"""Calls of SQLite and of the file system that fail."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.apps import app
from tests.reliability.points import Points, of_sqlite
from tests.reliability.size import sized
from tests.reliability.steps import LARGE, STEPS, contents, opened, sweep, template
from tests.support import ini, until
from tests.wsgi import Result, call
from wsgi_admission import AdmissionMiddleware, host
from wsgi_admission.errors import StoreUnavailable
from wsgi_admission.stores.sqlite import SQLiteStore

#: At how many calls of each kind something fails: every so many-th.
EVERY = sized(2, 1)
#: Calls of the threads that replay and keep house at which something fails.
REPLAYED = sized(100, 200)
#: At how many calls of a start something fails: every so many-th.
STARTS = sized(7, 1)
#: errno -> what SQLite says of it.
ERRORS = {
    errno.ENOSPC: "database or disk is full",
    errno.EIO: "disk I/O error",
    errno.EMFILE: "unable to open database file",
}


def failing(number: int) -> Callable[[Any], None]:
    """Return what raises one of the errors, each in its turn."""
    code = list(ERRORS)[number % len(ERRORS)]

    def fail(function: Any) -> None:
        if not of_sqlite(function):
            raise OSError(code, "planted")
        if isinstance(function.__self__, sqlite3.Cursor):
            function.__self__.close()  # SQLite too has done with a statement that fails
        raise sqlite3.OperationalError(ERRORS[code])

    return fail


@pytest.fixture(scope="module")
def start(quick_folder: Path) -> Path:
    """A database with a ticket in each state, to be copied."""
    folder = quick_folder / "template"
    folder.mkdir()
    template(folder / "line.db")
    return folder


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_which_a_call_fails_has_no_effect_and_can_be_done_again(
    start: Path, quick_path: Path, name: str
) -> None:
    """Catches: another error than the contract's, half an effect, a connection or a file that stays behind."""
    step = STEPS[name]
    before = contents(shutil.copytree(start, quick_path / "before") / "line.db")
    done = shutil.copytree(start, quick_path / "done") / "line.db"
    with closing(opened(done)) as store, Points(0, failing(0)) as all_of_them:
        step(store)
    after = contents(done)
    for number in range(1, all_of_them.passed + 1, EVERY):
        path = shutil.copytree(start, quick_path / str(number)) / "line.db"
        with closing(opened(path)) as store:
            failed = False
            for turn in range(2):
                try:
                    with Points(number, failing(number + turn)):
                        step(store)
                except StoreUnavailable:
                    failed = True
                else:
                    failed = False
                    break
            found = contents(path)
            if failed:
                # Pruning goes on in steps of its own once the tickets are gone.
                assert found == before or (name, found) == ("prune", after), f"call {number} failed with an effect"
            if found != after:
                step(store)
            assert contents(path) == after, f"{name} could not be done after its call {number} failed"
        assert sweep(path) == set()
        shutil.rmtree(path.parent)


QUEUE_ALL = """
[admission]
mode = queue_all
max_concurrent = 2
worker_threads = 1
[route:echo]
path = /echo
"""


class Site:
    """A site in this process whose replays are another's."""

    def __init__(self, folder: Path, *, replays: bool = False) -> None:
        self.folder = folder
        self.database = folder / "admission.db"
        self.app = AdmissionMiddleware(app, ini(folder, QUEUE_ALL), replays=replays)

    def post(self, body: bytes) -> Result:
        """Ask for something that has to wait."""
        return call(self.app, "/echo", "POST", body)

    def rows(self) -> list[tuple[str, str]]:
        """Return the id and the state of each ticket, as somebody else reads them."""
        with closing(sqlite3.connect(self.database)) as connection:
            return connection.execute("SELECT id, state FROM tickets ORDER BY number").fetchall()


@pytest.mark.parametrize("body", [b"small", LARGE[: 1 << 19]], ids=["small", "large"])
def test_a_202_has_a_row_whichever_call_fails(quick_path: Path, body: bytes) -> None:
    """Catches: a 202 without a row, a row without a 202, an error that the server gets to see, one that lasts."""
    site = Site(quick_path)
    with closing(site.app):
        assert site.post(body).status == "202 Accepted"
        with Points(0, failing(0)) as all_of_them:
            assert site.post(body).status == "202 Accepted"
        assert all_of_them.passed > 10
        other = set()
        for number in range(1, all_of_them.passed + 1, EVERY):
            known = site.rows()
            for turn in range(2):
                with Points(number, failing(number + turn)):
                    answer = site.post(body)
                new = [ticket for ticket, _ in site.rows()[len(known) :]]
                if answer.status == "202 Accepted":
                    assert new == [answer.json()["request_id"]], f"call {number} failed"
                    break
                other.add(answer.status)
                assert new == [], f"{answer.status} after call {number} failed, and yet there is a ticket"
                if answer.status == "203 Quite All Right":
                    assert answer.body.endswith(b"POST|" + body)
                else:  # a body that can be kept nowhere can reach nobody
                    assert (answer.status, len(body) > 1 << 18) == ("503 Service Unavailable", True), number
            assert site.post(body).status == "202 Accepted", f"call {number} failed, and it was over"
        assert "203 Quite All Right" in other, "no call failed that mattered"
        kept = site.rows()
    replaying = Site(quick_path, replays=True)
    with closing(replaying.app):
        replaying.app.process()
        until(lambda: {state for _, state in replaying.rows()} == {"completed"}, "the last replay")
        assert replaying.rows() == [(ticket, "completed") for ticket, _ in kept]
    assert sweep(site.database) == set()


@pytest.mark.parametrize("old", [False, True], ids=["a new line", "an old line"])
def test_a_start_of_which_a_call_fails_is_made_again(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, *, old: bool
) -> None:
    """Catches: an error for the server, a start that is not tried again, one without a boot, a line that it empties."""
    monkeypatch.setattr("wsgi_admission.middleware.REOPEN_INTERVAL", 1e-9)
    start = quick_path / "start"
    start.mkdir()
    if old:
        with closing(Site(start).app) as known:
            call(known, "/echo", "POST", b"old")
    with closing(Site(shutil.copytree(start, quick_path / "0")).app) as whole, Points(0, failing(0)) as all_of_them:
        whole.process()
    assert all_of_them.passed > 10
    for number in range(1, all_of_them.passed + 1, STARTS):
        site = Site(shutil.copytree(start, quick_path / str(number)))
        with closing(site.app):
            expected = ["queued"] * (old + 1)
            for turn in range(2):
                with Points(number, failing(number // STARTS + turn)):
                    answer = site.post(b"body")
                assert answer.status in {"202 Accepted", "203 Quite All Right"}, f"call {number} failed"
                if answer.status == "202 Accepted":
                    expected.append("queued")
                    break
            assert site.post(b"body").status == "202 Accepted", f"call {number} failed, and it was over"
            store = site.app.process().store
            assert isinstance(store, SQLiteStore)
            assert store._boot == host.boot_id(), f"call {number} failed"
            assert [state for _, state in site.rows()] == expected, f"call {number} failed"
        shutil.rmtree(site.folder)


def test_without_a_slot_whoever_cannot_be_kept_gets_a_503(quick_path: Path) -> None:
    """Catches: a request that runs beyond the slots, or is lost, when the store fails."""
    site = Site(quick_path)
    with closing(site.app):
        slots = [site.app.process().slots.take(None) for _ in range(2)]
        assert None not in slots
        refused = 0
        with Points(0, failing(0)) as all_of_them:
            site.post(b"")
        for number in range(1, all_of_them.passed + 1, EVERY):
            known = site.rows()
            with Points(number, failing(number)):
                answer = site.post(b"")
            new = [ticket for ticket, _ in site.rows()[len(known) :]]
            if answer.status == "202 Accepted":
                assert new == [answer.json()["request_id"]]
                continue
            refused += 1
            assert new == []
            assert answer.status == "503 Service Unavailable", f"call {number} failed"
            assert answer.header("Content-Type") == "application/problem+json"
            assert 1 <= int(answer.header("Retry-After") or 0) <= 300
        assert refused > 0


def going_on(points: Points) -> Callable[..., None]:
    """Return what is done when a `StoreUnavailable` is made: where a thread's call has failed, the next may too."""

    def made(error: StoreUnavailable, *arguments: object) -> None:
        Exception.__init__(error, *arguments)
        if threading.current_thread() is not threading.main_thread():
            points.again()

    return made


def test_whatever_call_fails_while_it_is_replayed_a_ticket_runs_once(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a run that begins again because its end could not be kept, a ticket or a thread left behind."""
    site = Site(quick_path)
    with closing(site.app):
        for number in range(1, REPLAYED, EVERY):
            ran: list[bytes] = []

            def counting(environ: dict[str, Any], start_response: Any, ran: list[bytes] = ran) -> Iterable[bytes]:
                ran.append(environ["wsgi.input"].read())
                return app(environ, start_response)

            ticket = site.post(LARGE[: 1 << 19]).json()["request_id"]
            with closing(AdmissionMiddleware(counting, ini(quick_path, QUEUE_ALL))) as replaying:
                with Points(number, failing(number), threads=True, times=1 + number // EVERY % 2) as points:
                    monkeypatch.setattr(StoreUnavailable, "__init__", going_on(points))
                    replaying.process()
                until(lambda: site.rows()[-1] == (ticket, "completed"), f"the end, after call {number} failed")  # noqa: B023 - called at once
                assert len(ran) == 1, f"call {number} failed"
        (tally,) = site.app.process().store.counts().values()
        assert (tally.crashed, tally.failed, tally.late) == (0, 0, 0)
    assert sweep(site.database) == set()
