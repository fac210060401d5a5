"""The requests that run at once: what they must not overtake, and how many there were."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from wsgi_admission.errors import StoreError
from wsgi_admission.policy.decision import Line
from wsgi_admission.slots import Slots
from wsgi_admission.stores import Store
from wsgi_admission.stores.records import Counts, Passed

#: Direct runs remembered between two of those; what exceeds it is not counted.
PASSED_KEPT = 100_000


_EMPTY, _PAUSED = Line(0), Line(0, paused=True)


class Passing:
    """Counts the requests that run at once, and tells the store of them now and then."""

    def __init__(self) -> None:
        self._ended: deque[tuple[str, str, float, bool]] = deque(maxlen=PASSED_KEPT)

    def begin(self, tier: str, route: str, *, shadowed: bool) -> Callable[[], None]:
        """Return what is to be called when the request has ended."""
        start = time.monotonic()
        return lambda: self._ended.append((tier, route, time.monotonic() - start, shadowed))

    def flush(self, store: Store) -> None:
        """Tell the store of those that have ended."""
        ended = []
        while self._ended:
            ended.append(self._ended.popleft())
        if not ended:
            return
        try:
            store.observe([Passed(*one) for one in ended], now=time.time())
        except StoreError:
            self._ended.extend(ended)
            raise


def line_reader(store: Store, slots: Slots, ranks: Mapping[str, int]) -> Callable[[int, str], Line]:
    """Return a function from a newcomer's rank and route to what it must not overtake.

    The tallies are looked through once for each change of the line, not for each request.
    """
    seen: tuple[Counts, list[tuple[int, str, int]], bool] = ({}, [], False)

    def line(rank: int, route: str) -> Line:
        nonlocal seen
        counts = store.counts()
        if counts is not seen[0]:
            seen = (
                counts,
                # A tier that the configuration no longer names keeps an old rank: nobody overtakes it.
                [(ranks.get(tier, 0), route, n.queued) for (tier, route), n in counts.items() if n.queued],
                store.paused(),
            )
        _, queued, paused = seen
        if paused:
            return _PAUSED
        if not queued:
            return _EMPTY
        # What waits for a full route could not use a slot now, except for those of that route itself: the slot of the
        # route may be given back in the next moment, and is not the newcomer's then.
        return Line(sum(n for other, name, n in queued if other <= rank and (name == route or not slots.full(name))))

    return line
