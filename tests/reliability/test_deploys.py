"""Every way in which a server is stopped, replaced or cut off, while a long and a short request run and others wait."""

from __future__ import annotations

import http.client
import json
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.reliability.history import Event, Writer, check, read
from tests.reliability.running import at_the_end, emptied
from tests.reliability.size import FULL, sized
from tests.support import PATIENCE, Server, gunicorn, ini, until
from wsgi_admission.integrations.leaving import MARGIN
from wsgi_admission.stores import open_store

#: Seconds that gunicorn waits, and that a run has when its process is told to leave.
PATIENT = sized(3, 12)
ALLOWANCE = PATIENT - MARGIN
#: Seconds for which the short run goes on when its process was told, and that each of the others takes.
SHORT, QUICK = ALLOWANCE * 0.5, 0.05
#: How many quick ones wait behind the others: some are left when the long one comes back.
WAITING = sized(60, 600)
#: Seconds within which a process that was told begins nothing more.
PROMPT = 0.5
#: ``python -m gunicorn`` cannot start its successor: its own folder then hides modules of the standard library.
GUNICORN = str(Path(sys.executable).with_name("gunicorn"))

TELLING = "tests.reliability.telling.TellingWorker"
CONFIG = """
[admission]
mode = queue_all
max_concurrent = 3
worker_threads = 3
replay_processes = {processes}
[route:twice]
path = /twice
crash_retries = 1
[tiers]
resolver = tests.reliability.site:who
"""


@dataclass
class Place:
    """A line, its history, and the server in front of it."""

    folder: Path
    processes: int
    successor: psutil.Process | None = None

    def __post_init__(self) -> None:
        self.url = f"sqlite:///{self.folder}/admission.db"
        self.history = self.folder / "history"
        self.writer = Writer(self.history)
        self.config = ini(self.folder, CONFIG.format(processes=self.processes))
        #: How many processes the server has beside its master.
        self.workers = 2 + self.processes

    @contextmanager
    def serve(self, settings: str = "") -> Iterator[Server]:
        """Start a server."""
        with gunicorn(
            self.folder,
            self.config,
            settings=f"worker_class = '{TELLING}'\ngraceful_timeout = {PATIENT}\npreload_app = True\n{settings}",
            app="tests.reliability.site:app",
            program=(GUNICORN,),
            ADMISSION_TEST_HISTORY=str(self.history),
        ) as site:
            until(lambda: len(children(site.process.pid)) == self.workers, "all workers")
            try:
                yield site
            finally:
                if self.successor is not None:
                    self.successor.terminate()
                    self.successor.wait(PATIENCE)

    @contextmanager
    def next_server(self, site: Server) -> Iterator[None]:
        """Have a server after a deploy: the same one, its successor, or a new one."""
        if site.process.poll() is None or self.successor is not None:
            yield
            return
        with closing(open_store(self.url)) as store:
            assert sum(tally.queued for tally in store.counts().values()) > WAITING / 4, "nothing waited"
        with self.serve():
            yield

    def put(self, site: Server, gate: str | None = None) -> str:
        """Queue a quick request, or one whose first attempt runs until the gate is open; return its ticket."""
        request = uuid.uuid4().hex
        self.writer.note("submitted", request=request)
        body = {"request": request, "seconds": QUICK} | ({"gate": str(self.folder / gate)} if gate else {})
        answer = site.ask("/twice", "POST", json.dumps(body).encode(), Who="anonymous:client")
        assert answer.status == 202, answer
        ticket: str = answer.json()["request_id"]
        self.writer.note("accepted", request=request, ticket=ticket)
        return ticket

    def told(self, pids: set[int]) -> dict[int, float]:
        """Return when these processes were told to leave, those of them that were."""
        return {event["pid"]: event["at"] for event in self.events("told") if event["pid"] in pids}

    def events(self, what: str, ticket: str | None = None) -> list[Event]:
        """Return what was noted of this kind, of one ticket or of all."""
        return [e for e in read(self.history) if e["what"] == what and ticket in {None, e.get("ticket")}]


def children(pid: int) -> set[int]:
    """Return the children of a process."""
    return {child.pid for child in psutil.Process(pid).children()}


def gone(pids: set[int]) -> bool:
    """Whether none of these processes lives."""
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


# How a server is told.  Each returns when the old processes have ended.


def stopped(number: signal.Signals) -> Callable[[Place, Server, set[int]], None]:
    """Return what sends the master a signal that ends it."""

    def tell(_place: Place, site: Server, old: set[int]) -> None:
        site.process.send_signal(number)
        site.process.wait(PATIENCE)
        until(lambda: gone(old), "the end of the workers")

    return tell


def reloaded(_place: Place, site: Server, old: set[int]) -> None:
    """Replace all workers."""
    site.process.send_signal(signal.SIGHUP)
    until(lambda: not old & children(site.process.pid), "the end of the old workers")


def retired(place: Place, site: Server, old: set[int]) -> None:
    """Send requests until the workers that answer have had enough of them."""

    def answering_told() -> bool:
        with suppress(OSError, http.client.HTTPException):  # the worker may be leaving just then
            site.ask("/ping")
        return len(place.told(old)) == 2

    until(answering_told, "enough requests")
    until(lambda: not set(place.told(old)) & children(site.process.pid), "the end of the old workers")


def upgraded(place: Place, site: Server, old: set[int]) -> None:
    """Start a new master beside the old one, and end that."""
    site.process.send_signal(signal.SIGUSR2)

    def successor() -> int | None:
        masters = children(site.process.pid) - old
        return next((pid for pid in masters if len(children(pid)) == place.workers), None)

    new = until(successor, "the new master and its workers")
    place.successor = psutil.Process(new)
    site.process.send_signal(signal.SIGTERM)
    site.process.wait(PATIENCE)
    until(lambda: gone(old), "the end of the old workers")


HOWS: dict[str, Callable[[Place, Server, set[int]], None]] = {
    "TERM": stopped(signal.SIGTERM),
    "QUIT": stopped(signal.SIGQUIT),
    "HUP": reloaded,
    "max_requests": retired,
    "USR2": upgraded,
    "a killed master": stopped(signal.SIGKILL),
}


#: How, and with how many processes set aside for replaying; the short form leaves some ways out where there are none.
CASES = [
    *(pytest.param(how, 1, id=f"{how}-own processes") for how in HOWS),
    *(pytest.param(how, 0, id=f"{how}-web workers") for how in HOWS if FULL or how in {"TERM", "HUP", "max_requests"}),
]


@pytest.mark.parametrize(("how", "processes"), CASES)
def test_a_deploy_loses_nothing_and_repeats_only_what_runs_for_too_long(
    tmp_path: Path, how: str, processes: int
) -> None:
    """Catches: claims of a process that leaves, a run cut off, a return that is a crash or another place, a loss."""
    place = Place(tmp_path, processes)
    with place.serve("max_requests = 150" if how == "max_requests" else "") as site:
        long, short = place.put(site, "long"), place.put(site, "short")
        for _ in range(WAITING):
            place.put(site)
        until(lambda: {long, short} <= {event["ticket"] for event in place.events("started")}, "both runs")
        old = children(site.process.pid)
        over = threading.Event()
        ending = threading.Thread(target=_end_short, args=(place, site, place.events("started", short)[0]["pid"], over))
        ending.start()
        at = time.monotonic()
        try:
            HOWS[how](place, site, old)
        finally:
            over.set()
            ending.join()
        told = place.told(old)
        if how == "a killed master":
            told = dict.fromkeys(old, at)
        assert len(told) == (2 if how == "max_requests" else len(old))
        (tmp_path / "long").touch()  # where nobody was told
        with place.next_server(site):
            totals = emptied(place.url)

    for claim in place.events("claimed"):
        assert claim["pid"] not in told or claim["asked"] <= told[claim["pid"]] + PROMPT, "a late claim"
    assert totals["crashed"] == 0
    _ended_there(place, short, told, None if how != "QUIT" else 0.0)
    _ended_there(place, long, told, ALLOWANCE if how != "QUIT" else 0.0)
    found = check(at_the_end(place.url, place.history))
    assert found.faults == [], found.faults[:10]
    assert found.accepted == WAITING + 2


def _end_short(place: Place, site: Server, pid: int, over: threading.Event) -> None:
    """Let the short run end some time after its process was told, or all was over without it."""
    until(lambda: place.told({pid}) or over.is_set() or site.process.poll() is not None, "the telling")
    over.wait(SHORT)
    (place.folder / "short").touch()


def _ended_there(place: Place, ticket: str, told: dict[int, float], allowance: float | None) -> None:
    """A run that had the time ended where it ran; any other went back when its time was over, and was next.

    :param allowance: the seconds that it had, or None if they were enough.
    """
    first, *more = place.events("claimed", ticket)
    (end,) = place.events("finished", ticket)
    released = place.events("releasing", ticket)
    assert end["state"] == "completed"
    if allowance is None or first["pid"] not in told:
        assert (end["pid"], end["attempt"], more, released) == (first["pid"], 1, [], [])
        return
    (again,), back = more, released[0]  # it may be tried twice, and be refused the second time
    assert (end["pid"], end["attempt"]) == (again["pid"], 2)
    assert again["pid"] != first["pid"]
    assert -0.01 <= back["at"] - told[first["pid"]] - allowance <= 2 * PROMPT
    order = [event["ticket"] for event in place.events("accepted")]
    claims = [e for e in place.events("claimed") if back["at"] + 0.1 < e["asked"] and e["at"] < again["asked"]]
    assert {claim["ticket"] for claim in claims} <= set(order[: order.index(ticket)]), "it was not the next one"
