from __future__ import annotations

import threading

import pytest
from redis.exceptions import ConnectionError as Unconnected
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as TimedOut

from tests.store_model import Clock
from wsgi_admission.errors import StoreUnavailable
from wsgi_admission.stores.breaker import Breaker, Tripped
from wsgi_admission.stores.doubts import IN_DOUBT, Doubts, Repeats


@pytest.fixture
def clock() -> Clock:
    """The time."""
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    """A breaker with a pause of a second."""
    return Breaker((Unconnected, TimedOut, OSError), pause=1.0, clock=clock)


def fail(breaker: Breaker, error: BaseException) -> None:
    """Let a call fail."""
    with pytest.raises(type(error)), breaker:
        raise error


@pytest.mark.parametrize("error", [Unconnected(), TimedOut(), OSError()])
def test_after_a_failure_every_call_fails_at_once_until_the_pause_is_over(
    breaker: Breaker, clock: Clock, error: Exception
) -> None:
    """Catches: requests that wait for a dead server one after the other; a breaker that never lets anybody try."""
    fail(breaker, error)
    for _ in range(3):
        with pytest.raises(Tripped), breaker:
            pass
    clock.go_on(0.99)
    with pytest.raises(Tripped), breaker:
        pass
    clock.go_on(0.01)
    for _ in range(3):
        with breaker:
            pass


def test_an_answer_of_the_server_is_no_failure(breaker: Breaker) -> None:
    """Catches: one wrong command that takes the store away from everybody."""
    fail(breaker, ResponseError())
    with breaker:
        pass


def test_one_call_tries_and_the_others_fail_until_it_has_succeeded(breaker: Breaker, clock: Clock) -> None:
    """Catches: every request of a loaded site waiting for the same dead server again and again."""
    fail(breaker, TimedOut())
    clock.go_on(1)
    refused: list[bool] = []

    def other() -> None:
        try:
            with breaker:
                refused.append(False)
        except Tripped:
            refused.append(True)

    def try_from_another_thread() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with breaker:
        try_from_another_thread()
    try_from_another_thread()
    assert refused == [True, False]


def test_a_try_that_fails_begins_the_pause_anew(breaker: Breaker, clock: Clock) -> None:
    """Catches: a breaker that opens after one pause, whatever came of the try."""
    fail(breaker, TimedOut())
    clock.go_on(1)
    fail(breaker, TimedOut())
    with pytest.raises(Tripped), breaker:
        pass
    clock.go_on(1)
    with breaker:
        pass


def test_a_try_that_is_interrupted_lets_the_next_one_try(breaker: Breaker, clock: Clock) -> None:
    """Catches: a breaker that waits for ever for a call that was interrupted."""
    fail(breaker, TimedOut())
    clock.go_on(1)
    fail(breaker, KeyboardInterrupt())
    with breaker:
        pass


def test_only_what_may_have_been_done_is_in_doubt_and_not_for_ever(clock: Clock) -> None:
    """Catches: a list that grows with every request while the server is away."""
    doubts = Doubts(clock)
    for cause, name in ((Tripped(), "not sent"), (TimedOut(), "sent")):
        with pytest.raises(StoreUnavailable), doubts.about(name):
            raise StoreUnavailable from cause
    clock.go_on(IN_DOUBT + 1)
    assert doubts.names() == ["sent"], "the server has not answered yet"
    doubts.settled(doubts.names(), ())
    clock.go_on(IN_DOUBT - 1)
    doubts.settled(doubts.names(), ())
    assert doubts.names() == ["sent"], "an old command may still come"
    clock.go_on(1)
    assert doubts.names() == []


def test_what_was_done_is_in_doubt_no_longer(clock: Clock) -> None:
    """Catches: a step that is settled again and again."""
    doubts = Doubts(clock)
    for name in ("done", "not done"):
        with pytest.raises(StoreUnavailable), doubts.about(name):
            raise StoreUnavailable
    doubts.settled(doubts.names(), ["done"])
    assert doubts.names() == ["not done"]


def test_only_a_step_without_an_answer_has_the_same_mark_again(clock: Clock) -> None:
    """Catches: two steps that are taken for one, one that is taken for two, a list that grows."""
    repeats = Repeats(clock)
    marks = []

    def said(step: str, *, answered: bool) -> None:
        with repeats.of(step) as mark:
            marks.append(mark)
            if not answered:
                raise StoreUnavailable

    for step in ("finish", "finish", "other"):
        with pytest.raises(StoreUnavailable):
            said(step, answered=False)
    said("finish", answered=True)
    said("finish", answered=True)
    first, again, other, answered, new = marks
    assert first == again == answered
    assert len({first, other, new}) == 3
    clock.go_on(IN_DOUBT)
    with pytest.raises(StoreUnavailable):
        said("finish", answered=False)
    assert len(repeats._marks) == 1, "the other one is forgotten"
