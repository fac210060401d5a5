"""A line in Redis shared by servers that know nothing of each other, as on several machines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.redis_servers import RedisServer, started
from tests.store_model import ROUTES
from tests.support import Server, gunicorn, ini, until
from wsgi_admission.stores import open_store

SITE = """
[admission]
mode = queue_all
max_concurrent = 1
worker_threads = 1
[route:gated]
path = /gated
[route:pid]
path = /pid
methods = GET
"""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis server that keeps what it is told."""
    with TemporaryDirectory(prefix="wa-", ignore_cleanup_errors=True) as folder:
        running = started(Path(folder), "redis", "--appendonly", "yes", "--appendfsync", "always")
        yield running
        running.stop()


def machine(folder: Path, server: RedisServer, text: str = SITE) -> AbstractContextManager[Server]:
    """Return what starts a site with slots of its own."""
    folder.mkdir()
    config = ini(folder, f"{text}\n[store]\nurl = {server.url}\n")
    site: AbstractContextManager[Server] = gunicorn(folder, config, XDG_RUNTIME_DIR=str(folder))
    return site


def test_machines_share_one_line_and_any_of_them_answers(tmp_path: Path, server: RedisServer) -> None:
    """Catches: a line, positions or results that only one machine knows; slots shared between machines."""
    with machine(tmp_path / "one", server) as one, machine(tmp_path / "two", server) as two:
        runs = [one.ask("/gated?1", "POST"), two.ask("/gated?2", "POST")]
        until(lambda: len(one.starts() + two.starts()) == 2, "a run on each machine")
        assert len(one.starts()) == len(two.starts()) == 1
        waiting = one.ask("/gated?3", "POST")
        for site in (one, two):
            status = site.ask(waiting.json()["status_url"]).json()
            assert (status["status"], status["position_in_queue"]) == ("queued", 1)
        one.open_gate()
        two.open_gate()
        for accepted in (*runs, waiting):
            assert two.final(accepted)["status"] == "completed"
            assert one.ask(accepted.json()["result_url"]).body == two.ask(accepted.json()["result_url"]).body
        assert one.ask("/api/queue/health").json()["checks"]["store"]["kind"] == "redis"


def test_a_site_goes_on_while_its_redis_is_away_and_with_the_line_when_it_is_back(
    tmp_path: Path, server: RedisServer
) -> None:
    """Catches: requests that hang or fail with the store, accepted ones that are lost with it, a site that stays so."""
    two_slots = SITE.replace("max_concurrent = 1", "max_concurrent = 2")
    with machine(tmp_path / "one", server, two_slots) as site:
        accepted = site.ask("/gated?kept", "POST")
        until(site.starts, "its start")
        server.kill()
        begin = time.monotonic()
        assert site.ask("/pid").status == 200, "run at once, in the slot that is free"
        assert time.monotonic() - begin < 2.1  # with the answer's own time
        site.open_gate()
        server.start()
        assert site.final(accepted)["status"] == "completed"
        until(lambda: site.ask("/pid").status == 202, "the line", patience=5)
    with closing(open_store(server.url)) as store:
        assert store.claim("worker", now=0, lease=30, routes=ROUTES) is None
        assert {one.late for one in store.counts().values()} == {0}


def test_a_redis_that_hangs_holds_no_request_for_longer_than_two_seconds(tmp_path: Path, server: RedisServer) -> None:
    """Catches: a wait for each step of a request."""
    with machine(tmp_path / "one", server) as site, server.paused():
        for _ in range(4):
            begin = time.monotonic()
            assert site.ask("/pid").status == 200, "run at once"
            assert time.monotonic() - begin < 2.1  # with the answer's own time
