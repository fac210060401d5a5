from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_admission.policy.backoff import delay, poll_interval

RETRIES = st.one_of(st.integers(0, 12), st.integers(0, 10**7))
LOADS = st.floats(0, 1)
JITTERS = st.floats(0, 1, exclude_max=True)
LAST_JITTER = math.nextafter(1.0, 0.0)


@pytest.mark.parametrize(
    ("retry", "load", "jitter", "seconds"),
    [
        (0, 0.0, 0.0, 1.0),
        (0, 0.0, 0.5, 2.0),
        (0, 1.0, 0.5, 6.0),
        (0, 0.85, 0.5, 5.4),
        (3, 0.0, 0.5, 16.0),
        (3, 0.5, 0.25, 24.0),
        (20, 0.0, 0.0, 150.0),
        (20, 0.0, 0.5, 225.0),
        (20, 1.0, 0.5, 225.0),
    ],
)
def test_the_delay_is_the_formula_of_the_design(retry: int, load: float, jitter: float, seconds: float) -> None:
    """Catches: a first retry that waits twice the base, a load that does not count, a cap without jitter."""
    assert delay(retry, load, jitter) == pytest.approx(seconds)


@given(RETRIES, LOADS, JITTERS)
def test_the_delay_is_never_above_the_cap_and_never_nothing(retry: int, load: float, jitter: float) -> None:
    """Catches: jitter applied after the cap, which sends clients away for 450 seconds."""
    assert 1.0 <= delay(retry, load, jitter) <= 300.0


@given(st.integers(0, 5), LOADS, JITTERS)
def test_far_below_the_cap_the_delay_is_a_half_to_one_and_a_half_of_its_middle(
    retry: int, load: float, jitter: float
) -> None:
    """Catches: a jitter range other than U(0.5, 1.5)."""
    middle = 2 * 2**retry * (1 + 2 * load)
    assert delay(retry, load, jitter) == pytest.approx(middle * (0.5 + jitter))


@given(st.integers(0, 5), LOADS, JITTERS)
def test_load_makes_the_delay_one_to_three_times_as_long(retry: int, load: float, jitter: float) -> None:
    """Catches: a load factor that starts at 0 or ends elsewhere than at 3."""
    assert 1 <= delay(retry, load, jitter) / delay(retry, 0, jitter) <= 3 + 1e-9
    assert delay(retry, 1, jitter) == pytest.approx(3 * delay(retry, 0, jitter))


@given(st.integers(8, 10**7), LOADS)
def test_at_the_cap_the_delays_still_spread_over_half_of_it(retry: int, load: float) -> None:
    """Catches: min(cap, ...) around the jittered value, after which all clients come back together."""
    assert delay(retry, load, 0.0) == 150.0
    assert delay(retry, load, LAST_JITTER) == pytest.approx(300.0)


@given(st.floats(200, 1e9), JITTERS)
def test_from_where_the_cap_takes_hold_the_spread_is_never_less_than_half_of_it(middle: float, jitter: float) -> None:
    """Catches: a take-over from the formula to the cap at which the two ranges do not meet."""
    low, high = delay(0, 0, 0.0, base=middle), delay(0, 0, LAST_JITTER, base=middle)
    assert high - low >= 150.0 - 1e-9
    assert low <= delay(0, 0, jitter, base=middle) <= high


@given(RETRIES, LOADS, JITTERS, JITTERS, st.floats(0.01, 1e4), st.floats(0.01, 1e6))
def test_more_jitter_never_shortens_the_delay(
    retry: int, load: float, one: float, other: float, base: float, cap: float
) -> None:
    """Catches: a range whose ends cross between the formula and the cap."""
    short, long = (delay(retry, load, jitter, base=base, cap=cap) for jitter in sorted((one, other)))
    assert short <= long <= cap


@given(st.integers(0, 40), LOADS, LOADS, JITTERS)
def test_more_retries_and_more_load_never_shorten_the_delay(
    retry: int, load: float, other: float, jitter: float
) -> None:
    """Catches: a jump downwards where the cap takes over."""
    lower, higher = sorted((load, other))
    assert delay(retry, lower, jitter) <= delay(retry, higher, jitter) + 1e-9
    assert delay(retry, load, jitter) <= delay(retry + 1, load, jitter) + 1e-9


def test_a_millionth_retry_does_not_overflow() -> None:
    """Catches: 2.0 ** retry, which raises OverflowError from 1024 on."""
    assert delay(10**6, 1.0, 0.0) == 150.0
    assert delay(10**6, 1.0, 0.0, base=1e300) == 150.0


@pytest.mark.parametrize(
    ("load", "taken_as"), [(-3.0, 0.0), (1.5, 1.0), (math.inf, 1.0), (-math.inf, 0.0), (math.nan, 0.0)]
)
def test_a_load_outside_its_range_is_brought_into_it(load: float, taken_as: float) -> None:
    """Catches: a sensor's nonsense that becomes a negative or endless delay."""
    assert delay(1, load, 0.5) == delay(1, taken_as, 0.5)


def test_a_negative_retry_is_refused() -> None:
    """Catches: 2 ** -1, which answers a miscounting caller with half a delay."""
    with pytest.raises(ValueError, match=r"^retry must be 0 or more, not -1$"):
        delay(-1, 0.0, 0.0)


@pytest.mark.parametrize(
    ("wait", "waiting", "jitter", "seconds"),
    [
        (0.0, 0, 0.0, 1),
        (0.0, 1, 0.5, 1),
        (40.0, 1, 0.5, 10),
        (40.0, 1, 0.0, 9),
        (40.0, 1, LAST_JITTER, 11),
        (41.0, 1, 0.5, 11),
        (40.0, 5000, 0.5, 100),
        (1e6, 1, 0.5, 300),
        (math.inf, 1, 0.0, 270),
        (math.inf, 1, LAST_JITTER, 330),
        (math.nan, 0, 0.5, 1),
        (math.nan, 5000, 0.5, 100),
        (-5.0, -5, 0.5, 1),
    ],
)
def test_the_advised_poll_is_the_formula_of_the_design(wait: float, waiting: int, jitter: float, seconds: int) -> None:
    """Catches: rounding down to 0, the wait where the quarter is meant, a NaN that becomes an exception."""
    assert poll_interval(wait, waiting, jitter) == seconds


@given(st.floats(), st.integers(-10, 10**9), JITTERS)
def test_the_advised_poll_is_whole_seconds_between_1_and_330(wait: float, waiting: int, jitter: float) -> None:
    """Catches: any value at all that gives Retry-After a fraction, a zero or a word."""
    seconds = poll_interval(wait, waiting, jitter)
    assert isinstance(seconds, int)
    assert 1 <= seconds <= 330


@given(st.floats(0, 1200), st.integers(0, 15_000))
def test_the_line_is_polled_at_most_about_50_times_a_second(wait: float, waiting: int) -> None:
    """Catches: an interval that forgets how many others ask as well."""
    mean = sum(poll_interval(wait, waiting, draw / 20) for draw in range(20)) / 20
    assert waiting / mean <= 50 * 1.01
