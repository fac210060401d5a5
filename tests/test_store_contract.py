"""What every store does: one suite, run over each of them."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.redis_servers import RedisServer
from tests.store_model import LATE, ROUTES, Clock, Walk, read, recording, ticket
from wsgi_admission.errors import (
    ConfigError,
    FinalTicket,
    GoneTicket,
    KeyReused,
    LeaseLost,
    NotRetryable,
    StoreError,
    UnknownTicket,
)
from wsgi_admission.stores import Store, open_store
from wsgi_admission.stores.memory import MemoryStore
from wsgi_admission.stores.records import (
    INLINE_BODY,
    MINUTES_KEPT,
    RATE_MINUTES,
    REMEMBER_GONE,
    RUN_TIMES,
    WORKER_ALIVE,
    Minute,
    Passed,
    Tally,
    Worker,
)
from wsgi_admission.stores.redis import RedisStore
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State, Ticket

OpenLine = Callable[[str], Store]


Opener = Callable[[str, str, Clock], Store]


def _memory(_url: str, _name: str, clock: Clock) -> Store:
    return MemoryStore(clock=clock)


def _sqlite(path: str, name: str, clock: Clock) -> Store:
    return SQLiteStore(path, name=name, durability="normal", clock=clock)


def _redis(url: str, name: str, clock: Clock) -> Store:
    return RedisStore(url, name=name, skew=lambda: clock() - time.time())


STORES: dict[str, Opener] = {"memory": _memory, "sqlite": _sqlite, "redis": _redis, "valkey": _redis}


@pytest.fixture
def clock() -> Clock:
    """What the leases of every store of the test are measured by."""
    return Clock()


@pytest.fixture(params=STORES)
def open_line(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, shared_server: Callable[[str], RedisServer]
) -> Iterator[OpenLine]:
    """Open lines by name, all at one place."""
    kind = request.param
    place = shared_server(kind).url if kind in {"redis", "valkey"} else str(tmp_path / "line.db")
    opened: list[Store] = []

    def open_named(name: str) -> Store:
        opened.append(STORES[kind](place, name, clock))
        return opened[-1]

    yield open_named
    for store in opened:
        store.close()


@pytest.fixture
def store(open_line: OpenLine) -> Store:
    """A new line."""
    return open_line("main")


def put(store: Store, client: str = "ann", **of: object) -> Ticket:
    """Put a ticket with a small body."""
    new = ticket(client, **of)  # type: ignore[arg-type]  # passed on as they are
    return store.put(new, recording(), now=new.created_at)


def claim(store: Store, *, now: float = 0.0, lease: float = 30.0, routes: tuple[str, ...] = ROUTES) -> Ticket:
    """Claim the first ticket, which must be there."""
    claimed = store.claim("worker", now=now, lease=lease, routes=routes)
    assert claimed is not None
    return claimed


def claim_all(store: Store) -> list[str]:
    """Return the ids of the whole line in the order of claims."""
    order = []
    while (claimed := store.claim("worker", now=0, lease=1e9, routes=ROUTES)) is not None:
        order.append(claimed.id)
    return order


def finish(store: Store, run: Ticket, *, now: float = 1.0, body: bytes = b"answer") -> Ticket:
    """Complete a run."""
    return store.finish(run.id, run.attempt, State.COMPLETED, recording(body), now=now)


def in_parallel(work: Callable[[], None]) -> None:
    """Do it in four threads that take turns as often as they can."""
    threads = [threading.Thread(target=work) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    finally:
        sys.setswitchinterval(interval)


# Putting


def test_a_put_ticket_is_queued_with_its_rank_and_number(store: Store) -> None:
    """Catches: a put that returns the ticket as it came."""
    first, second = put(store), put(store)
    assert (first.state, first.start, first.number) == (State.QUEUED, 0.0, 1)
    assert (second.start, second.number) == (10.0, 2)
    assert store.get(second.id) == second


def test_every_field_of_a_ticket_comes_back(store: Store) -> None:
    """Catches: columns that are swapped, or dropped."""
    new = replace(
        ticket("dée", route="video", tier="anonymous", cost=2.5, owner="Ünal", crash_retries=3), created_at=7.25
    )
    assert store.put(new, recording(), now=8) == store.get(new.id) == replace(new, number=1)


def test_an_id_can_be_put_once(store: Store) -> None:
    """Catches: a second put that replaces the first, or counts without adding."""
    first = put(store)
    with pytest.raises(StoreError, match=first.id):
        store.put(ticket_with_id(first.id), recording(b"other"), now=1)
    assert store.counts()["donor", "image"].accepted == 1
    assert read(store.request(first.id)) == ('{"method": "POST"}', b"body", 4)


def ticket_with_id(ticket_id: str) -> Ticket:
    """Return another ticket under a known id."""
    return replace(ticket(), id=ticket_id)


def test_a_body_is_read_from_its_position_and_left_open(store: Store) -> None:
    """Catches: a put that rewinds or closes what the caller owns."""
    request = recording(b"skipped:kept")
    request.body.seek(8)
    put_ticket = store.put(ticket(), request, now=0)
    assert not request.body.closed
    assert read(store.request(put_ticket.id)) == (request.head, b"kept", 4)


# Keys


def put_with(store: Store, key: str, digest: str = "d", *, body: bytes = b"body", **of: object) -> Ticket:
    """Put a new ticket with a key; return what the store returns."""
    return store.put(ticket(**of), recording(body), now=1, key=key, digest=digest)  # type: ignore[arg-type]  # as above


def test_a_key_is_one_ticket(store: Store) -> None:
    """Catches: a repeated request that is queued twice, counted, charged or numbered; an old copy of the first."""
    first = put_with(store, "k")
    run = claim(store)
    counts, changed = store.counts(), store.changed()
    assert put_with(store, "k", body=b"x" * (INLINE_BODY + 1)) == run == store.get(first.id)
    assert (store.counts(), store.changed()) == (counts, changed)
    assert read(store.request(first.id)) == ('{"method": "POST"}', b"body", 4)
    ended = finish(store, run)
    assert put_with(store, "k") == ended
    assert store.claim("worker", now=1, lease=30, routes=ROUTES) is None
    assert put(store).number == first.number + 1


def test_a_key_with_another_request_is_refused(store: Store) -> None:
    """Catches: the answer to one request given to another; the id of somebody's ticket in a message."""
    first = put_with(store, "k", "one")
    with pytest.raises(KeyReused) as reused:
        put_with(store, "k", "two")
    assert reused.value.ticket_id == first.id
    assert first.id not in str(reused.value)
    assert store.counts()["donor", "image"].accepted == 1
    assert put_with(store, "k", "one") == first


def test_a_key_belongs_to_a_route_and_a_client(store: Store) -> None:
    """Catches: the ticket of somebody else, or of another endpoint, for a key that two have chosen."""
    of = [{}, {"route": "video"}, {"client": "bob"}, {"client": "ann\0k"}]
    keyed = [put_with(store, key, **one) for key in ("k", "K", "k\0") for one in of]  # type: ignore[arg-type]  # as above
    assert len({one.id for one in keyed}) == 12
    assert put_with(store, "k", tier="anonymous") == keyed[0]


def test_without_a_key_every_request_is_its_own(store: Store) -> None:
    """Catches: an empty key that is one like any other."""
    assert put_with(store, "", "").id != put_with(store, "", "").id


def test_a_key_lives_as_long_as_its_ticket(store: Store) -> None:
    """Catches: keys that are forgotten when their ticket is final, or never."""
    first = put_with(store, "k")
    store.cancel(first.id, now=5)
    store.prune(before=5, now=6)
    assert put_with(store, "k").id == first.id
    store.prune(before=6, now=7)
    assert put_with(store, "k", "other").id != first.id


def test_an_id_that_is_taken_takes_no_key(store: Store) -> None:
    """Catches: a put that is refused and leaves its key behind."""
    taken = put(store)
    with pytest.raises(StoreError, match=taken.id):
        store.put(ticket_with_id(taken.id), recording(), now=1, key="k", digest="d")
    assert put_with(store, "k").id != taken.id


def test_parallel_puts_with_one_key_make_one_ticket(store: Store) -> None:
    """Catches: a look-up and an insert without a lock between (the switch interval makes them meet)."""
    keys = [f"key {number}" for number in range(300)]
    got: list[tuple[str, str]] = []

    meeting = threading.Barrier(4)

    def work() -> None:
        meeting.wait(60)
        got.extend((key, put_with(store, key).id) for key in keys)

    in_parallel(work)
    assert len(got) == 1200
    assert len(set(got)) == 300
    assert store.counts()["donor", "image"].accepted == 300


# The order of the line


def test_tiers_are_served_strictly_in_order(store: Store) -> None:
    """Catches: an order by number, or by the tier's name."""
    last, middle, first = (put(store, tier=tier).id for tier in ("anonymous", "registered", "donor"))
    assert claim_all(store) == [first, middle, last]


def test_a_client_with_many_tickets_does_not_block_another(store: Store) -> None:
    """Catches: first in, first out inside a tier."""
    crowd = [put(store, "crowd").id for _ in range(5)]
    visitor = put(store, "visitor").id
    assert claim_all(store) == [crowd[0], visitor, *crowd[1:]]


def test_the_tickets_of_a_client_stay_in_their_order(store: Store) -> None:
    """Catches: an order by id between equal starts, and ranks without the last finish."""
    mine = [put(store, "ann", cost=cost).id for cost in (30, 1, 20, 1, 5)]
    assert claim_all(store) == mine


def test_first_come_first_served_when_every_client_has_one(store: Store) -> None:
    """Catches: an order by id between equal starts."""
    tickets = [put(store, f"client {number}").id for number in range(20)]
    assert claim_all(store) == tickets


def test_whoever_was_idle_starts_where_the_tier_is_now(store: Store) -> None:
    """Catches: a virtual time that does not move on a claim, so that the idle are credited."""
    for _ in range(3):
        put(store, "busy")
    for _ in range(3):
        claim(store)
    assert put(store, "idle").start == 20.0


def test_whoever_was_idle_is_not_punished_for_long_ago(store: Store) -> None:
    """Catches: ranks from the client's last finish alone."""
    put(store, "ann", cost=5)
    for _ in range(9):
        put(store, "busy")
    for _ in range(10):
        claim(store)
    assert put(store, "ann").start == 80.0


def test_the_virtual_time_of_a_tier_is_its_own(store: Store) -> None:
    """Catches: one virtual time for all tiers."""
    for _ in range(3):
        put(store, tier="donor")
        claim(store)
    assert put(store, "bob", tier="registered").start == 0.0


def test_the_virtual_time_never_goes_back(store: Store) -> None:
    """Catches: a claim that sets the virtual time to an earlier rank."""
    early = put(store, "ann")
    early_run = claim(store)
    for _ in range(4):
        put(store, "bob")
        claim(store)
    store.release(early.id, early_run.attempt, now=1)
    claim(store)
    assert put(store, "new").start == 30.0


def test_only_the_wanted_routes_are_claimed(store: Store) -> None:
    """Catches: a claim that ignores the routes, or stops at the first ticket of another."""
    for number in range(5):
        put(store, f"video {number}", route="video", tier="donor")
    image = put(store, route="image", tier="anonymous")
    assert store.claim("worker", now=0, lease=30, routes={"text"}) is None
    assert store.claim("worker", now=0, lease=30, routes=()) is None
    assert claim(store, routes=("image", "text")).id == image.id


def test_the_best_of_several_routes_is_claimed(store: Store) -> None:
    """Catches: a claim that takes the routes in the order in which they are named."""
    put(store, "ann", route="image", tier="registered")
    best = put(store, "bob", route="video", tier="donor")
    put(store, "cid", route="text", tier="donor")
    assert claim(store).id == best.id


# Pausing


def test_nothing_is_claimed_from_a_paused_line(open_line: OpenLine) -> None:
    """Catches: a pause that only this process knows of, or that stops more than the claims."""
    store = open_line("main")
    first, second = put(store, "ann"), put(store, "bob")
    run = claim(store)
    assert store.paused() is False
    for _ in range(2):
        store.pause(paused=True)
    assert store.paused() is True
    assert store.claim("worker", now=1, lease=30, routes=ROUTES) is None
    assert store.renew([(run.id, 1)], lease=30) == {(run.id, 1)}
    store.release(run.id, 1, now=2)
    put(store, "cid")
    store.cancel(second.id, now=3)
    for _ in range(2):
        store.pause(paused=False)
    assert store.paused() is False
    assert claim(store).id == first.id


def test_a_pause_makes_another_mapping_of_the_counts(store: Store) -> None:
    """Catches: newcomers that run at once although the line is paused, because nothing else has changed."""
    seen = store.counts()
    for paused in (True, False, True):
        store.pause(paused)
        assert store.counts() is not seen
        assert store.paused() is paused
        seen = store.counts()


def test_a_line_is_paused_by_its_name(open_line: OpenLine) -> None:
    """Catches: a pause of every line in the same place."""
    ours, theirs = open_line("ours"), open_line("theirs")
    ours.pause(paused=True)
    new = put(theirs)
    assert theirs.paused() is False
    assert claim(theirs).id == new.id


# Claims and leases


def test_a_claim_begins_an_attempt(store: Store) -> None:
    """Catches: an attempt that is not counted, or a start that is not noted."""
    new = put(store)
    run = claim(store, now=5)
    assert run == replace(new, state=State.PROCESSING, attempt=1, started_at=5)
    assert store.get(new.id) == run


def test_an_empty_line_gives_nothing(store: Store) -> None:
    """Catches: a claim that hands out what runs already."""
    assert store.claim("worker", now=0, lease=30, routes=ROUTES) is None
    put(store)
    claim(store)
    assert store.claim("worker", now=0, lease=30, routes=ROUTES) is None


def test_a_lease_that_ran_out_returns_the_ticket_to_its_old_place(store: Store, clock: Clock) -> None:
    """Catches: a requeue at the end of the line."""
    first, second = put(store, "ann"), put(store, "bob")
    claim(store, now=0, lease=30)
    clock.go_on(29)
    assert store.requeue_expired(now=29) == 0
    clock.go_on(1)
    assert store.requeue_expired(now=30) == 1
    again = store.get(first.id)
    assert again == replace(first, attempt=1, crashes=1)
    assert claim_all(store) == [first.id, second.id]


def test_a_renewed_lease_does_not_run_out(store: Store, clock: Clock) -> None:
    """Catches: a renewal that is not kept, or that is counted from the old end."""
    put(store)
    run = claim(store, now=0, lease=30)
    clock.go_on(20)
    assert store.renew([(run.id, 1)], lease=30) == {(run.id, 1)}
    clock.go_on(29)
    assert store.requeue_expired(now=49) == 0
    clock.go_on(1)
    assert store.requeue_expired(now=50) == 1


@pytest.mark.parametrize("jump", [86400.0, -86400.0])
def test_setting_the_time_of_day_moves_no_lease(store: Store, clock: Clock, jump: float) -> None:
    """Catches: leases by the wall clock, which run out when it is put on and last when it is put back."""
    put(store)
    run = claim(store, now=100_000, lease=30)
    clock.go_on(20)
    assert store.requeue_expired(now=100_000 + jump) == 0
    assert store.renew([(run.id, 1)], lease=30) == {(run.id, 1)}
    clock.go_on(29)
    assert store.requeue_expired(now=100_000 + jump) == 0
    clock.go_on(1)
    assert store.requeue_expired(now=100_000 + jump) == 1
    again = claim(store, now=100_000 + jump, lease=30)
    clock.go_on(30)
    assert store.requeue_expired(now=100_000) == 1
    assert (again.started_at, store.get(run.id).completed_at) == (100_000 + jump, 100_000)


def test_only_what_is_held_is_renewed(store: Store, clock: Clock) -> None:
    """Catches: a renewal that does not check the attempt, the state or the id."""
    for client in ("ann", "bob", "cid"):
        put(store, client)
    ended, lost, held = claim(store, lease=99), claim(store, lease=1), claim(store, lease=99)
    finish(store, ended)
    clock.go_on(1)
    store.requeue_expired(now=1)
    claims = [(run.id, run.attempt) for run in (ended, lost, held)]
    assert store.renew([*claims, ("nobody", 1), (held.id, 2)], lease=30) == {(held.id, 1)}
    assert store.renew([], lease=30) == set()


def test_a_ticket_whose_workers_keep_dying_fails(store: Store, clock: Clock) -> None:
    """Catches: retries that are counted from one, or never."""
    new = put(store, crash_retries=1)
    for died in (1, 2):
        claim(store, lease=1)
        clock.go_on(1)
        store.requeue_expired(now=died)
    failed = store.get(new.id)
    assert (failed.state, failed.crashes, failed.completed_at) == (State.FAILED, 2, 2)
    assert failed.error.endswith(".")
    assert len(failed.error.split()) > 5, "a sentence for people"
    assert store.response(new.id) is None


def test_without_crash_retries_the_first_death_is_the_last(store: Store, clock: Clock) -> None:
    """Catches: one run too many of what must not be repeated."""
    new = put(store, crash_retries=0)
    claim(store, lease=1)
    clock.go_on(1)
    store.requeue_expired(now=1)
    assert store.get(new.id).state is State.FAILED


def test_what_a_dead_worker_ran_comes_back_at_once(store: Store) -> None:
    """Catches: a burial that waits for the lease, takes what others run or what is over, or counts no crash."""
    first, second, over, others = (put(store, client) for client in ("ann", "bob", "cid", "dan"))
    runs = [store.claim(worker, now=1, lease=99, routes=ROUTES) for worker in ("dead", "dead", "dead", "alive")]
    assert runs[2] is not None
    finish(store, runs[2])
    assert store.bury("dead", now=2) == 2
    for back in (first, second):
        assert store.get(back.id) == replace(back, attempt=1, crashes=1)
    assert store.get(over.id).state is State.COMPLETED
    assert store.get(others.id).state is State.PROCESSING
    assert store.counts()["donor", "image"].crashed == 2
    assert claim_all(store) == [first.id, second.id]


def test_a_dead_worker_is_buried_once(store: Store, clock: Clock) -> None:
    """Catches: a crash for each of those who notice, or one more from the lease; a ticket taken from who has it now."""
    new = put(store, crash_retries=1)
    store.claim("dead", now=1, lease=30, routes=ROUTES)
    assert [store.bury("dead", now=2) for _ in range(3)] == [1, 0, 0]
    clock.go_on(31)
    assert store.requeue_expired(now=33) == 0
    store.claim("alive", now=33, lease=30, routes=ROUTES)
    assert store.bury("dead", now=34) == 0
    assert store.get(new.id).state is State.PROCESSING
    assert store.counts()["donor", "image"].crashed == store.get(new.id).crashes == 1


def test_burying_uses_up_the_crash_retries(store: Store) -> None:
    """Catches: a burial that runs again what must not be repeated, or what nobody wants any more."""
    fails, unwanted = put(store, "ann", crash_retries=0), put(store, "bob")
    for _ in range(2):
        store.claim("dead", now=1, lease=30, routes=ROUTES)
    store.cancel(unwanted.id, now=1, reason="Not wanted.")
    assert store.bury("dead", now=5) == 2
    assert (store.get(fails.id).state, store.get(fails.id).completed_at) == (State.FAILED, 5)
    assert store.get(unwanted.id).state is State.CANCELLED


def test_a_released_ticket_keeps_its_place_and_its_chances(store: Store) -> None:
    """Catches: a release that counts as a crash, or that puts the ticket at the end."""
    first, second = put(store, "ann", crash_retries=0), put(store, "bob")
    run = claim(store)
    store.progress(run.id, 1, 0.5, "half")
    store.release(run.id, 1, now=1)
    assert store.get(first.id) == replace(first, attempt=1)
    assert claim_all(store) == [first.id, second.id]
    assert store.counts()["donor", "image"].crashed == 0


def test_progress_is_shown(store: Store) -> None:
    """Catches: progress that is written nowhere, or under the wrong name."""
    put(store)
    run = claim(store)
    store.progress(run.id, run.attempt, 0.25, "step 5 of 20")
    assert store.get(run.id) == replace(run, progress=0.25, note="step 5 of 20")


@pytest.mark.parametrize("step", LATE)
def test_a_late_write_is_refused_and_has_no_effect(store: Store, clock: Clock, step: str) -> None:
    """Catches: writes that check the id but not the attempt, or the attempt but not the state."""
    new = put(store)
    late = claim(store, lease=1)
    clock.go_on(1)
    store.requeue_expired(now=1)
    for _ in ("queued again", "in somebody else's hands"):
        before = store.get(new.id), _but_late(store)
        with pytest.raises(LeaseLost) as lost:
            LATE[step](store, late)
        assert (lost.value.ticket_id, lost.value.attempt) == (late.id, 1)
        assert (store.get(new.id), _but_late(store)) == before
        store.claim("second", now=2, lease=30, routes=ROUTES)
    assert read(store.request(new.id)) is not None


def _but_late(store: Store) -> dict[tuple[str, str], Tally]:
    """Return the tallies without the count of late finishes."""
    return {key: replace(tally, late=0) for key, tally in store.counts().items()}


def test_late_finishes_are_counted(store: Store, clock: Clock) -> None:
    """Catches: a refused finish that is not counted, or counted with the releases, or for a ticket that never was."""
    put(store, route="video", crash_retries=0)
    late = claim(store, lease=1)
    clock.go_on(1)
    store.requeue_expired(now=1)
    for ended in (late, replace(late, attempt=7), ticket_with_id("nobody")):
        for refused in LATE.values():
            before = store.changed()
            with pytest.raises(LeaseLost):
                refused(store, ended)
            assert (store.changed() != before) == (refused is LATE["finish"] and ended.id == late.id)
    assert store.counts() == {("donor", "video"): Tally(accepted=1, started=1, failed=1, crashed=1, late=2)}
    assert store.minutes(since=0) == [Minute(0, "donor", "video", 1, 1, failures=1)]


@pytest.mark.parametrize("step", LATE)
def test_a_run_that_is_over_or_unknown_cannot_be_written(store: Store, step: str) -> None:
    """Catches: a second finish that overwrites the first."""
    put(store)
    run = claim(store)
    finish(store, run)
    for over in (run, ticket_with_id("nobody")):
        with pytest.raises(LeaseLost):
            LATE[step](store, over)
    assert read(store.response(run.id)) == ('{"method": "POST"}', b"answer", 6)


# The end


def test_a_completed_ticket_has_its_response_as_often_as_asked(store: Store) -> None:
    """Catches: a response that can be read once, or by one reader at a time."""
    put(store)
    run = claim(store, now=3)
    ended = finish(store, run, now=8)
    assert ended == replace(run, state=State.COMPLETED, completed_at=8) == store.get(run.id)
    one, two = store.response(run.id), store.response(run.id)
    for found in (one, two, store.response(run.id)):
        assert read(found) == ('{"method": "POST"}', b"answer", 6)


def test_a_failed_ticket_keeps_its_answer_and_its_error(store: Store) -> None:
    """Catches: a failure without the app's own answer."""
    put(store)
    run = claim(store)
    ended = store.finish(run.id, 1, State.FAILED, recording(b"oops"), now=1, error="The app answered 500.")
    assert (ended.state, ended.error) == (State.FAILED, "The app answered 500.")
    assert read(store.response(run.id)) == ('{"method": "POST"}', b"oops", 4)


def test_a_failed_ticket_may_have_no_answer(store: Store) -> None:
    """Catches: a finish that needs a response."""
    put(store)
    run = claim(store)
    store.finish(run.id, 1, State.FAILED, None, now=1, error="It raised.")
    assert store.response(run.id) is None


@pytest.mark.parametrize("state", [State.QUEUED, State.PROCESSING, State.CANCELLED])
def test_a_run_can_end_in_two_ways_only(store: Store, state: State) -> None:
    """Catches: a finish that makes any state of a ticket."""
    put(store)
    run = claim(store)
    with pytest.raises(ValueError, match=state.value):
        store.finish(run.id, 1, state, None, now=1)
    assert store.get(run.id) == run


def test_the_request_is_erased_when_the_ticket_is_final(store: Store) -> None:
    """Catches: personal data that outlives its use."""
    completed, cancelled = put(store, "ann"), put(store, "bob")
    assert read(store.request(completed.id)) == ('{"method": "POST"}', b"body", 4)
    run = claim(store)
    assert read(store.request(completed.id)) is not None
    finish(store, run)
    store.cancel(cancelled.id, now=1)
    for ended in (completed, cancelled, ticket()):
        with pytest.raises(UnknownTicket):
            store.request(ended.id)


# Running again what failed


def interrupted(store: Store, *, how: str = "kept", body: bytes = b"body") -> Ticket:
    """Return a ticket that failed without an answer of the app, and whose request is kept."""
    new = store.put(ticket(crash_retries=0), recording(body), now=0)
    run = store.claim("dead", now=1, lease=30, routes=ROUTES)
    assert run is not None
    if how == "kept":
        store.finish(run.id, run.attempt, State.FAILED, None, now=2, error="It stopped.", keep_request=True)
    else:
        store.bury("dead", now=2)
    return store.get(new.id)


@pytest.mark.parametrize("size", [4, INLINE_BODY + 1])
@pytest.mark.parametrize("how", ["kept", "crashed"])
def test_what_failed_without_an_answer_can_be_run_again(store: Store, how: str, size: int) -> None:
    """Catches: a promise that ends with the last crash; a request that is lost, copied or cut on its way."""
    old = interrupted(store, how=how, body=b"b" * size)
    assert (old.state, old.retryable, old.completed_at) == (State.FAILED, True, 2)
    assert read(store.request(old.id)) == ('{"method": "POST"}', b"b" * size, size)
    put(store, "bob")
    new = ticket(cost=3)
    again = store.retry(old.id, new, now=9)
    assert again == store.get(new.id) == replace(new, start=10.0, number=3)
    assert store.get(old.id) == replace(old, retryable=False)
    with pytest.raises(UnknownTicket):
        store.request(old.id)
    assert read(store.request(again.id)) == ('{"method": "POST"}', b"b" * size, size)
    assert store.counts()["donor", "image"] == replace(
        Tally(queued=2, accepted=3, started=1, failed=1, wait_seconds=1),
        **({"crashed": 1} if how == "crashed" else {"ran": 1, "run_seconds": 1}),
    )
    assert store.ahead(again.id) == {"image": 1}
    finish(store, claim(store))
    finish(store, claim(store))
    assert store.get(again.id).state is State.COMPLETED


def test_what_failed_is_retried_once(store: Store) -> None:
    """Catches: a ticket for each click; a retry that is refused and takes the request along."""
    old = interrupted(store)
    taken = put(store)
    with pytest.raises(StoreError, match=taken.id):
        store.retry(old.id, ticket_with_id(taken.id), now=3)
    assert store.get(old.id) == old
    new = store.retry(old.id, ticket(), now=3)
    assert read(store.request(new.id)) is not None
    refused = ticket()
    with pytest.raises(NotRetryable) as twice:
        store.retry(old.id, refused, now=4)
    assert twice.value.ticket_id == old.id
    with pytest.raises(UnknownTicket):
        store.get(refused.id)


@pytest.mark.parametrize("state", ["queued", "processing", "completed", "answered 500", "raised", "cancelled"])
def test_nothing_else_can_be_retried(store: Store, state: str) -> None:
    """Catches: a second run of what has an answer, still runs, or is not wanted; a request kept beyond its use."""
    new = put(store)
    if state == "cancelled":
        store.cancel(claim(store).id, now=1)
        store.finish(new.id, 1, State.FAILED, None, now=2, keep_request=True)
    elif state != "queued":
        claim(store)
    if state == "completed":
        store.finish(new.id, 1, State.COMPLETED, None, now=2)
    elif state == "answered 500":
        store.finish(new.id, 1, State.FAILED, recording(b"oops"), now=2)
    elif state == "raised":
        store.finish(new.id, 1, State.FAILED, None, now=2)
    before = store.get(new.id)
    assert not before.retryable
    with pytest.raises(NotRetryable):
        store.retry(new.id, ticket(), now=3)
    assert store.get(new.id) == before
    if before.state.final:
        with pytest.raises(UnknownTicket):
            store.request(new.id)
    assert store.counts()["donor", "image"].accepted == 1


def test_a_request_is_kept_for_a_failure_without_an_answer_only(store: Store) -> None:
    """Catches: personal data kept beside an answer."""
    put(store)
    run = claim(store)
    for state, response in ((State.COMPLETED, None), (State.FAILED, recording(b"oops"))):
        with pytest.raises(ValueError, match="without an answer"):
            store.finish(run.id, 1, state, response, now=1, keep_request=True)
    assert store.get(run.id) == run


def test_what_nobody_retried_is_pruned_with_its_request(store: Store) -> None:
    """Catches: requests that stay when their tickets have gone."""
    old = interrupted(store, body=b"b" * (INLINE_BODY + 1))
    assert store.prune(before=3, now=3) == 1
    with pytest.raises(UnknownTicket):
        store.request(old.id)
    with pytest.raises(GoneTicket):
        store.retry(old.id, ticket(), now=4)


@pytest.mark.parametrize("size", [0, 1, INLINE_BODY, INLINE_BODY + 1, 300 * 1024, 3 << 20])
def test_bodies_of_any_size_come_back_byte_for_byte(store: Store, size: int) -> None:
    """Catches: bodies cut or joined at the limit between row and file."""
    body = random.Random(size).randbytes(size)  # noqa: S311 - any bytes
    new = store.put(ticket(), recording(body), now=0)
    for _ in range(2):
        assert read(store.request(new.id)) == ('{"method": "POST"}', body, size)
    finish(store, claim(store), body=body[::-1])
    for _ in range(2):
        assert read(store.response(new.id)) == ('{"method": "POST"}', body[::-1], size)


def test_a_body_is_a_binary_file_at_its_beginning(store: Store) -> None:
    """Catches: bodies that cannot be read in pieces, or sought in."""
    new = store.put(ticket(), recording(b"0123456789"), now=0)
    with store.request(new.id).body as body:
        assert body.tell() == 0
        assert (body.read(4), body.read()) == (b"0123", b"456789")
        assert body.seek(2) == 2


# Cancelling


def test_a_queued_ticket_is_cancelled_at_once(store: Store) -> None:
    """Catches: cancelled tickets that stay in the line."""
    new = put(store)
    ended = store.cancel(new.id, now=4, reason="You cancelled it.")
    assert ended == replace(new, state=State.CANCELLED, completed_at=4, error="You cancelled it.") == store.get(new.id)
    assert store.claim("worker", now=5, lease=30, routes=ROUTES) is None
    assert store.response(new.id) is None


def test_cancelling_what_runs_drops_its_response(store: Store) -> None:
    """Catches: a cancelled ticket that ends completed, or that keeps an answer."""
    put(store)
    run = claim(store)
    asked = store.cancel(run.id, now=1, reason="Not wanted.")
    assert asked == replace(run, cancelling=True, error="Not wanted.")
    assert store.cancel(run.id, now=2, reason="Again.") == asked
    ended = finish(store, run, now=3)
    assert ended == replace(asked, state=State.CANCELLED, completed_at=3) == store.get(run.id)
    assert store.response(run.id) is None
    assert store.statistics(now=3).run_times == {}


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_tickets_that_are_cancelled_while_they_wait_leave_no_trace(store: Store, order: tuple[int, ...]) -> None:
    """Catches: a fair share that is charged at the submission, so that changing one's mind costs a place."""
    put(store, "ann", cost=7)
    claim(store)
    put(store, "bob", cost=4)
    for client, start in (("ann", 7.0), ("bob", 4.0), ("new", 0.0)):
        mine = [put(store, client, cost=cost).id for cost in (30, 1, 20, 5)]
        for chosen in order:
            store.cancel(mine[chosen], now=1)
        assert put(store, client).start == start


def test_a_ticket_cancelled_in_the_middle_moves_none_of_the_others(store: Store) -> None:
    """Catches: a cancellation that takes its cost off the client's last finish, and ranks the next before its own."""
    first, middle, last = (put(store, "ann", cost=cost) for cost in (10, 50, 20))
    store.cancel(middle.id, now=1)
    assert store.get(last.id) == last
    new = put(store, "ann", cost=5)
    assert new.start == 80.0
    store.cancel(last.id, now=1)
    store.cancel(new.id, now=1)
    again = put(store, "ann")
    assert again.start == 10.0
    assert claim_all(store) == [first.id, again.id]


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled", "given back"])
def test_what_was_claimed_stays_charged(store: Store, ending: str) -> None:
    """Catches: a run whose charge is escaped by putting and cancelling another ticket, or by cancelling itself."""
    put(store, "ann", cost=40)
    put(store, "bob")
    run = claim(store)
    if ending == "given back":
        store.release(run.id, 1, now=1)
        store.cancel(run.id, now=1)
    else:
        if ending == "cancelled":
            store.cancel(run.id, now=1)
        store.finish(run.id, 1, State.FAILED if ending == "failed" else State.COMPLETED, None, now=1)
    store.cancel(put(store, "ann", cost=3).id, now=2)
    store.prune(before=0, now=2)
    assert put(store, "ann").start == 40.0


def test_the_charge_is_that_of_the_last_however_the_routes_are_claimed(store: Store) -> None:
    """Catches: a claim of an earlier ticket that lowers what the client was charged for a later one."""
    put(store, "ann", route="image")
    put(store, "ann", route="video")
    put(store, "bob", route="text", cost=1)
    claim(store, routes=("video",))
    claim(store, routes=("image",))
    store.prune(before=0, now=1)
    assert put(store, "ann").start == 20.0
    assert put(store, "bob").start == 10.0


def test_clients_are_charged_by_their_whole_name_and_tier(store: Store) -> None:
    """Catches: a look-up of a client's queued tickets that finds those of its neighbour."""
    for client, tier in (("ann", "donor"), ("ann\0", "donor"), ("anna", "donor"), ("ann", "anonymous")):
        put(store, client, tier=tier, cost=60)
    assert put(store, "an").start == 0.0
    assert put(store, "ann ").start == 0.0
    assert put(store, "annb").start == 0.0
    assert put(store, "ann", tier="registered").start == 0.0
    assert put(store, "ann").start == 60.0


@pytest.mark.parametrize("leaving", ["release", "crash", "last crash"])
def test_a_cancellation_that_was_asked_for_holds_when_the_worker_leaves(
    store: Store, clock: Clock, leaving: str
) -> None:
    """Catches: a cancelled ticket that is run again, or that fails."""
    put(store, crash_retries=0 if leaving == "last crash" else 1)
    run = claim(store, lease=1)
    store.cancel(run.id, now=0, reason="Not wanted.")
    if leaving == "release":
        store.release(run.id, 1, now=1)
    else:
        clock.go_on(1)
        assert store.requeue_expired(now=1) == 1
    ended = store.get(run.id)
    assert (ended.state, ended.completed_at, ended.error) == (State.CANCELLED, 1, "Not wanted.")
    with pytest.raises(UnknownTicket):
        store.request(run.id)


def test_a_final_ticket_cannot_be_cancelled(store: Store) -> None:
    """Catches: a completed ticket whose result a late click takes away."""
    put(store)
    run = claim(store)
    finish(store, run)
    with pytest.raises(FinalTicket, match="completed"):
        store.cancel(run.id, now=2)
    waiting = put(store)
    store.cancel(waiting.id, now=3)
    with pytest.raises(FinalTicket) as final:
        store.cancel(waiting.id, now=4)
    assert (final.value.ticket_id, final.value.state) == (waiting.id, "cancelled")
    assert store.get(run.id).state is State.COMPLETED


# Deadlines


def test_what_has_waited_too_long_is_cancelled_with_the_reason(store: Store) -> None:
    """Catches: a deadline that cancels what runs or has run, what is younger, or another route's; one off by one."""
    runs, back = (put(store, client, created_at=1) for client in "ab")
    claimed = {run.id: run for run in (claim(store, routes=("image",)) for _ in range(2))}
    late, again = (put(store, client, created_at=1) for client in "ab")
    fresh = put(store, "d", created_at=10)
    other = put(store, route="video", created_at=1)
    store.release(back.id, 1, now=11)
    assert store.expire("image", before=10, now=12, reason="Nobody came in time.") == 2
    for gone in (late, again):
        ended = store.get(gone.id)
        assert (ended.state, ended.completed_at, ended.error) == (State.CANCELLED, 12, "Nobody came in time.")
        with pytest.raises(UnknownTicket):
            store.request(gone.id)
    assert store.get(runs.id) == claimed[runs.id]
    assert [store.get(one.id).state for one in (back, fresh, other)] == [State.QUEUED] * 3
    assert store.counts()["donor", "image"].cancelled == 2
    changed = store.changed()
    assert store.expire("image", before=10, now=13, reason="Again.") == 0
    assert store.expire("nowhere", before=1e9, now=13, reason="Again.") == 0
    assert store.changed() == changed
    assert claim_all(store) == [back.id, fresh.id, other.id]


def test_what_expires_unclaimed_does_not_count_against_its_client(store: Store) -> None:
    """Catches: a client who is charged for what nobody ran."""
    for _ in range(3):
        put(store, created_at=1)
    assert store.expire("image", before=2, now=2, reason="Too late.") == 3
    assert put(store).start == 0.0


def test_many_tickets_expire_in_one_call(store: Store) -> None:
    """Catches: a deadline that stops after its first batch."""
    for number in range(450):
        put(store, f"client {number}")
    assert store.expire("image", before=1, now=1, reason="Too late.") == 450
    assert store.counts()["donor", "image"] == Tally(accepted=450, cancelled=450)


def test_a_long_expiry_pauses_and_goes_on_when_called_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: other chores that wait while a whole night's tickets are cancelled; a rest that is never cancelled."""
    for name in ("memory", "sqlite", "redis"):
        monkeypatch.setattr(f"wsgi_admission.stores.{name}.AT_ONCE", 4)
    for name in ("pruning", "redis"):
        monkeypatch.setattr(f"wsgi_admission.stores.{name}.BATCH", 2)
    for number in range(7):
        put(store, f"client {number}")
    assert [store.expire("image", before=1, now=1, reason="Too late.") for _ in range(3)] == [4, 3, 0]


# Unknown and gone


READS: dict[str, Callable[[Store, str], object]] = {
    "get": lambda store, ticket_id: store.get(ticket_id),
    "response": lambda store, ticket_id: store.response(ticket_id),
    "ahead": lambda store, ticket_id: store.ahead(ticket_id),
    "cancel": lambda store, ticket_id: store.cancel(ticket_id, now=0),
    "retry": lambda store, ticket_id: store.retry(ticket_id, ticket(), now=0),
}


@pytest.mark.parametrize("call", READS)
def test_unknown_and_gone_are_told_apart(store: Store, call: str) -> None:
    """Catches: pruning that forgets who may be told that a ticket is gone."""
    new = put(store, owner="ann@example.org")
    finish(store, claim(store), now=100)
    store.prune(before=101, now=200)
    with pytest.raises(GoneTicket) as gone:
        READS[call](store, new.id)
    assert (gone.value.ticket_id, gone.value.owner) == (new.id, "ann@example.org")
    with pytest.raises(UnknownTicket):
        READS[call](store, ticket().id)


def test_a_gone_ticket_is_forgotten_in_the_end(store: Store) -> None:
    """Catches: a list of the gone that only grows."""
    new = put(store)
    finish(store, claim(store), now=1)
    store.prune(before=2, now=10)
    store.prune(before=2, now=10 + REMEMBER_GONE)
    with pytest.raises(GoneTicket):
        store.get(new.id)
    store.prune(before=2, now=11 + REMEMBER_GONE)
    with pytest.raises(UnknownTicket):
        store.get(new.id)


def test_as_many_of_the_gone_are_remembered_as_memory_is_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: memory that fills with the ids of what is no longer there; the latest that is forgotten first."""
    for kind in ("memory", "redis"):
        monkeypatch.setattr(f"wsgi_admission.stores.{kind}.GONE_KEPT", 2)
    removed = []
    for now in range(5):
        removed.append(put(store).id)
        finish(store, claim(store), now=now)
        store.prune(before=now + 1, now=now + 1)
    forgotten = 0 if store.health()["kind"] == "sqlite" else 3
    for number, each in enumerate(removed):
        with pytest.raises(UnknownTicket if number < forgotten else GoneTicket):
            store.get(each)


# Positions


def test_ahead_is_the_exact_place_of_all_of_200_shuffled_tickets(store: Store) -> None:
    """Catches: counts that miss a tier, a route, or the client's own."""
    chance = random.Random(7)  # noqa: S311 - a fixed shuffle
    tickets = [
        put(
            store,
            f"client {chance.randrange(25)}",
            route=chance.choice(ROUTES),
            tier=chance.choice(("donor", "registered", "anonymous")),
            cost=chance.choice((1.0, 10.0, 60.0)),
        )
        for _ in range(200)
    ]
    chance.shuffle(tickets)
    for run in [claim(store) for _ in range(20)][::2]:
        store.release(run.id, run.attempt, now=1)
    for cancelled in tickets[:30]:
        if store.get(cancelled.id).state is State.QUEUED:
            store.cancel(cancelled.id, now=2)
    ahead = {one.id: store.ahead(one.id) for one in tickets if store.get(one.id).state is State.QUEUED}
    before = dict.fromkeys(ROUTES, 0)
    for ticket_id in claim_all(store):
        assert ahead.pop(ticket_id) == {route: number for route, number in before.items() if number}
        before[store.get(ticket_id).route] += 1
    assert not ahead


def test_nothing_is_ahead_of_what_does_not_wait(store: Store) -> None:
    """Catches: places for tickets that run or are over."""
    put(store, "ann")
    put(store, "bob")
    first, second = claim(store), claim(store)
    finish(store, second)
    assert store.ahead(first.id) == store.ahead(second.id) == {}


def test_a_tier_that_got_another_rank_keeps_the_places_exact(store: Store) -> None:
    """Catches: tallies by the name of the tier that are read by its rank."""
    old = store.put(replace(ticket("ann", tier="registered"), tier_rank=2), recording(), now=0)
    new = store.put(replace(ticket("bob", tier="registered"), tier_rank=0), recording(), now=0)
    middle = store.put(replace(ticket("cid", tier="donor"), tier_rank=1), recording(), now=0)
    assert [sum(store.ahead(one.id).values()) for one in (new, middle, old)] == [0, 1, 2]
    assert store.counts()["registered", "image"].queued == 2


# Listings


def test_the_line_is_listed_as_it_will_be_claimed(store: Store) -> None:
    """Catches: a list by number, or by route."""
    for number in range(12):
        put(store, f"client {number % 3}", route=ROUTES[number % 2], tier=("donor", "anonymous")[number % 5 % 2])
    listed = store.listing(State.QUEUED)
    assert [one.id for one in store.listing(State.QUEUED, limit=5)] == [one.id for one in listed][:5]
    assert all(store.get(one.id) == one for one in listed)
    assert claim_all(store) == [one.id for one in listed]
    assert store.listing(State.QUEUED) == []


def test_what_runs_is_listed_by_its_start_and_what_is_over_newest_first(store: Store) -> None:
    """Catches: a list by number; states that are mixed; equal times in no order."""
    for client in "abcdef":
        put(store, client)
    runs = [claim(store, now=now) for now in (5, 3, 3, 9, 1, 1)]
    assert store.listing(State.PROCESSING) == [runs[place] for place in (4, 5, 1, 2, 0, 3)]
    ended = [finish(store, run, now=now) for run, now in zip(runs[:4], (20, 30, 30, 10), strict=True)]
    failed = store.finish(runs[4].id, 1, State.FAILED, None, now=99)
    assert store.listing(State.COMPLETED) == [ended[place] for place in (2, 1, 0, 3)]
    assert store.listing(State.COMPLETED, limit=2) == [ended[2], ended[1]]
    assert store.listing(State.FAILED) == [failed]
    assert store.listing(State.PROCESSING) == [runs[5]]
    assert store.listing(State.CANCELLED) == []


def test_a_listing_may_be_of_one_client(store: Store) -> None:
    """Catches: the tickets of others in the list of one; a limit that counts them."""
    put(store, "ann")
    mine = [put(store, "bob", tier=tier) for tier in ("anonymous", "donor")]
    put(store, "bobby")
    assert store.listing(State.QUEUED, client="bob") == mine[::-1]
    assert store.listing(State.QUEUED, client="bob", limit=1) == mine[1:]
    runs = [claim(store) for _ in range(4)]
    assert {one.id for one in store.listing(State.PROCESSING, client="bob")} == {one.id for one in mine}
    ended = [finish(store, run, now=now) for now, run in enumerate(runs)]
    assert store.listing(State.COMPLETED, client="bob") == [one for one in ended[::-1] if one.client == "bob"]
    assert len(store.listing(State.COMPLETED, client="bob", limit=2)) == 2


# Counting


def test_the_tally_tells_what_became_of_the_tickets(store: Store, clock: Clock) -> None:
    """Catches: a step that is counted twice, or not at all."""
    clients = ("done", "fails", "dies", "waits", "leaves", "runs")
    for number, client in enumerate(clients):
        put(store, client, created_at=float(number), crash_retries=0)
    runs = {run.client: run for run in (claim(store, now=10, lease=99) for _ in range(3))}
    finish(store, runs["done"], now=14)
    store.finish(runs["fails"].id, 1, State.FAILED, None, now=11)
    clock.go_on(99)
    store.requeue_expired(now=200)
    store.release((run := claim(store, now=201)).id, run.attempt, now=202)
    again = claim(store, now=203)
    assert again.client == "waits"
    store.release(again.id, again.attempt, now=204)
    extra = put(store, "extra")
    store.cancel(extra.id, now=205)
    assert store.counts() == {
        ("donor", "image"): Tally(
            queued=3,
            processing=0,
            accepted=7,
            started=4,
            completed=1,
            failed=2,
            cancelled=1,
            crashed=1,
            ran=2,
            wait_seconds=10 + 9 + 8 + (201 - 3),
            run_seconds=4 + 1,
        )
    }


def test_counts_are_kept_when_tickets_are_pruned(store: Store) -> None:
    """Catches: totals that are counts of rows."""
    put(store)
    finish(store, claim(store))
    before = store.counts()
    assert before["donor", "image"].completed == 1
    store.prune(before=9, now=9)
    assert store.counts() == before


def test_counts_cannot_be_changed_by_their_reader(store: Store) -> None:
    """Catches: a reader that writes into the mapping that the next one gets."""
    put(store)
    with pytest.raises(TypeError):
        store.counts()["donor", "image"] = Tally()  # type: ignore[index]  # that is the point


def test_requests_that_ran_at_once_are_counted_apart(store: Store) -> None:
    """Catches: requests without a ticket that count as tickets, or whose run times are lost."""
    store.observe([], now=0)
    store.observe(
        [Passed("donor", "image", 2.0), Passed("donor", "image", 3.0, shadowed=True), Passed("anonymous", "text", 1.0)],
        now=0,
    )
    assert store.counts() == {
        ("donor", "image"): Tally(passed=2, shadowed=1),
        ("anonymous", "text"): Tally(passed=1),
    }
    statistics = store.statistics(now=0)
    assert statistics.run_times == {"image": (2.0, 3.0), "text": (1.0,)}
    assert statistics.completions == 0
    assert store.minutes(since=0) == []


def test_the_last_run_times_are_remembered_oldest_first(store: Store) -> None:
    """Catches: run times without a limit, in the wrong order, or of failed runs."""
    for seconds in range(1, RUN_TIMES + 4):
        put(store)
        finish(store, claim(store, now=100), now=100.0 + seconds)
    put(store)
    run = claim(store)
    store.finish(run.id, 1, State.FAILED, None, now=99)
    expected = [float(seconds) for seconds in range(4, RUN_TIMES + 4)]
    assert store.statistics(now=0).run_times == {"image": tuple(expected)}
    store.observe([Passed("donor", "image", float(-number)) for number in range(RUN_TIMES + 1)], now=0)
    assert store.statistics(now=0).run_times["image"] == tuple(float(-number) for number in range(1, RUN_TIMES + 1))


def test_what_runs_is_told_with_its_start(store: Store) -> None:
    """Catches: tickets that are over, or wait again, among those that run."""
    for client, route in (("ann", "image"), ("bob", "video"), ("cid", "text"), ("dan", "text")):
        put(store, client, route=route)
    runs = [claim(store, now=now) for now in (5.0, 6.0, 7.0)]
    finish(store, runs[1])
    assert store.statistics(now=8).running == (("image", 5.0), ("text", 7.0))
    store.release(runs[0].id, 1, now=9)
    assert store.statistics(now=9).running == (("text", 7.0),)


def test_workers_are_alive_as_long_as_they_report(store: Store) -> None:
    """Catches: workers that live for ever, or that die while they report."""
    one, two = Worker("w1", "host", 10, 3, 5, born=1234567.89), Worker("w2", "host", 11, 2, 5)
    store.report(two, now=0)
    store.report(one, now=0)
    assert store.statistics(now=WORKER_ALIVE).workers == (one, two)
    store.report(replace(one, threads=4), now=10)
    assert store.statistics(now=WORKER_ALIVE + 1).workers == (replace(one, threads=4),)
    assert [worker.reported for worker in store.statistics(now=11).workers] == [10, 0]
    store.report(replace(one, threads=0), now=11)
    store.report(replace(two, id="never there", threads=0), now=11)
    assert store.statistics(now=11).workers == (two,)
    assert store.bury(two.id, now=11) == store.bury("never there", now=11) == 0
    assert store.statistics(now=11).workers == ()


def test_arrivals_and_completions_are_known_by_minute(store: Store) -> None:
    """Catches: minutes of the wrong clock, and cancellations that count as completions."""
    for number, client in enumerate(("ann", "bob", "cid", "dan")):
        put(store, client, created_at=59.0 + number)
    finish(store, claim(store, now=70), now=119.9)
    run = claim(store, now=70)
    store.finish(run.id, 1, State.FAILED, None, now=120)
    store.cancel(claim(store, now=70).id, now=121)
    store.cancel(next(ticket.id for ticket in store.listing(State.QUEUED)), now=180)
    assert store.minutes(since=0) == [
        Minute(0, "donor", "image", 1, 0),
        Minute(1, "donor", "image", 3, 1),
        Minute(2, "donor", "image", 0, 1, failures=1),
        Minute(3, "donor", "image", 0, 0, cancellations=1),
    ]
    assert store.minutes(since=119) == store.minutes(since=0)[1:]
    assert store.statistics(now=60.0 * RATE_MINUTES + 59).completions == 2
    assert store.statistics(now=60.0 * RATE_MINUTES + 60).completions == 1
    assert store.statistics(now=60.0 * RATE_MINUTES + 120).completions == 0


# Pruning


def test_only_final_tickets_past_retention_are_pruned(store: Store) -> None:
    """Catches: pruning by age alone, or one second early."""
    waiting, running = put(store, "waits"), put(store, "runs", tier="donor")
    old, fresh = put(store, "old", tier="donor"), put(store, "fresh", tier="donor")
    runs = {run.id: run for run in (claim(store) for _ in range(4))}
    store.release(waiting.id, 1, now=1)
    finish(store, runs[old.id], now=9.9)
    finish(store, runs[fresh.id], now=10)
    assert store.prune(before=10, now=1000) == 1
    assert store.prune(before=10, now=1000) == 0
    assert [store.get(one.id).state for one in (waiting, running, fresh)] == [
        State.QUEUED,
        State.PROCESSING,
        State.COMPLETED,
    ]
    with pytest.raises(GoneTicket):
        store.get(old.id)
    assert read(store.response(fresh.id)) is not None


def test_many_tickets_are_pruned_in_one_call(store: Store) -> None:
    """Catches: a prune that stops after its first batch."""
    for number in range(450):
        store.cancel(put(store, f"client {number}").id, now=1)
    assert store.prune(before=2, now=2) == 450


def test_old_minutes_are_pruned_and_dead_workers_forgotten(store: Store) -> None:
    """Catches: tables that only grow."""
    put(store, created_at=0.0)
    put(store, created_at=60.0)
    store.report(Worker("w", "host", 1, 1, 1), now=0)
    store.prune(before=0, now=60.0 * MINUTES_KEPT)
    assert [minute.minute for minute in store.minutes(since=0)] == [0, 1]
    store.prune(before=0, now=60.0 * (MINUTES_KEPT + 1))
    assert [minute.minute for minute in store.minutes(since=0)] == [1]
    assert store.counts()["donor", "image"].accepted == 2
    assert store.statistics(now=0).workers == ()


def test_the_finish_of_a_client_is_pruned_only_when_it_has_no_effect(store: Store) -> None:
    """Catches: pruning that lets a client with tickets in the line start afresh."""
    put(store, "heavy", cost=100)
    put(store, "light", cost=1)
    put(store, "light", cost=1)
    put(store, "other tier", tier="registered", cost=1)
    for _ in range(3):
        claim(store)
    store.prune(before=0, now=0)
    assert put(store, "heavy").start == 100.0
    assert put(store, "light").start == 2.0
    assert put(store, "other tier", tier="registered").start == 1.0


# Noticing changes


def requeue_all(store: Store, clock: Clock) -> None:
    """Let every lease run out."""
    clock.go_on(1e6)
    assert store.requeue_expired(now=1e6)


CHANGES: dict[str, Callable[[Store, Clock], object]] = {
    "put": lambda store, _: put(store),
    "claim": lambda store, _: claim(store),
    "renew": lambda store, _: store.renew([("running", 1)], lease=60),
    "progress": lambda store, _: store.progress("running", 1, 0.5, "half"),
    "finish": lambda store, _: store.finish("running", 1, State.COMPLETED, recording(), now=1),
    "release": lambda store, _: store.release("running", 1, now=1),
    "requeue_expired": requeue_all,
    "bury": lambda store, _: store.bury("worker", now=1),
    "expire": lambda store, _: store.expire("image", before=1, now=1, reason="Too late."),
    "cancel": lambda store, _: store.cancel("running", now=1),
    "observe": lambda store, _: store.observe([Passed("donor", "image", 1.0)], now=1),
    "report": lambda store, _: store.report(Worker("w", "host", 1, 1, 1), now=1),
    "pause": lambda store, _: store.pause(paused=True),
    "prune": lambda store, _: store.prune(before=1e6, now=1e6),
}


@pytest.mark.parametrize("step", CHANGES)
def test_every_change_is_noticed(store: Store, clock: Clock, step: str) -> None:
    """Catches: a step after which waiting readers are not woken."""
    store.put(ticket_with_id("running"), recording(), now=0)
    store.put(ticket("bob"), recording(), now=0)
    store.cancel(put(store, "cid").id, now=0)
    claim(store)
    before = store.changed()
    assert store.changed() == before
    CHANGES[step](store, clock)
    after = store.changed()
    assert after != before
    store.get("running")
    store.counts()
    assert store.changed() == after


# The whole


def test_lines_of_different_names_share_nothing(open_line: OpenLine, clock: Clock) -> None:
    """Catches: a step that forgets the name of the line."""
    ours, theirs = open_line("ours"), open_line("theirs")
    mine = put(ours, owner="me")
    run = claim(ours, lease=1)
    ours.observe([Passed("donor", "image", 1.0)], now=0)
    ours.report(Worker("w", "host", 1, 1, 1), now=0)
    assert theirs.claim("worker", now=0, lease=30, routes=ROUTES) is None
    assert theirs.renew([(run.id, 1)], lease=30) == set()
    clock.go_on(1)
    assert theirs.requeue_expired(now=1e6) == 0
    waiting = put(ours, "waits")
    assert theirs.expire("image", before=1e9, now=1, reason="") == 0
    assert ours.get(waiting.id) == waiting
    assert theirs.bury("worker", now=0) == theirs.bury("w", now=0) == 0
    assert ours.statistics(now=0).workers
    assert theirs.counts() == {}
    assert [theirs.listing(state) for state in State] == [[]] * len(State)
    statistics = theirs.statistics(now=0)
    assert (statistics.running, statistics.run_times, statistics.workers) == ((), {}, ())
    assert theirs.minutes(since=0) == []
    for call in READS.values():
        with pytest.raises(UnknownTicket):
            call(theirs, mine.id)
    for late in LATE.values():
        with pytest.raises(LeaseLost):
            late(theirs, run)
    with pytest.raises(UnknownTicket):
        theirs.request(mine.id)
    assert put(theirs, "ann").start == 0.0
    finish(ours, run)
    assert theirs.prune(before=1e6, now=1e6) == 0
    assert read(ours.response(mine.id)) is not None
    assert ours.prune(before=1e6, now=1e6) == 1
    with pytest.raises(UnknownTicket):
        theirs.get(mine.id)


def test_health_tells_kind_and_version(store: Store) -> None:
    """Catches: a health check without what an operator asks first."""
    health = store.health()
    assert health["kind"]
    assert health["version"]
    assert all(isinstance(value, str) for value in health.values())


def test_upkeep_changes_nothing_that_can_be_seen(store: Store) -> None:
    """Catches: upkeep that fails on a new store, or touches tickets."""
    new = put(store)
    for now in (0.0, 1.0, 1000.0):
        store.maintain(now=now)
    assert store.get(new.id) == new
    assert claim(store).id == new.id


def test_threads_never_claim_the_same_ticket(store: Store) -> None:
    """Catches: a claim that looks and takes without a lock between (the switch interval makes them meet)."""
    for number in range(200):
        put(store, f"client {number}")
    claimed: list[str] = []

    def work() -> None:
        while (run := store.claim("worker", now=0, lease=1e9, routes=ROUTES)) is not None:
            claimed.append(run.id)
            store.finish(run.id, run.attempt, State.COMPLETED, recording(), now=1)

    in_parallel(work)
    assert len(claimed) == len(set(claimed)) == 200
    assert store.counts()["donor", "image"] == Tally(accepted=200, started=200, completed=200, ran=200, run_seconds=200)


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_steps_agrees_with_the_model(store: Store, clock: Clock, seed: int) -> None:
    """Catches: what no example above thinks of; the seed and the step are in the failure."""
    Walk(store, clock, seed).run(250)


# Opening by URL


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory:",
        "memory://x",
        "sqlite://",
        "sqlite:///",
        "sqlite://x",
        "sqlite:///x?mode=ro",
        "sqlite:///x#f",
        "mysql://x",
    ],
)
def test_a_url_of_no_store_is_refused(url: str) -> None:
    """Catches: a misspelt URL that opens something."""
    with pytest.raises(ConfigError, match="Expected: memory://"):
        open_store(url)


def test_urls_open_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: relative and absolute paths that are mixed up, and paths that follow a change of directory."""
    monkeypatch.chdir(tmp_path)
    assert open_store("memory://").health()["kind"] == "memory"
    for url, path in (("sqlite:///var/a.db", tmp_path / "var/a.db"), (f"sqlite:///{tmp_path}/b.db", tmp_path / "b.db")):
        store = open_store(url, name="x", durability="normal")
        monkeypatch.chdir("/")
        put(store)
        assert path.is_file()
        store.close()
        monkeypatch.chdir(tmp_path)


def test_a_body_of_another_kind_of_file_is_taken(store: Store, tmp_path: Path) -> None:
    """Catches: a store that works with in-memory bodies only."""
    (tmp_path / "body").write_bytes(b"from a file")
    with (tmp_path / "body").open("rb") as body:
        new = store.put(ticket(), replace(recording(), body=body, length=11), now=0)
    assert read(store.request(new.id)) == ('{"method": "POST"}', b"from a file", 11)


def test_who_came_yesterday_to_an_empty_line_stands_before_who_comes_after_him(store: Store) -> None:
    """Catches: rows of clients kept for ever; a regular who waits behind everybody new."""
    store.put(ticket("regular"), recording(), now=0)
    claimed = store.claim("w", now=0, lease=30, routes=set(ROUTES))
    assert claimed is not None
    store.finish(claimed.id, claimed.attempt, State.COMPLETED, None, now=1)
    store.prune(before=0, now=86400)
    mine = store.put(ticket("regular"), recording(), now=86400)
    for number in range(5):
        store.put(ticket(f"new{number}"), recording(), now=86401)
    assert store.ahead(mine.id) == {}


def test_a_clock_set_back_makes_no_negative_times(store: Store) -> None:
    """Catches: a run time below 0, which would become the cost of the next ticket."""
    put = store.put(ticket(created_at=10_000.0), recording(), now=10_000)
    claimed = store.claim("w", now=9_000, lease=30, routes=set(ROUTES))
    assert claimed is not None
    store.finish(claimed.id, claimed.attempt, State.COMPLETED, None, now=5_000)
    assert store.statistics(now=5_000).run_times[put.route] == (0.0,)
    tally = store.counts()[put.tier, put.route]
    assert (tally.wait_seconds, tally.run_seconds) == (0.0, 0.0)
