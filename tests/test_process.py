"""The life of a process behind the middleware: what it starts, what it holds back, what it lets go of."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, BinaryIO

import pytest

from tests.store_model import recording, ticket
from tests.support import ROOT, ini, until
from tests.test_middleware import Site
from tests.wsgi import environ, record
from wsgi_admission import AdmissionMiddleware, Config, StoreError, StoreUnavailable
from wsgi_admission.config import Admission, Route, StoreOptions
from wsgi_admission.load import Load
from wsgi_admission.passing import Passing
from wsgi_admission.policy.decision import Mode
from wsgi_admission.process import start_process
from wsgi_admission.replay import Recording
from wsgi_admission.stores import open_store
from wsgi_admission.stores.memory import MemoryStore
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.tiers import Resolver

ROUTES = (Route(name="image", path=("/image",)),)


class Memory:
    """A load of which only the memory is told, and how often it was asked for."""

    def __init__(self) -> None:
        self.above = True
        self.looks = 0

    def load(self) -> Load:
        """Return the load, as `LoadMeter.load` does."""
        self.looks += 1
        nothing: MappingProxyType[str, Any] = MappingProxyType({})
        return Load(value=0.9, above="memory", readings=nothing, failed=nothing, memory_above=self.above)

    def looked(self) -> None:
        """Wait until it was asked for a few times more."""
        enough = self.looks + 3
        until(lambda: self.looks >= enough, "more looks at the load")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A memory that is above its threshold."""
    made = Memory()
    monkeypatch.setattr("wsgi_admission.process.LoadMeter.load", lambda *_args: made.load())
    return made


@pytest.fixture
def sites() -> Iterator[list[Site]]:
    """Sites to close at the end."""
    made: list[Site] = []
    yield made
    for site in made:
        site.go.set()
        site.middleware.close()


def sqlite_config(path: Path, **options: Any) -> Config:
    """Return the configuration of a line in a SQLite file."""
    return Config(admission=Admission(**options), store=StoreOptions(url=f"sqlite:///{path}"), routes=ROUTES)


# What is held back, and what is told


def test_leases_that_ran_out_while_nobody_could_renew_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: whoever is first after the store was away takes what the others run for lost."""
    now = 1000.0
    expired: list[float] = []
    monkeypatch.setattr("wsgi_admission.host.clock", lambda: now)
    site = Site()
    process = site.middleware.process()
    process.housekeeper.stop()
    renew, away = process.store.renew, True

    def failing(*args: Any, **keys: Any) -> Any:
        if away:
            raise StoreUnavailable("away")
        return renew(*args, **keys)

    monkeypatch.setattr(process.store, "renew", failing)

    def expire(**_keys: Any) -> int:
        expired.append(now)
        return 0

    monkeypatch.setattr(process.store, "requeue_expired", expire)

    def look(at: float) -> None:
        nonlocal now
        now = at
        with suppress(StoreUnavailable):
            process.leases()

    for second in range(1001, 1034):
        look(float(second))
    away = False
    for second in range(1034, 1047):
        look(float(second))
    assert expired == [1044.0, 1045.0, 1046.0]
    away = True
    look(1047.0)  # it was away for a moment: whoever runs something has leases left
    away = False
    look(1048.0)
    assert expired[-1] == 1048.0
    look(1060.0)  # all of this host was stopped
    assert expired[-1] == 1048.0
    monkeypatch.undo()
    site.middleware.close()


def test_leases_that_ran_out_while_the_host_slept_say_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches: a laptop that wakes, where whoever is first takes what the others run for lost."""
    now, slept = 1000.0, 0.0
    monkeypatch.setattr("wsgi_admission.host.clock", lambda: now)
    awake = SimpleNamespace(time=time.time, monotonic=lambda: now - slept)
    monkeypatch.setattr("wsgi_admission.process.time", awake)
    url = f"sqlite:///{tmp_path / 'admission.db'}"
    config = Config(store=StoreOptions(url=url), routes=ROUTES)
    first = start_process(lambda *_args: [], config, Resolver(["donor"]), replays=False)
    first.housekeeper.stop()
    with closing(first), closing(SQLiteStore(tmp_path / "admission.db", clock=lambda: now)) as second:
        monkeypatch.setattr(first.store, "_clock", lambda: now)
        ticket_id = second.put(ticket(route="image", crash_retries=0), recording(), now=0).id
        for _ in range(13):  # until it knows that everybody renews
            first.leases()
            now += 1
        assert second.claim("second", now=0, lease=30, routes={"image"}) is not None
        now, slept = now + 60, 60.0
        first.leases()
        assert second.get(ticket_id).state is State.PROCESSING
        assert second.renew([(ticket_id, 1)], lease=30)
        for _ in range(13):
            first.leases()
            now += 1
        assert (second.get(ticket_id).state, second.get(ticket_id).attempt) == (State.PROCESSING, 1)
        now += 20
        for _ in range(13):
            first.leases()
            now += 1
        assert second.get(ticket_id).state is State.FAILED, "now it is lost"


def test_a_process_that_has_just_started_takes_nobodys_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a process that starts when the store is back, and at its first look takes what others run for lost."""
    now = 1000.0
    expired: list[float] = []
    monkeypatch.setattr("wsgi_admission.host.clock", lambda: now)
    monkeypatch.setattr(MemoryStore, "requeue_expired", lambda _self, **_keys: expired.append(now))
    config = Config(store=StoreOptions(url="memory://"), routes=ROUTES)
    process = start_process(lambda *_args: [], config, Resolver(["donor"]), replays=True)
    process.housekeeper.stop()
    for second in range(1000, 1013):
        now = float(second)
        process.leases()
    assert expired == [1010.0, 1011.0, 1012.0]
    monkeypatch.undo()
    process.close()


def test_while_the_line_is_paused_nothing_starts_and_newcomers_wait(
    monkeypatch: pytest.MonkeyPatch, sites: list[Site]
) -> None:
    """Catches: a newcomer that runs at once on an idle server, or a replay thread that goes on."""
    monkeypatch.setattr("wsgi_admission.process.LoadMeter.sample", lambda _self, _now: None)
    site = Site(replays=True)
    sites.append(site)
    process = site.middleware.process()
    looks: list[bool] = []
    paused = process.store.paused

    def look() -> bool:
        looks.append(True)
        return paused()

    process.store.pause(paused=True)
    with monkeypatch.context() as patch:
        patch.setattr(process.store, "paused", look)
        patch.setattr(process.store, "claim", lambda *_args, **_keys: pytest.fail("claimed"))
        accepted = [site.call() for _ in range(2)]
        enough = len(looks) + 3
        until(lambda: len(looks) >= enough, "looks of the replay thread")
    assert [one.status for one in accepted] == ["202 Accepted"] * 2
    assert accepted[0].json()["queue_info"]["estimated_wait_time"] is None
    assert site.environs == []
    process.store.pause(paused=False)
    until(lambda: len(site.environs) == 2, "both runs")
    until(lambda: site.call().status == "200 OK", "a run at once")


def test_memory_above_its_threshold_lets_one_replay_run_and_no_second(memory: Memory, sites: list[Site]) -> None:
    """Catches: replays that fill a full memory; a line that stands still for as long as others fill it."""
    site = Site(mode=Mode.QUEUE_ALL, slots=5)
    sites.append(site)
    running: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        running.append(environ["QUERY_STRING"])
        assert site.go.wait(30)
        start_response("200 OK", [])
        return [b""]

    config = Config(
        admission=Admission(mode=Mode.QUEUE_ALL, max_concurrent=5, worker_threads=2),
        store=StoreOptions(url="memory://"),
        routes=ROUTES,
    )
    site.middleware = AdmissionMiddleware(app, config)
    slots = site.middleware.process().slots
    direct = slots.take("image")  # as a request that runs at once
    assert direct is not None
    for number in range(2):
        assert site.call(f"/image?{number}").status == "202 Accepted"
    memory.looked()
    assert running == []
    direct.release()
    until(lambda: running == ["0"], "the one that runs although the memory is full")
    memory.looked()
    assert running == ["0"]
    assert slots.in_use() == 1
    memory.above = False
    until(lambda: running == ["0", "1"], "the second, when there is memory")


@pytest.mark.parametrize("replays", [True, False])
def test_every_chore_is_done_and_only_a_process_that_replays_reports_so(
    monkeypatch: pytest.MonkeyPatch, *, replays: bool
) -> None:
    """Catches: a chore left out: a log that grows for ever, results never removed, leases never looked at."""
    done: Counter[str] = Counter()
    names = ("report", "requeue_expired", "observe", "maintain", "prune")
    for name in names:
        monkeypatch.setattr(MemoryStore, name, lambda _self, *_args, _name=name, **_keys: done.update([_name]))
    monkeypatch.setattr("wsgi_admission.process.LoadMeter.sample", lambda _self, _now: done.update(["sample"]))
    monkeypatch.setattr("wsgi_admission.process.GRACE", 0.0)
    ended = Passing()
    ended.begin("donor", "image", shadowed=False)()
    monkeypatch.setattr("wsgi_admission.process.Passing", lambda: ended)
    config = Config(store=StoreOptions(url="memory://"), routes=ROUTES)
    process = start_process(lambda *_args: [], config, Resolver(["donor"]), replays=replays)
    try:
        until(lambda: done["prune"], "the last of the chores")
        expected = {"sample", *names} if replays else {"sample", *names} - {"report"}
        assert set(done) == expected
    finally:
        process.close()


@pytest.mark.parametrize("long", ["maintain", "expire", "prune", "observe"])
def test_no_long_chore_keeps_leases_from_being_renewed(monkeypatch: pytest.MonkeyPatch, long: str) -> None:
    """Catches: what runs here, taken for lost by others while a large database is looked through or emptied."""
    go, begun = threading.Event(), threading.Event()
    done: Counter[str] = Counter()

    def wait(*_args: Any, **_keys: Any) -> int:
        begun.set()
        assert go.wait(30)
        return 0

    def note(name: str) -> None:
        did = getattr(MemoryStore, name)
        monkeypatch.setattr(MemoryStore, name, lambda *args, **keys: (done.update([name]), did(*args, **keys))[1])

    for name in ("renew", "report", "requeue_expired", "statistics"):
        note(name)
    monkeypatch.setattr(MemoryStore, long, wait)
    for name in ("TIDY_INTERVAL", "REPORT_INTERVAL", "GRACE"):
        monkeypatch.setattr(f"wsgi_admission.process.{name}", 0.01)
    ended = Passing()
    ended.begin("donor", "image", shadowed=False)()
    monkeypatch.setattr("wsgi_admission.process.Passing", lambda: ended)
    routes = (replace(ROUTES[0], max_wait=60.0),)
    config = Config(store=StoreOptions(url="memory://"), routes=routes)
    process = start_process(lambda *_args: [], config, Resolver(["donor"]), replays=True)
    try:
        assert begun.wait(30)
        done.clear()
        until(lambda: len(done) == 4 and min(done.values()) > 2, "renewals, reports and looks for the dead")
    finally:
        go.set()
        process.close()


def test_direct_runs_that_the_store_could_not_be_told_of_are_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: requests missing in the counts after a store that was busy for a moment."""
    store, passing = open_store("memory://"), Passing()
    for shadowed in (False, True):
        passing.begin("donor", "image", shadowed=shadowed)()

    def busy(*_args: Any, **_keys: Any) -> None:
        raise StoreUnavailable("busy")

    with monkeypatch.context() as patch:
        patch.setattr(store, "observe", busy)
        with pytest.raises(StoreUnavailable):
            passing.flush(store)
    passing.begin("donor", "image", shadowed=False)()
    passing.flush(store)
    passing.flush(store)
    tally = store.counts()["donor", "image"]
    assert (tally.passed, tally.shadowed) == (3, 1)


# What is kept open


def open_files(path: Path) -> list[str]:
    """Return which files of a store this process has open."""
    descriptors = Path("/proc/self/fd")
    names = []
    for descriptor in descriptors.iterdir():
        try:
            names.append(str(descriptor.readlink()))
        except FileNotFoundError:  # that of the listing itself
            continue
    return [name for name in names if name.startswith(str(path))]


def test_a_store_is_closed_again_when_the_slots_cannot_be_opened(tmp_path: Path) -> None:
    """Catches: one more set of connections left open at each attempt, until the process has no descriptors left."""
    path = tmp_path / "admission.db"
    (tmp_path / "admission.db-main.slots").mkdir()
    with pytest.raises(StoreError, match="slots") as told:
        start_process(lambda *_args: [], sqlite_config(path), Resolver(["donor"]), replays=False)
    assert path.exists()
    assert open_files(path) == []
    del told  # until here its traceback keeps a forgotten store from being closed by chance


#: What a process finds used up when it starts: what its birth, its boot and its file systems are read by, or one of
#: the threads that it needs, two to keep house and two to replay.
USED_UP = ("stat", "boot_id", "mountinfo", 1, 2, 3, 4)


def use_up(patch: pytest.MonkeyPatch, what: str | int) -> None:
    """Let a file not be opened, or the thread of this number not be started at each attempt."""
    if isinstance(what, str):
        reading = Path.read_text

        def read(file: Path, *args: str) -> str:
            if file.name == what:
                raise OSError(errno.ENFILE, "Too many open files in system")
            return reading(file, *args)

        patch.setattr(Path, "read_text", read)
        return
    starting = threading.Thread.start
    asked = 0

    def start(thread: threading.Thread) -> None:
        nonlocal asked
        asked += 1
        if asked == what:
            asked = 0
            raise RuntimeError("can't start new thread")
        starting(thread)

    patch.setattr(threading.Thread, "start", start)


@pytest.mark.parametrize("what", USED_UP)
def test_a_process_that_cannot_be_started_just_now_answers_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sites: list[Site], what: str | int
) -> None:
    """Catches: an error for the server, which may end it; threads that claim and no housekeeper; files left open."""
    monkeypatch.setattr("wsgi_admission.middleware.REOPEN_INTERVAL", 1e-9)
    site = Site()
    sites.append(site)
    config = sqlite_config(tmp_path / "admission.db", mode=Mode.QUEUE_ALL, max_concurrent=2, worker_threads=2)
    site.middleware = AdmissionMiddleware(site.app, config)
    others = set(threading.enumerate())
    with closing(open_store(config.store.url)) as store:
        kept = store.put(ticket(route="image"), recording(), now=time.time())
        opened = []
        with monkeypatch.context() as patch:
            use_up(patch, what)
            for attempts in (1, 20):
                for _ in range(attempts):
                    assert site.call().status == "200 OK"
                    assert site.middleware.started() is None
                until(lambda: set(threading.enumerate()) <= others, "the end of all threads")
                opened.append(sorted(open_files(tmp_path)))
        assert opened[0] == opened[1]
        assert store.get(kept.id).attempt == 0, "it was claimed"
        assert store.statistics(now=time.time()).workers == (), "nobody replays"
        assert site.call().status == "202 Accepted"
        until(lambda: store.get(kept.id).state.final, "its end")


def test_a_store_that_cannot_be_opened_is_tried_again_after_a_second_and_not_before(
    monkeypatch: pytest.MonkeyPatch, sites: list[Site]
) -> None:
    """Catches: every request waiting for a dead store; a store that is never asked again."""
    now, attempts, dead = [100.0], [], [True]

    def start(*args: Any, **keys: Any) -> Any:
        attempts.append(now[0])
        if dead[0]:
            raise StoreUnavailable("The disk is gone.")
        return start_process(*args, **keys)

    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr("wsgi_admission.middleware.time", clock)
    monkeypatch.setattr("wsgi_admission.middleware.start_process", start)
    site = Site(mode=Mode.QUEUE_ALL)
    sites.append(site)
    for moment in (100.0, 100.0, 100.5, 100.9, 101.1, 101.9, 102.2):
        now[0] = moment
        assert site.call().status == "200 OK"
    assert attempts == [100.0, 101.1, 102.2]
    dead[0] = False
    now[0] = 102.3
    assert site.call().status == "200 OK"
    now[0] = 103.3
    assert site.call().status == "202 Accepted"
    assert attempts == [100.0, 101.1, 102.2, 103.3]


ANOTHER = """
import sys
from tests.test_middleware import Site
from tests.wsgi import call
from wsgi_admission import AdmissionMiddleware

print(call(AdmissionMiddleware(Site().app, sys.argv[1], replays=False), "/image", "POST").status)
"""


def another(config: Path) -> str:
    """Return what another process answers."""
    asked = subprocess.run(
        [sys.executable, "-c", ANOTHER, str(config)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return asked.stdout.strip()


def test_the_processes_of_a_host_share_its_slots_also_while_the_store_cannot_be_opened(
    tmp_path: Path, sites: list[Site]
) -> None:
    """Catches: max_concurrent runs for each process, just when the machine is in trouble; runs that nobody counts."""
    config = ini(tmp_path, "[admission]\nmax_concurrent = 1\n[route:image]\npath = /image\n")
    database = tmp_path / "admission.db"
    database.mkdir()
    site = Site()
    sites.append(site)
    site.middleware = AdmissionMiddleware(site.app, config, replays=False)
    status, answer = site.open()
    assert (status, another(config)) == ("200 OK", "503 Service Unavailable")
    answer.close()
    status, answer = site.open()
    assert status == "200 OK"
    database.rmdir()
    later = AdmissionMiddleware(site.app, config, replays=False)
    with closing(later):
        assert later.process().slots.in_use() == 1
        answer.close()
        assert later.process().slots.in_use() == 0


@pytest.mark.parametrize("why", ["no file", "no locks"])
def test_without_a_store_and_slots_that_can_be_shared_a_process_has_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sites: list[Site], why: str
) -> None:
    """Catches: a site that answers nobody, or runs whatever comes, because its disk is in trouble."""
    config = ini(tmp_path, "[admission]\nmax_concurrent = 1\n[route:image]\npath = /image\n")
    (tmp_path / "admission.db").mkdir()
    site = Site()
    sites.append(site)
    site.middleware = AdmissionMiddleware(site.app, config, replays=False)
    if why == "no file":
        (tmp_path / "admission.db-main.slots").mkdir()
    else:

        def fail(*_args: Any) -> Any:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("wsgi_admission.locks.fcntl.fcntl", fail)
        monkeypatch.setattr("wsgi_admission.locks.fcntl.lockf", fail)
    for _ in range(2):
        status, answer = site.open()
        assert (status, site.call().status) == ("200 OK", "503 Service Unavailable")
        answer.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_what_was_made_before_a_fork_is_not_thrown_away_in_the_child(tmp_path: Path) -> None:
    """Catches: a child that closes the connections of its parent, and so drops what the parent has locked."""
    middleware = AdmissionMiddleware(
        Site().app, sqlite_config(tmp_path / "admission.db", mode=Mode.QUEUE_ALL), replays=False
    )
    inherited = weakref.ref(middleware.process())
    # CPython never frees the frames of a thread that stayed behind, and they would keep all of it by chance.
    middleware.process().housekeeper.stop()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        answer = b"failed"
        try:
            renewed = middleware.process() is not inherited()
            gc.collect()
            answer = f"{renewed} {inherited() is not None}".encode()
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "True True"
    os.waitpid(child, 0)
    middleware.close()


def test_a_closed_middleware_is_not_kept_for_the_end_of_the_process(tmp_path: Path) -> None:
    """Catches: an app that is reloaded again and again and never freed."""
    path = tmp_path / "admission.db"
    middleware = AdmissionMiddleware(Site().app, sqlite_config(path), replays=False)
    middleware.process()
    gone = weakref.ref(middleware)
    middleware.close()
    del middleware
    gc.collect()
    assert gone() is None


LEAVING = """
import sys, threading
from tests.wsgi import call
from wsgi_admission import AdmissionMiddleware

running = threading.Event()

def app(environ, start_response):
    running.set()
    threading.Event().wait()

call(AdmissionMiddleware(app, sys.argv[1]), "/x", "POST", b"body")
assert running.wait(30)
"""


def test_a_process_that_ends_hands_back_what_it_runs(tmp_path: Path) -> None:
    """Catches: a server without hooks of its own whose tickets stay in processing until their leases run out."""
    config = ini(tmp_path, "[admission]\nmode = queue_all\n[route:x]\npath = /x\n")
    subprocess.run(
        [sys.executable, "-c", LEAVING, str(config)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=True,
    )  # fmt: skip
    store = SQLiteStore(tmp_path / "admission.db")
    try:
        (tally,) = store.counts().values()
        assert (tally.queued, tally.processing) == (1, 0)
        again = store.claim("another", now=time.time(), lease=30, routes={"x"})
        assert again is not None
        assert (again.attempt, again.crashes) == (2, 0)
    finally:
        store.close()


# What becomes of a request


def test_a_request_that_waited_longer_than_its_route_allows_is_cancelled_with_the_reason(sites: list[Site]) -> None:
    """Catches: max_wait that nobody looks after, or that reaches other routes; a client that is not told why."""
    site = Site()
    sites.append(site)
    config = Config(
        admission=Admission(mode=Mode.QUEUE_ALL),
        store=StoreOptions(url="memory://"),
        routes=(Route(name="image", path=("/image",), max_wait=0.05), Route(name="video", path=("/video",))),
    )
    site.middleware = AdmissionMiddleware(site.app, config, replays=False)
    patient, impatient = site.call("/video").json(), site.call("/image").json()

    def status(accepted: dict[str, str]) -> Any:
        return site.call(accepted["status_url"], "GET").json()

    until(lambda: status(impatient)["status"] == "cancelled")
    reason = "It could not be started within 1 second. Please try again later."
    told = status(impatient)
    assert (told["error_message"], told["message"]) == (reason, f"🚫 Your request has been cancelled. {reason}")
    assert "retry_suggestion" not in told
    assert status(patient)["status"] == "queued"
    site.call(patient["cancel_url"], "DELETE")
    assert "error_message" not in status(patient)


def test_what_is_overdue_when_a_process_starts_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches: a server that was down for an hour and then works for people who have gone, before the others."""
    monkeypatch.setattr("wsgi_admission.process.Housekeeper.start", lambda _self: None)
    config = sqlite_config(tmp_path / "admission.db")
    config = replace(config, routes=(replace(ROUTES[0], max_wait=600.0),))
    ran: list[str] = []

    def app(env: dict[str, Any], start_response: Any) -> list[bytes]:
        ran.append(env["PATH_INFO"])
        start_response("200 OK", [])
        return [b""]

    with closing(open_store(config.store.url)) as store:
        now = time.time()
        overdue = [store.put(ticket(route="image", created_at=now - 3600), recording(), now=now) for _ in range(3)]
        request = record(environ("/image", "POST"), max_body=100)
        fresh = store.put(ticket(route="image", created_at=now), request, now=now)
        process = start_process(app, config, Resolver(["donor"]), replays=True)
        try:
            until(lambda: store.get(fresh.id).state.final, "the run of the one that is in time")
        finally:
            process.close()
        ends = [store.get(one.id) for one in overdue]
        assert {(end.state, end.attempt, end.error) for end in ends} == {
            (State.CANCELLED, 0, "It could not be started within 10 minutes. Please try again later.")
        }
        assert ran == ["/image"]


def test_what_expires_in_several_goes_does_not_wait_for_the_next_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catches: a crowd that waited too long, and is told so one part in a second."""
    for module in ("deadlines", "stores.sqlite"):
        monkeypatch.setattr(f"wsgi_admission.{module}.AT_ONCE", 1)
    monkeypatch.setattr("wsgi_admission.stores.pruning.BATCH", 1)
    monkeypatch.setattr("wsgi_admission.process.TIDY_INTERVAL", 3600.0)
    config = sqlite_config(tmp_path / "admission.db")
    config = replace(config, routes=(replace(ROUTES[0], max_wait=60.0),))
    with closing(open_store(config.store.url)) as store:
        tickets = [store.put(ticket(route="image"), recording(), now=0) for _ in range(3)]
        process = start_process(lambda *_args: [], config, Resolver(["donor"]), replays=False)
        try:
            until(lambda: {store.get(one.id).state for one in tickets} == {State.CANCELLED}, "the last")
        finally:
            process.close()


def test_a_process_reports_the_threads_that_are_not_stuck(sites: list[Site]) -> None:
    """Catches: waits that are estimated as if hung threads worked; a process that is forgotten while it is alive."""
    site, go = Site(), threading.Event()
    sites.append(site)
    config = Config(
        admission=Admission(mode=Mode.QUEUE_ALL, max_concurrent=5, worker_threads=2),
        store=StoreOptions(url="memory://"),
        routes=(Route(name="image", path=("/image",), max_runtime=0.05),),
    )

    def app(_environ: Any, start_response: Any) -> list[bytes]:
        assert go.wait(30)
        start_response("200 OK", [])
        return [b""]

    site.middleware = AdmissionMiddleware(app, config)
    process = site.middleware.process()

    def reported() -> list[int]:
        process.report()
        return [worker.threads for worker in process.store.statistics(now=time.time()).workers]

    assert reported() == [2]
    for stuck in (1, 2):
        site.call()
        until(lambda: process.pool.runs.stuck == stuck, "the housekeeper's look")  # noqa: B023 - called at once
        assert reported() == [1]
    go.set()
    until(lambda: not process.pool.runs.held(), "the ends")
    assert reported() == [2]


@pytest.mark.parametrize(("own", "retries"), [(None, 3), (0, 0), (5, 5)])
def test_a_routes_own_crash_retries_go_before_the_sections(sites: list[Site], own: int | None, retries: int) -> None:
    """Catches: a route that must not repeat, repeated; 0 taken for nothing said."""
    site = Site()
    sites.append(site)
    config = Config(
        admission=Admission(mode=Mode.QUEUE_ALL, crash_retries=3),
        store=StoreOptions(url="memory://"),
        routes=(Route(name="image", path=("/image",), crash_retries=own),),
    )
    site.middleware = AdmissionMiddleware(site.app, config, replays=False)
    accepted = site.call().json()
    assert site.middleware.process().store.get(accepted["request_id"]).crash_retries == retries


def test_an_idle_process_replays_what_it_queues_without_looking_for_it(
    monkeypatch: pytest.MonkeyPatch, sites: list[Site]
) -> None:
    """Catches: a queued request that waits for the next look of an idle thread."""
    monkeypatch.setattr("wsgi_admission.workers.LOOK_INTERVAL", 3600.0)
    site = Site(mode=Mode.QUEUE_ALL)
    sites.append(site)
    config = Config(
        admission=Admission(mode=Mode.QUEUE_ALL, max_concurrent=2, worker_threads=1),
        store=StoreOptions(url="memory://"),
        routes=ROUTES,
    )
    looked, counts = threading.Event(), MemoryStore.counts

    def look(store: MemoryStore) -> Any:
        found = counts(store)
        if threading.current_thread().name.startswith("wsgi-admission-replay"):
            looked.set()
        return found

    monkeypatch.setattr(MemoryStore, "counts", look)
    site.middleware = AdmissionMiddleware(site.app, config)
    store = site.middleware.process().store
    assert looked.wait(30)  # the thread has found nothing to do
    accepted = site.call().json()
    until(lambda: store.get(accepted["request_id"]).state is State.COMPLETED, patience=10)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_a_put_that_is_interrupted_leaves_no_file_open(
    monkeypatch: pytest.MonkeyPatch, sites: list[Site], error: type[BaseException]
) -> None:
    """Catches: the temporary file of a large upload left on the disk by a request that a server gave up."""
    site = Site(mode=Mode.QUEUE_ALL)
    sites.append(site)
    bodies: list[BinaryIO] = []

    def put(_ticket: Ticket, request: Recording, *, now: float, **_of: str) -> Ticket:
        bodies.append(request.body)
        raise error(now)

    monkeypatch.setattr(site.middleware.process().store, "put", put)
    with pytest.raises(error):
        site.call(body=b"x" * 300_000)
    assert [body.closed for body in bodies] == [True]
    assert site.middleware.process().slots.in_use() == 0


def refuse_put(ticket: Ticket, request: Recording, *, now: float, **_of: str) -> Ticket:
    """Fail in the middle, as a disk that becomes full does."""
    request.body.read(10)
    raise StoreUnavailable("The disk is full.")


@pytest.mark.parametrize("why", ["a websocket", "no store and no slot"])
def test_a_refused_request_leaves_no_file_open(monkeypatch: pytest.MonkeyPatch, sites: list[Site], why: str) -> None:
    """Catches: the temporary file of an upload left on the disk by each 503."""
    site = Site(mode=Mode.QUEUE_ALL, slots=1)
    sites.append(site)
    body = b"x" * 300_000
    env = environ("/image", "POST", body)
    if why == "a websocket":
        env |= {"REQUEST_METHOD": "GET", "HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "Upgrade"}
    else:
        process = site.middleware.process()
        monkeypatch.setattr(process.store, "put", refuse_put)
        assert process.slots.take("image") is not None
    given, told = env["wsgi.input"], []

    def start_response(status: str, *_args: Any) -> Any:
        told.append(status)

    site.middleware(env, start_response)
    assert told == ["503 Service Unavailable"]
    assert env["wsgi.input"] is not given
    assert env["wsgi.input"].closed


def test_a_request_that_could_not_be_kept_whole_runs_with_all_of_its_body(
    monkeypatch: pytest.MonkeyPatch, sites: list[Site]
) -> None:
    """Catches: an app that gets what a failing store has left of an upload."""
    site = Site(mode=Mode.QUEUE_ALL)
    sites.append(site)
    monkeypatch.setattr(site.middleware.process().store, "put", refuse_put)
    body = bytes(range(256)) * 2000
    direct = site.call(body=body)
    assert (direct.status, direct.body) == ("200 OK", body)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_app_that_ends_its_thread_gives_its_slot_back(sites: list[Site], error: type[BaseException]) -> None:
    """Catches: a slot lost for ever with each request that a server's own timeout breaks off."""
    site = Site(slots=1)
    sites.append(site)

    def app(_environ: Any, _start_response: Any) -> list[bytes]:
        raise error

    site.middleware.app = app
    with pytest.raises(error):
        site.open()
    assert site.middleware.process().slots.in_use() == 0


def test_a_kernel_that_cannot_tell_locks_costs_no_accepted_request_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sites: list[Site]
) -> None:
    """Catches: a traceback for a request that is in the line, which its client sends again."""
    site = Site()
    sites.append(site)
    site.middleware = AdmissionMiddleware(
        site.app, sqlite_config(tmp_path / "admission.db", mode=Mode.QUEUE_ALL), replays=False
    )
    process = site.middleware.process()

    def fail(*_args: Any) -> Any:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("wsgi_admission.locks.fcntl.fcntl", fail)
    monkeypatch.setattr("wsgi_admission.locks.fcntl.lockf", fail)
    accepted = site.call()
    assert accepted.status == "202 Accepted"
    assert sum(tally.queued for tally in process.store.counts().values()) == 1
    for url in (accepted.json()["status_url"], "/api/queue/health", "/api/queue/metrics"):
        assert site.call(url, "GET").status in {"200 OK", "503 Service Unavailable"}
