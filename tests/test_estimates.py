from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsgi_admission.policy.estimates import (
    PICK_UP,
    REMEMBERED,
    RunTimes,
    Wait,
    estimate,
    gamma_quantiles,
    human,
    moments,
)

SECONDS = st.floats(0, 1e5)
HISTORIES = st.lists(SECONDS, max_size=80)


def weighted(history: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean and variance of (value, weight), the slow way."""
    total = sum(weight for _, weight in history)
    mean = sum(value * weight for value, weight in history) / total
    return mean, sum(weight * (value - mean) ** 2 for value, weight in history) / total


def test_before_the_first_run_the_expected_time_is_the_mean_and_its_uncertainty_is_owned_up() -> None:
    """Catches: a mean of 0 for no runs, and two equal pseudo runs with the variance 0."""
    times = RunTimes.from_history(30.0, ())
    assert times.mean == 30.0
    assert math.sqrt(times.variance) == pytest.approx(0.7 * 30)
    assert times.second_moment == pytest.approx(30**2 + 21**2)


def test_later_runs_weigh_more_and_the_guess_counts_as_two_before_them() -> None:
    """Catches: weights in the wrong order, a pseudo run too many, a decay other than 0.97."""
    times = RunTimes.from_history(30.0, (10.0, 20.0, 60.0))
    guess = [(30 * 0.3, 0.97**3), (30 * 1.7, 0.97**3)]
    expected = weighted([*guess, (10.0, 0.97**2), (20.0, 0.97), (60.0, 1.0)])
    assert (times.mean, times.variance) == pytest.approx(expected)


@given(st.floats(0.01, 1e4), HISTORIES)
def test_mean_and_variance_are_the_weighted_ones(guess: float, history: list[float]) -> None:
    """Catches: a history longer than what is remembered, or just as long, that shifts the weights."""
    last = history[-REMEMBERED:]
    runs = [(value, 0.97**age) for age, value in enumerate(reversed(last))]
    if len(last) < REMEMBERED:
        runs += [(0.3 * guess, 0.97 ** len(last)), (1.7 * guess, 0.97 ** len(last))]
    times = RunTimes.from_history(guess, history)
    assert (times.mean, times.variance) == pytest.approx(weighted(runs))
    assert times.variance >= 0


def test_a_wrong_guess_is_forgotten_when_all_remembered_runs_are_real() -> None:
    """Catches: a pseudo run of ten minutes that stays in the mean of one-second runs for ever."""
    assert RunTimes.from_history(600.0, [1.0] * REMEMBERED).mean == pytest.approx(1.0)


def test_only_the_last_runs_are_remembered() -> None:
    """Catches: the first 64 run times of a route kept for ever."""
    times = RunTimes.from_history(30.0, [1000.0] * 36 + [1.0] * REMEMBERED)
    assert times.mean == pytest.approx(1.0)
    assert times.residual(0.5) == pytest.approx(0.5)


def test_after_a_change_the_mean_is_half_way_within_23_runs() -> None:
    """Catches: a decay that forgets too slowly or too fast."""
    means = [RunTimes.from_history(30, [30.0] * (REMEMBERED - new) + [90.0] * new).mean for new in range(REMEMBERED)]
    assert next(new for new, mean in enumerate(means) if mean >= 60) in range(16, 24)


def test_the_residual_is_the_mean_rest_of_the_longer_runs() -> None:
    """Catches: runs as long as the age counted as longer, shorter ones taken along, the age left in."""
    times = RunTimes.from_history(30.0, (50.0, 10.0, 40.0, 20.0, 30.0))
    assert times.residual(0.0) == pytest.approx(30.0)
    assert times.residual(15.0) == pytest.approx(35.0 - 15.0)
    assert times.residual(20.0) == pytest.approx(40.0 - 20.0)


def test_the_residual_of_a_run_longer_than_nearly_all_is_half_its_age_and_not_nothing() -> None:
    """Catches: a run that is overdue and therefore expected to end this instant."""
    times = RunTimes.from_history(30.0, [20.0, 30.0, 40.0, 50.0] * 10)
    assert times.residual(50.0) == 25.0
    assert times.residual(500.0) == 250.0


def test_a_run_of_which_nothing_is_known_goes_on_for_the_rest_of_the_expected_time() -> None:
    """Catches: half the age of a run that has just begun, which is nearly nothing."""
    times = RunTimes.from_history(30.0, ())
    assert times.residual(0.0) == 30.0
    assert times.residual(10.0) == 20.0
    assert times.residual(28.0) == 14.0
    assert RunTimes(mean=30.0, variance=0.0, runs=(1.0, 1.0), tails=(2.0, 1.0)).residual(0.5) == 29.5


@given(HISTORIES, SECONDS)
def test_the_residual_agrees_with_a_plain_loop(history: list[float], age: float) -> None:
    """Catches: an index off by one in the sums of the longest runs."""
    times = RunTimes.from_history(30.0, history)
    longer = [value - age for value in history[-REMEMBERED:] if value > age]
    if len(longer) >= 3:
        assert times.residual(age) == pytest.approx(sum(longer) / len(longer), abs=1e-9)
    else:
        assert times.residual(age) >= 0.1 * times.mean


IMAGE = RunTimes(mean=10.0, variance=4.0)
VIDEO = RunTimes(mean=100.0, variance=2500.0)
ROUTES = {"image": IMAGE, "video": VIDEO}


def test_mean_and_variance_of_the_wait_are_those_of_the_formula() -> None:
    """Catches: a missing route, a residual for a mean, the (c - 1) term once too often, c for its square."""
    mean, variance = moments(
        ahead={"image": 6, "video": 2}, running=[("image", 4.0), ("video", 30.0)], slots=2, routes=ROUTES
    )
    still = (7 * (10**2 + 4) + 3 * (100**2 + 2500)) / (2 * (7 * 10 + 3 * 100))
    assert mean == pytest.approx((6 * 10 + 2 * 100 + 6 + 70 - still) / 2)
    assert variance == pytest.approx((7 * 4 + 3 * 2500 + still**2) / 4)


def test_the_first_of_the_line_waits_for_the_first_run_to_end() -> None:
    """Catches: the head of the line estimated by dividing, or by the slot that ends last."""
    mean, _ = moments(ahead={}, running=[("image", 4.0)] * 3 + [("image", 5.0)], slots=4, routes=ROUTES)
    assert mean == pytest.approx(5.0 / math.sqrt(4))


def test_a_line_that_the_term_would_make_negative_keeps_a_small_wait() -> None:
    """Catches: an estimate below 0 for a ticket with little ahead and many slots."""
    mean, _ = moments(ahead={"video": 1}, running=[("image", 9.5)] * 7, slots=8, routes=ROUTES)
    still = (100**2 + 2500 + 7 * 104) / (2 * (100 + 70))
    assert mean == pytest.approx(0.2 * still / 8)


@pytest.mark.parametrize(
    ("ahead", "running"),
    [({}, []), ({}, [("image", 0.0)] * 2), ({"image": 2}, []), ({"image": 1, "video": 0}, [("video", 5.0)])],
)
def test_a_ticket_for_which_a_slot_is_free_starts_now(ahead: dict[str, int], running: list[tuple[str, float]]) -> None:
    """Catches: an idle server that tells its first visitor to wait for the expected time."""
    assert estimate(ahead=ahead, running=running, slots=3, routes=ROUTES) == Wait(0.0, PICK_UP)


@pytest.mark.parametrize(
    ("ahead", "running"), [({}, [("image", 0.0)] * 3), ({"image": 3}, []), ({"image": 1}, [("video", 5.0)] * 2)]
)
def test_a_ticket_for_which_no_slot_is_free_has_to_wait(
    ahead: dict[str, int], running: list[tuple[str, float]]
) -> None:
    """Catches: a free slot that is given away twice."""
    wait = estimate(ahead=ahead, running=running, slots=3, routes=ROUTES)
    assert 0 < wait.p50 < wait.p90


def test_the_first_ticket_behind_a_run_of_an_unmeasured_route_waits_for_the_expected_time() -> None:
    """Catches: a made-up 0 before run times are known."""
    wait = estimate(ahead={}, running=[("new", 0.0)], slots=1, routes={"new": RunTimes.from_history(30.0, ())})
    assert 20 < wait.p50 < 30 < wait.p90 < 90


def test_runs_that_always_take_the_same_time_leave_no_range() -> None:
    """Catches: a division by the variance."""
    steady = RunTimes.from_history(30.0, [20.0] * REMEMBERED)
    wait = estimate(ahead={"steady": 3}, running=[("steady", 5.0)], slots=1, routes={"steady": steady})
    assert wait == pytest.approx((75.0, 75.0))


def test_runs_that_take_no_time_at_all_make_no_wait() -> None:
    """Catches: a division by a mean of 0."""
    instant = RunTimes.from_history(30.0, [0.0] * REMEMBERED)
    assert estimate(ahead={"instant": 9}, running=[("instant", 0.0)], slots=1, routes={"instant": instant}) == Wait(
        0, 0
    )


def test_a_route_that_is_no_longer_configured_is_taken_for_the_average_of_the_others() -> None:
    """Catches: a KeyError on every status page after a route was renamed."""
    mean, variance = moments(ahead={"gone": 2}, running=[], slots=1, routes=ROUTES)
    assert mean == pytest.approx(2 * 55.0)
    assert variance == pytest.approx(2 * (45**2 + (4 + 2500) / 2))
    assert moments(ahead={}, running=[("gone", 15.0)], slots=1, routes=ROUTES)[0] == pytest.approx(40.0)


def test_when_no_route_is_known_a_run_is_taken_to_need_thirty_seconds() -> None:
    """Catches: a division by the number of known routes."""
    assert moments(ahead={"gone": 2}, running=[], slots=1, routes={})[0] == pytest.approx(60.0)


@pytest.mark.parametrize("slots", [0, -1])
def test_without_slots_there_is_no_estimate(slots: int) -> None:
    """Catches: ZeroDivisionError, or a negative wait, when no worker is alive."""
    with pytest.raises(ValueError, match=rf"^slots must be 1 or more, not {slots}$"):
        estimate(ahead={"image": 1}, running=[], slots=slots, routes=ROUTES)


NAMES = st.sampled_from(["image", "video", "unknown"])


@given(
    st.dictionaries(NAMES, st.integers(0, 10**6)),
    st.lists(st.tuples(NAMES, st.floats(0, 1e6)), max_size=12),
    st.integers(1, 10**4),
    st.dictionaries(NAMES, st.builds(RunTimes.from_history, st.floats(0.001, 1e5), HISTORIES)),
)
def test_the_range_is_finite_and_in_order_whatever_comes(
    ahead: dict[str, int], running: list[tuple[str, float]], slots: int, routes: dict[str, RunTimes]
) -> None:
    """Catches: more running than slots, routes without runs and ages beyond all runs that end in NaN or below 0."""
    wait = estimate(ahead=ahead, running=running, slots=slots, routes=routes)
    assert 0 <= wait.p50 <= wait.p90 < math.inf


@given(HISTORIES, st.integers(0, 500), st.lists(st.floats(0, 100), min_size=8, max_size=8), st.integers(1, 8))
def test_one_more_ticket_ahead_never_shortens_the_wait(
    history: list[float], number: int, ages: list[float], slots: int
) -> None:
    """Catches: a line whose last one is told less than the one before."""
    routes = {"image": RunTimes.from_history(30.0, history)}
    running = [("image", age) for age in ages]
    fewer, more = (
        estimate(ahead={"image": ahead}, running=running, slots=slots, routes=routes) for ahead in (number, number + 1)
    )
    assert fewer.p50 <= more.p50 + 1e-9
    assert fewer.p90 <= more.p90 + 1e-9


def gamma_share(shape: float, value: float) -> float:
    """The probability that a gamma variate of scale 1 is at most ``value``, by Simpson's rule; shape 1 or more."""
    steps = 2000
    width = value / steps
    densities = [
        math.exp((shape - 1) * math.log(x) - x - math.lgamma(shape)) if x else float(shape == 1)
        for x in (step * width for step in range(steps + 1))
    ]
    return width / 3 * (densities[0] + densities[-1] + 4 * sum(densities[1:-1:2]) + 2 * sum(densities[2:-1:2]))


@pytest.mark.parametrize("shape", [1.0, 1.1, 1.5, 2.0, 3.0, 5.0, 10.0, 50.0, 400.0])
def test_the_quantiles_are_those_of_a_gamma_distribution_within_one_and_a_half_percent(shape: float) -> None:
    """Catches: the quantiles of a normal distribution, or another z for 90 %."""
    assert gamma_share(1.0, 2.0) == pytest.approx(1 - math.exp(-2.0)), "the independent method itself"
    for value, share in zip(gamma_quantiles(shape, math.sqrt(shape)), (0.5, 0.9), strict=True):
        assert gamma_share(shape, value / 1.015) < share < gamma_share(shape, value * 1.015)


class Told(NamedTuple):
    """What a queued ticket was told and what came of it; ``without`` is the mean without the (c - 1) term."""

    position: int
    wait: Wait
    mean: float
    without: float
    real: float


@lru_cache
def simulate(slots: int, variation: float) -> list[Told]:
    """Serve 8,000 lognormal runs of 30 s on average first in, first out, and estimate every wait.

    The load is 1; an arrival that finds 40 waiting goes away, so that short and long lines both occur.
    """
    random_ = random.Random(7)  # noqa: S311 - a repeatable simulation
    sigma = math.sqrt(math.log(1 + variation**2))
    told: list[Told] = []
    line: deque[tuple[float, int, Wait, float, float]] = deque()
    running: list[tuple[float, float]] = []
    history: deque[float] = deque(maxlen=REMEMBERED)
    times = RunTimes.from_history(30.0, ())

    def start(now: float) -> None:
        heapq.heappush(running, (now + random_.lognormvariate(math.log(30) - sigma**2 / 2, sigma), now))

    now = 0.0
    for _ in range(8000):
        now += random_.expovariate(slots / 30)
        while running and running[0][0] <= now:
            end, began = heapq.heappop(running)
            history.append(end - began)
            times = RunTimes.from_history(30.0, list(history))
            if line:
                arrived, position, wait, mean, without = line.popleft()
                told.append(Told(position, wait, mean, without, end - arrived))
                start(end)
        if len(running) < slots:
            start(now)
        elif len(line) < 40:
            ages = [("image", now - began) for _, began in running]
            ahead, routes = {"image": len(line)}, {"image": times}
            mean, _ = moments(ahead=ahead, running=ages, slots=slots, routes=routes)
            work = len(line) * times.mean + sum(times.residual(age) for _, age in ages)
            wait = estimate(ahead=ahead, running=ages, slots=slots, routes=routes)
            line.append((now, len(line) + 1, wait, mean, work / slots))
    return told


def bias(estimates: Sequence[float], real: Sequence[float]) -> float:
    """How much too long the estimates are in all, relative to the real waits."""
    return sum(estimates) / sum(real) - 1


WORKLOADS = pytest.mark.parametrize(("slots", "variation"), [(c, cv) for c in (1, 2, 5) for cv in (0.25, 0.7)])


@WORKLOADS
def test_simulated_waits_are_told_without_bias_and_the_p90_holds(slots: int, variation: float) -> None:
    """Catches: residuals, the (c - 1) term or the variance left out or counted twice."""
    far = [told for told in simulate(slots, variation) if told.position >= 5]
    assert len(far) > 2000
    assert abs(bias([told.mean for told in far], [told.real for told in far])) < 0.05
    assert 0.82 <= sum(told.real <= told.wait.p90 for told in far) / len(far) <= 0.98
    assert 0.42 <= sum(told.real <= told.wait.p50 for told in far) / len(far) <= 0.60


@WORKLOADS
def test_simulated_waits_near_the_head_of_the_line_are_within_the_p90_too(slots: int, variation: float) -> None:
    """Catches: a variance that makes the p50 of the first in line nearly 0."""
    near = [told for told in simulate(slots, variation) if told.position <= 2]
    assert len(near) > 100
    assert 0.82 <= sum(told.real <= told.wait.p90 for told in near) / len(near) <= 0.99
    assert 0.20 <= sum(told.real <= told.wait.p50 for told in near) / len(near) <= 0.65


@pytest.mark.parametrize("variation", [0.25, 0.7])
def test_without_the_term_for_the_other_slots_the_simulated_waits_are_told_too_long(variation: float) -> None:
    """Catches: the bound on the bias being so wide that the simple quotient of work and slots meets it too."""
    far = [told for told in simulate(5, variation) if told.position in range(5, 20)]
    real = [told.real for told in far]
    assert bias([told.without for told in far], real) > 0.15
    assert abs(bias([told.mean for told in far], real)) < 0.05


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "less than a second"),
        (0.0, "less than a second"),
        (0.49, "less than a second"),
        (0.5, "1 second"),
        (1.0, "1 second"),
        (7.0, "7 seconds"),
        (7.4, "7 seconds"),
        (7.5, "8 seconds"),
        (59.4, "59 seconds"),
        (59.5, "1 minute"),
        (60.0, "1 minute"),
        (89.0, "1 minute"),
        (90.0, "2 minutes"),
        (120.0, "2 minutes"),
        (3569.0, "59 minutes"),
        (3570.0, "1 hour"),
        (3660.0, "1 hour 1 minute"),
        (3900.0, "1 hour 5 minutes"),
        (7200.0, "2 hours"),
        (86_369.0, "23 hours 59 minutes"),
        (86_370.0, "1 day"),
        (90_000.0, "1 day 1 hour"),
        (86_400 * 10.0 + 7200, "10 days 2 hours"),
    ],
)
def test_a_length_of_time_in_words(seconds: float, text: str) -> None:
    """Catches: "1 minutes", "60 seconds", "0 minutes", a carry that is lost."""
    assert human(seconds) == text


@settings(max_examples=300)
@given(st.floats(0, 1e7))
def test_words_stay_within_a_third_of_the_time(seconds: float) -> None:
    """Catches: a unit that is dropped somewhere between the seconds and the days."""
    units = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
    words = human(seconds).replace("less than a second", "0 seconds").split()
    said = sum(int(number) * units[unit.rstrip("s")] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert abs(said - seconds) <= max(0.5, seconds / 3)
