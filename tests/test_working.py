"""``wsgi-admission work``: processes that only replay, started, watched, reloaded and stopped for real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.redis_servers import started
from tests.support import PATIENCE, ROOT, gunicorn, ini, stop, until
from tests.wsgi import call
from wsgi_admission import AdmissionMiddleware
from wsgi_admission.stores import Store
from wsgi_admission.ticket import State, Ticket

QUEUE_ALL = """
[admission]
mode = queue_all
max_concurrent = 4
worker_threads = 1
[route:gated]
path = /gated
[route:pid]
path = /pid
"""


def nobody(_environ: Any, _start_response: Any) -> list[bytes]:
    """Be the app of a site whose requests run elsewhere."""
    raise AssertionError("it is not this process that replays")


@dataclass
class Place:
    """A line that this process puts tickets into, and the folder that everything lies in."""

    folder: Path
    config: Path
    site: AdmissionMiddleware
    program: tuple[str, ...] = ("-m", "wsgi_admission")

    @property
    def store(self) -> Store:
        """The store of the line."""
        return self.site.process().store

    def put(self, path: str) -> str:
        """Queue a request; return the ticket's id."""
        request_id: str = call(self.site, path, "POST").json()["request_id"]
        return request_id

    def ticket(self, ticket_id: str) -> Ticket:
        """Return a ticket as it is now."""
        return self.store.get(ticket_id)

    def becomes(self, ticket_id: str, state: State) -> Ticket:
        """Wait for a ticket's state."""
        until(lambda: self.ticket(ticket_id).state is state, f"{state} of {ticket_id}")
        return self.ticket(ticket_id)

    def pid(self) -> int:
        """Return the process that runs a queued request."""
        ticket_id = self.put("/pid")
        self.becomes(ticket_id, State.COMPLETED)
        response = self.store.response(ticket_id)
        assert response is not None
        with response.body as body:
            return int(body.read())

    def starts(self) -> list[str]:
        """Return what `/gated` noted, in order."""
        log = self.folder / "runs.log"
        return log.read_text().splitlines() if log.exists() else []

    def open_gate(self) -> None:
        """Let every `/gated` request end."""
        (self.folder / "gate").touch()

    def command(self, app: str, *arguments: str) -> list[str]:
        """Return the command line."""
        return [sys.executable, *self.program, "work", str(self.config), app, *arguments]

    def environ(self) -> dict[str, str]:
        """Return the environment of the processes."""
        gate, log = str(self.folder / "gate"), str(self.folder / "runs.log")
        return {
            **os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
            "ADMISSION_TEST_GATE": gate, "ADMISSION_TEST_LOG": log,
        }  # fmt: skip

    @contextmanager
    def work(self, *arguments: str, app: str = "tests.apps:app") -> Iterator[Working]:
        """Start it, and end it if the test did not."""
        output = self.folder / f"work-{time.monotonic_ns()}.log"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                self.command(app, *arguments), cwd=self.folder, env=self.environ(), stdout=stream, stderr=stream
            )
        working = Working(process, output)
        try:
            until(lambda: process.poll() is not None or "replays with" in working.text(), "the first process")
            yield working
        finally:
            self.open_gate()
            try:
                stop(process)
            finally:
                print(working.text())  # noqa: T201 - pytest shows it beside a failure


@dataclass
class Working:
    """The parent of processes that replay."""

    process: subprocess.Popen[bytes]
    output: Path

    def text(self) -> str:
        """Return what it logged."""
        return self.output.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """Return its processes."""
        return psutil.Process(self.process.pid).children()

    def signal(self, number: signal.Signals) -> None:
        """Send the parent a signal."""
        os.kill(self.process.pid, number)

    def ended(self) -> int:
        """Wait for its end; return its exit status."""
        return self.process.wait(PATIENCE)


# The threads of an app that keep the interpreter from its end have less time than they are given otherwise.
HURRIED = "from wsgi_admission import cli, working; working.MARGIN = 0.2; cli.main()"
# A run in a thread that the interpreter's end waits for.
HANDED_ON = """
from concurrent.futures import ThreadPoolExecutor
from tests.apps import app as plain

def app(environ, start_response):
    return ThreadPoolExecutor().submit(plain, environ, start_response).result()
"""
# No further process can be had while a file of this name is there.
CROWDED = """
import errno, os, pathlib
from wsgi_admission import cli

fork = os.fork

def fork_if_possible():
    if pathlib.Path("crowded").exists():
        raise BlockingIOError(errno.EAGAIN, "too many processes")
    return fork()

os.fork = fork_if_possible
cli.main()
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A line with nobody who replays."""
    config = ini(tmp_path, QUEUE_ALL)
    made = Place(tmp_path, config, AdmissionMiddleware(nobody, config, replays=False))
    yield made
    made.site.close()


def test_what_others_put_is_run_by_processes_of_low_priority(place: Place) -> None:
    """Catches: a line that nobody works off; replays in the parent; another number of processes; an unclean end."""
    with place.work("--processes", "2") as working:
        until(lambda: working.text().count("replays with 1 threads") == 2, "both processes")
        pids = {child.pid for child in working.children()}
        assert len(pids) == 2
        assert place.pid() in pids
        assert {child.nice() for child in working.children()} == {10}
        assert psutil.Process(working.process.pid).nice() == 0
        assert {worker.pid for worker in place.store.statistics(now=time.time()).workers} == pids
        working.signal(signal.SIGTERM)
        assert working.ended() == 0
        assert place.store.statistics(now=time.time()).workers == ()
        assert re.search(r"\[INFO\] ticket\.started ticket=\w{8} route=pid attempt=1", working.text())
        assert "Traceback" not in working.text()


def test_the_priority_can_be_left_alone(place: Place) -> None:
    """Catches: an option that is dropped."""
    with place.work("--nice", "0") as working:
        assert psutil.Process(place.pid()).nice() == 0
        assert "replays take at most 1 of the 4 slots" in working.text()


WRAPPED = """
from tests.apps import app as plain
from wsgi_admission import AdmissionMiddleware

class Framework:
    def __init__(self):
        self.wsgi_app = AdmissionMiddleware(plain, "admission.ini")

    def __call__(self, environ, start_response):
        return self.wsgi_app(environ, start_response)

app = AdmissionMiddleware(plain, "admission.ini")
framework = Framework()

def create_app():
    return AdmissionMiddleware(app, "admission.ini")
"""


@pytest.mark.parametrize("app", ["wrapped:app", "wrapped:framework", "wrapped:create_app()"])
def test_an_app_behind_the_line_already_starts_no_second_pool(place: Place, app: str) -> None:
    """Catches: a process that replays through its own middleware: twice the threads, and requests queued again."""
    (place.folder / "wrapped.py").write_text(WRAPPED)
    with place.work(app=app) as working:
        assert place.pid() == working.children()[0].pid
        (worker,) = place.store.statistics(now=time.time()).workers
        assert worker.threads == 1
        (child,) = working.children()
        assert child.num_threads() == 4  # the main one, the two of the housekeeper, the one that replays


def test_the_app_and_the_paths_are_those_of_the_folder_that_is_changed_to(place: Place, tmp_path: Path) -> None:
    """Catches: an app looked for where the command was started."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "there.py").write_text("from tests.apps import app")
    place.config.rename(folder / "admission.ini")
    place.config = Path("admission.ini")
    with place.work("--chdir", "elsewhere", app="there:app"):
        assert place.pid()


def test_what_runs_has_its_time_when_the_processes_leave_and_nothing_new_is_begun(place: Place) -> None:
    """Catches: TERM that kills runs, or a process that goes on claiming."""
    first, second = place.put("/gated?first"), place.put("/gated?second")
    with place.work() as working:
        until(lambda: place.starts() == ["start first"], "the first start")
        working.signal(signal.SIGTERM)
        until(lambda: "leaves; 1 tickets run here" in working.text(), "the leaving")
        place.open_gate()
        assert working.ended() == 0
    assert place.ticket(first).state is State.COMPLETED
    waiting = place.ticket(second)
    assert (waiting.state, waiting.attempt) == (State.QUEUED, 0)


@pytest.mark.parametrize("how", ["grace", "INT INT", "QUIT"])
def test_what_does_not_end_in_time_goes_back_to_its_place(place: Place, how: str) -> None:
    """Catches: a deploy that counts as a crash, or holds a ticket until its lease runs out; haste not made."""
    first, second = place.put("/gated?first"), place.put("/gated?second")
    with place.work("--grace", "0.5" if how == "grace" else "600") as working:
        until(lambda: place.starts() == ["start first"], "the first start")
        if how == "INT INT":
            working.signal(signal.SIGINT)
            until(lambda: "leaves; 1 tickets run here" in working.text(), "the leaving")
        working.signal({"grace": signal.SIGTERM, "INT INT": signal.SIGINT, "QUIT": signal.SIGQUIT}[how])
        assert working.ended() == 0
    back = place.ticket(first)
    assert (back.state, back.attempt, back.crashes) == (State.QUEUED, 1, 0)
    assert place.store.ahead(second) == {"gated": 1}
    assert place.starts() == ["start first"]


def test_a_killed_process_is_replaced_and_its_ticket_runs_again(place: Place) -> None:
    """Catches: fewer and fewer processes; a ticket that waits for the end of a dead worker's lease."""
    ticket_id = place.put("/gated?first")
    with place.work("--processes", "2") as working:
        until(lambda: working.text().count("replays with") == 2 and place.starts(), "both processes")
        started = re.search(r"\[(\d+)\] \[INFO\] ticket", working.text())
        assert started
        victim = int(started[1])
        os.kill(victim, signal.SIGKILL)
        until(lambda: place.starts() == ["start first"] * 2, "the second start", 10)
        until(lambda: victim not in {c.pid for c in working.children()} and len(working.children()) == 2, "a new one")
        place.open_gate()
        again = place.becomes(ticket_id, State.COMPLETED)
        assert (again.attempt, again.crashes) == (2, 1)
        assert f"process {victim}: was killed by SIGKILL; another starts in" in working.text()


def test_processes_that_die_at_once_are_replaced_more_and_more_slowly(place: Place) -> None:
    """Catches: a loop of restarts that takes a whole CPU."""
    with place.work() as working:
        for number in (1, 2, 3):
            until(lambda: working.text().count("replays with") == number, "a process")  # noqa: B023 - called at once
            os.kill(working.children()[0].pid, signal.SIGKILL)
        waits = until(lambda: len(w := re.findall(r"another starts in ([\d.]+) s", working.text())) == 3 and w)
        assert 0.5 <= float(waits[0]) <= 1.5
        assert 2.0 <= float(waits[2]) <= 6.0


@pytest.mark.parametrize("app", ["tests.apps:app", "handing:app"])
def test_processes_whose_parent_is_dead_leave_in_order(place: Place, app: str) -> None:
    """Catches: processes that nobody stops any more; one that waits for ever for a thread of its app."""
    (place.folder / "handing.py").write_text(HANDED_ON)
    place.program = ("-c", HURRIED)
    ticket_id = place.put("/gated?first")
    with place.work("--grace", "0.5", "--processes", "2", app=app) as working:
        until(lambda: place.starts() == ["start first"], "the first start")
        children = working.children()
        working.process.kill()
        psutil.wait_procs(children, PATIENCE)
        assert not any(child.is_running() for child in children)
        back = place.ticket(ticket_id)
        assert (back.state, back.attempt, back.crashes) == (State.QUEUED, 1, 0)


def test_two_commands_on_one_file_share_the_work(place: Place) -> None:
    """Catches: a ticket run twice, or by one of them only; more runs at once than the host has slots."""
    ids = [place.put(f"/gated?{number}") for number in range(12)]
    with place.work("--processes", "2") as one, place.work("--processes", "3") as other:
        until(lambda: len(place.starts()) == 4, "all slots in use")
        until(lambda: all("ticket.started " in working.text() for working in (one, other)), "the work of both")
        assert len(place.starts()) == 4
        place.open_gate()
        for ticket_id in ids:
            assert place.becomes(ticket_id, State.COMPLETED).attempt == 1
    assert sorted(place.starts()) == sorted(f"start {number}" for number in range(12))


@pytest.mark.parametrize("app", ["tests.apps:app", "handing:app"])
def test_a_process_whose_threads_are_stuck_is_replaced(place: Place, app: str) -> None:
    """Catches: a line that stands still behind a hung request, for ever, or as its process cannot end for it."""
    (place.folder / "handing.py").write_text(HANDED_ON)
    place.program = ("-c", HURRIED)
    place.config.write_text(place.config.read_text().replace("path = /gated", "path = /gated\nmax_runtime = 200ms"))
    hung, behind = place.put("/gated?hung"), place.put("/pid")
    with place.work("--grace", "600", app=app) as working:
        failed = place.becomes(hung, State.FAILED)
        assert (failed.attempt, failed.crashes) == (2, 2)
        assert place.becomes(behind, State.COMPLETED).attempt == 1
        assert place.starts() == ["start hung"] * 2
        text = working.text()
        assert text.count("ticket.stuck ") == 2
        assert text.count("most threads are stuck: leaving") == 2
        assert text.count("ended with status 4; another starts in 0.0 s") == 2
        assert working.process.poll() is None


def test_it_works_off_what_a_gunicorn_queues_that_replays_nothing(place: Place) -> None:
    """Catches: a web server that takes the work of a machine made for it; tickets of one that the other cannot run."""
    with gunicorn(place.folder, place.config, options="replays=False") as site:
        accepted = site.ask("/pid", "POST")
        assert len(psutil.Process(site.process.pid).children()) == 2
        assert site.ask(accepted.json()["status_url"]).json()["status"] == "queued"
        assert place.store.statistics(now=time.time()).workers == ()
        with place.work() as working:
            assert site.final(accepted)["status"] == "completed"
            (child,) = working.children()
            assert site.ask(accepted.json()["result_url"]).body == str(child.pid).encode()


# Reloading


def test_a_reload_takes_up_new_code_one_process_after_another(place: Place) -> None:
    """Catches: HUP that goes on with the old code, loses a ticket, or leaves nobody who replays."""
    module = place.folder / "changing.py"
    module.write_text("from tests.apps import app")
    ticket_id = place.put("/gated?first")
    with place.work("--processes", "2", app="changing:app") as working:
        until(lambda: working.text().count("replays with") == 2 and place.starts(), "both processes")
        old = {child.pid for child in working.children()}
        module.write_text(
            "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'1']\n"
        )  # answers /pid with 1
        working.signal(signal.SIGHUP)
        until(lambda: working.text().count("replays with") >= 3, "the first successor")
        assert len(working.children()) <= 3
        place.open_gate()
        until(lambda: not {child.pid for child in working.children()} & old, "the end of the old ones")
        until(lambda: len(working.children()) == 2)
        assert place.becomes(ticket_id, State.COMPLETED).crashes == 0
        assert place.pid() == 1


def test_a_reload_that_cannot_be_keeps_what_works(place: Place) -> None:
    """Catches: a typing error that stops all replays; a later reload that is not tried."""
    module = place.folder / "changing.py"
    module.write_text("from tests.apps import app")
    text = place.config.read_text()
    with place.work("--processes", "2", app="changing:app") as working:
        until(lambda: working.text().count("replays with") == 2, "both processes")
        old = {child.pid for child in working.children()}
        module.write_text("raise RuntimeError('half a deploy')")
        place.config.write_text(text.replace("max_concurrent", "max_concurent"))
        working.signal(signal.SIGHUP)
        until(lambda: "the reload is given up, the old processes stay" in working.text(), "the failure")
        assert "half a deploy" in working.text()
        assert "did you mean 'max_concurrent'?" in working.text()
        assert {child.pid for child in working.children()} == old
        assert place.pid() in old
        module.write_text("from tests.apps import app")
        working.signal(signal.SIGHUP)
        until(lambda: not {child.pid for child in working.children()} & old, "the successors")
        assert working.process.poll() is None


HANGS = "import threading\nprint('importing', flush=True)\nthreading.Event().wait()"


@pytest.mark.parametrize("end", ["the time is over", "HUP again"])
def test_an_app_that_hangs_while_it_is_imported_does_not_stall_reloads(place: Place, end: str) -> None:
    """Catches: a reload that never ends, says nothing, and keeps the next one from being tried."""
    module = place.folder / "changing.py"
    module.write_text("from tests.apps import app")
    timeout = "3" if end == "the time is over" else "600"
    with place.work("--processes", "2", "--start-timeout", timeout, app="changing:app") as working:
        until(lambda: working.text().count("replays with") == 2, "both processes")
        old = {child.pid for child in working.children()}
        module.write_text(HANGS)
        working.signal(signal.SIGHUP)
        until(lambda: "importing" in working.text(), "the import")
        assert place.pid() in old
        if end == "HUP again":
            module.write_text("from tests.apps import app")
            working.signal(signal.SIGHUP)
            told = "SIGHUP came again while it was starting"
        else:
            told = "it had not begun after 3 s"
        until(lambda: f"the reload is given up, the old processes stay: {told}" in working.text(), "the end of it")
        if end == "the time is over":
            assert {child.pid for child in working.children()} == old
            assert place.pid() in old
            module.write_text("from tests.apps import app")
            working.signal(signal.SIGHUP)
        until(lambda: working.text().count("replays with") == 4, "the successors")
        until(lambda: not {child.pid for child in working.children()} & old, "the end of the old ones")


def test_processes_go_on_when_no_further_one_can_be_started(place: Place) -> None:
    """Catches: one process that cannot be started, by HUP or for a dead one, and all others end for it."""
    place.program = ("-c", CROWDED)
    crowded = place.folder / "crowded"
    with place.work("--processes", "2") as working:
        until(lambda: working.text().count("replays with") == 2, "both processes")
        old = {child.pid for child in working.children()}
        descriptors = psutil.Process(working.process.pid).num_fds()
        crowded.touch()
        working.signal(signal.SIGHUP)
        told = (
            "the reload is given up, the old processes stay: no process can be started: [Errno 11] too many processes"
        )
        until(lambda: told in working.text(), "the end of the reload")
        assert {child.pid for child in working.children()} == old
        assert psutil.Process(working.process.pid).num_fds() == descriptors
        os.kill(old.pop(), signal.SIGKILL)
        until(lambda: "too many processes; the next attempt is in" in working.text(), "an attempt")
        assert place.pid() in old
        crowded.unlink()
        until(lambda: working.text().count("replays with") == 3, "another one")
        assert old < {child.pid for child in working.children()}


# What cannot work


@pytest.mark.parametrize(
    ("app", "told"),
    [
        ("nowhere:app", "Error: 'nowhere:app' cannot be used as the app: there is no module 'nowhere' on sys.path"),
        ("broken:ap", "Error: 'broken:ap' cannot be used as the app: 'broken' has no 'ap'"),
        ("broken:number", "Error: 'broken:number' cannot be used as the app: is not callable"),
        ("broken:factory()", "Error: 'broken:factory()' cannot be used as the app: returns 7, which is not callable"),
        ("broken", "Error: 'broken' cannot be used as the app: is not of the form MODULE:APP"),
        ("endless:ap", "Error: 'endless:ap' cannot be used as the app: 'endless' has no 'ap'"),
        ("raising:app", "importing 'raising' raised ZeroDivisionError('division by zero')"),
        ("leaving:app", "importing 'leaving' raised SystemExit('no settings')"),
        ("dying:app", "Error: the process that imports 'dying:app' was killed by SIGKILL"),
    ],
)
def test_an_app_that_cannot_be_used_ends_it_with_a_clear_message(place: Place, app: str, told: str) -> None:
    """Catches: a loop of restarts, an exit status of 0, a process that goes on without an app, or does not end."""
    (place.folder / "broken.py").write_text("number = 7\ndef factory():\n    return 7\n")
    (place.folder / "raising.py").write_text("1 / 0")
    (place.folder / "leaving.py").write_text("raise SystemExit('no settings')")
    (place.folder / "dying.py").write_text("import os\nos.kill(os.getpid(), 9)")
    (place.folder / "endless.py").write_text("import threading as t\nt.Thread(target=t.Event().wait).start()")
    place.program = ("-c", HURRIED)
    command = place.command(app, "--processes", "3")
    ended = subprocess.run(
        command, cwd=place.folder, env=place.environ(), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert told in ended.stderr.splitlines()[-1]
    assert ended.stderr.count("is started") == 1
    assert ("Traceback" in ended.stderr) == (app in {"raising:app", "leaving:app"})


def test_a_first_process_that_cannot_be_started_ends_it_with_a_clear_message(place: Place) -> None:
    """Catches: a traceback where a sentence would do."""
    place.program = ("-c", CROWDED)
    (place.folder / "crowded").touch()
    ended = subprocess.run(
        place.command("tests.apps:app"),
        cwd=place.folder, env=place.environ(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "Error: no process can be started: [Errno 11] too many processes"
    assert "Traceback" not in ended.stderr


def spoil_nothing(_folder: Path) -> None:
    """Leave the store alone."""


@pytest.mark.parametrize(
    ("text", "spoil", "told"),
    [
        ("[admission]\nmax_concurent = 1\n", spoil_nothing, "did you mean 'max_concurrent'?"),
        (
            QUEUE_ALL + "[store]\nurl = memory://\n", spoil_nothing,
            "[store] url = 'memory://': is one process's own, so nobody else can replay what waits there: take a file.",
        ),
        (QUEUE_ALL, lambda folder: (folder / "admission.db").mkdir(), "is not a plain file"),
    ],
)  # fmt: skip
def test_a_configuration_or_a_store_that_cannot_be_used_ends_it(
    tmp_path: Path, text: str, spoil: Callable[[Path], None], told: str
) -> None:
    """Catches: processes that replay nothing, and say so only in their log."""
    config = ini(tmp_path, text)
    spoil(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "wsgi_admission", "work", str(config), "tests.apps:app"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_server_that_refuses_the_password_ends_it(tmp_path: Path) -> None:
    """Catches: processes that wait for ever for a store which is there, and will never let them in."""
    server = started(tmp_path, "redis", "--requirepass", "s3cret")
    try:
        config = ini(tmp_path, f"{QUEUE_ALL}[store]\nurl = {server.url}&password=wr0ng\n")
        ended = subprocess.run(
            [sys.executable, "-m", "wsgi_admission", "work", str(config), "tests.apps:app"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
    finally:
        server.stop()
    assert ended.returncode == 1
    assert "refuses the user or the password" in ended.stderr.splitlines()[-1]
