"""How long to stay away before a retry or the next poll.

The jitter is a uniform draw in [0, 1) that the caller passes in: the arithmetic here stays repeatable.
"""

from __future__ import annotations

import math

# 2.0 ** 1024 overflows; any base that is no joke has reached every cap long before.
_LARGEST_EXPONENT = 1023


def delay(retry: int, load: float, jitter: float, *, base: float = 2.0, cap: float = 300.0) -> float:
    """Return the seconds to wait before retry number ``retry``, which is 0 for the first.

    With ``v = base * 2**retry * (1 + 2 * load)`` the delay is uniform between ``min(v, cap) / 2`` and
    ``min(1.5 * v, cap)``.  So it is ``v * U(0.5, 1.5)`` while all of that lies below the cap, and
    ``cap * U(0.5, 1)`` once ``v`` has reached it.  Between the two only the upper end is held back, and the
    spread is never less than half the cap: clients that failed together do not come back together.

    :param load: the server's load, taken as 0 to 1.
    :param jitter: a uniform draw, 0 or more and below 1.
    :param base: seconds, above 0.
    :param cap: the longest delay in seconds, above 0.
    :raises ValueError: for a negative ``retry``.
    """
    if retry < 0:
        raise ValueError(f"retry must be 0 or more, not {retry}")
    # The constant first: max() and min() then drop a NaN.
    load = min(1.0, max(0.0, load))
    middle = base * 2.0 ** min(retry, _LARGEST_EXPONENT) * (1 + 2 * load)
    low, high = min(middle, cap) / 2, min(1.5 * middle, cap)
    return min(high, low + (high - low) * jitter)  # rounding may not lift it above the cap


def poll_interval(wait: float, waiting: int, jitter: float) -> int:
    """Return the whole seconds, 1 or more, after which a client should ask for its ticket again.

    A quarter of the expected wait, but no sooner than a line that polls 50 times per second in all would
    allow; between 1 and 300 seconds, times ``U(0.9, 1.1)``, rounded up.

    :param wait: the expected wait in seconds; NaN says nothing and leaves the number waiting to decide.
    :param waiting: the number of tickets that wait.
    :param jitter: a uniform draw, 0 or more and below 1.
    """
    # The constant first: max() then drops a NaN.
    seconds = min(max(1.0, wait / 4, waiting / 50), 300.0)
    return math.ceil(seconds * (0.9 + 0.2 * jitter))
