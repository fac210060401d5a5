"""The Redis store beside its contract: servers that are away, slow, unfit or restarted, and the cost of a position."""

from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.redis_servers import RedisServer, program, started
from tests.store_model import ROUTES, read, recording, ticket
from tests.support import free_port, until
from wsgi_admission.errors import (
    ConfigError,
    GoneTicket,
    KeyReused,
    LeaseLost,
    StoreError,
    StoreMismatch,
    StoreRefused,
    StoreUnavailable,
    UnknownTicket,
)
from wsgi_admission.stores import check_url, fitness, news, open_store
from wsgi_admission.stores import redis as module
from wsgi_admission.stores.breaker import PAUSE
from wsgi_admission.stores.records import INLINE_BODY, REMEMBER_GONE, Tally, Worker
from wsgi_admission.stores.redis import RedisStore
from wsgi_admission.stores.scripts import FIELDS, KEYS, key
from wsgi_admission.stores.servers import Servers
from wsgi_admission.ticket import State, Ticket

#: The longest that a request may wait for a server that does not answer, in seconds.
LONGEST = 2.0
KINDS = ("redis", "valkey")


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
def store(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisStore]:
    """A line in it, of a process that does not wait for a dead server when it leaves."""
    monkeypatch.setattr(module, "SETTLING", 0.0)
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


def test_a_late_reply_is_never_taken_for_another(server: RedisServer, store: RedisStore) -> None:
    """Catches: a connection that is used again after a timeout, with the old reply still to come."""
    mine, other = put(store, "ann"), put(store, "bob")
    with server.paused():
        unavailable(lambda: store.get(mine))
    until(lambda: _answers(store), patience=PAUSE + 1)
    assert [store.get(one).id for one in (other, mine, other)] == [other, mine, other]


class Interrupted(BaseException):
    """As a greenlet's timeout, or Ctrl-C, in the middle of a call."""


@contextmanager
def interrupted(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt each call when its command was sent."""
    send = store._servers._make.send_packed_command  # type: ignore[attr-defined]  # the class of its connections

    def interrupt(*arguments: object, **options: object) -> None:
        send(*arguments, **options)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(store._servers._make, "send_packed_command", interrupt)
        yield


def test_an_interrupted_call_leaves_no_reply_behind(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a connection given back with a reply to come (CVE-2023-28858)."""
    mine, other = put(store, "ann"), put(store, "bob")
    with interrupted(store, monkeypatch), pytest.raises(Interrupted):
        store.get(mine)
    assert store.get(other).id == other


def _answers(store: RedisStore) -> bool:
    try:
        return bool(store.health())
    except StoreUnavailable:
        return False


def put_late(server: RedisServer, store: RedisStore, key: str = "") -> Ticket:
    """Put a ticket after another; the answer does not come in time, and it is done all the same."""
    put(store, "bob")
    new = ticket()
    with server.paused():
        unavailable(lambda: store.put(new, recording(), now=0, key=key, digest="d"))
    until(lambda: _answers(store), patience=PAUSE + 1)
    until(lambda: queued(store) == 2, "the put, done late", patience=5)
    return new


def test_a_put_without_an_answer_makes_no_ticket_in_the_end(server: RedisServer, store: RedisStore) -> None:
    """Catches: a request that was run at once, or refused, and is run again by a ticket that nobody knows."""
    new = put_late(server, store)
    store.maintain(now=5)
    ended = store.get(new.id)
    assert (ended.state, ended.completed_at, ended.error) == (State.CANCELLED, 5, module.UNKNOWN)
    assert store.put(ticket(), recording(), now=6).start == 0.0
    version = store.changed()
    store.maintain(now=7)
    assert store.changed() == version, "it is settled"


def test_a_put_with_a_key_and_without_an_answer_is_what_the_key_finds(server: RedisServer, store: RedisStore) -> None:
    """Catches: a ticket given with a 202, here or by another process, that is cancelled afterwards or put twice."""
    new = put_late(server, store, key="k")
    with closing(RedisStore(server.url)) as other:
        found = other.put(ticket(), recording(), now=1, key="k", digest="d")
        assert (found.id, found.state) == (new.id, State.QUEUED)
        store.maintain(now=2)
        assert other.get(new.id) == found
        while other.get(new.id).state is State.QUEUED:
            other.finish(*claim(other), State.COMPLETED, recording(), now=3)
        store.maintain(now=4)
        for each in (store, other):
            assert each.put(ticket(), recording(), now=5, key="k", digest="d") == other.get(new.id)


def test_a_claim_without_an_answer_is_given_back(server: RedisServer, store: RedisStore) -> None:
    """Catches: a ticket that waits for the end of a lease of nobody, and fails as if its worker had died."""
    store.claim("worker", now=0, lease=30, routes=ROUTES)  # now the server knows the script
    new = store.put(ticket(crash_retries=0), recording(), now=0)
    other = put(store, "bob")
    with server.paused():
        unavailable(lambda: claim(store))
    until(lambda: _answers(store), patience=PAUSE + 1)
    until(lambda: store.get(new.id).state is State.PROCESSING, "the claim, done late", patience=5)
    store.maintain(now=1)
    assert store.get(new.id) == replace(new, attempt=1)
    assert [claim(store)[0] for _ in range(2)] == [new.id, other]
    store.maintain(now=2)
    assert store.counts()["donor", "image"].processing == 2


def test_what_had_no_answer_is_settled_however_long_the_server_hung(
    server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a request that nobody accepted and that runs, and a claim that counts as a crash, after a long stall."""
    now = 0.0
    monkeypatch.setattr(store._doubts, "_clock", lambda: now)
    store.claim("worker", now=0, lease=30, routes=ROUTES)  # now the server knows the script
    run, new = store.put(ticket(crash_retries=0), recording(), now=0), ticket("bob")
    with closing(RedisStore(server.url)) as other:
        monkeypatch.setattr(other, "_doubts", store._doubts)  # as another thread, whose breaker is not open
        with server.paused():
            unavailable(lambda: claim(store))
            unavailable(lambda: other.put(new, recording(), now=0))
            now = 1000.0
            unavailable(lambda: store.maintain(now=1))
        until(lambda: _answers(store) and _answers(other), patience=PAUSE + 1)
        until(lambda: store.get(run.id).attempt == 1, "the claim, done late", patience=5)
        until(lambda: other.counts()["donor", "image"].accepted == 2, "the put, done late", patience=5)
        store.maintain(now=1)
        assert store.get(run.id) == replace(run, attempt=1)
        assert store.get(new.id).state is State.CANCELLED


def test_a_process_that_leaves_settles_what_is_in_doubt(server: RedisServer) -> None:
    """Catches: a claim whose answer was late, that counts as a crash because the only one who knows of it has left."""
    store = RedisStore(server.url)
    store.claim("worker", now=0, lease=30, routes=ROUTES)  # now the server knows the script
    new = store.put(ticket(crash_retries=0), recording(), now=0)
    leaving = threading.Thread(target=store.close)
    with server.paused():
        unavailable(lambda: claim(store))
        leaving.start()
    leaving.join(30)
    with closing(RedisStore(server.url)) as other:
        until(lambda: other.get(new.id).attempt == 1, "the claim, done late", patience=5)
        assert other.get(new.id) == replace(new, attempt=1)


def test_a_process_does_not_stay_for_a_server_that_is_gone(server: RedisServer) -> None:
    """Catches: a deploy that takes for ever because a claim was in doubt when the server ended."""
    store = RedisStore(server.url)
    put(store)
    server.kill()
    unavailable(lambda: claim(store))
    begin = time.monotonic()
    store.close()
    store.close()
    assert time.monotonic() - begin < 2 * (module.SETTLING + LONGEST)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_finish_without_an_answer_can_be_said_again(
    server: RedisServer, store: RedisStore, *, cancelled: bool
) -> None:
    """Catches: a run that ended well and is called late; a second finish that is taken for the same one."""
    other = put(store, "bob")
    store.finish(*claim(store), State.COMPLETED, recording(), now=1)  # now the server knows the script
    new, run = put(store), claim(store)
    if cancelled:
        store.cancel(new, now=1)
    with server.paused():
        unavailable(lambda: store.finish(*run, State.COMPLETED, recording(), now=2))
    until(lambda: _answers(store), patience=PAUSE + 1)
    until(lambda: store.get(new).state.final, "the finish, done late", patience=5)
    ended, version = store.get(new), store.changed()
    assert store.finish(*run, State.COMPLETED, recording(), now=3) == ended
    assert (ended.state, ended.completed_at) == (State.CANCELLED if cancelled else State.COMPLETED, 2)
    assert (store.changed(), store.counts()["donor", "image"].late) == (version, 0)
    for over in (run, (other, 1)):
        with pytest.raises(LeaseLost):
            store.finish(*over, State.COMPLETED, recording(), now=4)
    assert store.counts()["donor", "image"].late == 2


def test_a_finish_without_an_answer_that_was_not_done_ends_no_other_attempt(
    server: RedisServer, store: RedisStore
) -> None:
    """Catches: a repetition that is believed because the ticket is final, whoever ended it."""
    new = store.put(ticket(crash_retries=0), recording(), now=0).id
    run = claim(store)
    server.kill()
    unavailable(lambda: store.finish(*run, State.COMPLETED, recording(), now=1))
    server.start()
    until(lambda: _answers(store), patience=PAUSE + 1)
    store.put(replace(ticket(crash_retries=0), id=new), recording(), now=2)  # this server keeps nothing
    assert claim(store) == run
    store.bury("worker", now=3)
    with pytest.raises(LeaseLost):
        store.finish(*run, State.COMPLETED, recording(), now=4)
    assert store.get(new).state is State.FAILED


def test_a_connection_that_the_server_closed_meanwhile_is_not_used(server: RedisServer, store: RedisStore) -> None:
    """Catches: a failure for each connection that was idle for too long, or was open before a restart."""
    mine = put(store)
    for _ in range(3):
        server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert store.get(mine).id == mine


@pytest.mark.parametrize("stale", ["yes", "no"])
def test_a_server_that_became_a_replica_is_left(folder: Path, kind: str, stale: str) -> None:
    """Catches: processes that stay on the old master after a fail-over, though the name leads to the new one."""
    name = folder / "name"
    old, new = started(folder / "old", kind), started(folder / "new", kind)
    try:
        name.symlink_to(old.path)
        with closing(RedisStore(f"redis+unix://{name}?db=0")) as store:
            ids = [put(store, client) for client in ("ann", "bob")]
            old.ask("CONFIG", "SET", "replica-serve-stale-data", stale)
            old.ask("REPLICAOF", "127.0.0.1", "1")
            name.unlink()
            name.symlink_to(new.path)
            unavailable(lambda: claim(store) if stale == "yes" else store.get(ids[0]))
            assert queued(store) == 0, "this one has another line"
            put(store)
            assert new.ask("HLEN", key("main", "tickets")) == b":1\r\n"
    finally:
        old.stop()
        new.stop()


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


def test_a_server_without_memory_keeps_what_it_has_and_takes_no_more(server: RedisServer, store: RedisStore) -> None:
    """Catches: steps that are half done when memory runs out, and workers that cannot end what they run."""
    kept = put(store)
    with full(server), pytest.raises(StoreUnavailable, match="maxmemory"):
        put(store, "bob")
    assert store.counts()["donor", "image"] == Tally(queued=1, accepted=1)
    assert claim(store) == (kept, 1)
    with full(server):
        store.finish(kept, 1, State.COMPLETED, None, now=1)


def test_what_runs_stays_its_worker_s_while_memory_is_used_up(server: RedisServer) -> None:
    """Catches: a healthy run that is called dead by another process, as its lease could not be renewed."""
    now = 0.0
    with (
        closing(RedisStore(server.url, skew=lambda: now)) as store,
        closing(RedisStore(server.url, skew=lambda: now)) as other,
    ):
        store.put(ticket(crash_retries=0), recording(), now=0)
        run = claim(store)
        with full(server):
            for now in (20.0, 40.0, 60.0):  # noqa: B007 - the clock
                assert store.renew([run], lease=30) == {run}
                assert other.renew([], lease=30) == set()
                assert other.requeue_expired(now=0) == 0
            now = 90.0
            assert other.requeue_expired(now=0) == 1, "it died: that is noticed too"
        assert store.get(run[0]).state is State.FAILED


def test_the_line_moves_and_is_seen_while_memory_is_used_up(server: RedisServer, store: RedisStore) -> None:
    """Catches: workers that see no line, reports that run out, and a start that fails, until memory is there again."""
    put(store)
    put(store, "bob")
    with full(server), closing(RedisStore(server.url)) as other:
        for left in (1, 0):
            run = claim(store)
            other.report(Worker("w", "h", 1, 1, 1), now=1)
            assert (queued(other), len(other.statistics(now=1).workers)) == (left, 1)
            store.finish(*run, State.COMPLETED, None, now=1)
            assert other.changed() == store.changed()


def test_a_server_without_memory_frees_itself(server: RedisServer, store: RedisStore) -> None:
    """Catches: a server that stays full for ever, as nothing is removed from it while it is."""
    put(store, body=b"x" * (INLINE_BODY + 1))
    ended = claim(store)
    store.finish(*ended, State.COMPLETED, recording(b"y" * (INLINE_BODY + 1)), now=1)
    with full(server):
        assert store.prune(before=2, now=2) == 1
        assert bodies(server) == []
        with pytest.raises(GoneTicket):
            store.get(ended[0])
        assert store.prune(before=2, now=3 + REMEMBER_GONE) == 0
        with pytest.raises(UnknownTicket):
            store.get(ended[0])


@pytest.mark.parametrize("paused", [True, False])
def test_a_server_without_memory_can_be_paused_and_resumed(
    server: RedisServer, store: RedisStore, *, paused: bool
) -> None:
    """Catches: an operator who cannot stop the line, or let it go on, when it matters most."""
    store.pause(not paused)
    with full(server):
        store.pause(paused)
        assert store.paused() is paused


def test_what_runs_is_steered_and_ends_while_memory_is_used_up(server: RedisServer, store: RedisStore) -> None:
    """Catches: steps about what is there already that are refused, since what they write first needs memory."""
    runs = []
    for client in ("ann", "bob", "cid"):
        put(store, client)
        runs.append(claim(store))
    first, second, third = runs
    with full(server):
        store.progress(*first, 0.5, "half")
        assert store.get(first[0]).note == "half"
    with full(server):
        assert store.cancel(first[0], now=1).cancelling
    with suppress(StoreUnavailable), store._doubts.about(second[0]):
        raise StoreUnavailable("no answer came")
    with full(server):
        store.maintain(now=1)
        assert store.get(second[0]).cancelling
    store.finish(*third, State.COMPLETED, None, now=1)
    with full(server):
        with pytest.raises(LeaseLost):
            store.finish(*third, State.COMPLETED, None, now=2)
        assert store.counts()["donor", "image"].late == 1


def test_who_runs_nothing_cannot_renew_either_where_nothing_can_be_written(
    server: RedisServer, store: RedisStore
) -> None:
    """Catches: a process that takes leases of others for lost, as it alone never noticed that nobody could renew."""
    put(store)
    run = claim(store)
    server.ask("REPLICAOF", "127.0.0.1", "1")  # whatever it is that refuses writing: a fail-over, a full disk
    for held in ([run], []):
        with pytest.raises(StoreUnavailable):
            store.renew(held, lease=30)
    server.ask("REPLICAOF", "NO", "ONE")
    assert store.renew([run], lease=30) == {run}


@contextmanager
def full(server: RedisServer) -> Iterator[None]:
    """Let the memory of the server be used up."""
    assert server.ask("CONFIG", "SET", "maxmemory", "1").startswith(b"+OK")
    try:
        yield
    finally:
        assert server.ask("CONFIG", "SET", "maxmemory", "0").startswith(b"+OK")


def test_a_server_that_is_too_old_is_refused(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: scripts that fail one by one on a server that never could run them."""
    monkeypatch.setattr(fitness, "OLDEST", (99, 2))
    with pytest.raises(StoreError, match=r"is Redis \d+\.\d+\.\d+; 99\.2 or newer is needed"):
        RedisStore(server.url)


def test_a_line_of_another_schema_is_refused(server: RedisServer, store: RedisStore) -> None:
    """Catches: a version of this package that reads what it does not understand."""
    server.ask("HSET", key("main", "meta"), "schema", "2")
    with pytest.raises(StoreMismatch, match="schema 2, expected 1"):
        RedisStore(server.url)
    RedisStore(server.url, name="other").close()


def test_what_a_line_keeps_is_that_of_its_schema() -> None:
    """Catches: a new field or key without a new schema, so that a deploy reads what another version wrote."""
    kept = hashlib.sha256(" ".join((*KEYS, *FIELDS)).encode()).hexdigest()[:8]
    assert {fitness.SCHEMA: kept} == {1: "d4f636ed"}


def test_a_wrong_password_is_told_and_not_shown(folder: Path, kind: str) -> None:
    """Catches: the password of the store in a log."""
    server = started(folder / "locked", kind, "--requirepass", "s3cret")
    try:
        with pytest.raises(StoreRefused, match="refuses the user or the password") as refused:
            RedisStore(f"{server.url}&password=wr0ng")
        assert "wr0ng" not in str(refused.value)
        with pytest.raises(StoreRefused, match=r"(?i)auth"):
            RedisStore(server.url)
        with closing(RedisStore(f"{server.url}&password=s3cret")) as store:
            new = put(store)
            assert claim(store) == (new, 1)
            assert "s3cret" not in str(store.health())
    finally:
        server.stop()


@pytest.mark.parametrize(
    "lacks",
    ["-info", "-eval -evalsha", "-publish", "-subscribe", "-ping", "resetkeys ~other", "resetchannels &other"],
)
def test_a_user_without_a_right_that_is_needed_is_refused_at_once(server: RedisServer, lacks: str) -> None:
    """Catches: a site that starts, and accepts nothing, because a right is found missing by the first visitor."""
    assert server.ask("ACL", "SETUSER", "site", "on", ">s3cret", "~*", "&*", "+@all", *lacks.split()) == b"+OK\r\n"
    try:
        with pytest.raises(StoreRefused, match="denies the user a right") as refused:
            RedisStore(f"{server.url}&username=site&password=s3cret")
        until(lambda: b"user=site" not in server.ask("CLIENT", "LIST"), f"the end of all connections after {refused}")
    finally:
        server.ask("ACL", "DELUSER", "site")


def test_a_user_with_the_keys_and_the_channel_of_the_line_alone_is_let_in(server: RedisServer) -> None:
    """Catches: a right asked for that no step needs; a connection that stays after the rights were tried."""
    rights = ("~{wa:main}:*", "resetchannels", "&{wa:main}:meta", "+@all")
    assert server.ask("ACL", "SETUSER", "site", "on", ">s3cret", *rights) == b"+OK\r\n"
    try:
        with closing(RedisStore(f"{server.url}&username=site&password=s3cret")) as store:
            until(lambda: server.ask("CLIENT", "LIST").count(b"user=site") == 1, "one connection alone")
            new = put(store)
            assert claim(store) == (new, 1)
            until(lambda: store.counts() and store._news._listener.hears, "the listening")
    finally:
        server.ask("ACL", "DELUSER", "site")


@pytest.mark.parametrize("command", ["zrem", "hincrby", "zlexcount", "unlink", "expire", "smembers"])
def test_a_user_without_a_command_that_a_later_step_needs_is_refused(server: RedisServer, command: str) -> None:
    """Catches: a step that is half done, as a right is found missing in the middle of it."""
    assert server.ask("ACL", "SETUSER", "site", "on", ">s3cret", "~*", "&*", "+@all", f"-{command}") == b"+OK\r\n"
    try:
        with pytest.raises(StoreRefused, match=f"denies the user a right: {command.upper()}"):
            RedisStore(f"{server.url}&username=site&password=s3cret")
    finally:
        server.ask("ACL", "DELUSER", "site")


def test_every_command_is_tried_at_opening_and_changes_nothing(server: RedisServer, store: RedisStore) -> None:
    """Catches: a command that came into a script and whose right is not asked for; an opening that changes a line."""
    folder = Path(module.__file__).parent
    (tried,) = re.findall(r"TRIED = \{(.*)^\}", (folder / "lua/rights.lua").read_text(), re.DOTALL | re.MULTILINE)
    scripts = [file.read_text() for file in (folder / "lua").glob("*.lua")]
    calls = re.findall(r"call\('([A-Z]+)'", " ".join(scripts))
    modules = " ".join(file.read_text() for file in folder.glob("*.py"))
    calls += re.findall(r"(?:servers\.call\(|pack\(\()b\"([A-Z]+)\"", modules)
    beside = {"INFO", "EVAL", "EVALSHA", "SUBSCRIBE"}  # a script cannot try them
    assert set(re.findall(r"^    \{'([A-Z]+)'", tried, re.MULTILINE)) == set(calls) - beside
    new = put(store)
    seen = store.get(new), store.counts(), server.ask("KEYS", "*"), server.ask("HGET", key("main", "meta"), "version")
    RedisStore(server.url).close()
    assert seen == (
        *(store.get(new), store.counts()),
        *(server.ask("KEYS", "*"), server.ask("HGET", key("main", "meta"), "version")),
    )


def test_a_server_whose_certificate_is_not_trusted_is_refused(folder: Path) -> None:
    """Catches: a site that starts, and tries for ever what cannot succeed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        lack = pytest.fail if os.environ.get("CI") else pytest.skip
        lack("openssl is not installed (Debian: apt-get install openssl)")
    files = ("-keyout", str(folder / "key"), "-out", str(folder / "cert"))
    names = ("-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1")
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *names]
    subprocess.run(make, check=True, capture_output=True)
    port = str(free_port())
    tls = ("--tls-cert-file", str(folder / "cert"), "--tls-key-file", str(folder / "key"), "--tls-auth-clients", "no")
    server = started(folder / "tls", "redis", "--tls-port", port, "--bind", "127.0.0.1", *tls)
    try:
        with pytest.raises(StoreRefused, match="certificate"):
            RedisStore(f"rediss://127.0.0.1:{port}")
        with closing(RedisStore(f"rediss://127.0.0.1:{port}?ssl_ca_certs={folder / 'cert'}")) as store:
            put(store)
    finally:
        server.stop()


# What is kept


def test_a_restart_with_aof_loses_nothing(folder: Path, kind: str) -> None:
    """Catches: state that lives in the server's memory only, and a lease that a restart forgets."""
    server = started(folder / "kept", kind, "--appendonly", "yes", "--appendfsync", "always")
    try:
        with closing(RedisStore(server.url)) as store:
            assert store.health()["aof"] == "on"
            large = os.urandom(INLINE_BODY + 5)
            done, waits = put(store, "ann", large), put(store, "bob", large)
            run = claim(store)
            store.finish(*run, State.COMPLETED, recording(large), now=1)
            held = put(store, "cid")
            second = claim(store)
            before = store.get(done), store.get(waits), store.counts(), store.ahead(held)
            server.kill()
            server.start()
        with closing(RedisStore(server.url)) as store:
            assert (store.get(done), store.get(waits), store.counts(), store.ahead(held)) == before
            assert store.renew([second], lease=30) == {second}
            for found in (store.response(done), store.request(waits)):
                assert read(found) == ('{"method": "POST"}', large, len(large))
    finally:
        server.stop()


def test_large_bodies_go_when_nobody_names_them(server: RedisServer, store: RedisStore) -> None:
    """Catches: chunks that stay for ever, or that run out under a ticket that waits for long."""
    for client in ("ann", "bob"):
        put(store, client, b"x" * (INLINE_BODY + 1))
    keys = bodies(server)
    assert len(keys) == 2
    assert [server.ask("TTL", each) for each in keys] == [b":-1\r\n"] * 2, "they stay"
    run = claim(store)
    store.finish(*run, State.COMPLETED, recording(b"y" * (INLINE_BODY + 1)), now=1)
    store.maintain(now=1)
    assert len(bodies(server)) == 2, "a request and a response"
    store.prune(before=2, now=2)
    assert len(bodies(server)) == 1
    first = ticket()
    store.put(first, recording(), now=3)
    with pytest.raises(StoreError):
        store.put(first, recording(b"x" * (INLINE_BODY + 1)), now=3)
    assert len(bodies(server)) == 1, "what was refused is not kept"


@pytest.mark.parametrize("fault", ["memory", "patience", "lease", "cancelled", "key"])
def test_a_large_body_that_is_not_kept_takes_no_memory(
    server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Catches: what was refused, and holds the memory of what was accepted."""
    large = b"x" * (4 << 20)
    run = put(store), 1
    assert claim(store) == run
    if fault == "memory":
        (used,) = re.findall(rb"used_memory:(\d+)", server.ask("INFO", "memory"))
        server.ask("CONFIG", "SET", "maxmemory", str(int(used) + (2 << 20)))
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="used memory"):
                put(store, "bob", large)
            with pytest.raises(StoreUnavailable, match="used memory"):
                store.finish(*run, State.COMPLETED, recording(large), now=1)
    elif fault == "patience":
        monkeypatch.setattr(module, "PATIENCE", -10.0)
        with pytest.raises(StoreUnavailable, match="too slowly"):
            put(store, "bob", large)
    elif fault == "lease":
        with pytest.raises(LeaseLost):
            store.finish(run[0], 2, State.COMPLETED, recording(large), now=1)
    elif fault == "cancelled":
        store.cancel(run[0], now=1)
        assert store.finish(*run, State.COMPLETED, recording(large), now=1).state is State.CANCELLED
    else:
        new = store.put(ticket("bob"), recording(), now=1, key="k", digest="d")
        assert store.put(ticket("bob"), recording(large), now=1, key="k", digest="d").id == new.id
        with pytest.raises(KeyReused):
            store.put(ticket("bob"), recording(large), now=1, key="k", digest="e")
    assert bodies(server) == []
    put(store, "cid")


def test_a_large_body_goes_by_itself_some_time_after_its_last_piece(server: RedisServer, store: RedisStore) -> None:
    """Catches: what a sender that died left, which stays or is gone while another piece comes."""
    for seconds in (120, 5):
        store._chunks._send(recording(b"x" * (INLINE_BODY + 1)), "orphan", 1.0)
        assert 100 < int(server.ask("TTL", "{wa:main}:body:orphan")[1:-2]) <= 120
        server.ask("EXPIRE", "{wa:main}:body:orphan", str(seconds))


def test_a_server_s_memory_does_not_fill_with_what_is_gone(
    server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a part of what is remembered that stays, when it is removed in several batches."""
    monkeypatch.setattr(module, "BATCH", 2)
    for _ in range(9):
        put(store)
        store.finish(*claim(store), State.COMPLETED, None, now=1)
    store.prune(before=2, now=2)
    monkeypatch.setattr(module, "GONE_KEPT", 3)
    store.prune(before=2, now=2)
    counted = [server.ask(command, key("main", name)) for command, name in (("HLEN", "gone"), ("ZCARD", "gone_at"))]
    assert counted == [b":3\r\n"] * 2


def test_the_first_piece_of_a_large_body_never_stays(
    server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a piece that nobody names and nobody removes, as its sender heard no answer, or died after it."""
    put(store, body=b"x" * (INLINE_BODY + 1))  # now the server knows the scripts
    (known,) = bodies(server)
    with interrupted(store, monkeypatch), pytest.raises(Interrupted):
        put(store, "bob", b"x" * (INLINE_BODY + 1))
    until(lambda: len(bodies(server)) == 2, "the first piece")
    (orphan,) = set(bodies(server)) - {known}
    assert int(server.ask("TTL", orphan)[1:-2]) > 100


def bodies(server: RedisServer) -> list[str]:
    """Return the keys of large bodies."""
    return sorted(re.findall(r"\{wa:main\}:body:\w+", server.ask("KEYS", "*").decode()))


def test_a_body_that_vanished_is_an_error_and_not_half_a_body(server: RedisServer, store: RedisStore) -> None:
    """Catches: a replay of half a request."""
    new = put(store, body=b"x" * (INLINE_BODY + 1))
    (body,) = bodies(server)
    server.ask("RPOP", body)
    with pytest.raises(StoreError, match="missing"):
        store.request(new)


def test_everything_of_a_line_is_in_one_slot_of_a_cluster(folder: Path, kind: str) -> None:
    """Catches: a key without the braces, and a script that touches a key which it does not name."""
    server = started(folder / "node", kind, "--cluster-enabled", "yes", "--cluster-config-file", str(folder / "n.conf"))
    try:
        server.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        until(lambda: b"cluster_state:ok" in server.ask("CLUSTER", "INFO"))
        with closing(RedisStore(server.url, name="a}b{c")) as store:
            put(store, body=b"x" * (INLINE_BODY + 1))
            run = claim(store)
            store.finish(*run, State.COMPLETED, recording(b"x" * (INLINE_BODY + 1)), now=1)
            put(store)
            store.prune(before=2, now=2)
            assert store.counts()["donor", "image"].completed == 1
            keys = re.findall(r"\{wa:[^\r]*", server.ask("KEYS", "*").decode())
            assert len(keys) > 5
            slots = {server.ask("CLUSTER", "KEYSLOT", each) for each in (*keys, *(key("a}b{c", name) for name in KEYS))}
            assert len(slots) == 1
    finally:
        server.stop()


@pytest.fixture
def cluster(folder: Path, kind: str) -> Iterator[list[RedisServer]]:
    """Two nodes of a cluster, each with half of the slots."""
    nodes, ports = [], []
    try:
        for number in range(2):
            port, bus = free_port(), free_port()
            listens = ("--port", str(port), "--cluster-port", str(bus), "--bind", "127.0.0.1")
            file = str(folder / f"nodes{number}")
            nodes.append(
                started(folder / f"{number}", kind, *listens, "--cluster-enabled", "yes", "--cluster-config-file", file)
            )
            ports.append((str(port), str(bus)))
            half = (("0", "8191"), ("8192", "16383"))[number]
            assert nodes[number].ask("CLUSTER", "ADDSLOTSRANGE", *half) == b"+OK\r\n"
        nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", *ports[1])
        for node in nodes:
            until(lambda: b"cluster_state:ok" in node.ask("CLUSTER", "INFO"))  # noqa: B023 - called at once
            until(lambda: node.ask("CLUSTER", "NODES").count(b"connected") == 2)  # noqa: B023 - called at once
        yield nodes
    finally:
        for node in nodes:
            node.kill()  # none waits for the other


def forget(store: RedisStore) -> None:
    """Let a store find its way in a cluster again."""
    store._servers._mine().drop()
    store._servers._elsewhere = {}


def by_port(node: RedisServer) -> str:
    """Return the URL of a node of a cluster."""
    return f"redis://127.0.0.1:{node.options[1]}"


def test_a_line_is_found_on_the_node_of_a_cluster_that_has_it(cluster: list[RedisServer]) -> None:
    """Catches: a cluster that must be asked at the right node, or whose node is asked twice for each step."""
    for name in "abcdefgh":
        with closing(RedisStore(by_port(cluster[0]), name=name)) as store:
            new = put(store)
            assert claim(store) == (new, 1)
            assert store.counts()["donor", "image"].processing == 1
    assert all(b"{wa:" in node.ask("KEYS", "*") for node in cluster), "some are on each"


def test_the_node_of_a_cluster_that_has_the_line_must_be_fit_and_no_other(cluster: list[RedisServer]) -> None:
    """Catches: accepted requests that are evicted, as another node was asked; the health of that other node."""
    slot = int(cluster[0].ask("CLUSTER", "KEYSLOT", key("main", "meta"))[1:-2])
    entry, has = cluster if slot > 8191 else cluster[::-1]
    entry.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    has.ask("CONFIG", "SET", "appendonly", "yes")
    with closing(RedisStore(by_port(entry))) as store:
        put(store)
        forget(store)
        assert store.health()["aof"] == "on"
        has.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert queued(store) == 1
        forget(store)  # as when the node is another one after a fail-over
        for _ in range(2):
            with pytest.raises(StoreError, match="maxmemory-policy 'allkeys-lru'"):
                put(store)
        assert has.ask("HLEN", key("main", "tickets")) == b":1\r\n"
    for node in cluster:
        with pytest.raises(StoreError, match="maxmemory-policy 'allkeys-lru'"):
            RedisStore(by_port(node))


def test_the_scripts_are_sent_again_to_a_server_that_forgot_them(server: RedisServer, store: RedisStore) -> None:
    """Catches: a store that fails for good after SCRIPT FLUSH, a restart or a fail-over."""
    put(store)
    server.ask("SCRIPT", "FLUSH")
    put(store)
    assert store.counts()["donor", "image"].queued == 2


def test_two_names_on_one_server_share_nothing(server: RedisServer) -> None:
    """Catches: keys that do not carry the whole name of the line."""
    with closing(RedisStore(server.url, name="a")) as one, closing(RedisStore(server.url, name="a}:line")) as other:
        new = put(one)
        assert other.counts() == {}
        assert other.claim("worker", now=0, lease=30, routes=ROUTES) is None
        put(other)
        assert claim(one) == (new, 1)


def test_a_machine_whose_clock_is_ahead_ends_nothing_too_early(server: RedisServer) -> None:
    """Catches: deadlines and retention by the clock of whichever machine looks, and not by that of the server."""
    now, passed = time.time(), 0.0
    ahead = now + 600
    with closing(RedisStore(server.url, skew=lambda: passed)) as store:
        store.put(ticket("ann"), recording(), now=now)
        run = claim(store)
        store.finish(*run, State.COMPLETED, None, now=now)
        store.put(ticket("bob", created_at=now), recording(), now=now)
        for ended in (0, 1):
            assert store.expire("image", before=ahead - 300, now=ahead, reason="Too late.") == ended
            assert store.prune(before=ahead - 300, now=ahead) == ended
            passed = 600.0


# Noticing


def test_what_another_process_did_is_noticed_without_asking(server: RedisServer, store: RedisStore) -> None:
    """Catches: counts that are read from the server for every request, and changes that are never told."""
    with closing(RedisStore(server.url)) as other:
        assert store.counts() == {}
        until(lambda: store._news._listener.hears)
        store.counts()
        for number in range(1, 5):
            put(other, f"client {number}")
            until(lambda: queued(store) == number, patience=0.3)  # noqa: B023 - called at once
        token, counts = store.changed(), store.counts()
        calls = commands(server)
        assert all(store.counts() is counts and store.changed() == token for _ in range(1000))
        assert commands(server) - calls < 10


def test_counts_are_true_while_nobody_tells_of_changes(server: RedisServer, store: RedisStore) -> None:
    """Catches: counts that are cached for ever once the connection that listens is lost."""
    with closing(RedisStore(server.url)) as other:
        store.counts()
        until(lambda: store._news._listener.hears)
        for number in range(1, 4):
            until(lambda: store._news._listener.hears)
            server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            until(lambda: not store._news._listener.hears)
            assert queued(store) == number - 1
            put(other, f"client {number}")
            until(lambda: queued(store) == number, patience=0.3)  # noqa: B023 - called at once


class Away:
    """A server that cannot be reached."""

    def connect(self) -> Any:
        raise OSError("it is away")


def test_what_takes_long_to_read_is_read_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a slow server that is asked for the same at every step of a request, and answers none in time."""
    now, delay, readings = 100.0, 0.5, 0
    monkeypatch.setattr(news, "time", SimpleNamespace(monotonic=lambda: now))

    def load() -> int:
        nonlocal now, readings
        now, readings = now + delay, readings + 1
        return readings

    some = news.News(cast("Servers", Away()), "channel")
    with closing(some):
        assert some.cached("counts", load) == 1
        some.changed()
        assert some.cached("counts", load) == 1
        assert some.cached("counts", load, of="another minute") == 2
        now += 2.1
        assert some.cached("counts", load, of="another minute") == 3
        now, delay = now + 3.0, 0.01
        assert some.cached("counts", load) == 4
        some.changed()
        assert some.cached("counts", load) == 5


def queued(store: RedisStore) -> int:
    """Return how many tickets wait, as the store tells now."""
    return sum(tally.queued for tally in store.counts().values())


def commands(server: RedisServer) -> int:
    """Return how many commands the server has seen."""
    found = re.search(rb"total_commands_processed:(\d+)", server.ask("INFO", "stats"))
    assert found is not None
    return int(found[1])


def test_the_listening_thread_ends_with_its_store(server: RedisServer) -> None:
    """Catches: threads that pile up."""
    for _ in range(3):
        with closing(RedisStore(server.url)) as store:
            store.counts()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "wsgi-admission-news"])


def test_a_fork_has_connections_of_its_own(server: RedisServer, store: RedisStore) -> None:
    """Catches: parent and child that read each other's replies."""
    mine = put(store)
    store.counts()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            for number in range(200):
                put(store, f"child {number}")
                assert store.counts()["donor", "image"].queued > number
            os._exit(0)
        os._exit(1)
    for _ in range(200):
        assert store.get(mine).id == mine
    assert os.waitpid(child, 0)[1] == 0
    assert store.counts()["donor", "image"].queued == 201


# Many


def claim_all(url: str, number: int) -> list[str]:
    """Claim and finish until nothing is left; return the ids."""
    claimed = []
    with closing(RedisStore(url)) as store:
        while (run := store.claim(f"worker {number}", now=0, lease=1e9, routes=ROUTES)) is not None:
            store.finish(run.id, run.attempt, State.COMPLETED, recording(), now=1)
            claimed.append(run.id)
    return claimed


def test_processes_never_claim_the_same_ticket(server: RedisServer, store: RedisStore) -> None:
    """Catches: a claim that looks and takes in two steps."""
    tickets = [put(store, f"client {number}") for number in range(500)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(4, context.Barrier(4).wait) as pool:
        runs = pool.starmap(claim_all, [(server.url, number) for number in range(4)])
    claimed = [ticket_id for ids in runs for ticket_id in ids]
    assert sorted(claimed) == sorted(tickets)
    assert sum(bool(ids) for ids in runs) > 1, "they met"


def test_a_long_line_does_not_make_a_position_slow(server: RedisServer, store: RedisStore) -> None:
    """Catches: a position that is counted along the line."""

    def cost() -> float:
        mine = [put(store, f"last {number}") for number in range(20)]
        times = []
        for one in mine * 10:
            begin = time.perf_counter()
            store.ahead(one)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    short = cost()
    first = put(store, "crowd")
    assert server.ask("EVAL", FILL, "0", key("main", "line"), first) == b":100000\r\n"
    long = cost()
    assert sum(store.ahead(put(store, "end")).values()) > 100_000
    assert long < 3 * short + 0.0002, (short, long)


#: Puts 100,000 more members beside that of a ticket, which has its route, tier and start.
FILL = """
local line, id = ARGV[1], ARGV[2]
for _, member in ipairs(redis.call('ZRANGE', line, 0, -1)) do
    if string.sub(member, -#id) == id then
        local place = string.sub(member, 1, #member - #id)
        for number = 1, 100000 do
            redis.call('ZADD', line, 0, place .. string.format('%06d', number))
        end
    end
end
return redis.call('ZCARD', line) - redis.call('ZCARD', line) % 100000
"""


# Opening


def test_a_url_opens_a_line(server: RedisServer) -> None:
    """Catches: schemes that open something else, and databases that are mixed up."""
    with closing(open_store(server.url, name="x")) as store:
        new = store.put(ticket(), recording(), now=0).id
    for url, there in (
        (server.url.replace("db=0", "db=1"), False),
        (server.url.replace("redis+unix", "valkey+unix"), True),
    ):
        with closing(open_store(url, name="x")) as other:
            assert bool(other.counts()) == there
            if there:
                assert other.get(new).id == new


def test_a_lacking_package_is_told_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an ImportError in the middle of the first request."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'wsgi_admission\[redis\]'") as lacking:
        check_url("redis://me:s3cret@localhost")
    assert "s3cret" not in str(lacking.value)
    check_url("memory://")


def test_a_missing_server_program_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a CI that is green because nothing was tested."""
    monkeypatch.setattr("shutil.which", lambda _name: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="redis-server"):
        program("redis")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="redis-server"):
        program("redis")
