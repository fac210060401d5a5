"""How long a queued ticket will wait: what is ahead of it, what runs, and recent run times -> (p50, p90).

The estimate is the work before the ticket, shared by the slots, less what need not be done by its start::

    mean = max((W + R - (c - 1) * Se) / c,  first,  0.2 * Se / c)
        c      slots
        W      sum over routes of tickets ahead * mean run time
        R      sum over what runs of the seconds it is still expected to run (`RunTimes.residual`)
        Se     sum E[x^2] / (2 * sum E[x]) over the tickets ahead and running
        first  min residual / sqrt(number running) when all slots are busy, else 0

    variance = (sum of variances of what is ahead and runs + (c - 1) * Se^2) / c^2

For a ticket to start, one slot must be free; the other c - 1 are then in the middle of a run, and a run met
at a random moment goes on for Se on average, longer than half a mean run because long runs are met more
often (the inspection paradox).  Without that term the estimate is 10 to 30 % too long.  The two other terms
keep it above 0 for a ticket near the head of the line, where the first says little.

The wait is taken to be gamma distributed with that mean and variance.  Overtaking by better tiers and route
limits are not in it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

#: Run times that are remembered for each route.
REMEMBERED = 64
#: Seconds within which a free slot and a waiting ticket meet.
PICK_UP = 0.1

_DECAY = 0.97  # the weight of a run time against that of the next one
_WEIGHTS = tuple(_DECAY**age for age in reversed(range(REMEMBERED)))
_UNSEEN_CV = 0.7  # standard deviation / mean of run times nobody has seen yet: that of a trace of image generations
_UNSEEN_TIME = 30.0  # seconds, for a route nothing is known of when no other is known either
_ENOUGH = 3  # remembered runs beyond an age; the mean of fewer says too little
_Z90 = 1.2815515655446004  # the 90 % quantile of the standard normal distribution


class Wait(NamedTuple):
    """Seconds until the start: half of such tickets wait at most ``p50``, nine in ten at most ``p90``."""

    p50: float
    p90: float


@dataclass(frozen=True)
class RunTimes:
    """What is known of the run times of one route.

    :param mean: seconds.
    :param variance: seconds squared.
    :param runs: the remembered run times in seconds, shortest first.
    :param tails: ``tails[i]`` is the sum of ``runs[i:]``.
    """

    mean: float
    variance: float
    runs: tuple[float, ...] = ()
    tails: tuple[float, ...] = ()

    @classmethod
    def from_history(cls, expected: float, seconds: Sequence[float]) -> RunTimes:
        """Weigh the last `REMEMBERED` run times, each 0.97 times as much as the next, after a first guess.

        The guess counts as two runs before the first one.  They lie 0.7 above and below ``expected``
        (relative to it): two equal ones would have the variance 0, a certainty that nobody has.  Once
        `REMEMBERED` runs are known it is forgotten like any older run, so that a wrong guess does not stay.

        :param expected: the route's ``expected_time`` in seconds, above 0.
        :param seconds: run times, oldest first.
        """
        last = seconds[-REMEMBERED:]
        weights = _WEIGHTS[REMEMBERED - len(last) :]
        guess = 2 * _DECAY ** len(last) if len(last) < REMEMBERED else 0.0
        total = guess + sum(weights)
        mean = (guess * expected + sum(w * x for w, x in zip(weights, last, strict=True))) / total
        spread = (expected - mean) ** 2 + (_UNSEEN_CV * expected) ** 2
        squares = guess * spread + sum(w * (x - mean) ** 2 for w, x in zip(weights, last, strict=True))
        runs = tuple(sorted(last))
        return cls(mean, squares / total, runs, tuple(accumulate(reversed(runs)))[::-1])

    @property
    def second_moment(self) -> float:
        """The mean of the squared run time, in seconds squared."""
        return self.variance + self.mean * self.mean

    def residual(self, age: float) -> float:
        """Return the seconds that a run of this ``age`` (seconds, 0 or more) is expected to go on.

        The mean of what the remembered runs longer than ``age`` had still to go.  With fewer than three of
        them it is what is left of a mean run, and at least half the age and a tenth of the mean.
        """
        first = bisect_right(self.runs, age)
        longer = len(self.runs) - first
        if longer >= _ENOUGH:
            return self.tails[first] / longer - age
        return max(self.mean - age, age / 2, 0.1 * self.mean)


def estimate(
    *, ahead: Mapping[str, int], running: Sequence[tuple[str, float]], slots: int, routes: Mapping[str, RunTimes]
) -> Wait:
    """Return how long a queued ticket will wait until it starts.

    A ticket for which a slot is free waits for nothing but a worker's next look: p50 is 0, p90 `PICK_UP`.

    :param ahead: route -> queued tickets that will be claimed before it.
    :param running: route and age in seconds of everything that holds a slot; may be more than ``slots``.
    :param slots: how many run at once on all hosts, 1 or more.
    :param routes: what is known of each route.  One that is missing is taken for the average of the others.
    :raises ValueError: when there are no slots: nobody can say then.
    """
    if slots < 1:
        raise ValueError(f"slots must be 1 or more, not {slots}")
    if sum(ahead.values()) < slots - len(running):
        return Wait(0.0, PICK_UP)
    mean, variance = moments(ahead=ahead, running=running, slots=slots, routes=routes)
    # No wait is less certain than an exponential one: where the variance says so, near the head of the line,
    # it counts work of others that will not be waited for.
    deviation = min(math.sqrt(variance), mean)
    return Wait(*gamma_quantiles(mean, deviation))


def moments(
    *, ahead: Mapping[str, int], running: Sequence[tuple[str, float]], slots: int, routes: Mapping[str, RunTimes]
) -> tuple[float, float]:
    """Return mean and variance of the wait as the formula at the top has them; parameters as for `estimate`."""
    queued = [(number, routes.get(route) or _average(routes)) for route, number in ahead.items()]
    started = [(1, routes.get(route) or _average(routes)) for route, _ in running]
    everything = queued + started
    work = sum(number * times.mean for number, times in queued)
    residuals = [times.residual(age) for (_, times), (_, age) in zip(started, running, strict=True)]
    first = min(residuals) / math.sqrt(len(residuals)) if len(residuals) >= slots else 0.0
    seconds = sum(number * times.mean for number, times in everything)
    squares = sum(number * times.second_moment for number, times in everything)
    still = squares / (2 * seconds) if seconds else 0.0
    mean = max((work + sum(residuals) - (slots - 1) * still) / slots, first, 0.2 * still / slots)
    variance = sum(number * times.variance for number, times in everything) + (slots - 1) * still * still
    return mean, variance / slots**2


def _average(routes: Mapping[str, RunTimes]) -> RunTimes:
    """Return what to take an unknown route for: a run of any known one, each as likely."""
    if not routes:
        return RunTimes.from_history(_UNSEEN_TIME, ())
    mean = sum(times.mean for times in routes.values()) / len(routes)
    squares = sum(times.second_moment for times in routes.values()) / len(routes)
    return RunTimes(mean, max(0.0, squares - mean * mean))


def gamma_quantiles(mean: float, deviation: float) -> tuple[float, float]:
    """Return the 50 % and the 90 % quantile of a gamma distribution, within 1.5 %.

    The cube root of a gamma variate is nearly normal (Wilson and Hilferty, 1931).

    :param mean: 0 or more.
    :param deviation: the standard deviation, at most ``mean``.
    """
    if mean <= 0:
        return 0.0, 0.0
    third = deviation / mean / 3
    middle = 1 - third * third
    return mean * middle**3, mean * (middle + _Z90 * third) ** 3


def human(seconds: float) -> str:
    """Return a length of time in English words, for instance "7 seconds" or "1 hour 5 minutes"; see `lengths`."""
    parts = lengths(seconds)
    return " ".join(f"{number} {unit}{'s' if number > 1 else ''}" for number, unit in parts) or "less than a second"


def lengths(seconds: float) -> list[tuple[int, str]]:
    """Return how many days, hours, minutes and seconds there are in it, those of which there are any.

    Rounded to the nearest second below a minute, to the nearest minute below a day, to the nearest hour
    from there on; a half goes up.
    """
    rounded = 0
    for step, end in ((1, 60.0), (60, 86_400.0), (3600, math.inf)):
        rounded = int(seconds / step + 0.5) * step
        if rounded < end:
            break
    minutes, second = divmod(rounded, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    parts = ((days, "day"), (hour, "hour"), (minute, "minute"), (second, "second"))
    return [(number, unit) for number, unit in parts if number]
