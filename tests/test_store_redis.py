"""The Redis store beside its contract: servers that are away, slow, unfit or restarted, and the cost of a position."""

from __future__ import annotations

import importlib.util
import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.redis_servers import RedisServer, program, started
from tests.store_model import ROUTES, read, recording, ticket
from tests.support import until
from wsgi_admission.errors import ConfigError, StoreError, StoreMismatch, StoreUnavailable
from wsgi_admission.stores import check_url, open_store
from wsgi_admission.stores import redis as module
from wsgi_admission.stores.breaker import PAUSE
from wsgi_admission.stores.records import INLINE_BODY, Tally
from wsgi_admission.stores.redis import RedisStore
from wsgi_admission.stores.scripts import KEYS, key
from wsgi_admission.ticket import State

#: The longest that a request may wait for a server that does not answer, in seconds.
LONGEST = 2.0
KINDS = ("redis", "valkey")
SharedServer = Callable[[str], RedisServer]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets in it."""
    with TemporaryDirectory(prefix="wa-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which server."""
    return str(request.param)


@pytest.fixture
def server(folder: Path, kind: str) -> Iterator[RedisServer]:
    """A server of this test's own."""
    own = started(folder / "own", kind)
    yield own
    own.stop()


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    """A line in it."""
    with closing(RedisStore(server.url)) as opened:
        yield opened


def put(store: RedisStore, client: str = "ann", body: bytes = b"body") -> str:
    """Put a ticket and return its id."""
    return store.put(ticket(client), recording(body), now=0).id


def claim(store: RedisStore) -> tuple[str, int]:
    """Claim a ticket, which must be there."""
    run = store.claim("worker", now=0, lease=30, routes=ROUTES)
    assert run is not None
    return run.id, run.attempt


def unavailable(step: Callable[[], object]) -> float:
    """Take a step that must fail because the server is away, and return how long that took."""
    begin = time.monotonic()
    with pytest.raises(StoreUnavailable):
        step()
    return time.monotonic() - begin


# Servers that are away


def test_a_dead_server_is_told_at_once_and_waited_for_once(server: RedisServer, store: RedisStore) -> None:
    """Catches: retries, and calls that each wait for themselves."""
    server.kill()
    for step in (store.counts, lambda: put(store), lambda: claim(store), store.changed, store.health):
        assert unavailable(step) < 0.5


def test_a_line_goes_on_when_its_server_is_back(server: RedisServer, store: RedisStore) -> None:
    """Catches: connections to the old server that are used again, and a breaker that stays open."""
    put(store)
    server.kill()
    unavailable(store.counts)
    server.start()
    until(lambda: _answers(store), patience=PAUSE + 1)
    put(store)
    assert store.counts()["donor", "image"].queued == 1, "this server keeps nothing"


def test_a_server_that_hangs_is_waited_for_two_seconds_at_most(server: RedisServer, store: RedisStore) -> None:
    """Catches: a timeout for each step of a request, or none at all."""
    put(store)
    with server.paused():
        waits = []
        threads = [threading.Thread(target=lambda: waits.append(unavailable(store.health))) for _ in range(4)]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(waits) < LONGEST
        assert unavailable(lambda: put(store)) < 0.1, "the next one does not wait"
        assert time.monotonic() - begin < LONGEST
    until(lambda: _answers(store), patience=PAUSE + 1)


def test_one_call_at_a_time_tries_a_server_that_was_away(server: RedisServer, store: RedisStore) -> None:
    """Catches: every request of a loaded site waiting for the same dead server again and again."""
    with server.paused():
        unavailable(store.health)
        time.sleep(PAUSE)  # of the real clock: the breaker's own tests have another
        waits: list[float] = []
        threads = [threading.Thread(target=lambda: waits.append(unavailable(store.health))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(wait > 0.5 for wait in waits) == 1


def test_a_late_reply_is_never_taken_for_another(server: RedisServer, store: RedisStore) -> None:
    """Catches: a connection that is used again after a timeout, with the old reply still to come."""
    mine, other = put(store, "ann"), put(store, "bob")
    with server.paused():
        unavailable(lambda: store.get(mine))
    until(lambda: _answers(store), patience=PAUSE + 1)
    assert [store.get(one).id for one in (other, mine, other)] == [other, mine, other]


class Interrupted(BaseException):
    """As a greenlet's timeout, or Ctrl-C, in the middle of a call."""


def test_an_interrupted_call_leaves_no_reply_behind(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a connection given back with a reply to come (CVE-2023-28858)."""
    mine, other = put(store, "ann"), put(store, "bob")
    send = store._servers._make.send_packed_command  # type: ignore[attr-defined]  # the class of its connections

    def interrupt(*arguments: object, **options: object) -> None:
        send(*arguments, **options)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(store._servers._make, "send_packed_command", interrupt)
        with pytest.raises(Interrupted):
            store.get(mine)
    assert store.get(other).id == other


def _answers(store: RedisStore) -> bool:
    try:
        return bool(store.health())
    except StoreUnavailable:
        return False


# Servers that are unfit


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_evicts_is_refused(folder: Path, kind: str, policy: str) -> None:
    """Catches: accepted requests that vanish when memory is short."""
    server = started(folder / "evicting", kind, "--maxmemory", "100mb", "--maxmemory-policy", policy)
    try:
        with pytest.raises(StoreError, match=f"maxmemory-policy '{policy}'.*noeviction"):
            RedisStore(server.url)
    finally:
        server.stop()


def test_a_server_without_memory_keeps_what_it_has_and_takes_no_more(folder: Path, kind: str) -> None:
    """Catches: steps that are half done when memory runs out, and workers that cannot end what they run."""
    server = started(folder / "small", kind, "--maxmemory", "100mb")
    try:
        with closing(RedisStore(server.url)) as store:
            kept = put(store)
            assert server.ask("CONFIG", "SET", "maxmemory", "1").startswith(b"+OK")
            with pytest.raises(StoreUnavailable, match="OOM"):
                put(store, "bob")
            assert server.ask("CONFIG", "SET", "maxmemory", "0").startswith(b"+OK")
            assert store.counts()["donor", "image"] == Tally(queued=1, accepted=1)
            assert claim(store) == (kept, 1)
            assert server.ask("CONFIG", "SET", "maxmemory", "1").startswith(b"+OK")
            store.finish(kept, 1, State.COMPLETED, None, now=1)
    finally:
        server.stop()


def test_a_server_that_is_too_old_is_refused(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: scripts that fail one by one on a server that never could run them."""
    monkeypatch.setattr(module, "OLDEST", (99, 2))
    with pytest.raises(StoreError, match=r"is Redis \d+\.\d+\.\d+; 99\.2 or newer is needed"):
        store._refuse_unfit()


def test_a_line_of_another_schema_is_refused(server: RedisServer, store: RedisStore) -> None:
    """Catches: a version of this package that reads what it does not understand."""
    server.ask("HSET", key("main", "meta"), "schema", "2")
    with pytest.raises(StoreMismatch, match="schema 2, expected 1"):
        RedisStore(server.url)
    RedisStore(server.url, name="other").close()


def test_a_wrong_password_is_told_and_not_shown(folder: Path, kind: str) -> None:
    """Catches: the password of the store in a log."""
    server = started(folder / "locked", kind, "--requirepass", "s3cret")
    try:
        with pytest.raises(StoreUnavailable, match="refuses the user or the password") as refused:
            RedisStore(f"{server.url}&password=wr0ng")
        assert "wr0ng" not in str(refused.value)
        with pytest.raises(StoreUnavailable, match="NOAUTH|Authentication required"):
            RedisStore(server.url)
        with closing(RedisStore(f"{server.url}&password=s3cret")) as store:
            assert claim(store) == (put(store), 1) if put(store) else None
            assert "s3cret" not in str(store.health())
    finally:
        server.stop()
