"""Progress and cancellation, as the app tells and asks of them."""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import wsgi_admission
from tests.support import gunicorn, ini, until
from tests.test_workers import Floor
from tests.wsgi import call
from wsgi_admission.config import Admission, Config, Route, StoreOptions
from wsgi_admission.errors import LeaseLost, StoreUnavailable, UnknownTicket
from wsgi_admission.middleware import AdmissionMiddleware
from wsgi_admission.policy.decision import Mode
from wsgi_admission.progressing import INTERVAL, LONGEST_NOTE, Progress, current
from wsgi_admission.ticket import State, Ticket


class Scene:
    """A run, and what it wrote; the time stands still."""

    def __init__(self) -> None:
        self.now = 0.0
        self.written: list[tuple[float, str]] = []
        self.error: Exception | None = None
        self.looks = 0
        self.ticket = Ticket(
            id="x", route="r", tier="t", tier_rank=0, client="c", owner="", cost=1.0, crash_retries=1,
            created_at=0.0, state=State.PROCESSING, attempt=2,
        )  # fmt: skip
        self.progress = Progress(self._write, self._look, 2, clock=lambda: self.now)

    def _write(self, fraction: float, note: str) -> None:
        if self.error:
            raise self.error
        self.written.append((fraction, note))

    def _look(self) -> Ticket:
        self.looks += 1
        if self.error:
            raise self.error
        return self.ticket

    def change(self, **fields: Any) -> None:
        """Change the ticket."""
        self.ticket = Ticket(**{**self.ticket.__dict__, **fields})


def test_of_many_calls_only_the_last_is_written() -> None:
    """Catches: a write for every call, the first value instead of the last, the same value written again."""
    scene = Scene()
    for step in range(1000):
        scene.progress.report(step / 1000, f"step {step}")
    assert scene.written == []
    scene.progress.flush()
    scene.progress.flush()
    assert scene.written == [(0.999, "step 999")]
    scene.progress.report(1)
    scene.progress.flush()
    assert scene.written[1:] == [(1.0, "")]


@pytest.mark.parametrize(
    ("fraction", "kept"),
    [(-1, 0.0), (0, 0.0), (0.4, 0.4), (1.0000001, 1.0), (50, 1.0), (Decimal("0.5"), 0.5), (True, 1)],
)
def test_a_fraction_beyond_the_ends_is_taken_for_the_end(fraction: Any, kept: float) -> None:
    """Catches: a bar that is wider than its frame because a sum of floats was."""
    scene = Scene()
    scene.progress.report(fraction)
    scene.progress.flush()
    assert scene.written == [(kept, "")]


@pytest.mark.parametrize(
    ("fraction", "note", "error", "sentence"),
    [
        (math.nan, "", ValueError, "progress: the fraction is a number from 0 to 1, not nan"),
        (math.inf, "", ValueError, "progress: the fraction is a number from 0 to 1, not inf"),
        (10**400, "", ValueError, "progress: the fraction is a number from 0 to 1, not inf"),
        ("0.4", "", TypeError, "progress: the fraction is a number from 0 to 1, not '0.4'"),
        (None, "", TypeError, "progress: the fraction is a number from 0 to 1, not None"),
        (0.4, 20, TypeError, "progress: the note is a text, not 20"),
    ],
)
def test_nonsense_is_told_in_a_sentence_also_when_nothing_is_queued(
    fraction: Any, note: Any, error: type[Exception], sentence: str
) -> None:
    """Catches: NaN in the JSON of the status; a mistake that shows only under load."""
    for said in (Scene().progress.report, wsgi_admission.progress):
        with pytest.raises(error) as raised:
            said(fraction, note)
        assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("note", "kept"),
    [
        ("step 20 of 50", "step 20 of 50"),
        ("a\x00b\x1b[31mc\r\nd\u2028e\u202ef\ud800", "a b [31mc  d e f"),
        ("👩\u200d💻 10\u00a0%", "👩\u200d💻 10\u00a0%"),
        ("x" * 10_000, "x" * (LONGEST_NOTE - 1) + "…"),
    ],
)
def test_a_note_is_a_short_line_of_text(note: str, kept: str) -> None:
    """Catches: a note that steers a terminal, turns the page's text round or cannot be stored."""
    scene = Scene()
    scene.progress.report(0, note)
    scene.progress.flush()
    assert scene.written == [(0.0, kept)]


def test_a_store_that_fails_is_the_storys_end_for_nobody() -> None:
    """Catches: an error of the store in the app; a value that is forgotten because one write of it failed."""
    scene = Scene()
    scene.error = StoreUnavailable("no")
    scene.progress.report(0.4)
    scene.progress.flush()
    assert scene.progress.cancelled() is False
    scene.error = None
    scene.progress.flush()
    assert scene.written == [(0.4, "")]


def test_whether_it_is_cancelled_is_looked_up_four_times_a_second_at_most() -> None:
    """Catches: a look into the store at every call, or never again after the first."""
    scene = Scene()
    assert not any(scene.progress.cancelled() for _ in range(1000))
    scene.change(cancelling=True)
    assert not scene.progress.cancelled()
    assert scene.looks == 1
    scene.now += INTERVAL
    assert scene.progress.cancelled()
    scene.now += INTERVAL
    assert scene.progress.cancelled()
    assert scene.looks == 2  # it stays so


@pytest.mark.parametrize(
    "change", [{"attempt": 3}, {"state": State.QUEUED}, {"state": State.COMPLETED}, {"cancelling": True}]
)
def test_a_run_that_nobody_waits_for_is_told_so(change: dict[str, Any]) -> None:
    """Catches: a run that goes on although its ticket is another's, or nobody's, by now."""
    scene = Scene()
    scene.change(**change)
    assert scene.progress.cancelled()


def test_a_run_whose_ticket_is_gone_is_told_so_and_writes_no_more() -> None:
    """Catches: an error in the app, or a write every quarter of a second, for a ticket that is lost."""
    scene = Scene()
    scene.error = UnknownTicket("x")
    assert scene.progress.cancelled()
    scene = Scene()
    scene.error = LeaseLost("x", 2)
    scene.progress.report(0.4)
    scene.progress.flush()
    scene.error = None
    scene.progress.report(0.5)
    scene.progress.flush()
    assert scene.progress.cancelled()
    assert scene.written == []


def test_a_helper_in_the_same_context_speaks_of_the_same_run() -> None:
    """Catches: the run kept in a thread-local variable, so that work handed to another thread says nothing."""
    scene = Scene()
    with current(scene.progress):
        context = contextvars.copy_context()
    for run, said in ((context.run, 0.3), (lambda call, *values: call(*values), 0.9)):
        thread = threading.Thread(target=run, args=(wsgi_admission.progress, said))
        thread.start()
        thread.join()
        scene.progress.flush()
    assert scene.written == [(0.3, "")]


def test_a_replayed_call_tells_by_function_and_by_environ(floor_of: Callable[[Any], Floor]) -> None:
    """Catches: a pool that gives the app no way to say anything, or another run's."""
    told = threading.Event()
    go = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        which = environ["QUERY_STRING"]
        if which == "environ":
            environ["wsgi_admission.progress"](0.25, which)
        else:
            wsgi_admission.progress(0.75, which)
        told.set()
        assert go.wait(30)
        start_response("200 OK" if not environ["wsgi_admission.cancelled"]() else "503 No", [])
        return [b""]

    floor = floor_of(app)
    tickets = {which: floor.put(which) for which in ("environ", "function")}
    floor.pool.start()
    until(lambda: len(floor.pool.runs.all()) == 2 and told.is_set())

    def written() -> bool:
        floor.pool.write_progress()
        return all(floor.store.get(ticket.id).note for ticket in tickets.values())

    until(written)
    found = {which: (floor.store.get(t.id).progress, floor.store.get(t.id).note) for which, t in tickets.items()}
    assert found == {"environ": (0.25, "environ"), "function": (0.75, "function")}
    floor.store.cancel(tickets["environ"].id, now=1.0)
    go.set()
    until(lambda: floor.state(tickets["function"]) is State.COMPLETED)
    until(lambda: floor.state(tickets["environ"]) is State.CANCELLED)


def test_the_last_word_of_a_run_that_failed_is_kept(floor_of: Callable[[Any], Floor]) -> None:
    """Catches: what was said in the last quarter of a second being lost, although it tells where it failed."""

    def app(_environ: dict[str, Any], _start_response: Any) -> list[bytes]:
        wsgi_admission.progress(0.9, "step 45 of 50")
        raise RuntimeError("out of paint")

    floor = floor_of(app)
    ticket = floor.put()
    floor.pool.start()
    until(lambda: floor.state(ticket) is State.FAILED)
    assert (floor.store.get(ticket.id).progress, floor.store.get(ticket.id).note) == (0.9, "step 45 of 50")


@pytest.fixture
def floor_of() -> Any:
    """Return what makes a pool over an app; it is stopped at the end."""
    made: list[Floor] = []

    def make(app: Any) -> Floor:
        made.append(Floor(app=app))
        return made[-1]

    yield make
    for floor in made:
        floor.go.set()
        floor.pool.drain(5)


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.PASS_THROUGH, Mode.SHADOW])
def test_a_request_that_runs_at_once_has_the_same_names_and_they_do_nothing(mode: Mode) -> None:
    """Catches: an app that works while its requests are queued, and breaks with a KeyError when they are not."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi_admission.progress"](0.5, "half")
        assert environ["wsgi_admission.cancelled"]() is wsgi_admission.cancelled() is False
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    routes = (Route(name="image", path=("/image",)),)
    config = Config(admission=Admission(mode=mode), store=StoreOptions(url="memory://"), routes=routes)
    middleware = AdmissionMiddleware(app, config, replays=False)
    try:
        assert call(middleware, "/image", "POST").body == b"done"
    finally:
        middleware.close()


def test_the_status_shows_progress_while_the_app_runs(tmp_path: Path) -> None:
    """Catches: a server in which nobody writes down what the app says; a note that the status leaves out."""
    config = ini(
        tmp_path,
        "[admission]\nmode = queue_all\nmax_concurrent = 2\n[route:slow]\npath = /steps\nmethods = POST\n",
    )
    with gunicorn(tmp_path, config) as server:
        accepted = server.ask("/steps", "POST", b"")
        address = accepted.json()["status_url"]
        data = until(lambda: (found := server.ask(address).json())["progress"] and found)
        assert (data["status"], data["progress"], data["progress_note"]) == ("processing", 0.4, "step 20 of 50")
        server.ask(address, "DELETE")
        assert server.final(accepted)["status"] == "cancelled"  # nobody opens the gate: the app looks itself
