"""What operators see of a line and do with it: the functions, and the commands on a SQLite store."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from click.testing import CliRunner, Result

from tests.store_model import ROUTES, recording, ticket
from tests.support import ROOT, until
from wsgi_admission.cli import main
from wsgi_admission.config import Admission, Config, Route, load_config
from wsgi_admission.errors import FinalTicket, LeaseLost, NotRetryable, StoreUnavailable, TicketError, UnknownTicket
from wsgi_admission.operators import CANCELLED, cancel_client, find, requeue, wait_until_idle
from wsgi_admission.stores import Store, open_store
from wsgi_admission.stores.records import Worker
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.web.overview import headline, overview, plain

CONFIG = Config(
    admission=Admission(max_concurrent=2, worker_threads=2),
    routes=tuple(Route(name=name, path=(f"/{name}",), expected_time=10.0) for name in ROUTES),
)
WORKER = Worker("w", "box:boot:1", 4711, 2, 2)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A line of each kind."""
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/a.db"
    with closing(open_store(url)) as made:
        yield made


def put(store: Store, **about: Any) -> Ticket:
    """Queue a ticket."""
    return store.put(ticket(**about), recording(), now=0.0)


def start(store: Store, **about: Any) -> Ticket:
    """Queue a ticket and claim it; nothing else may wait."""
    put(store, **about)
    claimed = store.claim("w", now=5.0, lease=1e9, routes=ROUTES)
    assert claimed is not None
    return claimed


# What is seen


def test_the_overview_tells_what_is_so(store: Store) -> None:
    """Catches: a figure that is another's, tiers out of order, an age from the submission instead of the start."""
    running = start(store, client="addr:1", route="video", tier="anonymous")
    store.report(WORKER, now=8.0)
    put(store, tier="anonymous")
    put(store, tier="donor")
    put(store, tier="donor", route="text")
    data = overview(store, CONFIG, now=10.0, load=0.5)
    assert json.loads(json.dumps(data)) == data
    waits = [(row.pop("estimated_wait_time"), row.pop("estimated_wait_p90")) for row in data["line"]]
    assert waits[0] == waits[1] < waits[2]
    assert all(p50 <= p90 for p50, p90 in waits)
    nothing = {"queued": 0, "processing": 0}
    assert data == {
        "name": "main",
        "timestamp": "1970-01-01T00:00:10Z",
        "paused": False,
        "queued": 3, "processing": 1, "completed": 0, "failed": 0, "cancelled": 0,
        "server_load": 0.5,
        "line": [
            {**nothing, "tier": "donor", "route": "image", "queued": 1},
            {**nothing, "tier": "donor", "route": "text", "queued": 1},
            {**nothing, "tier": "anonymous", "route": "image", "queued": 1},
            {**nothing, "tier": "anonymous", "route": "video", "processing": 1},
        ],
        "running": [
            {
                "request_id": running.id, "tier": "anonymous", "route": "video", "client": "addr:1", "attempt": 1,
                "age": 5.0, "progress": None, "progress_note": "", "cancelling": False,
            }
        ],
        "workers": [{"host": "box", "pid": 4711, "threads": 2, "report_age": 2.0}],
    }  # fmt: skip


def test_while_the_line_is_paused_no_wait_is_told(store: Store) -> None:
    """Catches: an estimate that nothing will keep."""
    put(store)
    store.pause(paused=True)
    data = overview(store, CONFIG, now=1.0)
    assert data["line"][0]["estimated_wait_time"] is data["line"][0]["estimated_wait_p90"] is None
    assert headline(data) == "line main (PAUSED): 1 queued, 0 processing, 0 completed, 0 failed, 0 cancelled"


def test_the_text_has_a_line_for_each_row(store: Store) -> None:
    """Catches: a client that steers the operator's terminal, columns that do not stand below each other."""
    start(store, client="addr:\x1b[2J\n", tier="donor")
    store.report(WORKER, now=8.0)
    assert plain(overview(store, CONFIG, now=10.0, load=0.425)) == (
        "line main: 0 queued, 1 processing, 0 completed, 0 failed, 0 cancelled; load 42%\n\n"
        "tier   route  queued  processing  wait                wait, 9 of 10\n"
        "donor  image  0       1           less than a second  less than a second\n\n"
        "ticket    tier   route  client      attempt  age        progress\n"
        f"{store.listing(State.PROCESSING)[0].id[:8]}  donor  image  addr:?[2J?  1        5 seconds\n\n"
        "worker  pid   threads  reported\n"
        "box     4711  2        2 seconds ago"
    )


def test_a_line_with_nothing_in_it_is_shown_too(store: Store) -> None:
    """Catches: an operator's first look that ends with a traceback."""
    assert plain(overview(store, CONFIG, now=0.0)).count("none") == 3


# What is done


def test_a_running_ticket_goes_back_to_its_place(store: Store) -> None:
    """Catches: a ticket put to the end, an answer of the old run that counts, a crash counted."""
    running = start(store)
    behind = put(store, client="ben")
    assert requeue(store, running.id, now=6.0).state is State.QUEUED
    assert [one.id for one in store.listing(State.QUEUED)] == [running.id, behind.id]
    with pytest.raises(LeaseLost):
        store.finish(running.id, 1, State.COMPLETED, recording(), now=7.0)
    assert store.get(running.id).crashes == 0
    assert requeue(store, running.id, now=8.0) == store.get(running.id)


def test_a_failed_ticket_is_run_again_under_a_new_id(store: Store) -> None:
    """Catches: a ticket that loses its owner, tier or place; one request that is run twice."""
    failed = start(store, client="user:ann", owner="user:ann", tier="registered", cost=3.0, crash_retries=0)
    store.finish(failed.id, 1, State.FAILED, None, now=6.0, error="It left.", keep_request=True)
    again = requeue(store, failed.id, now=7.0)
    assert again.id != failed.id
    assert store.get(failed.id).state is State.FAILED
    before = {"id": failed.id, "start": failed.start, "number": failed.number, "created_at": failed.created_at}
    assert replace(again, **before) == replace(failed, state=State.QUEUED, attempt=0, started_at=None)  # type: ignore[arg-type]  # a mapping of several kinds
    assert again.created_at == 7.0
    with pytest.raises(NotRetryable):
        requeue(store, failed.id, now=8.0)


def test_what_ended_well_is_not_run_again(store: Store) -> None:
    """Catches: a second picture because somebody typed the wrong id."""
    done = start(store)
    store.finish(done.id, 1, State.COMPLETED, recording(), now=6.0)
    with pytest.raises(FinalTicket):
        requeue(store, done.id, now=7.0)


def test_all_of_a_client_is_cancelled_and_nothing_else(store: Store) -> None:
    """Catches: another client's ticket, or one that runs and is forgotten."""
    running = start(store, client="addr:1")
    waiting = [put(store, client="addr:1", route=route) for route in ROUTES]
    other = put(store, client="addr:10")
    assert cancel_client(store, "addr:1", now=6.0) == {"client": "addr:1", "cancelled": 3, "cancelling": 1}
    assert {(store.get(one.id).state, store.get(one.id).error) for one in waiting} == {(State.CANCELLED, CANCELLED)}
    assert store.get(running.id).cancelling
    assert store.get(other.id).state is State.QUEUED


def test_a_ticket_that_ends_meanwhile_does_not_stop_the_cancelling(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: half a client's tickets left because the first one was quicker."""
    first, second = put(store), put(store)
    cancel = store.cancel

    def late(ticket_id: str, **keys: Any) -> Ticket:
        if ticket_id == first.id:
            raise FinalTicket(ticket_id, "completed")
        return cancel(ticket_id, **keys)

    monkeypatch.setattr(store, "cancel", late)
    assert cancel_client(store, "ann", now=1.0) == {"client": "ann", "cancelled": 1, "cancelling": 0}
    assert store.get(second.id).state is State.CANCELLED


def test_waiting_ends_with_the_last_run_or_with_the_time(store: Store) -> None:
    """Catches: a drain that returns while something runs, or never."""
    running = start(store)
    seconds = [0.0]

    def sleep(pause: float) -> None:
        seconds[0] += pause
        if seconds[0] > 3.0:
            store.finish(running.id, 1, State.COMPLETED, None, now=9.0)

    def wait(timeout: float | None) -> bool:
        return wait_until_idle(store, timeout, clock=lambda: seconds[0], sleep=sleep)

    assert not wait(2.0)
    assert 2.0 <= seconds[0] < 2.5
    assert wait(None)
    assert 3.0 < seconds[0] < 3.5
    assert wait(0.0)


def test_a_short_id_is_enough_where_it_is_the_only_one(store: Store) -> None:
    """Catches: the wrong one of two tickets cancelled; an id of the log that cannot be used."""
    one = put(store)
    assert find(store, one.id) == find(store, one.id[:8]) == one.id
    twin = replace(ticket(), id=one.id[:8] + str(uuid.uuid4())[8:])
    store.put(twin, recording(), now=0.0)
    with pytest.raises(TicketError, match="2 tickets begin with"):
        find(store, one.id[:8])
    with pytest.raises(UnknownTicket):
        find(store, "0" * 9)
    assert find(store, one.id[:7]) == one.id[:7]  # which is no id: the store says so


# The commands


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store, with its configuration in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "admission.ini").write_text(
        "[store]\nurl = sqlite:///a.db\n[tiers]\nresolver = nowhere:tier_of\n"
        + "".join(f"[route:{name}]\npath = /{name}\n" for name in ROUTES)
    )
    with closing(open_store("sqlite:///a.db")) as made:
        yield made


def call(*arguments: str) -> Result:
    """Run a command."""
    return CliRunner().invoke(main, arguments)


def told(*arguments: str, code: int = 0) -> Any:
    """Run a command with --json and return what it printed."""
    result = call(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_each_command_does_what_it_says(line: Store) -> None:
    """Catches: a command that does nothing, or tells something else; a resolver imported for nothing."""
    running, waiting = start(line), put(line, client="ben")
    counts = {"name": "main", "queued": 1, "processing": 1}
    assert told("pause") == {**counts, "paused": True}
    assert line.paused()
    assert told("resume") == {**counts, "paused": False}
    assert not line.paused()
    assert told("drain") == {**counts, "paused": True, "drained": False}
    assert line.paused()
    assert told("drain", "--wait", "--timeout", "0", code=1)["drained"] is False
    assert told("requeue", running.id) == {"request_id": running.id, "status": "queued", "retry_of": None}
    assert told("drain", "--wait") == {**counts, "queued": 2, "processing": 0, "paused": True, "drained": True}
    assert told("cancel", waiting.id[:8]) == {"request_id": waiting.id, "status": "cancelled", "cancelling": False}
    assert line.get(waiting.id).error == CANCELLED
    assert told("status")["queued"] == 1
    assert told("cancel", "--client", "ann") == {"client": "ann", "cancelled": 1, "cancelling": 0}
    assert "line main (PAUSED): 0 queued" in call("status").stdout


def test_a_failed_ticket_is_told_with_the_id_that_runs_it(line: Store) -> None:
    """Catches: a new ticket that nobody can find."""
    failed = start(line)
    line.finish(failed.id, 1, State.FAILED, None, now=6.0, keep_request=True)
    data = told("requeue", failed.id)
    assert (data["status"], data["retry_of"]) == ("queued", failed.id)
    assert line.get(data["request_id"]).state is State.QUEUED


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("cancel", "00000000-0000-4000-8000-000000000000"), "There is no ticket 00000000-"),
        (("requeue", "nonsense"), "There is no ticket nonsense."),
        (("cancel", "DONE"), "is completed already."),
        (("requeue", "DONE"), "is completed already."),
    ],
)
def test_a_store_that_says_no_ends_with_1(line: Store, arguments: tuple[str, ...], sentence: str) -> None:
    """Catches: a script that goes on because it was not told."""
    done = start(line)
    line.finish(done.id, 1, State.COMPLETED, None, now=6.0)
    result = call(*(done.id if word == "DONE" else word for word in arguments))
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stdout == ""


def test_a_store_that_does_not_answer_ends_with_1(line: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a traceback in place of a sentence."""

    def failing(*_args: Any, **_keys: Any) -> Any:
        raise StoreUnavailable("The disk is full.")

    monkeypatch.setattr("wsgi_admission.stores.sqlite.SQLiteStore.pause", failing)
    result = call("pause")
    assert (result.exit_code, result.stderr) == (1, "Error: The disk is full.\n")


@pytest.mark.parametrize("command", ["status", "pause", "resume", "drain", "requeue x", "cancel x", "top"])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "there is no admission.ini and no conf/admission.ini here"),
        ("[store]\nurl = memory://\n", "that line lives in the process of its server"),
        ("[store]\nurl = sqlite:///nothing.db\n", "nothing.db. Run this in the directory in which the server runs."),
        ("[store]\nurl = sqlite:////nowhere/nothing.db\n", "there is no store at /nowhere/nothing.db.\n"),
        ("[stroe]\n", "did you mean [store]?"),
    ],
    ids=["none", "memory", "relative", "absolute", "wrong"],
)
def test_without_a_store_to_ask_it_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, text: str | None, sentence: str
) -> None:
    """Catches: an empty store made in the wrong directory, and told as the line of the site."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wsgi_admission.top.on_terminal", lambda: True)
    if text is not None:
        Path("admission.ini").write_text(f"{text}[route:image]\npath = /image\n")
    before = sorted(tmp_path.iterdir())
    result = call(*command.split())
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("arguments", [("cancel",), ("cancel", "x", "--client", "y"), ("drain", "--timeout", "1")])
def test_a_call_that_says_too_little_or_too_much_ends_with_2(line: Store, arguments: tuple[str, ...]) -> None:
    """Catches: one of two meanings chosen in silence."""
    assert call(*arguments).exit_code == 2
    assert not line.paused()


def test_the_configuration_of_the_folder_conf_is_found_and_another_can_be_named(line: Store) -> None:
    """Catches: a command that wants to be told what lies before it."""
    text = Path("admission.ini").read_text()
    Path("admission.ini").rename("other.ini")
    assert told("status", "-c", "other.ini")["name"] == "main"
    Path("conf").mkdir()
    Path("conf/admission.ini").write_text(f"{text}[admission]\nname = second\n")
    assert told("status")["name"] == "second"


@pytest.mark.parametrize(
    ("answer", "load"), [(b'{"server_load": 0.25}', 0.25), (b"{}", None), (b"<html>", None), (None, None)]
)
def test_the_load_is_asked_of_the_site(
    line: Store, answer: bytes | None, load: float | None, serving: Callable[[bytes], str]
) -> None:
    """Catches: a status that is not shown because the site is down or another."""
    url = serving(answer) if answer is not None else "http://127.0.0.1:1"
    assert told("status", "--url", url)["server_load"] == load


@pytest.fixture
def serving() -> Iterator[Callable[[bytes], str]]:
    """Return what starts a server that answers with these bytes, and gives its URL."""

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_args: Any) -> None:
            """Say nothing."""

    servers = []

    def begin(answer: bytes) -> str:
        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            found = environ["PATH_INFO"] == "/api/queue/health"
            start_response("200 OK" if found else "404 Not Found", [("Content-Type", "application/json")])
            return [answer]

        server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/"

    yield begin
    for server, thread in servers:
        server.shutdown()
        thread.join(10)
        server.server_close()


# top


#: Makes the terminal on stdin the one whose Ctrl-C reaches this process, and becomes the command.
_BY_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Screen:
    """A terminal in which `top` runs."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.descriptor, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BY_TERMINAL, "-m", "wsgi_admission", "top", *arguments],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "LINES": "40", "TERM": "xterm"},
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.shown = b""

    def shows(self, text: str) -> bool:
        """Whether the text was on the screen; what was before it is forgotten."""
        while select.select([self.descriptor], [], [], 0.05)[0]:
            try:
                self.shown += os.read(self.descriptor, 65536)
            except OSError:  # the other end is closed
                break
        _, found, after = self.shown.partition(text.encode())
        if found:
            self.shown = after
        return bool(found)


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x03"], ids=["q", "Q", "Ctrl-C"])
def test_top_follows_the_line_until_it_is_ended(line: Store, tmp_path: Path, key: bytes) -> None:
    """Catches: a picture that stands still, a key that is not heard, a terminal left as it should not be."""
    screen = Screen(tmp_path, "--interval", "0.1")
    try:
        until(lambda: screen.shows("line main: 0 queued"), "the first picture")
        put(line, client="addr:[bold]")
        until(lambda: screen.shows("line main: 1 queued"), "the new ticket")
        line.claim("w", now=time.time(), lease=30, routes=ROUTES)
        until(lambda: screen.shows("addr:[bold]"), "the one that runs")
        line.pause(paused=True)
        until(lambda: screen.shows("PAUSED"), "the pause")
        os.write(screen.descriptor, key)
        until(lambda: screen.shows("\x1b[?1049l"), "the screen as it was before")
        assert screen.process.wait(10) == 0
        assert termios.tcgetattr(screen.descriptor)[3] & termios.ICANON
        assert termios.tcgetattr(screen.descriptor)[3] & termios.ECHO
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen.descriptor)


def test_top_without_a_terminal_points_to_status(line: Store) -> None:
    """Catches: control sequences in a file, or a command that cannot be ended."""
    result = call("top")
    assert result.exit_code == 2
    assert "wsgi-admission status" in result.stderr


def test_the_shipped_configuration_is_where_it_is_looked_for() -> None:
    """Catches: a default that does not fit what is shipped."""
    assert load_config(ROOT / "conf" / "admission.ini", import_resolver=False).routes
