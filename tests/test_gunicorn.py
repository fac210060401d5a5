"""The gunicorn integration: roles, hooks, preloading, reloads and leaving, with real servers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.redis_servers import started
from tests.support import ROOT, Server, gunicorn, ini, stop, until
from wsgi_admission.config import load_config
from wsgi_admission.integrations.trying import permanent_fault
from wsgi_admission.stores import opening

QUEUE_ALL = """
[admission]
mode = queue_all
max_concurrent = 1
worker_threads = 1
[route:gated]
path = /gated
[route:pid]
path = /pid
methods = GET
[route:replayed]
path = /replayed
methods = GET
"""


def workers(site: Server) -> list[psutil.Process]:
    """Return gunicorn's workers."""
    return psutil.Process(site.process.pid).children()


def replay_pid(site: Server) -> int:
    """Return the process that runs a queued request."""
    accepted = site.ask("/pid")
    site.final(accepted)
    return int(site.ask(accepted.json()["result_url"]).body)


@pytest.mark.parametrize("preload", [False, True])
def test_one_process_more_replays_at_a_lower_priority(tmp_path: Path, preload: bool) -> None:  # noqa: FBT001 - a parameter
    """Catches: replays in the web workers, a replaying process that answers, nice for all or none."""
    with gunicorn(tmp_path, ini(tmp_path, QUEUE_ALL), settings=f"preload_app = {preload}") as site:
        until(lambda: len(workers(site)) == 3, "the third worker")
        nices = until(lambda: (n := sorted(p.nice() for p in workers(site)))[-1] == 10 and n, "the lower priority")
        assert nices == [0, 0, 10]
        niced = next(p.pid for p in workers(site) if p.nice() == 10)
        assert replay_pid(site) == niced
        accepted = site.ask("/replayed")
        site.final(accepted)
        assert site.ask(accepted.json()["result_url"]).body == b"<class 'wsgi_admission.ticket.Ticket'>"


@pytest.mark.parametrize(
    "settings", ["workers = 1", "workers = 1\nworker_class = 'sync'\nthreads = 1"], ids=["gthread", "sync"]
)
def test_a_single_worker_replays_in_threads_of_its_own(tmp_path: Path, settings: str) -> None:
    """Catches: a server with one worker whose line never moves."""
    with gunicorn(tmp_path, ini(tmp_path, QUEUE_ALL), settings=settings) as site:
        assert replay_pid(site) == workers(site)[0].pid
        assert len(workers(site)) == 1


def test_no_process_set_aside_means_threads_in_the_web_workers(tmp_path: Path) -> None:
    """Catches: replay_processes = 0 that is not obeyed."""
    text = QUEUE_ALL.replace("[admission]", "[admission]\nreplay_processes = 0")
    with gunicorn(tmp_path, ini(tmp_path, text)) as site:
        until(lambda: len(workers(site)) == 2, "the second worker")
        assert replay_pid(site) in {worker.pid for worker in workers(site)}
        assert all(worker.nice() == 0 for worker in workers(site))


def test_a_killed_replaying_process_is_replaced_in_its_part(tmp_path: Path) -> None:
    """Catches: a role given out once only."""
    with gunicorn(tmp_path, ini(tmp_path, QUEUE_ALL)) as site:
        first = replay_pid(site)
        os.kill(first, signal.SIGKILL)
        until(lambda: first not in {w.pid for w in workers(site)} and len(workers(site)) == 3, "the replacement")
        second = replay_pid(site)
        assert second != first
        assert psutil.Process(second).nice() == 10


def test_a_killed_web_worker_is_replaced_in_its_part(tmp_path: Path) -> None:
    """Catches: roles given out by age alone, so that a second process replays."""
    with gunicorn(tmp_path, ini(tmp_path, QUEUE_ALL)) as site:
        replaying = replay_pid(site)
        victim = next(worker.pid for worker in workers(site) if worker.pid != replaying)
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in {w.pid for w in workers(site)} and len(workers(site)) == 3, "the replacement")
        assert replay_pid(site) == replaying
        until(lambda: sorted(worker.nice() for worker in workers(site)) == [0, 0, 10], "the parts")


def test_ttou_never_ends_the_last_worker_that_answers(tmp_path: Path) -> None:
    """Catches: a site of nothing but a process that answers nobody."""
    with gunicorn(tmp_path, ini(tmp_path, QUEUE_ALL)) as site:
        until(lambda: len(workers(site)) == 3, "the third worker")
        for _ in range(3):
            os.kill(site.process.pid, signal.SIGTTOU)
        until(lambda: len(workers(site)) == 2, "the end of one worker")
        assert replay_pid(site)
        assert sorted(worker.nice() for worker in workers(site)) == [0, 10]


def test_a_reload_keeps_the_line_and_hands_over(tmp_path: Path) -> None:
    """Catches: HUP that loses tickets, leaves nobody who replays, or runs a ticket twice."""
    config = ini(tmp_path, QUEUE_ALL)
    with gunicorn(tmp_path, config, settings="graceful_timeout = 8") as site:
        first = site.ask("/gated?first", "POST")
        until(lambda: site.starts() == ["start first"], "the first start")
        waiting = [site.ask(f"/gated?{n}", "POST") for n in range(3)]
        old = until(lambda: len(pids := {worker.pid for worker in workers(site)}) == 3 and pids)
        os.kill(site.process.pid, signal.SIGHUP)
        until(lambda: len({worker.pid for worker in workers(site)} - old) == 3, "the new workers")
        site.open_gate()
        assert site.final(first)["status"] == "completed"
        assert [site.final(reply)["status"] for reply in waiting] == ["completed"] * 3
        assert sorted(site.starts()) == ["start 0", "start 1", "start 2", "start first"]
        until(lambda: not ({worker.pid for worker in workers(site)} & old), "the end of the old workers")
        assert len(workers(site)) == 3


def test_a_reload_with_a_broken_configuration_keeps_the_old_one(tmp_path: Path) -> None:
    """Catches: a typing error that takes the site down."""
    config = ini(tmp_path, QUEUE_ALL)
    with gunicorn(tmp_path, config) as site:
        old = until(lambda: len(pids := {worker.pid for worker in workers(site)}) == 3 and pids)
        config.write_text("[admission]\nmax_concurent = 1\n")
        os.kill(site.process.pid, signal.SIGHUP)
        until(lambda: len({worker.pid for worker in workers(site)} - old) == 3, "the new workers")
        until(lambda: not ({worker.pid for worker in workers(site)} & old), "the end of the old workers")
        assert replay_pid(site) not in old
        assert "did you mean 'max_concurrent'?" in site.text()


USED_UP = """
def post_worker_init(worker):
    import errno, threading
    from wsgi_admission import host

    def born(_pid):
        raise OSError(errno.ENFILE, "Too many open files in system")

    def start(thread, begin=threading.Thread.start):
        if thread.name.startswith("wsgi-admission"):
            raise RuntimeError("can't start new thread")
        begin(thread)

    if worker.age == 1:
        host.born = born
    elif worker.age == 2:
        threading.Thread.start = start
"""


def test_workers_that_find_files_or_threads_used_up_take_nobody_with_them(tmp_path: Path) -> None:
    """Catches: a master that ends, and the site with it, because one of its workers could not have a line just now."""
    with gunicorn(tmp_path, ini(tmp_path, QUEUE_ALL), settings=f"workers = 3\n{USED_UP}") as site:
        pids = until(lambda: len(found := {worker.pid for worker in workers(site)}) == 4 and found, "all workers")
        answers: set[int] = set()

        def both() -> bool:
            answers.add(site.ask("/pid").status)
            return {200, 202} <= answers

        until(both, "a request that ran at once, and one that was queued")
        assert answers <= {200, 202, 503}
        assert {worker.pid for worker in workers(site)} == pids
        assert stop(site.process) == 0
        assert "Traceback" not in site.text()


def test_a_worker_that_leaves_hands_its_ticket_back_to_its_place(tmp_path: Path) -> None:
    """Catches: TERM that leaves a ticket in processing until its lease runs out, or counts it as a crash."""
    config = ini(tmp_path, QUEUE_ALL)
    with gunicorn(tmp_path, config, settings="graceful_timeout = 3") as site:
        first = site.ask("/gated?first", "POST").json()
        until(lambda: site.starts() == ["start first"], "the first start")
        second = site.ask("/gated?second", "POST").json()
        stop(site.process)
    (tmp_path / "gate").unlink()
    with gunicorn(tmp_path, config, settings="graceful_timeout = 3") as site:
        until(lambda: site.starts() == ["start first", "start first"], "the second start of the first")
        status = site.ask(first["status_url"]).json()
        assert (status["status"], status["attempt"]) == ("processing", 2)
        assert site.ask(second["status_url"]).json()["position_in_queue"] == 1


def test_a_replaying_process_whose_threads_are_stuck_is_replaced(tmp_path: Path) -> None:
    """Catches: a site whose line stands still until somebody restarts it."""
    text = QUEUE_ALL.replace("path = /gated", "path = /gated\nmax_runtime = 200ms")
    with gunicorn(tmp_path, ini(tmp_path, text)) as site:
        first = replay_pid(site)
        hung = site.ask("/gated?hung", "POST")
        assert site.final(hung)["status"] == "failed"
        assert site.starts() == ["start hung"] * 2
        assert f"Worker (pid:{first}) leaves: most of its replay threads are stuck" in site.text()
        second = replay_pid(site)
        assert second != first
        assert psutil.Process(second).nice() == 10


def test_a_web_worker_with_stuck_threads_of_its_own_only_says_so(tmp_path: Path) -> None:
    """Catches: requests that are cut off because a replay hangs beside them."""
    text = QUEUE_ALL.replace("path = /gated", "path = /gated\nmax_runtime = 200ms")
    with gunicorn(tmp_path, ini(tmp_path, text), settings="workers = 1") as site:
        (worker,) = workers(site)
        hung = site.ask("/gated?hung", "POST")
        until(lambda: "process.stuck stuck=1 threads=1" in site.text(), "the report")
        assert site.ask("/ping").status == 200
        site.open_gate()
        assert site.final(hung)["status"] == "completed"
        assert workers(site) == [worker]


def start_and_fail(
    tmp_path: Path, text: str, settings: str = "", options: str = ""
) -> subprocess.CompletedProcess[str]:
    """Start a gunicorn that refuses to."""
    config = ini(tmp_path, text)
    conf = tmp_path / "gunicorn.conf.py"
    conf.write_text(
        f"bind = '127.0.0.1:0'\nworkers = 2\ncontrol_socket_disable = True\n{settings}\n"
        f"from wsgi_admission.integrations.gunicorn import install\ninstall(globals(), {str(config)!r}{options})\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", str(conf), "tests.apps:app"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_a_wrong_configuration_stops_the_start_with_a_clear_message(tmp_path: Path) -> None:
    """Catches: a traceback instead of the sentence, or a server without a line."""
    ended = start_and_fail(tmp_path, QUEUE_ALL.replace("max_concurrent", "max_concurent"))
    assert ended.returncode == 1
    assert "Error: " in ended.stderr
    assert "[admission]: unknown option 'max_concurent'; did you mean 'max_concurrent'?" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_resolver_that_cannot_be_imported_stops_the_start_but_not_a_reload(tmp_path: Path) -> None:
    """Catches: a typing error in the resolver that is found by the first visitor, or that takes a running site down."""
    (tmp_path / "who.py").write_text("def tier_of(environ):\n    return 'donor'\n")
    text = QUEUE_ALL + "[tiers]\nresolver = who:tier_of\n"
    with gunicorn(tmp_path, ini(tmp_path, text)) as site:
        old = until(lambda: len(pids := {worker.pid for worker in workers(site)}) == 3 and pids)
        assert site.ask("/pid").json()["queue_info"]["priority"] == "high"
        (tmp_path / "who.py").write_text("def tier_off(environ):\n    return 'donor'\n")
        os.kill(site.process.pid, signal.SIGHUP)
        until(lambda: len(workers(site)) == 3 and not ({worker.pid for worker in workers(site)} & old))
        assert site.ask("/pid").json()["queue_info"]["priority"] == "low"
        assert "the resolver is not used, everybody is anonymous" in site.text()
    ended = start_and_fail(tmp_path, text)
    assert ended.returncode  # 3, or 1 when another worker fails while gunicorn is stopping already
    assert "'who' has no 'tier_of'" in ended.stderr


def test_memory_and_several_workers_are_refused(tmp_path: Path) -> None:
    """Catches: a line for each process, where any worker must answer for any ticket."""
    ended = start_and_fail(tmp_path, QUEUE_ALL + "[store]\nurl = memory://\n")
    assert ended.returncode == 1
    assert "admission.ini [store] url = 'memory://': is one process's own, and gunicorn has 2 workers" in ended.stderr


@pytest.mark.parametrize(
    ("threads", "replaying", "settings", "told"),
    [
        (2, 0, "", "at most 4 of the 5 slots (2 threads in each of 2 processes that replay)"),
        (2, 1, "workers = 1", "at most 2 of the 5 slots (2 threads in each of 1 process that replays)"),
        (3, 0, "", ""),
    ],
)
def test_slots_that_no_thread_will_use_are_told_at_the_start(
    tmp_path: Path, threads: int, replaying: int, settings: str, told: str
) -> None:
    """Catches: a line that is worked off more slowly than it could be; a wrong number of processes."""
    text = f"[admission]\nworker_threads = {threads}\nreplay_processes = {replaying}\n[route:x]\npath = /x\n"
    with gunicorn(tmp_path, ini(tmp_path, text), settings=settings) as site:
        lines = [line for line in site.text().splitlines() if "[WARNING]" in line]
        assert len(lines) == bool(told)
        assert told in "".join(lines)


@pytest.mark.parametrize("what", ["program", "link", "version", "slots"])
def test_a_store_that_can_never_be_used_stops_the_start_but_not_a_reload(tmp_path: Path, what: str) -> None:
    """Catches: a site without a line that says so only in its log; a site that was up and is taken down."""
    path = tmp_path / "admission.db"

    def spoil() -> str:
        path.unlink(missing_ok=True)
        if what == "link":
            path.symlink_to(tmp_path / "elsewhere.db")
            return "admission.db is not a plain file"
        if what == "slots":
            slots = tmp_path / "admission.db-main.slots"
            if not slots.is_dir():
                slots.unlink()
                slots.mkdir()
            return "admission.db-main.slots is not a regular file"
        made = tmp_path / "made.db"
        with closing(sqlite3.connect(made)) as other:
            other.execute("CREATE TABLE users (name)")
            if what == "version":
                other.execute(f"PRAGMA application_id = {opening.APPLICATION_ID}")
        made.replace(path)  # half made there, the site would take it for its own and mend it
        return "of another program" if what == "program" else "has schema 0, written by an older version"

    with gunicorn(tmp_path, ini(tmp_path, QUEUE_ALL)) as site:
        old = until(lambda: len(pids := {worker.pid for worker in workers(site)}) == 3 and pids)
        spoil()
        os.kill(site.process.pid, signal.SIGHUP)
        until(lambda: len(pids := {worker.pid for worker in workers(site)}) == 3 and not pids & old, "the new workers")
        assert site.ask("/ping").status == 200
    words = spoil()
    ended = start_and_fail(tmp_path, QUEUE_ALL)
    assert ended.returncode == 1
    assert re.search(f"^Error: .*{words}", ended.stderr, re.MULTILINE)
    assert "Traceback" not in ended.stderr


def test_a_server_that_refuses_the_password_stops_the_start_and_a_dead_one_does_not(tmp_path: Path) -> None:
    """Catches: a site without a line for a typing error; a site that is down because its store is."""
    server = started(tmp_path, "redis", "--requirepass", "s3cret")
    text = QUEUE_ALL + f"[store]\nurl = {server.url}&password=wr0ng\n"
    try:
        ended = start_and_fail(tmp_path, text)
        assert ended.returncode == 1
        assert re.search("^Error: .* refuses the user or the password", ended.stderr, re.MULTILINE)
        assert "wr0ng" not in ended.stderr
        assert "Traceback" not in ended.stderr
        config = load_config(tmp_path / "admission.ini", {})
        assert "refuses" in permanent_fault(config, lambda: None)
    finally:
        server.stop()
    assert permanent_fault(config, lambda: None) == ""


def test_the_store_is_tried_with_the_rights_of_a_worker_and_not_in_the_master(tmp_path: Path) -> None:
    """Catches: a store of root's, made by the master; a start refused because of rights that the workers lack."""
    config = load_config(ini(tmp_path, QUEUE_ALL), {})
    rights = tmp_path / "rights"

    def become_worker() -> None:
        assert not (tmp_path / "admission.db").exists()
        rights.write_text(str(os.getpid()))

    before = sorted(Path("/proc/self/fd").iterdir())
    assert permanent_fault(config, become_worker) == ""
    assert int(rights.read_text()) != os.getpid()
    assert sorted(Path("/proc/self/fd").iterdir()) == before
    (tmp_path / "admission.db").unlink()
    (tmp_path / "admission.db").mkdir()
    assert "is not a plain file" in permanent_fault(config, lambda: None)
    gone = replace(config, store=replace(config.store, url="sqlite:////dev/null/admission.db"))
    assert "cannot be made or opened" in permanent_fault(gone, lambda: None)


def test_memory_is_refused_where_nobody_replays(tmp_path: Path) -> None:
    """Catches: a line that never moves."""
    text = QUEUE_ALL + "[store]\nurl = memory://\n"
    ended = start_and_fail(tmp_path, text, "workers = 1", ", replays=False")
    assert ended.returncode == 1
    assert "is one process's own, and none of gunicorn's replays: take a file" in ended.stderr


def test_the_asgi_worker_is_refused(tmp_path: Path) -> None:
    """Catches: a site that believes it has a line."""
    ended = start_and_fail(tmp_path, QUEUE_ALL, "worker_class = 'asgi'")
    assert ended.returncode == 1
    assert "worker class 'asgi' serves ASGI apps" in ended.stderr


def test_the_users_own_hooks_run_too(tmp_path: Path) -> None:
    """Catches: install that replaces a hook."""
    settings = "\n".join(
        f"def {name}({args}):\n    open({str(tmp_path / name)!r}, 'a').close()"
        for name, args in {
            "on_starting": "server",
            "pre_fork": "server, worker",
            "post_worker_init": "worker",
            "worker_exit": "server, worker",
        }.items()
    )
    with gunicorn(tmp_path, ini(tmp_path, QUEUE_ALL), settings=settings) as site:
        assert replay_pid(site)
    assert all((tmp_path / name).exists() for name in ("on_starting", "pre_fork", "post_worker_init", "worker_exit"))


def test_building_the_middleware_starts_no_thread_and_opens_no_file(tmp_path: Path) -> None:
    """Catches: work at import or in __init__, which breaks preloading and forking."""
    config = ini(tmp_path, QUEUE_ALL)
    script = (
        "import json, os, sys, threading\n"
        "from wsgi_admission import AdmissionMiddleware\n"
        "before = sorted(os.listdir('/proc/self/fd'))\n"
        "app = AdmissionMiddleware(lambda e, s: [], sys.argv[1])\n"
        "print(json.dumps([threading.active_count(), before == sorted(os.listdir('/proc/self/fd'))]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(config)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert json.loads(ended.stdout) == [1, True]
    assert not (tmp_path / "admission.db").exists()


def test_clients_that_send_slowly_keep_no_slot(tmp_path: Path) -> None:
    """Catches: as many uploads as there are slots, and the line stands still for as long as they like."""
    config = ini(tmp_path, "[admission]\nmax_concurrent = 1\n[route:echo]\npath = /echo\n")
    # What else this machine does is not the subject.
    quiet = "import wsgi_admission.load\nwsgi_admission.load.LoadMeter.sample = lambda self, now: None"
    with gunicorn(tmp_path, config, settings=quiet) as site, socket.socket() as slow:
        host, port = site.url.removeprefix("http://").split(":")
        slow.connect((host, int(port)))
        slow.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nha")
        # Nothing tells when the server has begun with it; after twenty other requests it has.  (Each of them is still
        # being closed for a moment after its answer has come, and the next one may be queued.)
        for _ in range(20):
            until(lambda: site.ask("/echo", "POST", b"quick").status == 203, "a slot")
        until(lambda: site.ask("/api/queue/metrics").json()["queued_requests"] == 0, "the end of the line")
        until(lambda: site.ask("/api/queue/health").json()["checks"]["slots"]["in_use"] == 0, "the end of the last")
        slow.sendall(b"lf")
        assert slow.makefile("rb").readline() == b"HTTP/1.1 203 Quite All Right\r\n"


@pytest.mark.parametrize("length", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_a_client_that_trickles_is_given_up(tmp_path: Path, length: str) -> None:
    """Catches: a thread of the server held for as long as somebody likes, a byte at a time."""
    hasty = "import wsgi_admission.receiving as r\nr.SILENCE, r.READ = 0.2, 200"
    with gunicorn(tmp_path, ini(tmp_path, QUEUE_ALL), settings=hasty) as site, socket.socket() as slow:
        host, port = site.url.removeprefix("http://").split(":")
        slow.connect((host, int(port)))
        slow.sendall(f"POST /gated HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
        slow.settimeout(0.05)
        answer = b""

        def answered() -> bytes:
            nonlocal answer
            with suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
                slow.sendall(b"1\r\nx\r\n" if "chunked" in length else b"x")
            with suppress(TimeoutError):
                answer = slow.recv(100)
            return answer

        until(answered, "an answer")
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
