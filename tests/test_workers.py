"""The pool, over a memory store."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import until
from tests.wsgi import environ, record
from wsgi_admission.errors import DamagedRecording, LeaseLost, StoreUnavailable, UnknownTicket
from wsgi_admission.replay import Recording
from wsgi_admission.slots import TURN_PATIENCE, LocalSlots, Slot
from wsgi_admission.stores import Store
from wsgi_admission.stores.memory import MemoryStore
from wsgi_admission.stores.records import Worker
from wsgi_admission.stores.sqlite import SQLiteStore
from wsgi_admission.ticket import State, Ticket
from wsgi_admission.workers import GIVE_UP, INTERRUPTED, UNREADABLE, Pool

App = Callable[..., Iterable[bytes]]


class Floor:
    """A store with a pool over it; the app's runs wait for `go`."""

    def __init__(
        self,
        *,
        threads: int = 2,
        slots: int = 5,
        limits: dict[str, int] | None = None,
        max_runtime: dict[str, float] | None = None,
        app: App | None = None,
        store: Store | None = None,
    ) -> None:
        self.seconds = 100.0
        self.store: Store = store or MemoryStore(clock=lambda: self.seconds)
        self.slots = LocalSlots(slots, limits or {})
        self.go = threading.Event()
        self.short = False
        self.started: list[str] = []
        self.together = self.most = 0
        self._lock = threading.Lock()
        worker = Worker("w", "host", 1, threads, slots)
        self.pool = Pool(
            app or self.app, self.store, self.slots, worker,
            memory_short=lambda: self.short, max_runtime=max_runtime, monotonic=lambda: self.seconds,
        )  # fmt: skip

    def app(self, env: dict[str, Any], start_response: Any) -> list[bytes]:
        """Note the run, wait, answer."""
        with self._lock:
            self.started.append(env["QUERY_STRING"])
            self.together += 1
            self.most = max(self.most, self.together)
        assert self.go.wait(30)
        with self._lock:
            self.together -= 1
        start_response("200 OK", [])
        return [env["QUERY_STRING"].encode()]

    def put(self, query: str = "", route: str = "image", crash_retries: int = 1, body: bytes = b"body") -> Ticket:
        """Queue a request."""
        ticket = Ticket(
            id=str(uuid.uuid4()), route=route, tier="t", tier_rank=0, client="c", owner="", cost=1.0,
            crash_retries=crash_retries, created_at=0.0,
        )  # fmt: skip
        request = record(environ(f"/image?{query}", "POST", body), max_body=1 << 20)
        with request.body:
            return self.store.put(ticket, request, now=0.0)

    def state(self, ticket: Ticket) -> State:
        """Return the ticket's state."""
        return self.store.get(ticket.id).state


@pytest.fixture
def floor() -> Iterator[Floor]:
    """Two threads and five slots."""
    made = Floor()
    yield made
    made.go.set()
    made.pool.drain(30)


def test_tickets_run_and_their_answers_are_kept(floor: Floor) -> None:
    """Catches: a ticket that is claimed and forgotten; a slot that is not given back."""
    floor.go.set()
    tickets = [floor.put(str(number)) for number in range(20)]
    floor.pool.start()
    until(lambda: all(floor.state(ticket).final for ticket in tickets))
    for number, ticket in enumerate(tickets):
        response = floor.store.response(ticket.id)
        assert response is not None
        with response.body:
            assert response.body.read() == str(number).encode()
    until(lambda: floor.slots.in_use() == 0, "all slots given back")


def test_no_more_run_than_there_are_slots() -> None:
    """Catches: a claim without a slot."""
    floor = Floor(threads=4, slots=2)
    tickets = [floor.put() for _ in range(8)]
    floor.pool.start()
    until(lambda: floor.together == 2)
    floor.go.set()
    until(lambda: all(floor.state(ticket).final for ticket in tickets))
    floor.pool.drain(30)
    assert floor.most == 2


def test_a_paused_line_waits_and_takes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a paused line that runs, or whose idle threads take slots from others and lock the store to find out."""
    floor = Floor()
    floor.go.set()
    ticket = floor.put()
    floor.store.pause(paused=True)
    asked: list[object] = []
    with monkeypatch.context() as patched:
        patched.setattr(floor.slots, "take", asked.append)
        assert floor.pool._run_next() is False
    assert not asked
    floor.store.pause(paused=False)
    assert floor.pool._run_next() is True
    assert floor.state(ticket) is State.COMPLETED


def test_no_route_looks_full_while_a_ticket_of_another_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: slots of limited routes held during a claim: others then claim what stands behind those routes."""
    floor = Floor(threads=1, slots=4, limits={"video": 1})
    floor.go.set()
    image, video = floor.put("image", "image"), floor.put("video", "video")
    claim, full = floor.store.claim, []

    def watched(*args: Any, **keys: Any) -> Ticket | None:
        ticket = claim(*args, **keys)
        full.append(floor.slots.full("video"))
        return ticket

    monkeypatch.setattr(floor.store, "claim", watched)
    floor.pool.start()
    until(lambda: floor.state(image).final and floor.state(video).final)
    floor.pool.drain(30)
    assert not any(full)


@pytest.mark.parametrize("fails", [False, True])
def test_a_ticket_whose_route_was_filled_meanwhile_returns_to_its_place(
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Catches: a run beyond the limit of a route, or a ticket that waits for its lease to run out."""
    floor = Floor(threads=1, slots=4, limits={"video": 1})
    video = floor.put("video", "video")
    claim = floor.store.claim
    others: list[Slot | None] = []

    def late(*args: Any, **keys: Any) -> Ticket | None:
        ticket = claim(*args, **keys)
        if not others:
            others.append(floor.slots.take("video"))
            if fails:
                monkeypatch.setattr(floor.slots, "allow", broken)
        return ticket

    def broken(*_args: Any) -> bool:
        monkeypatch.undo()
        raise StoreUnavailable("no locks")

    monkeypatch.setattr(floor.store, "claim", late)
    floor.pool.start()
    until(lambda: others and floor.state(video) is State.QUEUED)
    assert floor.started == []
    assert floor.store.get(video.id).crashes == 0
    assert others[0] is not None
    others[0].release()
    floor.go.set()
    until(lambda: floor.state(video) is State.COMPLETED)
    floor.pool.drain(30)


def test_waiting_for_a_full_route_takes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a host that looks fuller than it is whenever an idle thread looks at the line."""
    floor = Floor(threads=2, slots=4, limits={"video": 1})
    held = floor.slots.take("video")
    assert held is not None
    floor.put("video", "video")
    looks: list[float] = []
    take, full = floor.slots.take, floor.slots.full

    def noted(route: str) -> bool:
        looks.append(1)
        return full(route)

    def refused(route: str | None) -> Slot | None:
        looks.append(1000)
        return take(route)

    monkeypatch.setattr(floor.slots, "full", noted)
    monkeypatch.setattr(floor.slots, "take", refused)
    floor.pool.start()
    until(lambda: len(looks) > 10)
    assert max(looks) == 1
    held.release()
    floor.go.set()
    floor.pool.drain(30)


def test_a_route_at_its_limit_does_not_hold_up_the_others() -> None:
    """Catches: a line that stands still behind a full route; a route limit exceeded."""
    floor = Floor(threads=4, slots=4, limits={"video": 1})
    videos = [floor.put("video", "video") for _ in range(3)]
    image = floor.put("image", "image")
    floor.pool.start()
    until(lambda: len(floor.started) == 2)
    assert sorted(floor.started) == ["image", "video"]
    floor.go.set()
    until(lambda: all(floor.state(ticket).final for ticket in [*videos, image]))
    floor.pool.drain(30)


def test_a_ticket_of_a_route_that_is_configured_no_more_still_runs(floor: Floor) -> None:
    """Catches: a renamed route whose tickets wait for ever."""
    floor.go.set()
    ticket = floor.put(route="of old")
    floor.pool.start()
    until(lambda: floor.state(ticket) is State.COMPLETED)


def test_replays_are_held_back_and_go_on(floor: Floor) -> None:
    """Catches: memory_short ignored, or asked once only."""
    floor.short = True
    floor.go.set()
    direct = floor.slots.take("image")
    ticket = floor.put()
    floor.pool.start()
    floor.pool.wake()
    assert floor.state(ticket) is State.QUEUED
    floor.short = False
    until(lambda: floor.state(ticket) is State.COMPLETED)
    assert floor.started == [""]
    assert direct is not None


def test_of_two_threads_that_look_at_once_one_runs_while_memory_is_short(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a look at the slots and a taking that are two steps, so that both find that nothing runs."""
    both = threading.Barrier(2, timeout=TURN_PATIENCE / 2)
    in_use = floor.slots.in_use
    looks: list[int] = []

    def look() -> int:
        found = in_use()
        with suppress(threading.BrokenBarrierError):
            both.wait()
        looks.append(found)
        return found

    monkeypatch.setattr(floor.slots, "in_use", look)
    floor.short = True
    tickets = [floor.put(str(number)) for number in range(2)]
    floor.pool.start()
    until(lambda: len(floor.started) > 1 or (floor.started and len(looks) > 4))
    assert (floor.started, in_use()) == (["0"], 1)
    floor.go.set()
    until(lambda: all(floor.state(ticket) is State.COMPLETED for ticket in tickets))
    assert floor.most == 1


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, RuntimeError])
def test_an_app_that_raises_fails_its_ticket_and_no_thread(error: type[BaseException]) -> None:
    """Catches: a pool that loses a thread with each such app."""

    def app(_environ: Any, _start_response: Any) -> list[bytes]:
        raise error("secret")

    floor = Floor(threads=1, app=app)
    tickets = [floor.put() for _ in range(3)]
    floor.pool.start()
    until(lambda: all(floor.state(ticket) is State.FAILED for ticket in tickets))
    floor.pool.drain(30)
    assert "secret" not in floor.store.get(tickets[0].id).error


def test_draining_hands_back_what_runs_and_a_late_answer_does_not_count(floor: Floor) -> None:
    """Catches: a ticket lost or doubly finished when its worker leaves."""
    running, waiting = floor.put("running"), floor.put("waiting")
    floor.pool.start()
    until(lambda: len(floor.started) == 2)
    assert floor.pool.drain(0) == 2
    again = floor.store.get(running.id)
    assert (again.state, again.attempt, again.crashes) == (State.QUEUED, 1, 0)
    assert floor.store.ahead(waiting.id) == {"image": 1}
    floor.go.set()
    until(lambda: floor.slots.in_use() == 0, "the end of the runs")
    assert floor.state(running) is State.QUEUED


def test_what_must_not_run_twice_fails_when_its_worker_leaves(floor: Floor) -> None:
    """Catches: a deploy that repeats a request although the site's owner said never."""
    ticket = floor.put(crash_retries=0)
    floor.pool.start()
    until(lambda: floor.started)
    floor.pool.drain(0)
    failed = floor.store.get(ticket.id)
    assert (failed.state, failed.error, failed.retryable) == (State.FAILED, INTERRUPTED, True)


def test_a_claim_under_way_when_the_stop_comes_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a ticket leased in the moment of leaving, that nobody runs until its lease has run out."""
    floor = Floor(threads=1)
    claim, claiming, go_on = floor.store.claim, threading.Event(), threading.Event()

    def slow(*args: Any, **keys: Any) -> Ticket | None:
        claiming.set()
        assert go_on.wait(30)
        return claim(*args, **keys)

    monkeypatch.setattr(floor.store, "claim", slow)
    ticket = floor.put()
    floor.pool.start()
    assert claiming.wait(30)
    leaving = threading.Thread(target=lambda: floor.pool.drain(0))
    leaving.start()
    until(floor.pool._stopping.is_set)
    go_on.set()
    leaving.join(30)
    assert (floor.state(ticket), floor.store.get(ticket.id).attempt) == (State.QUEUED, 1)
    assert not floor.started


def in_replay_thread() -> bool:
    """Return whether it is a thread of a pool that asks."""
    return threading.current_thread().name.startswith("wsgi-admission-replay")


@pytest.mark.parametrize("step", ["request", "release"])
def test_what_the_app_was_not_called_for_is_handed_back_although_it_must_not_run_twice(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Catches: a request that fails at a deploy, or runs after it was handed back, because it had just been claimed."""
    did, reached, go_on = getattr(floor.store, step), threading.Event(), threading.Event()
    claim = floor.store.claim

    def slow(*args: Any, **keys: Any) -> Any:
        if in_replay_thread():
            reached.set()
            assert go_on.wait(30)
        return did(*args, **keys)

    def claimed_in_the_moment_of_the_stop(*args: Any, **keys: Any) -> Ticket | None:
        floor.pool.stop()
        return claim(*args, **keys)

    monkeypatch.setattr("wsgi_admission.workers.LAST_WORDS", 0.01)
    monkeypatch.setattr(floor.store, step, slow)
    if step == "release":
        monkeypatch.setattr(floor.store, "claim", claimed_in_the_moment_of_the_stop)
    ticket = floor.put(crash_retries=0)
    floor.pool.start()
    assert reached.wait(30)
    assert floor.pool.drain(0) == 1
    assert (floor.state(ticket), floor.store.get(ticket.id).crashes) == (State.QUEUED, 0)
    go_on.set()
    until(lambda: not floor.pool.runs.held())
    assert floor.started == []
    assert floor.state(ticket) is State.QUEUED


@pytest.mark.parametrize("crash_retries", [0, 1])
def test_an_answer_that_waits_for_the_store_is_offered_once_more_when_its_worker_leaves(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, crash_retries: int
) -> None:
    """Catches: a finished run thrown away at a deploy, and run again or failed, though the store is back."""
    finish, calls = floor.store.finish, []

    def failing(*args: Any, **keys: Any) -> Ticket:
        calls.append(1)
        if len(calls) == 1:
            raise StoreUnavailable("The disk is full.")
        return finish(*args, **keys)

    monkeypatch.setattr(floor.store, "finish", failing)
    monkeypatch.setattr("wsgi_admission.workers.delay", lambda *_args, **_keys: 3600.0)
    floor.go.set()
    ticket = floor.put(crash_retries=crash_retries)
    floor.pool.start()
    until(lambda: calls)
    assert floor.pool.drain(0) == 0
    assert (floor.state(ticket), len(floor.started)) == (State.COMPLETED, 1)


def test_what_was_handed_back_is_not_handed_back_again(floor: Floor) -> None:
    """Catches: a second goodbye of a process, at its exit, that counts as late what it said at the first."""
    ticket = floor.put(crash_retries=0)
    floor.pool.start()
    until(lambda: floor.started)
    assert [floor.pool.drain(0), floor.pool.drain(0)] == [1, 0]
    assert floor.state(ticket) is State.FAILED
    assert floor.store.counts()["t", "image"].late == 0


def test_draining_waits_for_what_ends_in_time(floor: Floor) -> None:
    """Catches: a drain that does not wait."""
    ticket = floor.put()
    floor.pool.start()
    until(lambda: floor.started)
    ended = threading.Thread(target=lambda: floor.pool.drain(30))
    ended.start()
    floor.go.set()
    ended.join(30)
    assert floor.state(ticket) is State.COMPLETED


def test_an_answer_is_kept_when_the_store_comes_back(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a finished run that is lost, or kept half, because the store failed for a moment."""
    finish, calls = floor.store.finish, []

    def failing(*args: Any, **keys: Any) -> Ticket:
        calls.append(1)
        if len(calls) < 3:
            args[3].body.read()  # as a store that fails in the middle of copying
            raise StoreUnavailable("The disk is full.")
        return finish(*args, **keys)

    monkeypatch.setattr(floor.store, "finish", failing)
    floor.go.set()
    ticket = floor.put("whole")
    floor.pool.start()
    until(lambda: floor.state(ticket) is State.COMPLETED)
    response = floor.store.response(ticket.id)
    assert response is not None
    assert response.body.read() == b"whole"
    assert len(calls) == 3


def test_a_store_that_fails_on_claim_is_asked_again(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a thread or a slot lost with a store that does not answer."""
    claim, failures = floor.store.claim, [StoreUnavailable("busy"), LeaseLost("x", 1), RuntimeError("bug")]

    def failing(*args: Any, **keys: Any) -> Ticket | None:
        if failures:
            raise failures.pop()
        return claim(*args, **keys)

    monkeypatch.setattr(floor.store, "claim", failing)
    floor.go.set()
    ticket = floor.put()
    floor.pool.start()
    until(lambda: floor.state(ticket) is State.COMPLETED)
    until(lambda: floor.slots.in_use() == 0, "all slots given back")


@pytest.mark.parametrize("error", [lambda name: DamagedRecording(name, "request"), UnknownTicket, FileNotFoundError])
def test_a_request_that_cannot_be_read_fails_its_ticket(
    floor: Floor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Callable[[str], Exception],
) -> None:
    """Catches: a lost body file that stops the line; a log with the whole id, by which anybody reads the answer."""

    def lost(ticket_id: str) -> Recording:
        raise error(ticket_id)

    monkeypatch.setattr(floor.store, "request", lost)
    ticket = floor.put()
    floor.pool.start()
    until(lambda: floor.state(ticket) is State.FAILED)
    assert floor.store.get(ticket.id).error == "The recorded request could not be read."
    (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert told.getMessage().startswith(f"ticket.unreadable ticket={ticket.id[:8]} ")
    assert ticket.id not in caplog.text


def test_leases_of_what_runs_are_renewed_and_lost_ones_told(floor: Floor, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a run longer than a lease that is given to somebody else."""
    floor.put()
    floor.pool.start()
    until(lambda: floor.started)
    floor.seconds = 120.0
    floor.pool.renew()
    floor.seconds = 149.0
    assert floor.store.requeue_expired(now=1e9) == 0
    floor.seconds = 150.0
    assert floor.store.requeue_expired(now=0.0) == 1
    with caplog.at_level(logging.WARNING):
        floor.pool.renew()
        assert "ticket.lost" not in caplog.text  # it may have ended in this moment
        floor.pool.renew()
        floor.pool.renew()
    assert caplog.text.count("ticket.lost ticket=") == 1


def test_every_step_of_a_ticket_is_told_once(floor: Floor, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a ticket whose end cannot be found in the log; an id or a query that can."""
    caplog.set_level(logging.INFO)
    done, left, ended = floor.put("secret=1"), floor.put("secret=2"), floor.put("secret=3", crash_retries=0)
    floor.pool.start()
    until(lambda: len(floor.started) == 2)
    floor.store.cancel(left.id, now=101.0)
    floor.go.set()
    until(lambda: floor.state(ended).final)
    floor.pool.drain(30)
    told = [message.replace("attempt=1", "").split() for message in caplog.messages]
    assert {one.id[:8]: [words[0] for words in told if words[1] == f"ticket={one.id[:8]}"] for one in (done, left)} == {
        done.id[:8]: ["ticket.started", "ticket.completed"],
        left.id[:8]: ["ticket.started", "ticket.cancelled"],
    }
    assert next(words[1:] for words in told if words[0] == "ticket.completed")[1:] == ["route=image", "status=200"]
    assert "secret" not in caplog.text
    assert done.id not in caplog.text


@pytest.mark.parametrize(
    ("crash_retries", "expected"),
    [
        (1, "ticket.requeued {} route=image attempt=1 reason=leaving"),
        (0, "ticket.failed {} route=image attempt=1 error="),
    ],
)
def test_what_is_handed_back_is_told(
    floor: Floor, caplog: pytest.LogCaptureFixture, crash_retries: int, expected: str
) -> None:
    """Catches: a deploy after which nobody can tell what became of a ticket."""
    caplog.set_level(logging.INFO)
    ticket = floor.put(crash_retries=crash_retries)
    floor.pool.start()
    until(lambda: floor.started)
    floor.pool.drain(0)
    assert expected.format(f"ticket={ticket.id[:8]}") in caplog.text
    floor.go.set()


def test_a_store_that_fails_is_told_once_and_once_that_it_is_back(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a log full of the same line for as long as a store is away; an alarm that nothing ends."""
    caplog.set_level(logging.INFO)
    counts, failures = floor.store.counts, [StoreUnavailable("gone")] * 5

    def failing() -> Any:
        if failures:
            raise failures.pop()
        return counts()

    monkeypatch.setattr(floor.store, "counts", failing)
    floor.pool.start()
    until(lambda: "store.back" in caplog.text)
    assert caplog.messages == ["store.failing step=claim error=gone", "store.back step=claim"]


def test_a_request_that_cannot_be_read_just_now_is_no_crash(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a ticket that must not run twice, failed although the app was never called; its return told twice."""
    caplog.set_level(logging.INFO)
    read, failures = floor.store.request, [StoreUnavailable("busy")]

    def failing(ticket_id: str) -> Recording:
        if failures:
            raise failures.pop()
        return read(ticket_id)

    monkeypatch.setattr(floor.store, "request", failing)
    floor.go.set()
    ticket = floor.put(crash_retries=0)
    floor.pool.start()
    until(lambda: floor.state(ticket) is State.COMPLETED)
    assert floor.store.get(ticket.id).crashes == 0
    assert len(floor.started) == 1
    assert caplog.text.count("ticket.requeued ") == 1


class Unreadable:
    """Keeps the request of one ticket from being read; counts the tries, and notes which retry each rest was for."""

    def __init__(self, floor: Floor, ticket: Ticket, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tries = 0
        self.rests: list[int] = []
        self.mended = False
        self._ticket = ticket
        self._read = floor.store.request
        monkeypatch.setattr(floor.store, "request", self._request)
        monkeypatch.setattr("wsgi_admission.workers.delay", self._delay)

    def _request(self, ticket_id: str) -> Recording:
        if ticket_id == self._ticket.id and not self.mended:
            self.tries += 1
            raise StoreUnavailable("an error of the disk")
        return self._read(ticket_id)

    def _delay(self, retry: int, *_args: float, **_keys: float) -> float:
        self.rests.append(retry)
        return 0.001

    def tried(self) -> None:
        """Wait for a few tries more."""
        enough = self.tries + 3
        until(lambda: self.tries >= enough, "more tries")


def test_a_request_that_can_never_be_read_holds_up_nobody_and_fails_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches: a bad block under one request that keeps a slot, a thread and the log busy for ever."""
    floor = Floor(threads=2, slots=1)
    floor.go.set()
    bad, good = floor.put("bad"), floor.put("good")
    unreadable = Unreadable(floor, bad, monkeypatch)
    floor.pool.start()
    until(lambda: floor.state(good) is State.COMPLETED)
    unreadable.tried()
    assert (floor.state(bad), floor.store.get(bad.id).attempt) == (State.PROCESSING, 1)
    assert unreadable.rests == list(range(len(unreadable.rests))), "each is longer than the one before"
    floor.seconds += UNREADABLE
    until(lambda: floor.state(bad).final)
    ended = floor.store.get(bad.id)
    assert (ended.state, ended.error, ended.retryable) == (
        State.FAILED,
        "The recorded request could not be read.",
        True,
    )
    floor.pool.drain(30)
    assert floor.started == ["good"]


def test_a_request_fails_for_no_time_in_which_all_of_the_store_was_away(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: every ticket that was just claimed, failed by a store that is away for a minute."""
    renew, away = floor.store.renew, threading.Event()
    refused: list[float] = []

    def failing(*args: Any, **keys: Any) -> set[tuple[str, int]]:
        if away.is_set():
            refused.append(floor.seconds)
            raise StoreUnavailable("away")
        return renew(*args, **keys)

    monkeypatch.setattr(floor.store, "renew", failing)
    floor.go.set()
    ticket = floor.put()
    unreadable = Unreadable(floor, ticket, monkeypatch)
    floor.pool.start()
    unreadable.tried()
    away.set()
    until(lambda: len(refused) > 1)
    floor.seconds += 100 * UNREADABLE
    away.clear()
    unreadable.tried()
    assert floor.state(ticket) is State.PROCESSING
    unreadable.mended = True
    until(lambda: floor.state(ticket) is State.COMPLETED)


def test_a_body_whose_file_cannot_be_opened_stops_no_line(tmp_path: Path) -> None:
    """Catches: a file of SQLite's that somebody made unreadable, taken for one that will be there in a moment."""
    with closing(SQLiteStore(tmp_path / "admission.db")) as store:
        floor = Floor(threads=1, store=store)
        floor.go.set()
        bad, good = floor.put("bad", body=bytes(300_000)), floor.put("good")
        (file,) = (tmp_path / "admission.db.bodies").iterdir()
        file.unlink()
        file.mkdir()
        floor.pool.start()

        def failed() -> bool:
            floor.seconds += UNREADABLE
            return floor.state(bad) is State.FAILED

        until(failed)
        until(lambda: floor.state(good) is State.COMPLETED)
        floor.pool.drain(30)


def test_what_cannot_be_given_back_stays_leased(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a ticket that nobody renews while the store is away, and that counts as crashed when it is back."""
    release, away = floor.store.release, threading.Event()
    tried: list[str] = []
    away.set()

    def failing(*args: Any, **keys: Any) -> None:
        if away.is_set():
            tried.append("release")
            raise StoreUnavailable("away")
        release(*args, **keys)

    monkeypatch.setattr(floor.store, "release", failing)
    floor.go.set()
    ticket = floor.put(crash_retries=0)
    unreadable = Unreadable(floor, ticket, monkeypatch)
    floor.pool.start()
    unreadable.tried()
    unreadable.mended = True
    until(lambda: len(tried) > 2)
    assert [held[0] for held in floor.pool.runs.held()] == [ticket.id]
    away.clear()
    until(lambda: floor.state(ticket) is State.COMPLETED)
    assert floor.store.get(ticket.id).crashes == 0
    assert len(floor.started) == 1


def test_what_was_not_given_back_is_not_said_to_be(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a log that calls a ticket requeued that is still leased to a process which has left."""
    caplog.set_level(logging.INFO)

    def failing(*_args: Any, **_keys: Any) -> None:
        raise StoreUnavailable("away")

    ticket = floor.put()
    unreadable = Unreadable(floor, ticket, monkeypatch)
    monkeypatch.setattr(floor.store, "release", failing)
    floor.pool.start()
    unreadable.tried()
    floor.pool.drain(0)
    until(lambda: not floor.pool.runs.held())
    assert floor.state(ticket) is State.PROCESSING
    assert "ticket.requeued" not in caplog.text


def failing_finish(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ticket]:
    """Let no answer be kept, and be asked again at once; return what keeps it."""

    def failing(*_args: Any, **_keys: Any) -> Ticket:
        raise StoreUnavailable("The disk is full.")

    finish = floor.store.finish
    monkeypatch.setattr(floor.store, "finish", failing)
    monkeypatch.setattr("wsgi_admission.workers.delay", lambda *_args, **_keys: 0.001)
    return finish


def test_an_answer_that_waits_for_the_store_holds_no_slot_and_its_thread_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches: a store in trouble that takes the slots away from what could run at once; an answer left behind."""
    floor = Floor(threads=1, slots=1, limits={"image": 1})
    finish = failing_finish(floor, monkeypatch)
    floor.go.set()
    ticket = floor.put()
    floor.pool.start()
    until(lambda: floor.started and floor.slots.in_use() == 0)
    slot = floor.slots.take("image")
    assert slot is not None
    assert floor.pool.runs.held() == [(ticket.id, 1)]
    floor.pool.renew()
    over: list[int] = []
    draining = threading.Thread(target=lambda: over.append(floor.pool.drain(30)))
    draining.start()
    draining.join(0.05)
    assert draining.is_alive(), "it waits for the answer"
    assert floor.state(ticket) is State.PROCESSING
    monkeypatch.setattr(floor.store, "finish", finish)
    draining.join(30)
    assert over == [0]
    assert floor.state(ticket) is State.COMPLETED
    slot.release()


def test_an_answer_is_offered_to_the_store_until_this_process_leaves(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: an answer dropped while it could still be kept; a thread that asks a store that was closed."""
    failing_finish(floor, monkeypatch)
    tries: list[int] = []

    def delay(retry: int, *_args: float, **_keys: float) -> float:
        tries.append(retry)
        return 0.0001

    monkeypatch.setattr("wsgi_admission.workers.delay", delay)
    floor.go.set()
    ticket = floor.put()
    floor.pool.start()
    until(lambda: len(tries) > 200)
    assert floor.pool.runs.held() == [(ticket.id, 1)]
    assert floor.pool.drain(0) == 1
    assert floor.state(ticket) is State.QUEUED, "handed back"
    until(lambda: not floor.pool.runs.held())


def test_giving_up_on_an_answer_is_told(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: an answer dropped in silence."""
    failing_finish(floor, monkeypatch)
    floor.go.set()
    floor.put()
    floor.pool.start()
    until(lambda: floor.pool.runs.held() and floor.slots.in_use() == 0)
    floor.seconds += GIVE_UP
    until(lambda: "ticket.unkept ticket=" in caplog.text)
