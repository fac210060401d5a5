"""Deadlines: what was not started within its route's ``max_wait`` is cancelled, and its owner told why.

The housekeeper looks every second.  But a process that starts has not looked yet, and upkeep can hold it up for
minutes: so whoever is about to claim looks first, unless that was done just now.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping

from wsgi_admission.logs import event
from wsgi_admission.stores import Store
from wsgi_admission.stores.records import AT_ONCE

log = logging.getLogger("wsgi_admission.process")

#: Seconds after a look for which nobody looks before a claim.
FRESH = 2.0


class Deadlines:
    """Cancels tickets that are overdue.  Safe to use from several threads.

    :param max_wait: route -> seconds, for the routes that have a limit.
    :param reason: says, for a limit in seconds, why a ticket is cancelled.
    :param clock: returns seconds since the epoch.
    :param monotonic: returns seconds of a clock that does not jump.
    """

    def __init__(
        self,
        store: Store,
        max_wait: Mapping[str, float],
        *,
        reason: Callable[[float], str],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._max_wait = max_wait
        self._reason = reason
        self._clock = clock
        self._monotonic = monotonic
        self._looking = threading.Lock()
        self._looked = -math.inf

    def expire(self) -> bool:
        """Cancel what is overdue; return whether there may be more."""
        now, more = self._clock(), False
        for route, seconds in self._max_wait.items():
            if expired := self._store.expire(route, before=now - seconds, now=now, reason=self._reason(seconds)):
                event(log, "ticket.expired", route=route, count=expired)
                more = more or expired >= AT_ONCE
        if not more:
            self._looked = self._monotonic()
        return more

    def before_claim(self) -> None:
        """Cancel all that is overdue, unless somebody has done so within `FRESH` seconds."""
        if not self._max_wait or self._is_fresh():
            return
        with self._looking:  # whoever comes second waits for the first
            while not self._is_fresh() and self.expire():
                pass

    def _is_fresh(self) -> bool:
        return self._monotonic() - self._looked < FRESH
