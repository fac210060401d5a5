"""How long and how often a program tries."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


class RetryBudget:
    """Keeps retries to a share of the requests, so that a site in trouble is not sent a multiple of its load.

    A bucket of tokens, as in Finagle: a request puts ``share`` of a token in, a retry takes a whole one out, and
    ``per_minute`` tokens come in by themselves for programs that ask rarely.  It begins with those of a minute and
    holds twice as many at most, or 10.  It may be shared by adapters and by threads.

    :param share: retries per request, 0 or more.
    :param per_minute: retries per minute that are allowed besides, 0 or more.
    """

    def __init__(self, share: float = 0.1, per_minute: float = 10.0) -> None:
        self._share = share
        self._per_second = per_minute / 60
        self._tokens = per_minute
        self._most = max(10.0, 2 * per_minute)
        self._seen: float | None = None
        self._lock = threading.Lock()

    def deposit(self, now: float) -> None:
        """Note a request at ``now``, in seconds of any clock that does not go back."""
        with self._lock:
            self._fill(now, self._share)

    def take(self, now: float) -> bool:
        """Whether one more retry is within the budget at ``now``; if so it is spent."""
        with self._lock:
            self._fill(now, 0.0)
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def _fill(self, now: float, more: float) -> None:
        passed = 0.0 if self._seen is None else max(0.0, now - self._seen)
        self._seen = now
        self._tokens = min(self._most, self._tokens + passed * self._per_second + more)


@dataclass(frozen=True)
class Terms:
    """How long and how often a program tries; times are in seconds.

    :param tries: how often one request is sent at most, while it has not been accepted.
    :param longest_pause: the longest pause between two looks, and before a retry.  A site that asks for a longer one
        before a retry gets none: its answer goes to the caller.
    :param outage: how long a site may be unreachable while a ticket of its waits there.  Looking for a ticket is no
        retry and does not draw on the budget.
    :param resend: whether a request of a method that is not idempotent, such as POST, is sent again after its
        connection broke; and any with a key of the caller's when it is interrupted before its ticket is told, to cancel
        that.  Its Idempotency-Key makes one ticket of both if it was queued.  A request that ran at once has no ticket
        and runs again, unless the app itself knows the key.
    :param budget: may be shared with other adapters.
    :param clock: returns seconds that do not go back.
    :param wall: returns seconds since the epoch.
    :param uniform: returns a uniform draw from 0 to 1, for the jitter.
    """

    tries: int = 4
    longest_pause: float = 300.0
    outage: float = 300.0
    resend: bool = True
    budget: RetryBudget = field(default_factory=RetryBudget)
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    uniform: Callable[[], float] = random.random
